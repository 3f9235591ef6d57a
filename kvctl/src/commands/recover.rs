//! view recover: most nodes are gone for good, and one goes on with those it reaches. What only the others have may be lost,
//! so it is asked twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kvnode_client::Client;
use reqwest::Method;
use serde_json::{Value, json};

use super::topology::{DECISION_TIMEOUT, change, show_result};
use super::{Context, Names, refused};
use crate::args::Via;
use crate::error::{Code, Failure, Result};
use crate::observe::Status;
use crate::render::{Progress, confirm_twice, printable, say};

/// A node that dies is gone from the view of the others within this.
const VIEW_SETTLES: Duration = Duration::from_secs(3);

/// What a node would go on with, and without.
#[derive(Debug, Default, PartialEq, Eq)]
struct Split {
    stays: Vec<String>,
    left_behind: Vec<String>,
    /// Shards none of whose members stay.
    lost_shards: Vec<String>,
}

pub async fn run(context: &Context, via: &Via, unasked: bool) -> Result<()> {
    let Some(name) = &via.via else {
        return Err(Failure::usage(
            "say with --via NODE which node is to go on: one that serves, and reaches most of the rest",
        ));
    };
    let (record, runtime) = context.runtime().await?;
    let client = Client::new(vec![runtime.endpoint(&record.spec.node(name)?)]).patient(DECISION_TIMEOUT);
    let split = split(&client).await?;
    if split.left_behind.is_empty() {
        let text =
            format!("{name} reaches all nodes: there is nothing to recover from; `kvctl cluster status` tells more");
        return Err(Failure::new(Code::Conflict, text));
    }
    let names = Names::of(&record, &runtime);
    say(&what_may_be_lost(name, &split, &names));
    if !unasked {
        let refusal = "this may lose writes; nobody can be asked here, so say --yes-i-may-lose-writes";
        let again = format!("Type the name of the node that goes on ({name}) to do it: ");
        confirm_twice("Go on without them? [y/N] ", &again, name, refusal)?;
    }
    let answer = change(&client, &names, Method::PUT, "/view/recover", Some(&json!({ "confirm": true }))).await?;
    show_result(context, &answer);
    Ok(())
}

/// What the node itself knows and reaches, once it has had the time to notice who is gone.
async fn split(client: &Client) -> Result<Split> {
    let progress = Progress::waiting();
    progress.step("looking who is left");
    tokio::time::sleep(VIEW_SETTLES).await;
    progress.done();
    let (view, status) = (client.look("/view").await?, client.look("/status").await?);
    for answer in [&view, &status] {
        if !answer.is_success() {
            return Err(refused(answer));
        }
    }
    let reached = view.json().get("view").and_then(Value::as_array).cloned().unwrap_or_default();
    let reached = reached.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect();
    let status: Status = serde_json::from_slice(&status.body).unwrap_or_default();
    let shards = status.shards.into_iter().map(|shard| (shard.id, shard.members)).collect();
    Ok(divide(reached, status.peers.into_iter().map(|peer| peer.node).collect(), shards))
}

/// `peers` are the nodes that it knows, in a shard or not.
fn divide(reached: Vec<String>, peers: BTreeSet<String>, shards: BTreeMap<String, Vec<String>>) -> Split {
    let gone = |member: &&String| !reached.contains(member);
    let known: BTreeSet<&String> = shards.values().flatten().chain(&peers).collect();
    let left_behind = known.into_iter().filter(gone).cloned().collect();
    let lost = |(id, members): (&String, &Vec<String>)| members.iter().all(|one| gone(&one)).then(|| id.clone());
    Split { left_behind, lost_shards: shards.iter().filter_map(lost).collect(), stays: reached }
}

fn what_may_be_lost(name: &str, split: &Split, names: &Names) -> String {
    let mut lines = vec![
        format!("{name} goes on with:    {}", names.list(&split.stays)),
        format!("and leaves behind: {}", names.list(&split.left_behind)),
        "Writes that only those have may be lost, also such as clients were told were done; clients that have seen them then \
         see older values again. So may be what those decided last about view and shards. Stop first those that still run."
            .to_owned(),
    ];
    if !split.lost_shards.is_empty() {
        let shards = split.lost_shards.join(", ");
        let shards = printable(&shards);
        lines.push(format!(
            "No replica of {shards} stays: ALL KEYS of {shards} are lost, unless one comes back with its data."
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(all: &[&str]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_shard_none_of_whose_replicas_stay_is_lost() {
        let shards = || BTreeMap::from([("s1".into(), text(&["a", "b"])), ("s2".into(), text(&["c", "d"]))]);
        let peers = || BTreeSet::from(["b".to_owned(), "e".to_owned()]);
        let split = divide(text(&["a", "b"]), peers(), shards());
        let left_behind = text(&["c", "d", "e"]);
        assert_eq!(split, Split { stays: text(&["a", "b"]), left_behind, lost_shards: text(&["s2"]) });
        assert_eq!(divide(text(&["a", "c"]), peers(), shards()).lost_shards, text(&[]));
        let said = what_may_be_lost("a", &split, &Names(BTreeMap::from([("c".into(), "carol".into())])));
        assert!(said.contains("leaves behind: carol,d,e") && said.contains("ALL KEYS of s2"), "{said}");
    }
}
