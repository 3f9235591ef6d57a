//! view and shard: what the nodes say of the topology.

use serde_json::Value;

use super::refusal::{explained, unanswered};
use super::{Context, Names, client_of, patiently};
use crate::args::{ShardCommand, Via};
use crate::error::Result;
use crate::render::{line, printable, show};

/// Asks for `path` and shows the answer's `field`.
async fn look(context: &Context, via: &Via, path: &str, field: &str) -> Result<()> {
    let (record, runtime) = context.runtime().await?;
    let (client, names) = (client_of(&record, &runtime, via).await?, Names::of(&record, &runtime));
    let answer = patiently(&client, &names, client.look(path)).await.map_err(|error| unanswered(&error, &names))?;
    if !answer.is_success() {
        return Err(explained(&answer, &record, &runtime).await);
    }
    let json = answer.json();
    show(context.output, &json, || match json.get(field) {
        Some(Value::Array(all)) => all.iter().for_each(|one| line(&printable(one.as_str().unwrap_or_default()))),
        Some(Value::String(one)) => line(&printable(one)),
        Some(Value::Null) | None => line("none"),
        Some(other) => line(&other.to_string()),
    });
    Ok(())
}

pub async fn view(context: &Context, via: &Via) -> Result<()> {
    look(context, via, "/view", "view").await
}

pub async fn shard(context: &Context, command: ShardCommand) -> Result<()> {
    let path = |what: &str, shard: &str| format!("/shard/{what}/{}", kvnode_client::encode(shard));
    match command {
        ShardCommand::Ids(via) => look(context, &via, "/shard/ids", "shard-ids").await,
        ShardCommand::Members { shard, via } => look(context, &via, &path("members", &shard), "shard-members").await,
        ShardCommand::KeyCount { shard, via } => {
            look(context, &via, &path("key-count", &shard), "shard-key-count").await
        }
        ShardCommand::AddMember { .. } => unreachable!("it changes something, and is not for here"),
        ShardCommand::Node { node } => {
            look(context, &Via { via: Some(node) }, "/shard/node-shard-id", "node-shard-id").await
        }
    }
}
