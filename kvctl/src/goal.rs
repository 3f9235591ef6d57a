//! What can be waited for, and what is still missing of it. Pure: a look at the nodes goes in, reasons come out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::observe::{Seen, layout};

/// What `kvctl wait` and `cluster up` wait for. Only members of shards count: a node in no shard has nothing to serve. While
/// no node knows any shard, all count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Every node serves.
    Ready,
    /// The replicas of every shard hold the same, and all nodes know the same layout.
    Converged,
    /// Every node knows this layout or a later one.
    Epoch(u64),
}

/// Something that keeps a goal from being reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// A node or a shard.
    pub who: String,
    pub why: String,
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("'{text}' is none of ready, converged, epoch=N");
        match text {
            "ready" => Ok(Self::Ready),
            "converged" => Ok(Self::Converged),
            _ => text.strip_prefix("epoch=").and_then(|number| number.parse().ok()).map(Self::Epoch).ok_or_else(bad),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Converged => f.write_str("converged"),
            Self::Epoch(epoch) => write!(f, "epoch={epoch}"),
        }
    }
}

impl Goal {
    /// What is missing; nothing if the goal is reached.
    pub fn unmet(self, seen: &[Seen]) -> Vec<Unmet> {
        let shards = layout(seen);
        let members: BTreeSet<&String> = shards.values().flatten().collect();
        let counts = |one: &&Seen| members.is_empty() || members.contains(&one.address);
        let nodes: Vec<&Seen> = seen.iter().filter(counts).collect();
        match self {
            Self::Ready => missing(&nodes, |node| node.ready.clone()),
            Self::Epoch(wanted) => missing(&nodes, |node| at_least(node, wanted)),
            Self::Converged => not_converged(&nodes, &shards),
        }
    }
}

/// What `check` finds wrong, node by node.
fn missing(nodes: &[&Seen], check: impl Fn(&Seen) -> Result<(), String>) -> Vec<Unmet> {
    let unmet = |node: &&Seen| check(node).err().map(|why| Unmet { who: node.name.clone(), why });
    nodes.iter().filter_map(unmet).collect()
}

fn epoch_of(node: &Seen) -> Result<u64, String> {
    node.status.as_ref().map_err(Clone::clone)?.epoch.ok_or_else(|| "it is in no cluster yet".to_owned())
}

fn at_least(node: &Seen, wanted: u64) -> Result<(), String> {
    match epoch_of(node)? {
        epoch if epoch < wanted => Err(format!("it is at epoch {epoch}")),
        _ => Ok(()),
    }
}

fn not_converged(nodes: &[&Seen], shards: &BTreeMap<String, Vec<String>>) -> Vec<Unmet> {
    if shards.is_empty() {
        return missing(nodes, |node| epoch_of(node).and(Err("it knows no shard yet".into())));
    }
    let newest = nodes.iter().filter_map(|node| epoch_of(node).ok()).max().unwrap_or(0);
    let mut unmet = missing(nodes, |node| at_least(node, newest));
    for (id, members) in shards {
        let replicas: Vec<&Seen> = nodes.iter().copied().filter(|node| members.contains(&node.address)).collect();
        unmet.extend(missing(&replicas, |node| in_step(node, id, members)));
        unmet.extend(differ(id, &replicas));
    }
    // An unreachable node is missed by more than one rule.
    let mut said = BTreeSet::new();
    unmet.retain(|one| said.insert((one.who.clone(), one.why.clone())));
    unmet
}

/// Whether a replica is where it belongs, and its writes are with the others.
fn in_step(node: &Seen, shard: &str, members: &[String]) -> Result<(), String> {
    let status = node.status.as_ref().map_err(Clone::clone)?;
    if status.shard.as_deref() != Some(shard) {
        let shard = status.shard.as_deref().unwrap_or("no shard");
        return Err(format!("it is still in {shard}"));
    }
    let behind =
        |peer: &&crate::observe::PeerStatus| members.contains(&peer.node) && peer.lag.is_some_and(|lag| lag > 0);
    match status.peers.iter().find(behind) {
        Some(peer) => Err(format!("{} lacks {} of its writes", peer.node, peer.lag.unwrap_or(0))),
        None => Ok(()),
    }
}

/// The shard, if those replicas that answer don't hold the same.
fn differ(shard: &str, replicas: &[&Seen]) -> Option<Unmet> {
    let mut holders: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in replicas {
        let digest = node.status.as_ref().ok().and_then(|status| status.digest.as_deref());
        if let Some(digest) = digest {
            holders.entry(digest).or_default().push(&node.name);
        }
    }
    let groups: Vec<String> = holders.into_values().map(|names| names.join(" and ")).collect();
    (groups.len() > 1).then(|| Unmet { who: shard.to_owned(), why: format!("{} differ", groups.join(", ")) })
}

#[cfg(test)]
mod tests;
