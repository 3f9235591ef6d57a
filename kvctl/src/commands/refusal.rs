//! What becomes of a refusal, or of no answer at all: a failure that says what is known.

use kvnode_client::{Answer, Client, Error};
use serde_json::{Value, json};

use super::Names;
use crate::error::{Code, Failure};
use crate::render::printable;
use crate::runtime::{NodeState, Runtime};
use crate::state::Record;

/// What begins the answer of a node that reaches no replica of a key's shard; the shard's name follows.
const NO_REPLICA: &str = "No replica of shard ";
/// What is known of a write whose answer is lost.
const FATE: &str = "the outcome of the write is unknown: it may or may not take effect";

/// Turns a refusal into a failure with the code that says which kind it is.
pub fn refused(answer: &Answer) -> Failure {
    let message = answer.error();
    let code = match answer.status {
        404 => Code::NotFound,
        400 | 405 | 413 | 431 => Code::Usage,
        409 => Code::Conflict,
        503 if message.starts_with("Causal dependencies") => Code::DependenciesNotMet,
        503 if message.starts_with(NO_REPLICA) => Code::Unreachable,
        _ => Code::Failed,
    };
    if answer.json().get("outcome").is_some_and(|outcome| outcome == "unknown") {
        return unknown(code, &format!("{message} (said {})", answer.node));
    }
    Failure::new(code, format!("{message} (said {})", answer.node))
}

/// The same, and where no replica of a shard can be reached, who they are and what is known of them.
pub async fn explained(answer: &Answer, record: &Record, runtime: &Runtime) -> Failure {
    let failure = refused(answer);
    let told = answer.error();
    let Some(shard) = told.strip_prefix(NO_REPLICA).and_then(|rest| rest.split(' ').next()) else { return failure };
    let path = format!("/shard/members/{}", kvnode_client::encode(shard));
    // Who answered a moment ago answers again, or the failure stands as it is.
    let Ok(members) = Client::new(vec![answer.node.clone()]).look(&path).await else { return failure };
    let members = members.json()["shard-members"].as_array().cloned().unwrap_or_default();
    let members: Vec<&str> = members.iter().filter_map(Value::as_str).collect();
    if members.is_empty() {
        return failure;
    }
    let mut all = Vec::new();
    for address in members {
        all.push(known_of(address, record, runtime).await);
    }
    Failure { message: format!("{failure}: {}", all.join(", ")), ..failure }
}

/// `dave (paused)`; only the name of one that runs, or that kvctl did not start.
async fn known_of(address: &str, record: &Record, runtime: &Runtime) -> String {
    let node = record.spec.node_specs().into_iter().find(|node| runtime.address(node) == address);
    let Some(node) = node else { return printable(address).into_owned() };
    match runtime.state(&node).await {
        Ok(NodeState::Running) | Err(_) => node.name,
        Ok(state) => format!("{} ({})", node.name, state.name()),
    }
}

/// There is no answer to a read.
pub fn unanswered(error: &Error, names: &Names) -> Failure {
    let failure = Failure::from(error.clone());
    Failure { message: names.said(&failure.message), ..failure }
}

/// There is no answer to a write. If it was sent, nobody knows what became of it.
pub fn unanswered_write(error: &Error, names: &Names) -> Failure {
    let failure = unanswered(error, names);
    match error {
        Error::TimedOut(_) | Error::Broken(_) => unknown(failure.code, &failure.message),
        Error::Unreachable(_) | Error::NoUrl(_) => failure,
    }
}

fn unknown(code: Code, why: &str) -> Failure {
    let message = format!("{why}; {FATE}");
    let document = json!({ "error": message, "exit-code": code as u8, "outcome": "unknown" });
    Failure { code, message, document: Some(Box::new(document)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_write_that_was_sent_has_an_unknown_fate() {
        let names = Names([("127.0.0.1:8083".to_owned(), "bob".to_owned())].into());
        let bob = || "127.0.0.1:8083".to_owned();
        let lost = unanswered_write(&Error::TimedOut(bob()), &names);
        assert_eq!(lost.message, format!("no answer in time from bob; {FATE}"));
        assert_eq!(lost.document.expect("a document")["outcome"], "unknown");
        let unsent = unanswered_write(&Error::Unreachable(bob()), &names);
        assert_eq!((unsent.message.as_str(), unsent.document), ("no node can be reached: bob", None));
        assert_eq!(unanswered(&Error::TimedOut(bob()), &names).document, None);
    }
}
