//! The nodes under load, and which of them gets a key.

use std::collections::BTreeMap;

use kvnode_client::Client;
use kvnode_types::ident::{SLOT_COUNT, Slot};
use serde::Deserialize;

use crate::args::Route;
use crate::error::{Code, Failure, Result};

/// A node, as it is reached from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub endpoint: String,
}

/// The part of `/status` that tells who has what.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Layout {
    node: String,
    epoch: Option<u32>,
    shards: Vec<Shard>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Shard {
    id: String,
    members: Vec<String>,
    /// First and last slot of each run.
    slot_runs: Vec<(u16, u16)>,
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    pub targets: Vec<Target>,
    /// For each shard, the targets that have it.
    groups: Vec<Vec<usize>>,
    /// For each slot, its shard's place in `groups`; empty if keys don't matter.
    slots: Vec<u16>,
}

impl Routing {
    /// The group that a key's requests go to.
    pub fn group_of(&self, key: &str) -> usize {
        self.slots.get(usize::from(Slot::of(key).0)).map_or(0, |&group| usize::from(group))
    }

    /// How many groups there are: a connection of the run needs a socket for each.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// The node of a group that this connection of the run talks to.
    pub fn target(&self, group: usize, connection: usize) -> &Target {
        let members = &self.groups[group];
        &self.targets[members[connection % members.len()]]
    }

    /// # Errors
    /// If none of the nodes can be reached, or the route can't be taken.
    pub async fn new(route: &Route, targets: Vec<Target>) -> Result<Self> {
        let mut layouts = Vec::new();
        let mut silent = Vec::new();
        for target in &targets {
            match Client::new(vec![target.endpoint.clone()]).look("/status").await {
                Ok(answer) if answer.is_success() => {
                    let layout = serde_json::from_slice(&answer.body).unwrap_or_default();
                    layouts.push((target.clone(), layout));
                }
                // Another server of the same contract: it has one shard as far as anybody knows.
                Ok(answer) if matches!(answer.status, 404 | 405) => layouts.push((target.clone(), Layout::default())),
                Ok(answer) => silent.push(format!("{}: {}", target.name, answer.error())),
                Err(error) => silent.push(format!("{}: {error}", target.name)),
            }
        }
        if layouts.is_empty() {
            return Err(Failure::new(Code::Unreachable, format!("no node to load answers: {}", silent.join("; "))));
        }
        Self::of(route, layouts)
    }

    fn of(route: &Route, layouts: Vec<(Target, Layout)>) -> Result<Self> {
        let targets: Vec<Target> = layouts.iter().map(|(target, _)| target.clone()).collect();
        match route {
            Route::Spread => {
                let all = (0..targets.len()).collect();
                Ok(Self { targets, groups: vec![all], slots: Vec::new() })
            }
            Route::One(wanted) => {
                let is = |(target, layout): &(Target, Layout)| {
                    [&target.name, &target.endpoint, &layout.node].contains(&wanted)
                };
                let found = layouts.iter().position(is).ok_or_else(|| {
                    let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
                    let text = format!("there is no node '{wanted}' that answers; there is {}", names.join(", "));
                    Failure::new(Code::NotFound, text)
                })?;
                Ok(Self { groups: vec![vec![found]], slots: Vec::new(), targets })
            }
            Route::Owner => Self::owners(targets, &layouts),
            Route::Elsewhere => {
                let mut routing = Self::owners(targets, &layouts)?;
                if routing.groups.len() < 2 {
                    return Err(Failure::usage("--route elsewhere: there is one shard only, and every key is its"));
                }
                // Each shard's keys to the nodes of the next.
                routing.groups.rotate_left(1);
                Ok(routing)
            }
        }
    }

