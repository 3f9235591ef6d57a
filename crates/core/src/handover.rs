//! How slots change hands: copies before the flip, and afterwards what the old members got last.
//!
//! Both are repairs (see [`super::repair`]) of the slots in question. Before the flip a future owner goes through rounds of
//! them with some replica that serves the old shard, until the flip comes: each round brings what was written since the one
//! before. After the flip it compares, with every old member, what that member says it has to hand over.
//!
//! Invariant: a copy's vector covers only what is here, and everything that was stable in the old shard when the copy's
//! source knew of the change. From then on that source lets nothing become stable (its reports are *frozen*), so at the flip
//! nothing that any context was relieved of is lacking at a new owner.
//!
//! What fails without freezing: a write becomes stable while the copy is on its way, a client's context drops it, and after
//! the flip the new owner shows the client an older state.

use std::collections::{BTreeMap, BTreeSet};

use kvnode_types::causal::Vector;
use kvnode_types::ident::{Addr, Incarnation, NodeId, Origin, ShardId};
use serde::{Deserialize, Serialize};

use super::consensus::Consensus;
use super::contact::Peer;
use super::repair::{Purpose, Repair};
use super::replica::{Handed, Replica};
use super::settings::Mutant;
use super::topology::{ChangeKind, SlotRun, Transition};
use super::{Core, encode_fact};
use crate::messages::{Floors, Move, Progress, Scope, Stage};
use crate::store::Fact;

pub(super) const FACT_COPIES: Fact = Fact("copies");
/// Pause between two rounds of copying from one shard.
const ROUND_MS: u64 = 300;

/// What was fetched for the layout that a job leads to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Copies {
    pub job: Option<u32>,
    pub done: BTreeMap<ShardId, Copy>,
    #[serde(skip)]
    last_round_ms: BTreeMap<ShardId, u64>,
    #[serde(skip)]
    pub moves: BTreeMap<ShardId, Move>,
    #[serde(skip)]
    claimed: bool,
}

/// All that one replica of a shard had, in the slots that are to move.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Copy {
    pub vector: Vector,
    pub floors: Floors,
}

impl Copies {
    /// Nothing of another job's counts; what was counted stays to be seen until the next job begins.
    pub fn for_job(self, job: Option<u32>) -> Self {
        let moves = if job.is_none() { self.moves } else { BTreeMap::new() };
        Self { job, moves, ..Self::default() }
    }
}

impl Core {
    pub(super) fn copies_changed(&mut self) {
        self.store.set_fact(FACT_COPIES, encode_fact(&self.copies));
    }

    /// What this node has to fetch before the flip: per old shard the slots.
    fn copies_wanted(&self) -> Vec<(ShardId, Vec<SlotRun>)> {
        let (Some(topology), Some(me)) = (&self.topology, self.me) else { return Vec::new() };
        match &topology.transition {
            Transition::Copying { target, .. } => topology.gains(me, &topology.layout, target),
            _ => Vec::new(),
        }
    }

    /// Goes on with what has to be fetched from nodes of other shards or of the layout before.
    pub(super) fn handover_step(&mut self) {
        if self.transfer.is_some() || self.dropping.is_some() || self.draining || !self.takes_writes() {
            return;
        }
        let Some(topology) = &self.topology else { return };
        match &topology.transition {
            Transition::Steady => {}
            Transition::Copying { .. } => self.copy_step(),
            Transition::Settling { .. } => self.fetch_handed(),
        }
    }

    fn copy_step(&mut self) {
        let now = self.now.mono_ms;
        let pause = |shard: &ShardId| match self.copies.last_round_ms.get(shard) {
            Some(&last) => now.saturating_sub(last) < ROUND_MS,
            None => false,
        };
        let due = self.copies_wanted().into_iter().find(|(shard, _)| !pause(shard));
        let Some((shard, runs)) = due else { return };
        let Some(topology) = &self.topology else { return };
        let scope = Scope { epoch: topology.layout.epoch, shard };
        let source = topology.members(shard).iter().copied().find(|&node| self.can_give(node));
        let Some(addr) = source.and_then(|node| self.addr_of(node).cloned()) else { return };
        self.copies.last_round_ms.insert(shard, now);
        self.begin_transfer(&addr, scope, runs, Purpose::Copy);
    }

    /// Whether a node serves a shard now and can be reached.
    fn can_give(&self, node: NodeId) -> bool {
        let serves = |peer: &Peer| peer.stage == Some(Stage::Serving) && self.is_in_view(peer);
        Some(node) != self.me && self.peer_of(node).is_some_and(serves)
    }

