//! Repair: one replica takes from another's store what it lacks, slot by slot.
//!
//! It serves two cases: a replica that was away longer than the log reaches back, and one that lost its data (a fill). The
//! asker compares digests per slot, sends for each differing slot what it has as (key, dot), and gets what it lacks. Versions
//! are installed as they come, by the winner rule: showing one early harms nobody, because a client that saw it names its
//! dot, and that is checked against the vector.
//!
//! Rule: the asker's vector takes over the source's (as of the start) only when every differing slot has been compared. A
//! key that the asker has, that the source lacks, and whose write the source had applied, was deleted at the source and
//! forgotten: it is removed here too.
//!
//! What fails without the rule: a vector that moves early claims writes that are not here yet, and a deleted key comes back
//! from a replica that slept through the deletion.

use std::collections::VecDeque;

use kvnode_types::causal::Vector;
use kvnode_types::ident::{Addr, Dot, Key, Slot};
use kvnode_types::stamp::Stamp;

use super::replica::Replica;
use super::settings::Mutant;
use super::topology::{SlotRun, slots_in};
use super::{Core, Severity};
use crate::messages::{Floors, Message, Scope, SlotListing, Stage, entry_weight};
use crate::store::{Result, Version};

/// Silence of the source for so long ends a repair; it is begun anew where needed.
const SILENCE_MS: u64 = 2_000;
/// A request that was not answered for so long is sent again.
const ASK_AGAIN_MS: u64 = 400;
/// Versions listed in one request, at most; but at least one slot.
const LISTED_MAX: usize = 4_096;
/// Slots in one request, at most. After an answer that was full it is half as many again as that dealt with.
const SLOTS_MAX: usize = 512;
/// Bytes of versions in one answer; one version may go beyond it. Nobody else is served while it is put together or taken over, but a
/// replica that has to catch up with the others must do it faster than they write.
const ANSWER_WEIGHT_MAX: usize = 128 << 10;
const MATE_ANSWER_WEIGHT_MAX: usize = 1 << 20;
/// A copy for another layout backs off where answers are late: then clients, or other copies, want the same processors or links. It
/// rests for so many times what an answer took beyond the quickest. (LEDBAT, RFC 6817, makes way at the same sign.)
const REST_PER_DELAY: u64 = 2;
/// It rests no longer than this.
const REST_MS_MAX: u64 = 100;
/// Versions of one slot read at a time, to list them and to compare them.
const SLOT_PAGE: usize = 1_024;
const COMPARED_PAGE: usize = 32;

/// What a repair is for; it decides what its end brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be equal to another replica of this node's shard.
    Mate,
    /// To have slots that a change is to bring.
    Copy,
    /// To have what an old member got last.
    Handover,
}

/// A repair that runs here; there is one at a time with replicas of this shard, and one with others.
#[derive(Debug)]
pub(super) struct Repair {
    id: u64,
    pub peer: Addr,
    pub purpose: Purpose,
    pub scope: Scope,
    runs: Vec<SlotRun>,
    heard_ms: u64,
    /// Counts the requests, so that an answer that comes twice or late is told from the one awaited.
    round: u64,
    /// The request that waits for its answer, and when it was last sent.
    asked: Message,
    asked_ms: u64,
    /// When it was sent for the first time: whatever an answer answers, it is late. (Karn's rule.)
    first_asked_ms: u64,
    slots_asked: usize,
    /// How many slots the next one asks for.
    slots_max: usize,
    /// When the next one goes out, if the repair rests.
    rests_until_ms: Option<u64>,
    /// The shortest wait for an answer so far.
    quickest_ms: u64,
    began: bool,
    /// Something has been taken over.
    has_changed: bool,
    pub target: Vector,
    pub floors: Floors,
    pub clock: Stamp,
    /// Slots still to be compared, the first one from after its key.
    todo: VecDeque<(Slot, Option<Key>)>,
}

/// The state of a source when a repair starts; see [`Message::RepairBegin`].
pub(super) struct Began {
    pub whole: bool,
    pub keys: u64,
    pub target: Vector,
    pub floors: Floors,
    pub clock: Stamp,
    pub digests: Vec<u64>,
}

impl Core {
    /// Begins to compare this node's shard with another replica of it.
    pub(super) fn begin_repair(&mut self, peer: &Addr) {
        let (Some(topology), Some(replica)) = (&self.topology, &self.replica) else { return };
        let Some(shard) = replica.shard else { return };
        let scope = Scope { epoch: topology.layout.epoch, shard };
        self.reason = format!("fetching the shard's data from {peer}");
        let repair = self.new_repair(peer, scope, self.bearings.own_runs.clone(), Purpose::Mate);
        self.start_repair(repair);
    }

