//! Who has applied which write, to tell what may be lost by right: every node that had it has failed before others took it over.

use std::collections::{BTreeMap, BTreeSet};

use kvnode_core::store::{Store, Version};
use kvnode_core::topology::TopologyVersion;
use kvnode_types::ident::{Dot, Key, NodeId, Origin, Slot};
use kvnode_types::stamp::Stamp;

use super::{SimNode, World};

/// A write that was applied somewhere.
struct Held {
    /// The requests it may have come from: one, except for deletions at the same time.
    ids: Vec<u64>,
    key: Key,
    stamp: Stamp,
    is_deletion: bool,
    /// Who is known to have applied it, since when.
    holders: BTreeMap<usize, u64>,
}

/// The books of losses.
#[derive(Default)]
pub struct Losses {
    held: BTreeMap<Dot, Held>,
    /// Deletions under way, or of unknown fate.
    pub deletes: BTreeMap<u64, Key>,
    /// Writes that may be lost by right.
    pub lost: BTreeSet<u64>,
    /// Nodes whose removal an operator has asked for while not all was well: they may be given up with what only they have.
    pub risky: BTreeSet<usize>,
    /// A dot that has named two writes.
    pub used_twice: Option<Dot>,
    /// The newest topology that any node has gone by.
    newest: TopologyVersion,
}

impl World {
    /// A new topology may give up nodes: what only they have is lost from then on, not once somebody has overwritten it.
    pub(super) fn note_given_up(&mut self, node: usize) {
        let core = self.nodes[node].core.as_ref().expect("it runs");
        let Some(topology) = core.topology().filter(|topology| topology.version > self.losses.newest) else { return };
        self.losses.newest = topology.version;
        let is_given_up = |&&node: &&usize| match topology.node_at(&self.nodes[node].addr) {
            Some(id) => topology.written_off().is_some_and(|written_off| written_off.contains(&id)),
            None => true,
        };
        let given_up: Vec<usize> = self.losses.risky.iter().filter(is_given_up).copied().collect();
        given_up.into_iter().for_each(|node| self.forget_held(node, 0));
    }

    /// Keeps track of which node has applied which write, for the judge of losses. What a node wrote itself is taken from its disk:
    /// a short log may have dropped it within the same turn. What it got by repair is on its disk, too: see [`World::forget_held`].
    pub(super) fn note_held(&mut self, node: usize) {
        let SimNode { core, disk, addr, incarnation, log_position, .. } = &self.nodes[node];
        let core = core.as_ref().expect("it runs");
        let (position, logged) = core.log_from(*log_position);
        let mut found: Vec<(Key, Version)> =
            logged.into_iter().map(|write| (write.key.clone(), write.version.clone())).collect();
        let is_me = |id: &NodeId| core.topology().is_some_and(|topology| topology.nodes.get(id) == Some(addr));
        let own = |(_, version): &(Key, Version)| {
            let Origin { node, incarnation: life, .. } = version.dot.origin;
            life >= *incarnation && is_me(&node)
        };
        found.extend(disk.take_written().into_iter().filter(own));
        self.nodes[node].log_position = position;
        for (key, version) in found {
            let deletes =
                || self.losses.deletes.iter().filter(|(_, deleted)| **deleted == key).map(|(&id, _)| id).collect();
            let value = version.value.as_deref().and_then(|value| std::str::from_utf8(value).ok());
            let ids = || value.map_or_else(deletes, |text| vec![text.parse().expect("values are numbers")]);
            let (dot, stamp) = (version.dot, version.stamp);
            let is_deletion = version.value.is_none();
            let new = || Held { ids: ids(), key: key.clone(), stamp, is_deletion, holders: BTreeMap::new() };
            let held = self.losses.held.entry(dot).or_insert_with(new);
            held.holders.entry(node).or_insert(self.now_ms);
            if (&held.key, held.stamp) != (&key, stamp) {
                self.losses.used_twice.get_or_insert(dot);
            }
        }
    }

    /// `node` has lost what it applied after `since_ms`: what nobody else has any more may be lost. Only owners of a key's slot
    /// count: others have dropped their copies, or will. What an owner has on its disk, or something newer for it, it has.
    pub(super) fn forget_held(&mut self, node: usize, since_ms: u64) {
        self.losses
            .held
            .values_mut()
            .for_each(|held| held.holders.retain(|&holder, &mut at| holder != node || at < since_ms));
        let is_known = |held: &Held| self.owners(&held.key).iter().any(|owner| held.holders.contains_key(owner));
        let mut deleted: BTreeMap<&Key, Stamp> = BTreeMap::new();
        for held in self.losses.held.values().filter(|held| held.is_deletion && is_known(held)) {
            let newest = deleted.entry(&held.key).or_insert(held.stamp);
            *newest = held.stamp.max(*newest);
        }
        // Where only such are left the shard begins anew, and what a repair had brought them is dropped.
        let filling: Vec<bool> = (0..self.nodes.len()).map(|owner| self.is_filling(owner)).collect();
        let is_gone = |&(dot, held): &(&Dot, &Held)| {
            let has = |owner: usize| {
                if filling[owner] {
                    return false;
                }
                let head = self.nodes[owner].disk.head(Slot::of(&held.key), &held.key).expect("memory does not fail");
                // What is newer may have come without it: then it has met it only if the vector says so. (Long seed 7689: the other
                // owner had a concurrent write, and the reader of what was lost went to a third.)
                let has_met = || self.nodes[owner].core.as_ref().is_none_or(|core| core.has_met(*dot));
                head.is_some_and(|head| head.dot == *dot || (head.stamp >= held.stamp && has_met()))
            };
            // Of what was deleted there may be nothing left to have.
            let is_deleted = deleted.get(&held.key).is_some_and(|&stamp| stamp >= held.stamp);
            let others = self.owners(&held.key).into_iter().filter(|&owner| owner != node || since_ms > 0);
            !is_deleted && !is_known(held) && !others.into_iter().any(has)
        };
        let gone: Vec<u64> =
            self.losses.held.iter().filter(is_gone).flat_map(|(_, held)| held.ids.iter().copied()).collect();
        self.losses.lost.extend(gone);
    }

    /// Those who have a key, or have it to hand over, in the newest topology that any running node goes by.
    fn owners(&self, key: &Key) -> Vec<usize> {
        let Some(topology) = self.topology() else { return (0..self.nodes.len()).collect() };
        let layouts = [Some(&topology.layout), topology.from()];
        let members =
            layouts.into_iter().flatten().flat_map(|layout| layout.members(layout.shard_of_slot(Slot::of(key))));
        let counts = |&&node: &&NodeId| topology.written_off().is_none_or(|written_off| !written_off.contains(&node));
        members.filter(counts).filter_map(|node| topology.nodes.get(node)).map(|addr| self.index_of(addr)).collect()
    }

    /// The node is taken out for good, and may have been the only one to have something.
    pub fn given_up(&mut self, node: usize) {
        self.forget_held(node, 0);
    }
}
