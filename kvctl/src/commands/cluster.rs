//! cluster up, down, status, logs.

use std::time::Duration;

use super::{Context, status};
use crate::args::{ClusterCommand, Output};
use crate::cluster::NodeSpec;
use crate::error::{Code, Failure, Result};
use crate::render::{LogOut, confirm, line, show};
use crate::runtime::{NodeState, Runtime};
use crate::state::RuntimeKind;

pub async fn run(context: &Context, command: ClusterCommand) -> Result<()> {
    match command {
        ClusterCommand::Up(args) => super::up::run(context, &args.up, args.consent).await,
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

/// There is such a cluster; else what is left of any is named.
pub async fn remembered(context: &Context) -> Result<()> {
    match context.record() {
        Err(failure) if failure.code == Code::Environment && !context.state.has_record() => {
            Err(super::leftover::named(context, failure).await)
        }
        known => known.map(|_| ()),
    }
}