    /// Begins to fetch slots from a node of another shard, or of the layout before.
    pub(super) fn begin_transfer(&mut self, peer: &Addr, scope: Scope, runs: Vec<SlotRun>, purpose: Purpose) {
        let repair = self.new_repair(peer, scope, runs, purpose);
        self.start_repair(repair);
    }

    fn new_repair(&mut self, peer: &Addr, scope: Scope, runs: Vec<SlotRun>, purpose: Purpose) -> Repair {
        self.last_repair_id += 1;
        let id = self.last_repair_id;
        let asked = Message::RepairStart { id, scope, runs: runs.clone() };
        let now = self.now.mono_ms;
        Repair {
            id,
            peer: peer.clone(),
            purpose,
            scope,
            runs,
            heard_ms: now,
            round: 0,
            asked,
            asked_ms: now,
            first_asked_ms: now,
            slots_asked: 0,
            slots_max: SLOTS_MAX,
            rests_until_ms: None,
            quickest_ms: u64::MAX,
            began: false,
            has_changed: false,
            target: Vector::new(),
            floors: Vec::new(),
            clock: Stamp::default(),
            todo: VecDeque::new(),
        }
    }

    fn start_repair(&mut self, repair: Repair) {
        let (peer, message, purpose) = (repair.peer.clone(), repair.asked.clone(), repair.purpose);
        *self.place_of(purpose) = Some(repair);
        self.send(&peer, message);
    }

    fn place_of(&mut self, purpose: Purpose) -> &mut Option<Repair> {
        if purpose == Purpose::Mate { &mut self.repair } else { &mut self.transfer }
    }

    /// Asks again where an answer is overdue, and ends a repair whose source has gone silent.
    pub(super) fn repair_step(&mut self) {
        let now = self.now.mono_ms;
        for purpose in [Purpose::Mate, Purpose::Copy] {
            let place = self.place_of(purpose);
            let Some(repair) = place.as_mut() else { continue };
            if now.saturating_sub(repair.heard_ms) >= SILENCE_MS {
                match purpose {
                    Purpose::Mate => self.abandon_repair(),
                    Purpose::Copy | Purpose::Handover => *place = None,
                }
            } else if now.saturating_sub(repair.asked_ms) >= ASK_AGAIN_MS {
                repair.asked_ms = now;
                let (peer, message) = (repair.peer.clone(), repair.asked.clone());
                self.send(&peer, message);
            }
        }
    }

    /// Ends the repair from a mate before its end. What it has brought so far is covered by no vector, and it may have been all there
    /// was of it: the other replicas are to compare what they have with this one.
    pub(super) fn abandon_repair(&mut self) {
        let has_changed = self.repair.take().is_some_and(|repair| repair.has_changed);
        if has_changed && !self.settings.broken(Mutant::HalfRepairUntold) {
            self.want_comparisons();
        }
    }

    /// What this node has of a shard of a layout, and whether that is all that was ever stable in it.
    fn source(&self, scope: Scope) -> Option<(&Vector, bool)> {
        let replica = self.replica.as_ref()?;
        let epoch = self.topology.as_ref()?.layout.epoch;
        if scope.epoch == epoch && replica.shard == Some(scope.shard) {
            return (replica.stage != Stage::Filling).then_some((&replica.applied, true));
        }
        let handed = replica.handed.as_ref()?;
        (handed.epoch == scope.epoch && handed.shard == scope.shard).then_some((&handed.vector, handed.whole))
    }

    pub(super) fn repair_started(&mut self, from: &Addr, id: u64, scope: Scope, runs: &[SlotRun]) {
        let (Some(replica), Some((target, whole))) = (&self.replica, self.source(scope)) else { return };
        // In order, so no slot is listed twice and the answer is bounded.
        let ordered = runs.windows(2).all(|pair| pair[0].1 < pair[1].0);
        if !ordered || runs.iter().any(|&(first, last)| first > last) {
            return;
        }
        let begins = Message::RepairBegin {
            id,
            whole,
            keys: self.inventory.versions_in(slots_in(runs)),
            target: target.clone(),
            floors: replica.floors_list(),
            clock: self.inventory.clock.last(),
            digests: slots_in(runs).map(|slot| self.inventory.digest(slot)).collect(),
        };
        let of_mine = self.topology.as_ref().is_some_and(|topology| topology.layout.epoch == scope.epoch);
        if of_mine && self.is_mate(from) {
            self.comparison_began(from, id);
        }
        self.send(from, begins);
    }

