//! node add: one node more. It asks the others and joins by itself; kvctl starts it and sees that it has arrived.

use std::time::{Duration, Instant};

use kvnode_client::Client;
use serde::Serialize;
use serde_json::Value;

use super::cluster::check_alive;
use super::{Context, client_of};
use crate::args::Via;
use crate::cluster::NodeSpec;
use crate::error::{Code, Failure, Result};
use crate::interrupt::Interrupt;
use crate::observe::LOOK_TIMEOUT;
use crate::render::{Progress, line, say, show};
use crate::runtime::Runtime;

/// Between two looks at the view.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Serialize)]
struct Added {
    node: String,
    address: String,
    endpoint: String,
}

pub async fn run(context: &Context, name: Option<&str>, limit: Duration) -> Result<()> {
    context.record()?;
    let _lock = context.state.lock()?;
    let interrupt = Interrupt::listen()?;
    let (before, runtime) = context.runtime().await?;
    let others = client_of(&before, &runtime, &Via::default()).await?;
    answers(&others).await?;
    super::node::starts_beside(context, &before, &runtime).await?;
    let node = before.spec.next_node(name, &runtime.taken().await?)?;
    let mut record = before.clone();
    record.spec.added.push(node.clone());
    let runtime = Runtime::open(&record, &context.state).await?;
    // Known before it is there: whatever happens to this command, `cluster down` finds the node.
    context.state.save(&record)?;
    let progress = Progress::waiting();
    let joined = match runtime.add(&node, &interrupt, &progress).await {
        Ok(()) => interrupt.or(joins(&runtime, &node, &others, limit, &progress)).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = joined {
        runtime.undo(&progress).await;
        context.state.save(&before)?;
        return Err(failure);
    }
    runtime.settle().await;
    progress.done();
    let added = Added { node: node.name.clone(), address: runtime.address(&node), endpoint: runtime.endpoint(&node) };
    show(context.output, &added, || {
        line(&format!("{} joined: {} at http://{}, in no shard yet", added.node, added.address, added.endpoint));
        say(&format!("`kvctl shard add-member SHARD {}` or `kvctl reshard N` gives it keys", added.node));
    });
    Ok(())
}

/// There must be a cluster to join.
async fn answers(others: &Client) -> Result<()> {
    others.look("/view").await.map(|_| ()).map_err(|error| {
        let failure = Failure::from(error);
        Failure::new(failure.code, format!("{failure}; there is nothing to join: `kvctl cluster up` starts the others"))
    })
}

/// Waits until the others list the node.
async fn joins(
    runtime: &Runtime,
    node: &NodeSpec,
    others: &Client,
    limit: Duration,
    progress: &Progress,
) -> Result<()> {
    let begun = Instant::now();
    let address = runtime.address(node);
    progress.step(&format!("waiting until the others list {}", node.name));
    loop {
        let view = others.look("/view").await;
        let listed = |view: &Value| view["view"].as_array().is_some_and(|all| all.iter().any(|one| *one == address));
        if view.as_ref().is_ok_and(|answer| listed(&answer.json())) {
            return Ok(());
        }
        check_alive(runtime, node).await?;
        if begun.elapsed() > limit {
            let view = view.map_or_else(|error| error.to_string(), |answer| answer.json()["view"].to_string());
            let own = own_words(runtime, node).await;
            let text = format!("{} ({address}) is not in the view after {limit:?}: {own}; the view: {view}", node.name);
            return Err(Failure::new(Code::TimedOut, text));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What the node itself says of how far it is.
async fn own_words(runtime: &Runtime, node: &NodeSpec) -> String {
    let client = Client::new(vec![runtime.endpoint(node)]);
    match tokio::time::timeout(LOOK_TIMEOUT, client.look("/ready")).await {
        Ok(Ok(answer)) if answer.is_success() => "it says that it is ready".into(),
        Ok(Ok(answer)) => format!("it says '{}'", answer.error()),
        _ => "it does not answer".into(),
    }
}
