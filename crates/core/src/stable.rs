//! What is stable, and what may be forgotten because of it.
//!
//! A write is stable once it is durable at every replica of its shard. A replica serves only with all that is stable (one
//! that lost its data is filled first), so nobody has to carry a stable entry, and a stable tombstone can go.
//!
//! What fails without care: a report of a replica's earlier life says "durable" of data that is lost. If another replica
//! filled the new life before it had that data itself, and then reports it, all reports together would call stable what the
//! new life lacks. So a report counts only if nobody (this node or any report used beside it) knows a later life of its
//! reporter: the replica that filled the new life knows it from before, and its own report says so. And it counts only
//! while its reporter is reachable: a replica that is filled without us takes longer than that proof lasts.
//!
//! A tombstone needs more. A concurrent write with a smaller stamp may still be on its way here; it was made before its
//! writer applied the tombstone, so it is among what that replica had applied when it reported. Once this replica has
//! applied all that the reports named, no such write can come any more: the stable vector is then *settled*.

use std::collections::BTreeMap;

use kvnode_types::causal::Vector;
use kvnode_types::ident::{Addr, Dot, Epoch, Incarnation, Key, NodeId, Origin, ShardId, Slot};

use super::causality::{knows_end, retired_in};
use super::replica::Replica;
use super::settings::Mutant;
use super::topology::Transition;
use super::{Core, encode_fact};
use crate::messages::{Floors, Report, Stable, Stage};
use crate::store::{Fact, Result};

fn is_below(floors: &Floors, origin: Origin) -> bool {
    let below =
        |&(node, epoch, floor): &(_, _, _)| (node, epoch) == (origin.node, origin.epoch) && origin.incarnation < floor;
    floors.iter().any(below)
}

pub(super) const FACT_STABLE: Fact = Fact("stable");
/// Between two notes of what is stable.
const NOTE_STABLE_MS: u64 = 1_000;
/// How much is looked through per tick for what can be forgotten: a version counts one, and so many a slot. So it takes the same
/// share of a processor whatever the store holds, and longer with more.
const SWEPT_PER_TICK: usize = 320;
const SWEPT_PER_SLOT: usize = 20;
/// Or so many for each tombstone that has come since the last tick, if that is more: else those of clients that delete faster than a
/// round ends would become ever more. So there are at most about half as many of them as of other versions. (What versions depend on
/// does not pile up: it goes with the version, and is left out of what clients are told.)
const SWEPT_PER_DELETED: usize = 4;
const SWEPT_PER_TICK_MAX: usize = 4_096;

/// The step from stable to settled.
#[derive(Debug, Default)]
pub(super) struct Settling {
    /// `None` until something was settled under the present layout alone.
    settled: Option<Stable>,
    /// What is stable, and what has to be applied here until that is settled.
    pending: Option<(Stable, Vector)>,
    /// The last slot that was looked through, or is.
    swept: Option<Slot>,
    /// Where the look through a slot goes on that was too large for one tick.
    sweep: Option<Sweep>,
    /// What is on disk of what is stable, and when that was looked at last.
    noted: Stable,
    noted_ms: u64,
}

/// A slot that has been looked through in part.
#[derive(Debug)]
struct Sweep {
    slot: Slot,
    after: Key,
    /// Of the slot, when its last part had been looked at: another one tells that something has been written since.
    digest: u64,
    /// Whether there is something in it to come back for.
    dirty: bool,
}

impl Settling {
    /// Goes on from what an earlier life has noted.
    pub fn recovered(noted: Stable) -> Self {
        Self { noted, ..Self::default() }
    }

    /// Nothing is settled under another layout; what was noted stays.
    pub fn begin_anew(&mut self) {
        *self = Self { noted: std::mem::take(&mut self.noted), noted_ms: self.noted_ms, ..Self::default() };
    }
}

impl Core {
    /// Whether a node has begun another life than that of an origin.
    pub(super) fn has_ended(&self, origin: Origin) -> bool {
        self.newest_life(origin.node).is_some_and(|life| life > origin.incarnation)
    }

    /// A report that an origin has ended says how much of it is here. It must not become more afterwards, out of what waits for others.
    pub(super) fn drop_waiting_of_ended(&mut self) {
        let waiting: Vec<Origin> = self.replica.iter().flat_map(|replica| replica.waiting_origins()).collect();
        let ended: Vec<Origin> = waiting.into_iter().filter(|&origin| self.has_ended(origin)).collect();
        if let Some(replica) = self.replica.as_mut() {
            ended.into_iter().for_each(|origin| replica.drop_waiting(origin));
        }
    }

