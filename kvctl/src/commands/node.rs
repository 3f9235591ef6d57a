//! Stop, start, kill, pause and unpause single nodes; `add` and `remove` are matters of their own.

use serde::Serialize;

use super::Context;
use crate::args::NodeCommand;
use crate::error::Result;
use crate::render::{line, show};
use crate::runtime::{NodeAction, NodeState};

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
    runtime.act(&node, action).await?;
    let state = runtime.state(&node).await?;
    show(context.output, &Done { node: name.clone(), state }, || line(&format!("{name} {}", state.name())));
    Ok(())
}
