//! Members of the view and of shards: listed, added, removed.

use std::time::Duration;

use kvnode_client::{Answer, Client, Error, Session};
use reqwest::Method;
use serde_json::{Value, json};

use super::refusal::unanswered;
use super::{Context, Names, client_of, look, patiently, recover, refused};
use crate::args::{Via, ViewArgs, ViewCommand};
use crate::cluster::NodeSpec;
use crate::error::{Code, Failure, Result};
use crate::render::{line, printable, say, show};
use crate::runtime::Runtime;
use crate::state::Record;

pub async fn view(context: &Context, args: ViewArgs) -> Result<()> {
    let via = Via { via: args.via };
    match args.command {
        None => look::view(context, &via).await,
        Some(ViewCommand::Add { address }) => add(context, &address, &via).await,
        Some(ViewCommand::Remove { address, timeout }) => remove(context, &address, timeout, &via).await,
        Some(ViewCommand::Recover { yes_i_may_lose_writes }) => {
            recover::run(context, &via, yes_i_may_lose_writes).await
        }
    }
}

/// A node may wait for an earlier change to end and then for a majority to decide, each for some seconds, before it answers.
pub const DECISION_TIMEOUT: Duration = Duration::from_secs(30);

async fn add(context: &Context, address: &str, via: &Via) -> Result<()> {
    let _lock = context.state.lock()?;
    let (mut record, runtime) = context.runtime().await?;
    let address = address_of(&record, &runtime, address)?;
    let client = client_of(&record, &runtime, via).await?.patient(DECISION_TIMEOUT);
    let names = Names::of(&record, &runtime);
    let answer = change(&client, &names, Method::PUT, "/view", Some(&json!({ "socket-address": address }))).await?;
    let known = node_at(&record, &runtime, &address);
    if known.is_some_and(|node| record.spec.removed.remove(&node.name)) {
        context.state.save(&record)?;
    }
    show_result(context, &answer);
    Ok(())
}

async fn remove(context: &Context, address: &str, limit: Duration, via: &Via) -> Result<()> {
    let _lock = context.state.lock()?;
    let (mut record, runtime) = context.runtime().await?;
    let address = address_of(&record, &runtime, address)?;
    // One that leaves may be gone before it has answered: the others are asked.
    let leaving = node_at(&record, &runtime, &address);
    let client = match &leaving {
        Some(leaving) if via.via.is_none() => super::client_but(&record, &runtime, Some(&leaving.name)).await?,
        _ => client_of(&record, &runtime, via).await?,
    };
    let body = json!({ "socket-address": address });
    let names = Names::of(&record, &runtime);
    let answer = change(&client.patient(limit), &names, Method::DELETE, "/view", Some(&body)).await;
    // Also where an earlier command had it removed and gave up before the answer: it is a member no more, as was wished.
    let is_gone = answer.as_ref().map_or_else(|failure| failure.code == Code::NotFound, |_| true);
    // Before anything is printed: nobody may be reading.
    if let Some(node) = leaving.as_ref().filter(|_| is_gone) {
        record.spec.removed.insert(node.name.clone());
        context.state.save(&record)?;
    }
    let answer = answer?;
    super::loss::remember_now(context, &record, &runtime).await;
    show_result(context, &answer);
    if let Some(warning) = answer.json().get("warning").and_then(Value::as_str) {
        say(&format!("warning: {}", printable(warning)));
    }
    if let Some(NodeSpec { name, .. }) = &leaving {
        say(&format!(
            "`kvctl node stop {name}` ends its process, `kvctl node remove {name}` deletes it and its data; `kvctl view add {name}` \
             makes it a member again"
        ));
    }
    Ok(())
}

/// The node that kvctl knows at an address.
fn node_at(record: &Record, runtime: &Runtime, address: &str) -> Option<NodeSpec> {
    record.spec.node_specs().into_iter().find(|node| runtime.address(node) == address)
}

pub async fn add_member(context: &Context, shard: &str, address: &str, limit: Duration, via: &Via) -> Result<()> {
    let (record, runtime) = context.runtime().await?;
    let body = json!({ "socket-address": address_of(&record, &runtime, address)? });
    let client = client_of(&record, &runtime, via).await?.patient(limit);
    let path = format!("/shard/add-member/{}", kvnode_client::encode(shard));
    let names = Names::of(&record, &runtime);
    let answer = change(&client, &names, Method::PUT, &path, Some(&body)).await?;
    super::loss::remember_now(context, &record, &runtime).await;
    show_result(context, &answer);
    Ok(())
}

/// `HOST:PORT` as it is; else the address of the node of that name.
fn address_of(record: &Record, runtime: &Runtime, text: &str) -> Result<String> {
    if text.contains(':') { Ok(text.to_owned()) } else { Ok(runtime.address(&record.spec.node(text)?)) }
}

/// Asks for a change of the topology.
///
/// # Errors
/// If it was refused, or its fate is not known.
pub async fn change(
    client: &Client,
    names: &Names,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Answer> {
    let (body, mut session) = (body.map(Value::to_string), Session::default());
    let answer = patiently(client, names, client.request(method, path, body, &mut session)).await;
    let answer = answer.map_err(|error| {
        let hint = match error {
            Error::TimedOut(_) | Error::Broken(_) => {
                "; it may have been done or still go on: `kvctl reshard status` and `kvctl cluster status` tell"
            }
            Error::Unreachable(_) | Error::NoUrl(_) => "",
        };
        let failure = unanswered(&error, names);
        Failure::new(failure.code, format!("{failure}{hint}"))
    })?;
    if answer.is_success() { Ok(answer) } else { Err(with_hint(refused(&answer))) }
}

/// What to do about a refusal, where that is known.
fn with_hint(failure: Failure) -> Failure {
    if failure.code == Code::Conflict {
        // What is in the way of a change is mostly another change.
        let text = format!("{failure}; `kvctl reshard status` shows the change that runs or ran last");
        return Failure::new(Code::Conflict, text);
    }
    let unknown = ["No such path", "The path does not have this method"];
    if unknown.iter().any(|answer| failure.message.starts_with(answer)) {
        return Failure::environment(format!("{failure}; this needs nodes of a newer kvnode"));
    }
    failure
}

/// The answer's `result`, as the node said it.
pub fn show_result(context: &Context, answer: &Answer) {
    let json = answer.json();
    show(context.output, &json, || line(&printable(json.get("result").and_then(Value::as_str).unwrap_or("done"))));
}
