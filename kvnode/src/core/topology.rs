//! Who belongs to the cluster and who has which slot.
//!
//! Everything here is agreed: all nodes see the same sequence of topologies. The first is made by formation; nodes and
//! origins are named so that they survive changes of the layout.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::wire::ident::{Addr, Epoch, NodeId, Origin, SLOT_COUNT, ShardId, Slot};

/// Random, made at formation: two clusters never have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

/// Which shard has which slots and which nodes, during one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub epoch: Epoch,
    pub shards: BTreeMap<ShardId, Vec<NodeId>>,
    /// Runs of slots: the first slot of each run and its shard, in slot order. Starts with slot 0.
    runs: Vec<(Slot, ShardId)>,
}

impl Layout {
    /// Contiguous blocks of `nodes` in order and contiguous runs of slots, both as even as they go.
    ///
    /// # Panics
    /// If there are more shards than nodes, or none: configuration is checked before.
    pub fn first(nodes: &[NodeId], shard_count: u32) -> Self {
        let (count, total) = (shard_count as usize, nodes.len());
        assert!(count >= 1 && count <= total, "{count} shards of {total} nodes");
        let mut shards = BTreeMap::new();
        let mut runs = Vec::new();
        for index in 0..count {
            let id = ShardId(index as u32 + 1);
            let cut = |part: usize| part * (total / count) + part.min(total % count);
            shards.insert(id, nodes[cut(index)..cut(index + 1)].to_vec());
            let first_slot = index * usize::from(SLOT_COUNT) / count;
            runs.push((Slot(first_slot as u16), id));
        }
        Self { epoch: Epoch(1), shards, runs }
    }

    pub fn shard_of_slot(&self, slot: Slot) -> ShardId {
        let after = self.runs.partition_point(|&(first, _)| first <= slot);
        self.runs[after - 1].1
    }

    pub fn shard_of_node(&self, node: NodeId) -> Option<ShardId> {
        self.shards.iter().find(|(_, members)| members.contains(&node)).map(|(&id, _)| id)
    }

    /// The slots of a shard, in order.
    pub fn slots_of(&self, shard: ShardId) -> impl Iterator<Item = Slot> + '_ {
        (0..SLOT_COUNT).map(Slot).filter(move |&slot| self.shard_of_slot(slot) == shard)
    }
}

/// The cluster as agreed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub cluster: ClusterId,
    /// Signs contexts, so that another cluster's or a forged one is told from ours.
    pub context_key: [u8; 32],
    pub nodes: BTreeMap<NodeId, Addr>,
    pub layout: Layout,
}

impl Topology {
    /// The formation record: `view` in order, numbered from 1.
    pub fn form(cluster: ClusterId, context_key: [u8; 32], view: &[Addr], shard_count: u32) -> Self {
        let nodes: BTreeMap<NodeId, Addr> = (1..).map(NodeId).zip(view.iter().cloned()).collect();
        let ids: Vec<NodeId> = nodes.keys().copied().collect();
        Self { cluster, context_key, nodes, layout: Layout::first(&ids, shard_count) }
    }

    pub fn node_at(&self, addr: &Addr) -> Option<NodeId> {
        self.nodes.iter().find(|(_, at)| *at == addr).map(|(&id, _)| id)
    }

    /// The shard that an origin wrote to; `None` if the topology knows no such origin.
    pub fn shard_of_origin(&self, origin: Origin) -> Option<ShardId> {
        if origin.epoch == self.layout.epoch { self.layout.shard_of_node(origin.node) } else { None }
    }

    pub fn members(&self, shard: ShardId) -> &[NodeId] {
        self.layout.shards.get(&shard).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(nodes: u16, shards: u32) -> Topology {
        let view: Vec<Addr> = (0..nodes).map(|n| format!("10.10.0.{}:8090", n + 2).parse().unwrap()).collect();
        Topology::form(ClusterId(7), [0; 32], &view, shards)
    }

    #[test]
    fn six_nodes_and_two_shards_are_the_first_three_and_the_last_three() {
        let topology = form(6, 2);
        assert_eq!(topology.members(ShardId(1)), [NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(topology.members(ShardId(2)), [NodeId(4), NodeId(5), NodeId(6)]);
    }

    #[test]
    fn uneven_numbers_are_as_even_as_they_go() {
        let sizes: Vec<usize> = form(7, 3).layout.shards.values().map(Vec::len).collect();
        assert_eq!(sizes, [3, 2, 2]);
        let layout = form(7, 3).layout;
        for id in 1..=3 {
            let slots = layout.slots_of(ShardId(id)).count();
            assert!((5461..=5462).contains(&slots), "{slots}");
        }
    }
}