    fn current_repair(&mut self, from: &Addr, id: u64) -> Option<&mut Repair> {
        let now = self.now.mono_ms;
        let both = [self.repair.as_mut(), self.transfer.as_mut()];
        let repair = both.into_iter().flatten().find(|repair| repair.id == id && repair.peer == *from)?;
        repair.heard_ms = now;
        Some(repair)
    }

    pub(super) fn repair_began(&mut self, from: &Addr, id: u64, told: Began) -> Result<()> {
        let Some(repair) = self.current_repair(from, id).filter(|repair| !repair.began) else {
            return Ok(());
        };
        let (purpose, scope, runs) = (repair.purpose, repair.scope, repair.runs.clone());
        let unfit = purpose == Purpose::Copy && !told.whole;
        if unfit {
            *self.place_of(purpose) = None;
            return Ok(());
        }
        let slots = slots_in(&runs).zip(&told.digests);
        let differs = slots.filter(|&(slot, &theirs)| self.inventory.digest(slot) != theirs);
        let todo: VecDeque<_> = differs.map(|(slot, _)| (slot, None)).collect();
        if purpose != Purpose::Mate {
            self.count_transfer(scope, 0, Some(told.keys), 0);
        }
        let vector_first = match purpose {
            Purpose::Mate => self.settings.broken(Mutant::RepairVectorFirst),
            Purpose::Copy => self.settings.broken(Mutant::CopyVectorFirst),
            Purpose::Handover => false,
        };
        let Some(repair) = self.current_repair(from, id) else { return Ok(()) };
        repair.began = true;
        (repair.target, repair.floors, repair.clock, repair.todo) = (told.target, told.floors, told.clock, todo);
        if vector_first {
            let early = repair.target.clone();
            if purpose == Purpose::Copy {
                self.copied_early(scope.shard, &early);
            } else if let Some(replica) = self.replica.as_mut() {
                replica.applied.merge(&early);
            }
        }
        self.repair_on(purpose)
    }

    /// Asks for the next slots, or ends the repair.
    fn repair_on(&mut self, purpose: Purpose) -> Result<()> {
        let Some(repair) = self.place_of(purpose).as_ref() else { return Ok(()) };
        if repair.todo.is_empty() {
            return self.finish_repair(purpose);
        }
        let (id, scope, peer, round) = (repair.id, repair.scope, repair.peer.clone(), repair.round + 1);
        let todo: Vec<(Slot, Option<Key>)> = repair.todo.iter().take(repair.slots_max).cloned().collect();
        let mut slots = Vec::new();
        let mut listed = 0;
        for (slot, after) in todo {
            if listed >= LISTED_MAX {
                break;
            }
            let have = self.list_slot(slot, after.as_ref())?;
            listed += have.len();
            slots.push(SlotListing { slot, after, have });
        }
        let slots_asked = slots.len();
        let message = Message::RepairAsk { id, scope, round, slots };
        let now = self.now.mono_ms;
        if let Some(repair) = self.place_of(purpose).as_mut() {
            (repair.round, repair.slots_asked) = (round, slots_asked);
            (repair.asked_ms, repair.first_asked_ms) = (now, now);
            repair.asked = message.clone();
        }
        self.send(&peer, message);
        Ok(())
    }

    fn list_slot(&self, slot: Slot, after: Option<&Key>) -> Result<Vec<(Key, Dot)>> {
        let versions = self.whole_slot(slot, after)?;
        Ok(versions.into_iter().map(|(key, version)| (key, version.dot)).collect())
    }

