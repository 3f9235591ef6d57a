//! cluster up, down, status, logs.

use std::time::{Duration, Instant};

use super::{Context, status};
use crate::args::{ClusterCommand, Output, UpArgs};
use crate::cluster::{NodeSpec, Spec};
use crate::error::{Code, Failure, Result};
use crate::goal::Goal;
use crate::interrupt::Interrupt;
use crate::observe::Observer;
use crate::render::{LogOut, Progress, confirm, line, show};
use crate::runtime::{self, NodeState, Runtime};
use crate::state::{Record, RuntimeKind};

pub async fn run(context: &Context, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Up(args) => up(context, &args).await,
        ClusterCommand::Down { yes, keep_data } => down(context, yes, keep_data).await,
        ClusterCommand::Status => status::run(context).await,
        ClusterCommand::Logs { node, follow } => logs(context, &node, follow).await,
    }
}

/// Lines of its log that are shown when a node ends by itself.
const LAST_LINES: usize = 20;

async fn logs(context: &Context, name: &str, follow: bool) -> Result<()> {
    let (record, runtime) = context.runtime().await?;
    let node = record.spec.node(name)?;
    if context.output == Output::Text {
        let mut log = LogOut::new();
        let mut out = |part: &[u8]| log.write(part);
        let logs = runtime.logs(&node, follow, &mut out);
        return if follow { while_there(context, logs).await } else { logs.await };
    }
    if follow {
        return Err(Failure::usage("--follow has no end and --output json is one document: choose one"));
    }
    let text = logged(&runtime, &node).await?;
    let lines: Vec<&str> = text.lines().collect();
    show(context.output, &serde_json::json!({"node": name, "lines": lines}), || {});
    Ok(())
}

/// Between two looks whether there is a cluster still.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Does `work`, which has no end of its own, until the cluster is taken down.
async fn while_there(context: &Context, work: impl Future<Output = Result<()>>) -> Result<()> {
    let gone = async {
        while context.state.load()?.is_some() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    };
    tokio::select! {
        done = work => done,
        gone = gone => gone,
    }
}

/// All that a node has logged.
async fn logged(runtime: &Runtime, node: &NodeSpec) -> Result<String> {
    let mut text = Vec::new();
    runtime.logs(node, false, &mut |part| text.extend_from_slice(part)).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn up(context: &Context, args: &UpArgs) -> Result<()> {
    let _lock = context.state.lock()?;
    let interrupt = Interrupt::listen()?;
    let known = context.state.load()?;
    let made = bring_up(context, args, known.as_ref(), &interrupt).await;
    if made.is_err() && known.is_none() {
        context.state.forget(true)?;
    }
    let (record, runtime) = made?;
    status::show_status(context, &record, &runtime).await
}

/// Brings up what the arguments say, or leaves nothing that it made.
pub async fn bring_up(
    context: &Context,
    args: &UpArgs,
    known: Option<&Record>,
    interrupt: &Interrupt,
) -> Result<(Record, Runtime)> {
    let spec = Spec::resolve(&context.name, args, known.map(|record| &record.spec))?;
    let kind = runtime::choose(args.runtime, known.map(|record| record.runtime)).await?;
    let secret = match known {
        Some(record) => record.secret.clone(),
        None => runtime::secret_left(kind, &spec.name).await?.map_or_else(new_secret, Ok)?,
    };
    let record = Record { runtime: kind, spec, secret };
    let runtime = Runtime::open(&record, &context.state).await?;
    context.state.save(&record)?;
    let progress = Progress::new();
    progress.expect(record.spec.members().len());
    let done = match runtime.up(args.kvnode.as_deref(), interrupt, &progress).await {
        Ok(()) => interrupt.or(wait_ready(&record, &runtime, Duration::from_secs(args.wait), &progress)).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = done {
        progress.step("taking back what was made");
        runtime.undo().await;
        return Err(failure);
    }
    runtime.settle().await;
    Ok((record, runtime))
}

fn new_secret() -> Result<String> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(|error| Failure::environment(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Waits until every node that has something to serve serves.
async fn wait_ready(record: &Record, runtime: &Runtime, limit: Duration, progress: &Progress) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut observer = Observer::new(record, runtime);
    let mut waiting = record.spec.members().len();
    loop {
        let still = Goal::Ready.unmet(&observer.look().await);
        progress.did(waiting.saturating_sub(still.len()));
        waiting = waiting.min(still.len());
        if still.is_empty() {
            return Ok(());
        }
        for node in record.spec.members().iter().filter(|node| still.iter().any(|unmet| unmet.who == node.name)) {
            check_alive(runtime, node).await?;
        }
        if Instant::now() > deadline {
            return Err(super::wait::timed_out("not all nodes are ready", limit, &still));
        }
        progress.step(&super::wait::waiting_text(Goal::Ready, &still));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
    context.record()?;
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