    fn owners(targets: Vec<Target>, layouts: &[(Target, Layout)]) -> Result<Self> {
        let newest = layouts.iter().map(|(_, layout)| layout).max_by_key(|layout| layout.epoch);
        let shards = newest.map(|layout| layout.shards.as_slice()).unwrap_or_default();
        let at: BTreeMap<&str, usize> =
            layouts.iter().enumerate().map(|(index, (_, layout))| (layout.node.as_str(), index)).collect();
        let mut slots = vec![None; usize::from(SLOT_COUNT)];
        let mut groups = Vec::new();
        for (group, shard) in shards.iter().enumerate() {
            let members: Vec<usize> = shard.members.iter().filter_map(|node| at.get(node.as_str()).copied()).collect();
            if members.is_empty() {
                let text =
                    format!("--route owner: none of the nodes named is a replica of shard {} and answers", shard.id);
                return Err(Failure::new(Code::Unreachable, text));
            }
            groups.push(members);
            for &(first, last) in &shard.slot_runs {
                let run = slots.get_mut(usize::from(first)..=usize::from(last)).unwrap_or_default();
                run.fill(Some(group as u16));
            }
        }
        let slots: Option<Vec<u16>> = slots.into_iter().collect();
        let unknown = || Failure::new(Code::Failed, "--route owner: the nodes don't say who has which keys");
        Ok(Self { targets, groups, slots: slots.ok_or_else(unknown)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layouts(nodes: &[&str]) -> Vec<(Target, Layout)> {
        let one = |(index, node): (usize, &&str)| {
            let shards = serde_json::json!({ "node": node, "epoch": 1 + index % 2, "shards": [
                { "id": "s1", "members": ["a:1", "b:1"], "slot_runs": [[0, 99], [8192, 16383]] },
                { "id": "s2", "members": ["c:1"], "slot_runs": [[100, 8191]] },
            ]});
            let target = Target { name: format!("node{index}"), endpoint: format!("127.0.0.1:{index}") };
            (target, serde_json::from_value(shards).unwrap())
        };
        nodes.iter().enumerate().map(one).collect()
    }

    #[test]
    fn keys_go_to_a_replica_of_their_shard() {
        let routing = Routing::of(&Route::Owner, layouts(&["c:1", "a:1", "b:1"])).unwrap();
        assert_eq!(routing.groups(), 2);
        let elsewhere = Routing::of(&Route::Elsewhere, layouts(&["c:1", "a:1", "b:1"])).unwrap();
        assert_eq!(elsewhere.groups, [routing.groups[1].clone(), routing.groups[0].clone()]);
        assert_eq!(elsewhere.slots, routing.slots);
        for number in 0..100 {
            let key = format!("key{number}");
            let slot = Slot::of(&key).0;
            let owners: &[&str] = if (100..8192).contains(&slot) { &["node0"] } else { &["node1", "node2"] };
            let group = routing.group_of(&key);
            for connection in 0..4 {
                assert_eq!(routing.target(group, connection).name, owners[connection % owners.len()], "{key}");
            }
        }
    }

    #[test]
    fn a_shard_that_nobody_has_and_a_layout_that_nobody_tells_are_errors() {
        let code = |all: Vec<(Target, Layout)>| Routing::of(&Route::Owner, all).unwrap_err().code;
        assert_eq!(code(layouts(&["a:1", "b:1"])), Code::Unreachable);
        assert_eq!(code(vec![(layouts(&["a:1"]).remove(0).0, Layout::default())]), Code::Failed);
    }

    #[test]
    fn one_node_is_found_by_any_of_its_names() {
        for wanted in ["node1", "127.0.0.1:1", "b:1"] {
            let routing = Routing::of(&Route::One(wanted.into()), layouts(&["a:1", "b:1"])).unwrap();
            assert_eq!(routing.target(routing.group_of("x"), 7).name, "node1");
        }
        let failure = Routing::of(&Route::One("zoe".into()), layouts(&["a:1"])).unwrap_err();
        assert_eq!(failure.code, Code::NotFound);
    }

    #[test]
    fn connections_are_spread_over_all() {
        let routing = Routing::of(&Route::Spread, layouts(&["a:1", "b:1", "c:1"])).unwrap();
        let names: Vec<&str> = (0..4).map(|n| routing.target(routing.group_of("x"), n).name.as_str()).collect();
        assert_eq!(names, ["node0", "node1", "node2", "node0"]);
    }
}
