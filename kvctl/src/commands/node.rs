//! Stop, start, kill, pause and unpause single nodes; `add` and `remove` are matters of their own.

use serde::Serialize;

use super::Context;
use crate::args::NodeCommand;
use crate::error::{Failure, Result};
use crate::render::{line, show};
use crate::runtime::{NodeAction, NodeState, Runtime};
use crate::state::Record;

#[derive(Serialize)]
struct Done {
    node: String,
    state: NodeState,
}

pub async fn run(context: &Context, command: NodeCommand) -> Result<()> {
    let (name, action) = match command {
        NodeCommand::Add { node, timeout } => return super::add::run(context, node.as_deref(), timeout).await,
        NodeCommand::Remove { node, yes } => return super::remove::run(context, &node, yes).await,
        NodeCommand::Stop { node } => (node, NodeAction::Stop),
        NodeCommand::Start { node } => (node, NodeAction::Start),
        NodeCommand::Kill { node } => (node, NodeAction::Kill),
        NodeCommand::Pause { node } => (node, NodeAction::Pause),
        NodeCommand::Unpause { node } => (node, NodeAction::Unpause),
    };
    context.record()?;
    let _lock = context.state.lock()?;
    let (record, runtime) = context.runtime().await?;
    let node = record.spec.node(&name)?;
    if action == NodeAction::Start {
        starts_beside(context, &record, &runtime).await?;
    }
    runtime.act(&node, action).await?;
    let state = runtime.state(&node).await?;
    show(context.output, &Done { node: name.clone(), state }, || line(&format!("{name} {}", state.name())));
    Ok(())
}

/// A node that is started must be one of those that run: with another secret it would be cut off, and take writes alone. Nor
/// may it begin a shard anew whose data is gone.
pub async fn starts_beside(context: &Context, record: &Record, runtime: &Runtime) -> Result<()> {
    runtime.agrees().await.map_err(|failure| {
        let path = context.state.record_path();
        let text = format!(
            "{failure}, which is not what {} says; nothing was changed: `kvctl cluster up` tells more",
            path.display()
        );
        Failure::new(failure.code, text)
    })?;
    super::loss::check(context, record, runtime, false).await
}
