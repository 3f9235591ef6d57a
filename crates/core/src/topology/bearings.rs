//! What every request asks of a topology, looked up once per topology instead of once per request.

use std::collections::BTreeMap;

use kvnode_types::ident::{Addr, Epoch, NodeId, Origin, ShardId, Slot};

use super::{SlotRun, Topology};
use crate::token::Seal;

/// A topology from one node's point of view.
#[derive(Clone, Debug, Default)]
pub struct Bearings {
    /// Per living epoch and member, the shards that now have slots which it may have written to then.
    concerned: BTreeMap<(Epoch, NodeId), Vec<ShardId>>,
    /// Origins of earlier epochs are retired.
    pub oldest: Epoch,
    /// Of the layout in force.
    epoch: Epoch,
    /// A context of this epoch or a later one comes from a layout that this node does not know yet.
    pub next: Epoch,
    /// For the contexts of the cluster; `None` while there is no cluster.
    pub seal: Option<Seal>,
    /// The slots of the shard that this node is in, in order.
    pub own_runs: Vec<SlotRun>,
    /// The other replicas of that shard as they follow on this one in a ring.
    pub ring: Vec<Addr>,
    nodes: BTreeMap<Addr, NodeId>,
}

impl Bearings {
    pub fn of(topology: &Topology, me: Option<NodeId>) -> Self {
        let mut concerned = BTreeMap::new();
        if let Some(from) = topology.from() {
            for (old, heirs) in topology.heirs() {
                for &node in from.members(old) {
                    concerned.insert((from.epoch, node), heirs.iter().copied().collect());
                }
            }
        }
        for (&shard, members) in &topology.layout.shards {
            for &node in members {
                concerned.insert((topology.layout.epoch, node), vec![shard]);
            }
        }
        let own = me.and_then(|me| topology.layout.shard_of_node(me));
        let own_runs = own.map(|shard| topology.layout.runs_of(shard)).unwrap_or_default();
        let (epoch, next) = (topology.layout.epoch, topology.next_epoch());
        let seal = Some(Seal::new(&topology.context_key));
        let ring = ring(topology, own, me);
        let nodes = topology.nodes_by_addr().into_iter().map(|(addr, node)| (addr.clone(), node)).collect();
        Self { concerned, oldest: topology.oldest_epoch(), epoch, next, seal, own_runs, ring, nodes }
    }

    /// The node at an address, if the topology lists it.
    pub fn node_at(&self, addr: &Addr) -> Option<NodeId> {
        self.nodes.get(addr).copied()
    }

    /// The shards that now have slots which an origin may have written to; none if no living layout knows it.
    pub fn shards_of(&self, origin: Origin) -> &[ShardId] {
        self.concerned.get(&(origin.epoch, origin.node)).map_or(&[], Vec::as_slice)
    }

    /// Whether all that still exists of an epoch is everywhere, or nothing of it exists because its layout was given up.
    pub fn is_retired(&self, epoch: Epoch) -> bool {
        epoch < self.oldest || (epoch > self.epoch && epoch < self.next)
    }

    /// Whether a slot is among those of the shard that this node is in.
    pub fn owns(&self, slot: Slot) -> bool {
        let after = self.own_runs.partition_point(|&(first, _)| first <= slot);
        after > 0 && slot <= self.own_runs[after - 1].1
    }
}

fn ring(topology: &Topology, own: Option<ShardId>, me: Option<NodeId>) -> Vec<Addr> {
    let (Some(own), Some(me)) = (own, me) else { return Vec::new() };
    let mut others: Vec<NodeId> = topology.members(own).iter().copied().filter(|&node| node != me).collect();
    others.sort_unstable_by_key(|&node| (node < me, node));
    others.iter().filter_map(|node| topology.nodes.get(node).cloned()).collect()
}