    /// What this replica tells the other replicas of its shard.
    pub(super) fn report(&self) -> Report {
        let replica = self.replica.as_ref().expect("only replicas have mates to report to");
        let nodes = replica.others.iter().copied().chain([replica.origin.node]);
        let lives = nodes.filter_map(|node| Some((node, self.newest_life(node)?))).collect();
        Report {
            epoch: self.topology.as_ref().map_or(replica.origin.epoch, |topology| topology.layout.epoch),
            oldest: self.bearings.oldest,
            frozen: self.is_frozen(),
            applied: replica.applied.clone(),
            durable: replica.durable.clone(),
            takes_writes: self.takes_writes(),
            floors: replica.floors_list(),
            uncovered: self.uncovered_now(),
            lives,
        }
    }

    pub(super) fn reported(&mut self, from: &Addr, report: Report) {
        for &(node, life) in &report.lives {
            if let Some(addr) = self.addr_of(node).cloned()
                && let Some(peer) = self.peers.get_mut(&addr)
            {
                peer.learn_life(life);
            }
        }
        if let Some(&(_, known)) = report.lives.iter().find(|&&(node, _)| Some(node) == self.me) {
            self.superseded(known);
        }
        let epoch = self.topology.as_ref().map(|topology| topology.layout.epoch);
        if epoch != Some(report.epoch) {
            return;
        }
        if let Some(before) = self.replica.as_ref().and_then(|replica| replica.before) {
            self.held(from, before, report.applied.get(before), None);
        }
        let held = self.replica.as_ref().map_or(0, |replica| report.applied.get(replica.origin));
        if let Some(peer) = self.peers.get_mut(from) {
            peer.report = Some(report);
        }
        // Before it is judged by what others report whether there is more of an origin.
        self.drop_waiting_of_ended();
        self.note_held(from, held, None);
        self.notice_lag(from);
        // It may have room again for what was not sent.
        self.wakes.insert(from.clone());
    }

    pub(super) fn own_stable(&self) -> Stable {
        let shard = self.replica.as_ref().and_then(|replica| replica.shard);
        shard.and_then(|shard| self.stables.get(&shard)).cloned().unwrap_or_default()
    }

    /// Whether this node had noted, some time ago, that a write is at all replicas: also for a node that has just started, and knows
    /// nothing else of what is stable.
    pub(super) fn was_stable(&self, dot: Dot) -> bool {
        let Stable { vector, floors } = &self.settling.noted;
        vector.covers(dot) || is_below(floors, dot.origin)
    }

    /// Notes on disk what is stable, once in a while.
    fn note_stable(&mut self) {
        let now = self.now.mono_ms;
        if now.saturating_sub(self.settling.noted_ms) < NOTE_STABLE_MS {
            return;
        }
        self.settling.noted_ms = now;
        let stable = self.own_stable();
        if stable != self.settling.noted {
            self.store.set_fact(FACT_STABLE, encode_fact(&stable));
            self.settling.noted = stable;
        }
    }

    /// Takes over what a shard says is stable. It only ever grows.
    pub(super) fn learn_stable(&mut self, shard: ShardId, told: &Stable) {
        let stable = self.stables.entry(shard).or_default();
        let pairs =
            |floors: &Floors| -> Vec<_> { floors.iter().map(|&(n, epoch, floor)| ((n, epoch), floor)).collect() };
        let mut floors: BTreeMap<(NodeId, Epoch), Incarnation> = pairs(&stable.floors).into_iter().collect();
        for (of, floor) in pairs(&told.floors) {
            let known = floors.entry(of).or_insert(floor);
            *known = (*known).max(floor);
        }
        let oldest = self.bearings.oldest;
        floors.retain(|(_, epoch), _| *epoch >= oldest);
        stable.vector.merge(&told.vector);
        stable.vector.retain(|origin, _| {
            let floor = floors.get(&(origin.node, origin.epoch));
            origin.epoch >= oldest && floor.is_none_or(|&floor| origin.incarnation >= floor)
        });
        stable.floors = floors.into_iter().map(|((node, epoch), floor)| (node, epoch, floor)).collect();
    }

    /// Whether every serving replica of every shard that the origin concerns has the entry.
    pub(super) fn is_stable(&self, origin: Origin, seq: u64) -> bool {
        if origin.epoch < self.bearings.oldest {
            return true;
        }
        let in_shard = |shard: ShardId| {
            let Some(stable) = self.stables.get(&shard) else { return false };
            stable.vector.get(origin) >= seq || is_below(&stable.floors, origin)
        };
        let shards = self.bearings.shards_of(origin);
        !shards.is_empty() && shards.iter().copied().all(in_shard)
    }