    /// A round of copying has ended.
    pub(super) fn copied(&mut self, repair: &Repair) {
        let now = self.now.mono_ms;
        let shard = repair.scope.shard;
        let copy = self.copies.done.entry(shard).or_default();
        copy.vector.merge(&repair.target);
        copy.floors.clone_from(&repair.floors);
        self.inventory.clock.observe(repair.clock);
        self.copies.last_round_ms.insert(shard, now);
        self.copies_changed();
        if !self.copies.claimed && self.copies_are_complete() {
            // The leader waits for this.
            self.copies.claimed = true;
            self.beat_all();
        }
    }

    /// For a mutant: the copy's vector before the copy.
    pub(super) fn copied_early(&mut self, shard: ShardId, vector: &Vector) {
        self.copies.done.entry(shard).or_default().vector.merge(vector);
    }

    /// What this node has fetched for the change that runs, or the last one.
    pub(super) fn own_moves(&self) -> Vec<Move> {
        self.copies.moves.values().copied().collect()
    }

    /// Whether a change is under way of which this node has copied its part: for tests.
    pub fn has_copies(&self) -> bool {
        !self.copies.done.is_empty() && self.copies_are_complete()
    }

    fn copies_are_complete(&self) -> bool {
        self.copies_wanted().iter().all(|(shard, _)| self.copies.done.contains_key(shard))
    }

    /// Counts what a transfer brings, for those who watch.
    pub(super) fn count_transfer(&mut self, repair_scope: Scope, keys: u64, total: Option<u64>, bytes: u64) {
        let to = match self.topology.as_ref().map(|topology| &topology.transition) {
            Some(Transition::Copying { target, .. }) => self.me.and_then(|me| target.shard_of_node(me)),
            _ => self.replica.as_ref().and_then(|replica| replica.shard),
        };
        let Some(to) = to else { return };
        let from = repair_scope.shard;
        let entry = self.copies.moves.entry(from).or_insert(Move { from, to, keys: 0, keys_total: 0, bytes: 0 });
        entry.keys = entry.keys.saturating_add(keys);
        entry.bytes = entry.bytes.saturating_add(bytes);
        entry.keys_total = total.unwrap_or(entry.keys_total);
    }

    /// Whether a peer knew who is waited for when it told how far it is. Who did not know yet that an old member has been written off
    /// may have taken more from that one afterwards ([`Core::is_written_off`]): what it told before counts for nothing.
    pub(super) fn knew_who_counts(&self, peer: &Peer) -> bool {
        peer.progress_version >= self.wanted_since || self.settings.broken(Mutant::ProgressOfAnyTime)
    }

    /// Whether a write is of an old member that nobody waits for any more. Taken from that member itself, some of the others would
    /// have it and settle, and some never hear of it: from now on what the others have handed over is all there is.
    pub(super) fn is_written_off(&self, from: &Addr, origin: Origin) -> bool {
        let Some(Transition::Settling { from: old, written_off, .. }) =
            self.topology.as_ref().map(|topology| &topology.transition)
        else {
            return false;
        };
        let sender = self.node_of(from);
        let broken = self.settings.broken(Mutant::TakesFromWrittenOff);
        !broken && origin.epoch == old.epoch && sender.is_some_and(|sender| written_off.contains(&sender))
    }

    /// Whether a mate was given up with what only it has, and may have that still: nobody repairs from it, or one would have what
    /// the others never hear of. Once it knows that it was given up, it begins anew.
    pub(super) fn is_cut_off(&self, node: NodeId) -> bool {
        let Some(topology) = self.topology.as_ref().filter(|_| !self.settings.broken(Mutant::RepairsFromGivenUp))
        else {
            return false;
        };
        match topology.written_off() {
            Some(written_off) => written_off.contains(&node),
            None => {
                let (epoch, given_up) = &topology.given_up;
                let told = self.peer_of(node).is_some_and(|peer| self.knew_who_counts(peer));
                *epoch == topology.layout.epoch && given_up.contains(&node) && !told
            }
        }
    }

    /// What another old member says it has to hand over.
    fn handed_by(&self, node: NodeId) -> Option<&Handed> {
        let peer = self.peer_of(node).filter(|peer| peer.life.is_some() && peer.life == peer.newest_life)?;
        if !self.knew_who_counts(peer) {
            return None;
        }
        let handed = peer.progress.as_ref()?.handed.as_ref()?;
        let epoch = self.topology.as_ref()?.from()?.epoch;
        (handed.epoch == epoch).then_some(handed)
    }

    /// Old members, other than this one, of the shards whose slots this node's shard has; not those that were written off.
    fn givers(&self, shard: ShardId) -> Vec<(ShardId, NodeId)> {
        let Some(Transition::Settling { from, written_off, .. }) =
            self.topology.as_ref().map(|topology| &topology.transition)
        else {
            return Vec::new();
        };
        let members = from.shards.iter().flat_map(|(&old, nodes)| nodes.iter().map(move |&node| (old, node)));
        let origin = |node| Origin { node, epoch: from.epoch, incarnation: Incarnation(0) };
        let concerned = |node| self.bearings.shards_of(origin(node)).contains(&shard);
        let counts =
            |&(_, node): &(ShardId, NodeId)| concerned(node) && Some(node) != self.me && !written_off.contains(&node);
        members.filter(counts).collect()
    }

