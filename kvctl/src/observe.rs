//! One look at all nodes of a cluster: what each says of itself, at about the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::{join, join_all};
use kvnode_client::{Answer, Client, Error};
use serde::Deserialize;

use crate::cluster::NodeSpec;
use crate::runtime::Runtime;
use crate::state::Record;

/// A node that does not answer a look within this is said not to.
pub const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// The stage of a node that serves its shard.
const SERVING: &str = "serving";

/// What is used of a node's `/status`. What it does not say is absent, not an error: nodes of two versions may be at work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    pub epoch: Option<u64>,
    pub shard: Option<String>,
    pub stage: Option<String>,
    /// Why it does not serve.
    pub reason: String,
    pub keys: Option<u64>,
    pub digest: Option<String>,
    pub shards: Vec<ShardStatus>,
    pub peers: Vec<PeerStatus>,
}

/// A shard as a node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ShardStatus {
    pub id: String,
    pub members: Vec<String>,
}

/// Another node as a node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    pub node: String,
    pub reachable: bool,
    pub stage: Option<String>,
    /// Why the other refuses it, if it does.
    pub refused: Option<String>,
    /// Writes that the other has not acknowledged, if it is a replica of the same shard.
    pub lag: Option<u64>,
}

impl Status {
    pub fn is_serving(&self) -> bool {
        self.stage.as_deref() == Some(SERVING)
    }

    /// Nodes that refuse it, because the secrets differ.
    pub fn refused_by(&self) -> Vec<&str> {
        self.peers.iter().filter(|peer| peer.refused.is_some()).map(|peer| peer.node.as_str()).collect()
    }

    /// Whether it counts a node among the members.
    pub fn lists(&self, address: &str) -> bool {
        let in_shard = |shard: &ShardStatus| shard.members.iter().any(|member| member == address);
        self.peers.iter().any(|peer| peer.node == address) || self.shards.iter().any(in_shard)
    }

    /// Whether it knows of another that this serves, and reaches it.
    pub fn sees_serving(&self, address: &str) -> bool {
        let serves = |peer: &PeerStatus| peer.reachable && peer.stage.as_deref() == Some(SERVING);
        self.peers.iter().any(|peer| peer.node == address && serves(peer))
    }
}

/// What one node said; `Err` tells why there is nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name, or its address if kvctl did not start it.
    pub name: String,
    pub address: String,
    pub ready: Result<(), String>,
    pub status: Result<Status, String>,
}

/// Where a look goes: kept from one look to the next, because a client is dear to make.
struct Target {
    name: String,
    address: String,
    client: Client,
}

/// Looks at all nodes as often as it is asked to.
pub struct Observer {
    targets: Vec<Target>,
}

impl Observer {
    pub fn new(record: &Record, runtime: &Runtime) -> Self {
        let target = |node: NodeSpec| Target {
            name: node.name.clone(),
            address: runtime.address(&node),
            client: Client::new(vec![runtime.endpoint(&node)]),
        };
        Self { targets: record.spec.members().into_iter().map(target).collect() }
    }

    /// Asks all nodes that are meant to run, and members that kvctl did not start at the address that the others know them by.
    pub async fn look(&mut self) -> Vec<Seen> {
        let mut seen = join_all(self.targets.iter().map(look)).await;
        let known: BTreeSet<&str> = self.targets.iter().map(|target| target.address.as_str()).collect();
        let members = layout(&seen).into_values().flatten();
        let strangers: BTreeSet<String> = members.filter(|member| !known.contains(member.as_str())).collect();
        let stranger =
            |address: String| Target { name: address.clone(), client: Client::new(vec![address.clone()]), address };
        let strangers: Vec<Target> = strangers.into_iter().map(stranger).collect();
        seen.extend(join_all(strangers.iter().map(look)).await);
        self.targets.extend(strangers);
        seen
    }
}

async fn look(target: &Target) -> Seen {
    let limit = |path| tokio::time::timeout(LOOK_TIMEOUT, target.client.look(path));
    let (ready, status) = join(limit("/ready"), limit("/status")).await;
    let status = told(status).and_then(|answer| {
        serde_json::from_slice(&answer.body).map_err(|error| format!("its /status can't be understood: {error}"))
    });
    Seen { name: target.name.clone(), address: target.address.clone(), ready: told(ready).map(|_| ()), status }
}

/// A good answer, or why there is none.
fn told(answer: Result<Result<Answer, Error>, tokio::time::error::Elapsed>) -> Result<Answer, String> {
    match answer {
        Ok(Ok(answer)) if answer.is_success() => Ok(answer),
        Ok(Ok(answer)) => Err(answer.error()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {LOOK_TIMEOUT:?}")),
    }
}

/// The shards and the addresses of their members, as the node knows them that has seen the latest epoch; empty while
/// nobody knows any.
pub fn layout(seen: &[Seen]) -> BTreeMap<String, Vec<String>> {
    layout_of(seen.iter().filter_map(|one| one.status.as_ref().ok()))
}

/// See [`layout`].
pub fn layout_of<'a>(statuses: impl Iterator<Item = &'a Status>) -> BTreeMap<String, Vec<String>> {
    let newest = statuses.filter(|status| !status.shards.is_empty()).max_by_key(|status| status.epoch);
    let shards = newest.map(|status| status.shards.clone()).unwrap_or_default();
    shards.into_iter().map(|shard| (shard.id, shard.members)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(epoch: u64, members: &[&str]) -> Seen {
        let members = members.iter().map(ToString::to_string).collect();
        let shards = vec![ShardStatus { id: "s1".into(), members }];
        let status = Status { epoch: Some(epoch), shards, ..Status::default() };
        Seen { name: "alice".into(), address: "a".into(), ready: Ok(()), status: Ok(status) }
    }

    #[test]
    fn the_latest_epoch_tells_the_layout() {
        let all = [seen(1, &["a", "b"]), seen(3, &["a", "c"]), seen(2, &["a"])];
        assert_eq!(layout(&all), BTreeMap::from([("s1".into(), vec!["a".into(), "c".into()])]));
        let silent = Seen { status: Err("no answer".into()), ..seen(9, &["a"]) };
        assert_eq!(layout(&[silent]), BTreeMap::new());
    }

    #[test]
    fn what_a_status_does_not_say_is_absent() {
        let status: Status = serde_json::from_str(r#"{"shard":null,"keys":3,"more":{}}"#).unwrap();
        assert_eq!(status, Status { keys: Some(3), ..Status::default() });
    }
}
