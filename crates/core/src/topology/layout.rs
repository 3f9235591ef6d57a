//! Which shard has which slots and which nodes, during one epoch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use kvnode_types::ident::{Epoch, NodeId, SLOT_COUNT, ShardId, Slot};

/// Slots from the first to the last, both included.
pub type SlotRun = (Slot, Slot);

/// Which shard has which slots and which nodes. Every slot belongs to exactly one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    pub epoch: Epoch,
    pub shards: BTreeMap<ShardId, Vec<NodeId>>,
    /// Runs of slots: the first slot of each run and its shard, in slot order. Starts with slot 0; neighbours differ.
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

    /// A layout in which as many slots as given are each shard's in turn, beginning with slot 0; together all there are.
    pub(super) fn of(
        epoch: Epoch,
        shards: BTreeMap<ShardId, Vec<NodeId>>,
        lengths: impl IntoIterator<Item = (ShardId, usize)>,
    ) -> Self {
        let mut runs: Vec<(Slot, ShardId)> = Vec::new();
        let mut next = 0;
        for (shard, length) in lengths.into_iter().filter(|&(_, length)| length > 0) {
            if runs.last().is_none_or(|&(_, last)| last != shard) {
                runs.push((Slot(next as u16), shard));
            }
            next += length;
        }
        assert_eq!(next, usize::from(SLOT_COUNT), "every slot has a shard");
        Self { epoch, shards, runs }
    }

    /// The same slots under the next epoch, with other members.
    pub(super) fn with_members(&self, shards: BTreeMap<ShardId, Vec<NodeId>>) -> Self {
        Self { epoch: self.epoch.next(), shards, runs: self.runs.clone() }
    }

    pub fn shard_of_slot(&self, slot: Slot) -> ShardId {
        let after = self.runs.partition_point(|&(first, _)| first <= slot);
        self.runs[after - 1].1
    }

    pub fn shard_of_node(&self, node: NodeId) -> Option<ShardId> {
        self.shards.iter().find(|(_, members)| members.contains(&node)).map(|(&id, _)| id)
    }

    pub fn members(&self, shard: ShardId) -> &[NodeId] {
        self.shards.get(&shard).map_or(&[], Vec::as_slice)
    }

    /// All nodes that are in a shard.
    pub fn all_members(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.shards.values().flatten().copied()
    }

    /// All runs of slots and their shards, in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = (SlotRun, ShardId)> + '_ {
        let ends = self.runs.iter().skip(1).map(|&(next, _)| Slot(next.0 - 1)).chain([Slot(SLOT_COUNT - 1)]);
        self.runs.iter().zip(ends).map(|(&(first, shard), last)| ((first, last), shard))
    }

    /// The runs of slots of a shard, in order.
    pub fn runs_of(&self, shard: ShardId) -> Vec<SlotRun> {
        self.runs().filter(|&(_, of)| of == shard).map(|(run, _)| run).collect()
    }

    /// How many slots a shard has.
    pub fn slot_count(&self, shard: ShardId) -> usize {
        self.runs().filter(|&(_, of)| of == shard).map(|(run, _)| run_length(run)).sum()
    }

    /// The slots that `from` has here and `to` has in `later`.
    pub fn passed_on(&self, from: ShardId, later: &Self, to: ShardId) -> Vec<SlotRun> {
        let mut both = Vec::new();
        for (first, last) in self.runs_of(from) {
            for (begin, end) in later.runs_of(to) {
                let run = (first.max(begin), last.min(end));
                if run.0 <= run.1 {
                    both.push(run);
                }
            }
        }
        both
    }

    /// How many slots are another shard's in `later`.
    pub fn slots_moved(&self, later: &Self) -> usize {
        let stay = self.shards.keys().flat_map(|&shard| self.passed_on(shard, later, shard));
        usize::from(SLOT_COUNT) - stay.map(run_length).sum::<usize>()
    }
}

pub(super) fn run_length((first, last): SlotRun) -> usize {
    usize::from(last.0 - first.0) + 1
}

/// Every slot of some runs.
pub fn slots_in(runs: &[SlotRun]) -> impl Iterator<Item = Slot> + '_ {
    runs.iter().flat_map(|&(first, last)| (first.0..=last.0).map(Slot))
}