    fn lacks(&self, replica: &Replica, has: &Vector, handed: &Handed) -> bool {
        handed.vector.iter().any(|(origin, seq)| has.get(origin) < seq && !replica.is_retired(origin))
    }

    /// Fetches from old members what they have and this replica lacks.
    fn fetch_handed(&mut self) {
        let Some(replica) = &self.replica else { return };
        let Some(shard) = replica.shard else { return };
        if replica.stage == Stage::Filling {
            return;
        }
        for (old, node) in self.givers(shard) {
            let Some(replica) = &self.replica else { return };
            let behind = self.handed_by(node).is_some_and(|handed| self.lacks(replica, &replica.applied, handed));
            let reachable = self.peer_of(node).is_some_and(|peer| self.is_in_view(peer));
            if !behind || !reachable {
                continue;
            }
            let Some(addr) = self.addr_of(node).cloned() else { continue };
            if self.is_mate(&addr) && replica.handed.as_ref().is_some_and(|handed| handed.shard == old) {
                self.pull(&addr);
            } else if self.transfer.is_none() {
                self.fetch_from(&addr, old, shard);
            }
        }
    }

    fn fetch_from(&mut self, addr: &Addr, old: ShardId, shard: ShardId) {
        let Some(topology) = &self.topology else { return };
        let Some(from) = topology.from() else { return };
        let runs = from.passed_on(old, &topology.layout, shard);
        let scope = Scope { epoch: from.epoch, shard: old };
        self.begin_transfer(addr, scope, runs, Purpose::Handover);
    }

    /// What a replica whose whole shard lacks copies fetches next: the next old shard and who has it whole. `Err`: who is
    /// waited for.
    pub(super) fn next_handover(&self, shard: ShardId, filled: &[ShardId]) -> Result<Option<(ShardId, Addr)>, String> {
        let givers = self.givers(shard);
        let Some(topology) = &self.topology else { return Ok(None) };
        let heirs = topology.heirs();
        let olds = heirs.iter().filter(|(old, heirs)| heirs.contains(&shard) && !filled.contains(old));
        for (&old, _) in olds {
            let of_old = || givers.iter().filter(|(of, _)| *of == old).map(|(_, node)| *node);
            let mine = self.replica.as_ref().and_then(|replica| replica.handed.as_ref());
            if mine.is_some_and(|handed| handed.shard == old && handed.whole) {
                continue;
            }
            let whole = of_old().find(|&node| {
                let in_view = self.peer_of(node).is_some_and(|peer| self.is_in_view(peer));
                in_view && self.handed_by(node).is_some_and(|handed| handed.whole)
            });
            if let Some(addr) = whole.and_then(|node| self.addr_of(node)) {
                return Ok(Some((old, addr.clone())));
            }
            // If all that are left answer and none has anything whole, it is gone for good. One that had it whole, and does not answer
            // now, has it still.
            let silent = |node: NodeId| self.handed_by(node).is_none_or(|handed| handed.whole);
            if let Some(silent) = of_old().find(|&node| silent(node)) {
                let name = self.addr_of(silent).map_or_else(String::new, ToString::to_string);
                return Err(format!("waiting for {name} to hand over slots of shard {old}"));
            }
        }
        Ok(None)
    }

    pub(super) fn fill_by_handover(&mut self, old: ShardId, addr: &Addr, shard: ShardId) {
        self.fetch_from(addr, old, shard);
    }

    /// A transfer after the flip has ended.
    pub(super) fn handed_over(&mut self, repair: &Repair) {
        let Some(replica) = self.replica.as_mut() else { return };
        replica.applied.merge(&repair.target);
        let floors: Floors =
            repair.floors.iter().copied().filter(|(_, epoch, _)| *epoch == repair.scope.epoch).collect();
        if replica.stage == Stage::Filling {
            replica.raise_floors(&floors);
            self.office.filled_from.push(repair.scope.shard);
        }
        self.inventory.clock.observe(repair.clock);
        self.replica_changed = true;
        self.waiting.changed = true;
    }

    /// What this node tells everybody while a change is under way.
    pub(super) fn progress(&self) -> Option<Box<Progress>> {
        let topology = self.topology.as_ref()?;
        let mut progress = Progress { moves: self.own_moves(), ..Progress::default() };
        match &topology.transition {
            Transition::Steady => return None,
            Transition::Copying { change, .. } => {
                progress.copied = self.copies_are_complete().then_some(change.job);
            }
            Transition::Settling { from, .. } => {
                if let Some(replica) = &self.replica {
                    let of_before = |&(origin, _): &(Origin, u64)| origin.epoch == from.epoch;
                    progress.held = replica.applied.iter().filter(of_before).collect();
                }
                progress.settled = self.has_settled().then_some(topology.layout.epoch);
                progress.handed = self.replica.as_ref().and_then(|replica| replica.handed.clone());
            }
        }
        Some(Box::new(progress))
    }