    /// Whether slots are being copied: until they are, nothing new becomes stable (see [`super::handover`]).
    fn is_frozen(&self) -> bool {
        let copying = self.topology.as_ref().is_some_and(|t| matches!(t.transition, Transition::Copying { .. }));
        copying && !self.settings.broken(Mutant::StableDuringCopy)
    }

    pub(super) fn stable_step(&mut self) -> Result<()> {
        let Some(replica) = &self.replica else { return Ok(()) };
        let Some(shard) = replica.shard.filter(|_| replica.stage != Stage::Filling) else { return Ok(()) };
        if let Some((stable, reported)) = self.compute_stable(replica) {
            let floors = self.compute_floors(replica);
            self.retire(&floors);
            let floors = self.replica.as_ref().map(Replica::floors_list).unwrap_or_default();
            let stable = Stable { vector: stable, floors };
            self.learn_stable(shard, &stable);
            if self.is_steady_everywhere() {
                self.settling.pending.get_or_insert((stable, reported));
            }
        }
        self.settle();
        self.note_stable();
        if self.takes_writes() { self.sweep() } else { Ok(()) }
    }

    fn retire(&mut self, floors: &Floors) {
        self.drop_covered();
        let Some(replica) = self.replica.as_mut() else { return };
        let before = replica.floors.clone();
        replica.raise_floors(floors);
        self.replica_changed |= replica.floors != before;
    }

    /// What is durable at all replicas, and all that their reports say they had applied; `None` while a report is lacking.
    fn compute_stable(&self, replica: &Replica) -> Option<(Vector, Vector)> {
        if self.is_frozen() {
            return None;
        }
        let mut stable = replica.durable.clone();
        let mut reported = replica.applied.clone();
        for &node in &replica.others {
            let Some(report) = self.valid_report(node) else {
                if self.settings.broken(Mutant::FillingLeftOutOfStable) {
                    continue;
                }
                return None;
            };
            if report.frozen && !self.settings.broken(Mutant::StableDuringCopy) {
                return None;
            }
            let peer = self.peer_of(node);
            if !peer.is_some_and(|peer| self.is_proven(peer)) {
                return None;
            }
            let filling = peer.and_then(|peer| peer.stage) == Some(Stage::Filling);
            if filling && self.settings.broken(Mutant::FillingLeftOutOfStable) {
                continue;
            }
            // What the reporter has retired is durable there to its end.
            let theirs = |(origin, seq): (Origin, u64)| {
                if retired_in(report, origin) { (origin, seq) } else { (origin, seq.min(report.durable.get(origin))) }
            };
            stable = stable.iter().map(theirs).collect();
            reported.merge(&report.applied);
        }
        Some((stable, reported))
    }

    /// Per node of the shard the newest life before which all origins are held equally, and durably, by all replicas.
    fn compute_floors(&self, replica: &Replica) -> Floors {
        let nodes = replica.others.iter().copied().chain([replica.origin.node]);
        nodes.filter_map(|node| self.compute_floor(replica, node)).collect()
    }

    fn compute_floor(&self, replica: &Replica, node: NodeId) -> Option<(NodeId, Epoch, Incarnation)> {
        let life = self.newest_life(node)?;
        let reports: Vec<&Report> =
            replica.others.iter().map(|&other| self.valid_report(other)).collect::<Option<_>>()?;
        let serving = |&other: &NodeId| self.peer_of(other).is_some_and(|peer| peer.stage == Some(Stage::Serving));
        let just_before = Origin { node, epoch: replica.origin.epoch, incarnation: life.before() };
        let all_know = reports.iter().all(|report| knows_end(report, just_before) || retired_in(report, just_before));
        if !all_know || !replica.others.iter().all(serving) {
            return None;
        }
        let held_equally = |origin: Origin| {
            let mine = (replica.applied.get(origin), replica.durable.get(origin));
            mine.0 == mine.1
                && !self.is_uncovered_anywhere(replica, origin)
                && reports.iter().all(|report| {
                    retired_in(report, origin) || (report.applied.get(origin), report.durable.get(origin)) == mine
                })
        };
        let named = |vector: &Vector| -> Vec<Origin> { vector.iter().map(|(origin, _)| origin).collect() };
        let mut origins = named(&replica.applied);
        reports.iter().for_each(|report| origins.extend(named(&report.applied)));
        let epoch = replica.origin.epoch;
        let ended = |origin: &Origin| (origin.node, origin.epoch) == (node, epoch) && origin.incarnation < life;
        origins.into_iter().filter(ended).all(held_equally).then_some((node, epoch, life))
    }

