//! cluster up, down, status, logs.

use futures_util::future::join_all;
use kvnode::client::Client;
use serde::Serialize;
use serde_json::Value;

use super::Context;
use crate::args::{ClusterCommand, Output};
use crate::cluster::NodeSpec;
use crate::error::{Code, Failure, Result};
use crate::observe::LOOK_TIMEOUT;
use crate::render::{confirm, line, say, show, stream_out, table};
use crate::runtime::{NodeState, Runtime};
use crate::state::{Record, RuntimeKind};

pub async fn run(context: &Context, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Up(args) => super::up::run(context, &args.up, args.consent).await,
        ClusterCommand::Down { yes, keep_data } => down(context, yes, keep_data).await,
        ClusterCommand::Status => status(context).await,
        ClusterCommand::Logs { node, follow } => logs(context, &node, follow).await,
    }
}

/// Lines of its log that are shown when a node ends by itself.
const LAST_LINES: usize = 20;

async fn logs(context: &Context, name: &str, follow: bool) -> Result<()> {
    let (record, runtime) = context.runtime().await?;
    let node = record.spec.node(name)?;
    if context.output == Output::Text {
        return runtime.logs(&node, follow, &mut stream_out).await;
    }
    if follow {
        return Err(Failure::usage("--follow has no end and --output json is one document: choose one"));
    }
    let text = logged(&runtime, &node).await?;
    let lines: Vec<&str> = text.lines().collect();
    show(context.output, &serde_json::json!({"node": name, "lines": lines}), || {});
    Ok(())
}

/// All that a node has logged.
async fn logged(runtime: &Runtime, node: &NodeSpec) -> Result<String> {
    let mut text = Vec::new();
    runtime.logs(node, false, &mut |part| text.extend_from_slice(part)).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A node that has ended will not become ready: its last words say why.
pub async fn check_alive(runtime: &Runtime, node: &NodeSpec) -> Result<()> {
    let state = runtime.state(node).await?;
    if !matches!(state, NodeState::Stopped | NodeState::Missing) {
        return Ok(());
    }
    let text = logged(runtime, node).await.unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
    Err(Failure::new(Code::Failed, format!("{} ended by itself; the end of its log:\n  {last}", node.name)))
}

async fn down(context: &Context, yes: bool, keep_data: bool) -> Result<()> {
    remembered(context).await?;
    let _lock = context.state.lock()?;
    let (record, runtime) = context.runtime().await?;
    if !yes && !keep_data {
        let question = format!("Delete cluster '{}' and all its data? [y/N] ", context.name);
        confirm(&question, "this deletes the cluster's data; say --yes, or --keep-data")?;
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

/// There is such a cluster; else what is left of any is named.
async fn remembered(context: &Context) -> Result<()> {
    match context.record() {
        Err(failure) if failure.code == Code::Environment && !context.state.has_record() => {
            Err(super::leftover::named(context, failure).await)
        }
        known => known.map(|_| ()),
    }
}

async fn status(context: &Context) -> Result<()> {
    remembered(context).await?;
    let (record, runtime) = context.runtime().await?;
    if let Err(failure) = runtime.agrees().await {
        say(&format!("warning: {failure}, which is not what {} says", context.state.record_path().display()));
    }
    show_status(context, &record, &runtime).await
}

pub async fn show_status(context: &Context, record: &Record, runtime: &Runtime) -> Result<()> {
    let specs = record.spec.node_specs();
    let nodes = join_all(specs.iter().map(|node| node_status(runtime, node))).await;
    let nodes = nodes.into_iter().collect::<Result<Vec<NodeStatus>>>()?;
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
    let look = tokio::time::timeout(LOOK_TIMEOUT, client.look("/status"));
    let answer = if state == NodeState::Running { look.await.ok() } else { None };
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