    /// What another member of the new layout says it has of the layout before. It may have got that from an old member that has been
    /// lost since, and is then the only one that can hand it on.
    fn held_by(&self, node: NodeId) -> Option<&Vector> {
        let peer = self.peer_of(node).filter(|peer| peer.life.is_some() && peer.life == peer.newest_life)?;
        if self.knew_who_counts(peer) { Some(&peer.progress.as_ref()?.held) } else { None }
    }

    /// Whether this member holds all that the layout before has left, and the others have what only it may have of that.
    pub(super) fn has_settled(&self) -> bool {
        let before = self.topology.as_ref().and_then(|topology| topology.from()).map(|from| from.epoch);
        self.has_taken_over() && !before.is_some_and(|epoch| self.is_uncovered_of(epoch))
    }

    /// Whether this member holds, durably, all that the old members of its slots have, and the other new ones.
    pub(super) fn has_taken_over(&self) -> bool {
        let Some(replica) = &self.replica else { return true };
        let Some(shard) = replica.shard else { return true };
        let durable =
            if self.settings.broken(Mutant::StableFromReceived) { &replica.applied } else { &replica.durable };
        let given = |&(_, node): &(ShardId, NodeId)| {
            self.handed_by(node).is_some_and(|handed| !self.lacks(replica, durable, handed))
        };
        let has = |(origin, seq)| durable.get(origin) >= seq || replica.is_retired(origin);
        let held = |node: NodeId| self.held_by(node).is_some_and(|held| held.iter().all(has));
        let topology = self.topology.as_ref();
        let counts = |node: &NodeId| !topology.is_some_and(|it| it.written_off().is_some_and(|off| off.contains(node)));
        let mut mates = replica.others.iter().copied().filter(counts);
        let mates_have_no_more = self.settings.broken(Mutant::HeldUntold) || mates.all(held);
        replica.stage != Stage::Filling
            && (self.settings.broken(Mutant::OldCopyDeletedEarly)
                || (self.givers(shard).iter().all(given) && mates_have_no_more))
    }

    /// What a change waits for, as this node sees it.
    pub(super) fn change_waits_for(&self) -> Vec<String> {
        let Some(topology) = &self.topology else { return Vec::new() };
        let name = |node: NodeId| topology.nodes.get(&node).map_or_else(String::new, ToString::to_string);
        let progress = |node: NodeId| -> Progress {
            let own = (Some(node) == self.me).then(|| self.progress()).flatten();
            let told = || self.peer_of(node).and_then(|peer| peer.progress.clone());
            own.or_else(told).map(|progress| *progress).unwrap_or_default()
        };
        // In the order in which they joined, as in all that is told.
        let waiting = |nodes: BTreeSet<NodeId>, done: &dyn Fn(&Progress) -> bool, what: &str| -> Vec<String> {
            let not_yet = nodes.into_iter().filter(|&node| !done(&progress(node)));
            not_yet.map(|node| format!("{} {what}", name(node))).collect()
        };
        let voters = self.consensus.as_ref().map(Consensus::voters).unwrap_or_default();
        let leave = topology.leaving().keys().copied().chain(topology.transition.leaving());
        let votes = leave.filter(|node| voters.contains(node)).map(|node| format!("{} to lose its vote", name(node)));
        let mut all: Vec<String> = votes.collect();
        match &topology.transition {
            Transition::Steady => {}
            Transition::Copying { change, target } => {
                let gaining = |&node: &NodeId| !topology.gains(node, &topology.layout, target).is_empty();
                let nodes = target.all_members().filter(gaining).collect();
                all.extend(waiting(nodes, &|progress| progress.copied == Some(change.job), "to copy its slots"));
            }
            Transition::Settling { change, from, written_off } => {
                let counts = |node: &NodeId| !written_off.contains(node);
                let old = from.all_members().filter(counts).collect();
                all.extend(waiting(old, &|progress| progress.handed.is_some(), "to say what it has to hand over"));
                let epoch = topology.layout.epoch;
                let new = topology.layout.all_members().filter(counts).collect();
                all.extend(waiting(new, &|progress| progress.settled == Some(epoch), "to take over what is left"));
                if let ChangeKind::Remove(node) = change.kind
                    && self.peer_of(node).is_some_and(|peer| !self.is_in_view(peer))
                {
                    all.push(format!("{} to be given up", name(node)));
                }
            }
        }
        all
    }
}