    /// Whether all replicas of the shard say that they are past the layout before. What they had applied by then includes all
    /// that was written under it, so what they wrote since was not written before a deletion of that time.
    fn is_steady_everywhere(&self) -> bool {
        let Some(replica) = &self.replica else { return false };
        let steady = |node: &NodeId| self.valid_report(*node).is_some_and(|report| report.oldest == report.epoch);
        let blindly = self.settings.broken(Mutant::TombstoneDroppedWhileSettling);
        self.is_steady() && (blindly || replica.others.iter().all(steady))
    }

    fn is_steady(&self) -> bool {
        let steady = self.topology.as_ref().is_some_and(|topology| topology.from().is_none());
        steady || self.settings.broken(Mutant::TombstoneDroppedWhileSettling)
    }

    fn settle(&mut self) {
        let Some(replica) = &self.replica else { return };
        let reached = self.settling.pending.as_ref().is_some_and(|(_, reported)| {
            let has = |(origin, seq)| {
                replica.applied.get(origin) >= seq
                    || self.is_retired(replica, origin)
                    || !self.concerns(replica, origin)
            };
            reported.iter().all(has)
        });
        if reached && let Some((stable, _)) = self.settling.pending.take() {
            self.settling.settled = Some(stable);
        }
    }

    /// Drops settled tombstones and stable dependencies, a few at a time.
    fn sweep(&mut self) -> Result<()> {
        let deleted = self.inventory.take_deleted();
        let mut left = (SWEPT_PER_DELETED * deleted).clamp(SWEPT_PER_TICK, SWEPT_PER_TICK_MAX);
        while left > 0 {
            if let Some(sweep) = self.settling.sweep.take() {
                left -= self.sweep_slot(sweep.slot, Some(sweep), left)?;
                continue;
            }
            if left <= SWEPT_PER_SLOT {
                break;
            }
            let after = self.settling.swept.map_or(0, |slot| slot.0 + 1);
            self.settling.swept = self.inventory.dirty.first_from(after);
            let Some(slot) = self.settling.swept else { break };
            left -= SWEPT_PER_SLOT;
            left -= self.sweep_slot(slot, None, left)?;
        }
        Ok(())
    }

    /// Looks through a slot, or goes on with it, up to so many versions. Tells how many there were.
    fn sweep_slot(&mut self, slot: Slot, begun: Option<Sweep>, versions_max: usize) -> Result<usize> {
        if !self.bearings.owns(slot) {
            return Ok(0);
        }
        // While old members hand over, an older write than a deletion may still turn up.
        let steady = self.is_steady() && !self.is_frozen();
        let changed = |sweep: &Sweep| sweep.digest != self.inventory.digest(slot);
        let mut dirty = begun.as_ref().is_some_and(|sweep| sweep.dirty || changed(sweep));
        let versions = self.store.slot(slot, begun.as_ref().map(|sweep| &sweep.after), versions_max)?;
        let (count, last) = (versions.len(), versions.last().map(|(key, _)| key.clone()));
        for (key, mut version) in versions {
            let mut deps = version.deps.clone();
            self.prune(&mut deps);
            let forget = steady && version.value.is_none() && deps.is_empty() && self.is_settled(&version);
            if forget {
                self.inventory.discard(&mut *self.store, &key, version.dot, false);
                continue;
            }
            dirty |= version.value.is_none() || !deps.is_empty();
            if deps != version.deps {
                version.deps = deps;
                self.store.put(slot, &key, &version);
            }
        }
        match last.filter(|_| count == versions_max) {
            Some(after) => {
                let digest = self.inventory.digest(slot);
                self.settling.sweep = Some(Sweep { slot, after, digest, dirty });
            }
            None if !dirty => self.inventory.dirty.remove(slot),
            None => {}
        }
        Ok(count)
    }

    fn is_settled(&self, version: &crate::store::Version) -> bool {
        if self.settings.broken(Mutant::TombstoneDroppedEarly) {
            return true;
        }
        let Some(settled) = &self.settling.settled else { return false };
        let origin = version.dot.origin;
        let retired = origin.epoch < self.bearings.oldest || is_below(&settled.floors, origin);
        settled.vector.covers(version.dot) || retired
    }
}