    fn whole_slot(&self, slot: Slot, after: Option<&Key>) -> Result<Vec<(Key, Version)>> {
        let mut all: Vec<(Key, Version)> = Vec::new();
        loop {
            let from = all.last().map(|(key, _)| key).or(after);
            let page = self.store.slot(slot, from, SLOT_PAGE)?;
            let last = page.len() < SLOT_PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    pub(super) fn repair_asked(
        &mut self,
        from: &Addr,
        id: u64,
        scope: Scope,
        round: u64,
        slots: &[SlotListing],
    ) -> Result<()> {
        let Some((covered, whole)) = self.source(scope).filter(|_| !self.is_clogged(from)) else { return Ok(()) };
        let of_mine = self.topology.as_ref().is_some_and(|topology| topology.layout.epoch == scope.epoch);
        let weight_max = if of_mine && self.is_mate(from) { MATE_ANSWER_WEIGHT_MAX } else { ANSWER_WEIGHT_MAX };
        let mut answer = RepairAnswer { weight_max, ..RepairAnswer::default() };
        for listing in slots {
            if answer.is_full() {
                answer.rest = Some((listing.slot, listing.after.clone()));
                break;
            }
            self.compare_slot(covered, whole, listing, &mut answer)?;
            if answer.rest.is_some() {
                break;
            }
        }
        let RepairAnswer { entries, dropped, rest, .. } = answer;
        self.send(from, Message::RepairData { id, round, entries, dropped, rest });
        Ok(())
    }

    fn compare_slot(
        &self,
        covered: &Vector,
        whole: bool,
        listing: &SlotListing,
        answer: &mut RepairAnswer,
    ) -> Result<()> {
        let Some(replica) = &self.replica else { return Ok(()) };
        let mut last = listing.after.clone();
        let mut theirs = listing.have.iter().peekable();
        // `covered` speaks of the scope's slots alone: what this node covers elsewhere says nothing here. And who does not have all that
        // is everywhere lacks it for another reason than that it was deleted.
        let blindly = self.settings.broken(Mutant::CoverageDuringCopy);
        let forgotten = |dot: &Dot| {
            covered.covers(*dot)
                || (whole && self.is_retired(replica, dot.origin))
                || (blindly && replica.applied.covers(*dot))
        };
        let drop_gone = |dropped: &mut Vec<_>, key: &Key, dot: &Dot| {
            if forgotten(dot) {
                dropped.push((key.clone(), *dot));
            }
        };
        loop {
            let page = self.store.slot(listing.slot, last.as_ref(), COMPARED_PAGE)?;
            let is_last = page.len() < COMPARED_PAGE;
            for (key, version) in page {
                if answer.is_full() {
                    answer.rest = Some((listing.slot, last));
                    return Ok(());
                }
                while let Some((gone, dot)) = theirs.next_if(|(other, _)| *other < key) {
                    drop_gone(&mut answer.dropped, gone, dot);
                }
                let same = theirs.next_if(|(other, _)| *other == key).is_some_and(|(_, dot)| *dot == version.dot);
                last = Some(key.clone());
                if !same {
                    answer.weight += entry_weight(&key, &version);
                    answer.entries.push((key, version));
                }
            }
            if is_last {
                break;
            }
        }
        theirs.for_each(|(gone, dot)| drop_gone(&mut answer.dropped, gone, dot));
        Ok(())
    }

    pub(super) fn repair_data(
        &mut self,
        from: &Addr,
        (id, round): (u64, u64),
        entries: Vec<(Key, Version)>,
        dropped: Vec<(Key, Dot)>,
        rest: Option<(Slot, Option<Key>)>,
    ) -> Result<()> {
        let Some(repair) = self.current_repair(from, id).filter(|repair| repair.round == round) else {
            return Ok(());
        };
        repair.round += 1;
        repair.has_changed |= !entries.is_empty() || !dropped.is_empty();
        repair.compared(rest);
        let (purpose, scope) = (repair.purpose, repair.scope);
        if purpose != Purpose::Mate {
            let size =
                |(key, version): &(Key, Version)| key.len() + version.value.as_ref().map_or(0, bytes::Bytes::len);
            self.count_transfer(scope, entries.len() as u64, None, entries.iter().map(size).sum::<usize>() as u64);
        }
        for (key, version) in entries {
            if purpose != Purpose::Mate {
                self.inventory.install(&mut *self.store, &key, &version)?;
            } else if !self.has_forgotten(&key, version.dot)? {
                self.inventory.install(&mut *self.store, &key, &version)?;
                self.note_brought(version.dot);
            }
        }
        for (key, dot) in dropped {
            let present = self.store.head(Slot::of(&key), &key)?;
            if let Some(head) = present.filter(|head| head.dot == dot) {
                self.inventory.discard(&mut *self.store, &key, head.dot, head.has_value);
            }
        }
        self.replica_changed = true;
        if self.repair_rests(purpose) { Ok(()) } else { self.repair_on(purpose) }
    }

    /// Makes way where answers are late: whether the repair is to go on later.
    fn repair_rests(&mut self, purpose: Purpose) -> bool {
        let now = self.now.mono_ms;
        if purpose == Purpose::Mate || self.settings.broken(Mutant::RepairNeverRests) {
            return false;
        }
        let Some(repair) = self.place_of(purpose).as_mut() else { return false };
        let waited_ms = now.saturating_sub(repair.first_asked_ms);
        repair.quickest_ms = repair.quickest_ms.min(waited_ms);
        // A millisecond more or less is how clocks are read.
        let late_ms = waited_ms.saturating_sub(repair.quickest_ms + 1);
        let rest_ms = (REST_PER_DELAY * late_ms).min(REST_MS_MAX);
        // Nothing is asked after the last answer.
        let rests = rest_ms > 0 && !repair.todo.is_empty();
        if rests {
            (repair.asked_ms, repair.rests_until_ms) = (now, Some(now + rest_ms));
        }
        rests
    }

    /// When the transfer goes on, if it rests.
    pub(super) fn transfer_rests_until_ms(&self) -> Option<u64> {
        self.transfer.as_ref()?.rests_until_ms
    }

    /// Goes on with a transfer that has rested.
    pub(super) fn rested_step(&mut self) -> Result<()> {
        let now = self.now.mono_ms;
        let has_rested = |repair: &&mut Repair| repair.rests_until_ms.is_some_and(|until| until <= now);
        let Some(repair) = self.transfer.as_mut().filter(has_rested) else { return Ok(()) };
        repair.rests_until_ms = None;
        let purpose = repair.purpose;
        self.repair_on(purpose)
    }

    /// Whether a version has been here, and has been overwritten and then forgotten: an answer that comes late may still bring it. (What
    /// the vector covers has met the winner rule, see [`super::replica`]; and of what is retired, all that still exists is here.)
    fn has_forgotten(&self, key: &Key, dot: Dot) -> Result<bool> {
        let had = |replica: &Replica| {
            let retired = || self.is_retired(replica, dot.origin) && !self.is_uncovered_anywhere(replica, dot.origin);
            replica.stage != Stage::Filling && (replica.applied.covers(dot) || retired())
        };
        let covered = self.replica.as_ref().is_some_and(had);
        Ok(covered && self.store.head(Slot::of(key), key)?.is_none())
    }

    fn finish_repair(&mut self, purpose: Purpose) -> Result<()> {
        let Some(repair) = self.place_of(purpose).take() else { return Ok(()) };
        match purpose {
            Purpose::Mate => self.finish_with_mate(&repair),
            Purpose::Copy => {
                self.copied(&repair);
                Ok(())
            }
            Purpose::Handover => {
                self.handed_over(&repair);
                self.deliver_waiting()
            }
        }
    }

    fn finish_with_mate(&mut self, repair: &Repair) -> Result<()> {
        if let Some(replica) = self.replica.as_mut() {
            replica.applied.merge(&repair.target);
        }
        self.drop_covered();
        let Some(replica) = self.replica.as_mut() else { return Ok(()) };
        replica.raise_floors(&repair.floors);
        self.inventory.clock.observe(repair.clock);
        let filling = replica.stage == Stage::Filling;
        self.replica_changed = true;
        self.say(Severity::Info, format!("compared all slots with {}", repair.peer));
        if filling {
            self.filled_by(repair);
            return self.fill_step();
        }
        self.send(&repair.peer, Message::Compared { id: repair.id });
        self.reason.clear();
        self.notice_lag(&repair.peer);
        self.deliver_waiting()?;
        // Others go on from there.
        self.tell_held();
        Ok(())
    }
}

impl Repair {
    /// Strikes off what the last answer dealt with.
    fn compared(&mut self, rest: Option<(Slot, Option<Key>)>) {
        match rest {
            None => {
                self.todo.drain(..self.slots_asked.min(self.todo.len()));
                self.slots_max = (2 * self.slots_max).min(SLOTS_MAX);
            }
            Some((slot, after)) => {
                let at = self.todo.iter().position(|(other, _)| *other == slot).unwrap_or(0);
                self.todo.drain(..at);
                self.slots_max = (at + at / 2).clamp(1, SLOTS_MAX);
                if let Some(first) = self.todo.front_mut() {
                    first.1 = after;
                }
            }
        }
    }
}

#[derive(Default)]
struct RepairAnswer {
    entries: Vec<(Key, Version)>,
    dropped: Vec<(Key, Dot)>,
    rest: Option<(Slot, Option<Key>)>,
    weight: usize,
    weight_max: usize,
}

impl RepairAnswer {
    fn is_full(&self) -> bool {
        self.weight >= self.weight_max
    }
}
