//! cluster up, down, status, logs.

use std::io::{BufRead, IsTerminal};
use std::time::{Duration, Instant};

use kvnode::client::Client;
use serde::Serialize;
use serde_json::Value;

use super::Context;
use crate::args::{ClusterCommand, UpArgs};
use crate::cluster::{NodeSpec, Spec};
use crate::error::{Code, Failure, Result};
use crate::render::{Progress, line, say, show, table};
use crate::runtime::{self, NodeState, Runtime};
use crate::state::{Record, RuntimeKind};

pub async fn run(context: &Context, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Up(args) => up(context, &args).await,
        ClusterCommand::Down { yes, keep_data } => down(context, yes, keep_data).await,
        ClusterCommand::Status => status(context).await,
        ClusterCommand::Logs { node, follow } => {
            let (record, runtime) = context.runtime().await?;
            runtime.logs(&record.spec.node(&node)?, follow).await
        }
    }
}

async fn up(context: &Context, args: &UpArgs) -> Result<()> {
    let _lock = context.state.lock()?;
    let known = context.state.load()?;
    let spec = Spec::resolve(&context.name, args, known.as_ref().map(|record| &record.spec))?;
    let kind = runtime::choose(args.runtime, known.as_ref().map(|record| record.runtime)).await?;
    let secret = known.as_ref().map_or_else(new_secret, |record| Ok(record.secret.clone()))?;
    let record = Record { runtime: kind, spec, secret };
    let runtime = Runtime::open(&record, &context.state).await?;
    context.state.save(&record)?;
    let progress = Progress::new();
    let done = tokio::select! {
        done = bring_up(&record, &runtime, args, &progress) => done,
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Code::Failed, "interrupted")),
    };
    if let Err(failure) = done {
        progress.step("taking back what was made");
        runtime.undo().await;
        if known.is_none() {
            context.state.forget(true)?;
        }
        return Err(failure);
    }
    progress.done();
    show_status(context, &record, &runtime).await
}

async fn bring_up(record: &Record, runtime: &Runtime, args: &UpArgs, progress: &Progress) -> Result<()> {
    runtime.up(args.kvnode.as_deref(), progress).await?;
    wait_ready(record, runtime, Duration::from_secs(args.wait), progress).await
}

fn new_secret() -> Result<String> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(|error| Failure::environment(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Waits until every node serves.
async fn wait_ready(record: &Record, runtime: &Runtime, limit: Duration, progress: &Progress) -> Result<()> {
    let deadline = Instant::now() + limit;
    progress.step("waiting until all nodes are ready");
    let mut waiting = record.spec.node_specs();
    loop {
        let mut reasons = Vec::new();
        let mut still = Vec::new();
        for node in waiting {
            if let Some(reason) = not_ready(runtime, &node).await {
                reasons.push(format!("{}: {reason}", node.name));
                still.push(node);
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        for node in &still {
            if runtime.state(node).await? == NodeState::Stopped {
                let text = format!("{} ended by itself; see `kvctl cluster logs {}`:", node.name, node.name);
                say(&text);
                runtime.logs(node, false).await?;
                return Err(Failure::new(Code::Failed, format!("{} ended by itself", node.name)));
            }
        }
        if Instant::now() > deadline {
            let text = format!("not all nodes are ready after {limit:?}: {}", reasons.join("; "));
            return Err(Failure::new(Code::TimedOut, text));
        }
        waiting = still;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Why a node does not serve, if it does not.
async fn not_ready(runtime: &Runtime, node: &NodeSpec) -> Option<String> {
    match Client::new(vec![runtime.endpoint(node)]).look("/ready").await {
        Ok(answer) if answer.is_success() => None,
        Ok(answer) => Some(answer.error()),
        Err(error) => Some(error.to_string()),
    }
}

async fn down(context: &Context, yes: bool, keep_data: bool) -> Result<()> {
    let _lock = context.state.lock()?;
    let (record, runtime) = context.runtime().await?;
    if !yes && !keep_data && !confirmed(&context.name)? {
        return Err(Failure::new(Code::Failed, "nothing was changed"));
    }
    runtime.down(!keep_data).await?;
    if !keep_data || record.runtime == RuntimeKind::Local {
        context.state.forget(!keep_data)?;
    }
    let kept = if keep_data { "stopped; its data is kept" } else { "gone, and its data with it" };
    show(context.output, &super::object("cluster", &context.name), || {
        line(&format!("cluster '{}' is {kept}", context.name))
    });
    Ok(())
}

fn confirmed(name: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("this deletes the cluster's data; say --yes, or --keep-data"));
    }
    eprint!("Delete cluster '{name}' and all its data? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::environment(error.to_string()))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[derive(Serialize)]
struct NodeStatus {
    name: String,
    address: String,
    endpoint: String,
    state: NodeState,
    ready: bool,
    reason: String,
    shard: Option<String>,
    keys: Option<u64>,
    /// The most writes of this node that a replica of its shard has not acknowledged.
    lag: Option<u64>,
}

#[derive(Serialize)]
struct ClusterStatus {
    cluster: String,
    runtime: RuntimeKind,
    nodes: Vec<NodeStatus>,
}

async fn status(context: &Context) -> Result<()> {
    let (record, runtime) = context.runtime().await?;
    show_status(context, &record, &runtime).await
}

async fn show_status(context: &Context, record: &Record, runtime: &Runtime) -> Result<()> {
    let mut nodes = Vec::new();
    for node in record.spec.node_specs() {
        nodes.push(node_status(runtime, &node).await?);
    }
    let status = ClusterStatus { cluster: context.name.clone(), runtime: record.runtime, nodes };
    show(context.output, &status, || {
        let dash = || "-".to_owned();
        let row = |node: &NodeStatus| {
            vec![
                node.name.clone(),
                node.address.clone(),
                format!("http://{}", node.endpoint),
                node.shard.clone().unwrap_or_else(dash),
                if node.ready { "ready".to_owned() } else { node.state.name().to_owned() },
                node.keys.map_or_else(dash, |keys| keys.to_string()),
                node.lag.map_or_else(dash, |lag| lag.to_string()),
                node.reason.clone(),
            ]
        };
        table(&["NODE", "ADDRESS", "URL", "SHARD", "STATE", "KEYS", "LAG", ""], status.nodes.iter().map(row).collect());
    });
    Ok(())
}

async fn node_status(runtime: &Runtime, node: &NodeSpec) -> Result<NodeStatus> {
    let state = runtime.state(node).await?;
    let endpoint = runtime.endpoint(node);
    let client = Client::new(vec![endpoint.clone()]);
    let limit = Duration::from_secs(2);
    let answer =
        if state == NodeState::Running { tokio::time::timeout(limit, client.look("/status")).await.ok() } else { None };
    let json = answer.and_then(|answer| answer.ok()).map(|answer| answer.json()).unwrap_or_default();
    let text = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
    let lags = json.get("peers").and_then(Value::as_array).into_iter().flatten();
    Ok(NodeStatus {
        name: node.name.clone(),
        address: runtime.address(node),
        endpoint,
        state,
        ready: text("stage").as_deref() == Some("serving"),
        reason: text("reason").unwrap_or_default(),
        shard: text("shard"),
        keys: json.get("keys").and_then(Value::as_u64),
        lag: lags.filter_map(|peer| peer.get("lag").and_then(Value::as_u64)).max(),
    })
}
