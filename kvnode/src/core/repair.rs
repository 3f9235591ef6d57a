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

use super::clock::Stamp;
use super::settings::Mutant;
use super::{Core, Severity};
use crate::core::causal::Vector;
use crate::storage::{Result, Version};
use crate::wire::ident::{Addr, Dot, Key, Slot};
use crate::wire::peer::{Floors, Message, SlotListing, Stage};

/// Silence of the source for so long ends a repair; it is begun anew where needed.
const SILENCE_MS: u64 = 2_000;
/// A request that was not answered for so long is sent again.
const ASK_AGAIN_MS: u64 = 400;
/// Versions listed in one request, at most; but at least one slot.
const LISTED_MAX: usize = 4_096;
/// Slots in one request.
const SLOTS_MAX: usize = 512;
/// Bytes of versions in one answer; one version may go beyond it.
const ANSWER_WEIGHT_MAX: usize = 1 << 20;
/// Versions of one slot read at a time.
const SLOT_PAGE: usize = 1_024;

/// A repair that runs here; there is one at a time.
#[derive(Debug)]
pub(super) struct Repair {
    id: u64,
    pub peer: Addr,
    heard_ms: u64,
    /// Counts the requests, so that an answer that comes twice or late is told from the one awaited.
    round: u64,
    /// The request that waits for its answer, and when it was last sent.
    asked: Message,
    asked_ms: u64,
    slots_asked: usize,
    began: bool,
    target: Vector,
    floors: Floors,
    clock: Stamp,
    /// Slots still to be compared, the first one from after its key.
    todo: VecDeque<(Slot, Option<Key>)>,
}

impl Core {
    pub(super) fn begin_repair(&mut self, peer: &Addr) {
        self.last_repair_id += 1;
        let id = self.last_repair_id;
        self.repair = Some(Repair {
            id,
            peer: peer.clone(),
            heard_ms: self.now.mono_ms,
            round: 0,
            asked: Message::RepairStart { id },
            asked_ms: self.now.mono_ms,
            slots_asked: 0,
            began: false,
            target: Vector::new(),
            floors: Vec::new(),
            clock: Stamp::default(),
            todo: VecDeque::new(),
        });
        self.reason = format!("fetching the shard's data from {peer}");
        self.send(peer, Message::RepairStart { id });
    }

    /// Asks again where an answer is overdue, and ends a repair whose source has gone silent.
    pub(super) fn repair_step(&mut self) {
        let now = self.now.mono_ms;
        let Some(repair) = self.repair.as_mut() else { return };
        if now.saturating_sub(repair.heard_ms) >= SILENCE_MS {
            self.repair = None;
        } else if now.saturating_sub(repair.asked_ms) >= ASK_AGAIN_MS {
            repair.asked_ms = now;
            let (peer, message) = (repair.peer.clone(), repair.asked.clone());
            self.send(&peer, message);
        }
    }

    pub(super) fn repair_started(&mut self, from: &Addr, id: u64) {
        let (Some(replica), Some(topology)) = (&self.replica, &self.topology) else { return };
        if replica.stage == Stage::Filling {
            return;
        }
        let slots = topology.layout.slots_of(replica.shard);
        let message = Message::RepairBegin {
            id,
            target: replica.applied.clone(),
            floors: replica.floors_list(),
            clock: replica.clock.last(),
            digests: slots.map(|slot| replica.digests[usize::from(slot.0)]).collect(),
        };
        self.send(from, message);
    }

    fn current_repair(&mut self, from: &Addr, id: u64) -> Option<&mut Repair> {
        let now = self.now.mono_ms;
        let repair = self.repair.as_mut().filter(|repair| repair.id == id && repair.peer == *from)?;
        repair.heard_ms = now;
        Some(repair)
    }

    pub(super) fn repair_began(
        &mut self,
        from: &Addr,
        id: u64,
        target: Vector,
        floors: Floors,
        clock: Stamp,
        digests: &[u64],
    ) -> Result<()> {
        let (Some(replica), Some(topology)) = (&self.replica, &self.topology) else { return Ok(()) };
        let slots = topology.layout.slots_of(replica.shard).zip(digests);
        let differs = slots.filter(|&(slot, &theirs)| replica.digests[usize::from(slot.0)] != theirs);
        let todo: VecDeque<_> = differs.map(|(slot, _)| (slot, None)).collect();
        let early = self.settings.broken(Mutant::RepairVectorFirst).then(|| target.clone());
        let Some(repair) = self.current_repair(from, id).filter(|repair| !repair.began) else {
            return Ok(());
        };
        repair.began = true;
        (repair.target, repair.floors, repair.clock, repair.todo) = (target, floors, clock, todo);
        if let (Some(early), Some(replica)) = (early, self.replica.as_mut()) {
            replica.applied.merge(&early);
        }
        self.repair_on()
    }

    /// Asks for the next slots, or ends the repair.
    fn repair_on(&mut self) -> Result<()> {
        let Some(repair) = &self.repair else { return Ok(()) };
        if repair.todo.is_empty() {
            return self.finish_repair();
        }
        let (id, peer, round) = (repair.id, repair.peer.clone(), repair.round + 1);
        let mut slots = Vec::new();
        let mut listed = 0;
        for (slot, after) in repair.todo.iter().take(SLOTS_MAX) {
            if listed >= LISTED_MAX {
                break;
            }
            let have = self.list_slot(*slot, after.as_ref())?;
            listed += have.len();
            slots.push(SlotListing { slot: *slot, after: after.clone(), have });
        }
        let slots_asked = slots.len();
        let message = Message::RepairAsk { id, round, slots };
        let now = self.now.mono_ms;
        if let Some(repair) = self.repair.as_mut() {
            (repair.round, repair.slots_asked, repair.asked_ms) = (round, slots_asked, now);
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

    pub(super) fn repair_asked(&mut self, from: &Addr, id: u64, round: u64, slots: &[SlotListing]) -> Result<()> {
        if self.replica.as_ref().is_none_or(|replica| replica.stage == Stage::Filling) {
            return Ok(());
        }
        let mut answer = RepairAnswer::default();
        for listing in slots {
            if answer.weight >= ANSWER_WEIGHT_MAX {
                answer.rest = Some((listing.slot, listing.after.clone()));
                break;
            }
            self.compare_slot(listing, &mut answer)?;
            if answer.rest.is_some() {
                break;
            }
        }
        let RepairAnswer { entries, dropped, rest, .. } = answer;
        self.send(from, Message::RepairData { id, round, entries, dropped, rest });
        Ok(())
    }

    fn compare_slot(&self, listing: &SlotListing, answer: &mut RepairAnswer) -> Result<()> {
        let Some(replica) = &self.replica else { return Ok(()) };
        let mine = self.whole_slot(listing.slot, listing.after.as_ref())?;
        let mut last = listing.after.clone();
        let mut theirs = listing.have.iter().peekable();
        let forgotten = |dot: &Dot| replica.applied.covers(*dot) || replica.is_retired(dot.origin);
        let mut drop_gone = |key: &Key, dot: &Dot| {
            if forgotten(dot) {
                answer.dropped.push((key.clone(), *dot));
            }
        };
        for (key, version) in mine {
            if answer.weight >= ANSWER_WEIGHT_MAX {
                answer.rest = Some((listing.slot, last));
                return Ok(());
            }
            while let Some((gone, dot)) = theirs.next_if(|(other, _)| *other < key) {
                drop_gone(gone, dot);
            }
            let same = theirs.next_if(|(other, _)| *other == key).is_some_and(|(_, dot)| *dot == version.dot);
            last = Some(key.clone());
            if !same {
                answer.weight += 64 + key.len() + version.value.as_ref().map_or(0, bytes::Bytes::len);
                answer.entries.push((key, version));
            }
        }
        theirs.for_each(|(gone, dot)| drop_gone(gone, dot));
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
        repair.compared(rest);
        let Some(replica) = self.replica.as_mut() else { return Ok(()) };
        for (key, version) in entries {
            replica.install(&mut *self.store, &key, version)?;
        }
        for (key, dot) in dropped {
            let present = self.store.get(Slot::of(&key), &key)?;
            if let Some(version) = present.filter(|version| version.dot == dot) {
                replica.discard(&mut *self.store, &key, &version);
            }
        }
        self.replica_changed = true;
        self.repair_on()
    }

    fn finish_repair(&mut self) -> Result<()> {
        let (Some(repair), Some(replica)) = (self.repair.take(), self.replica.as_mut()) else { return Ok(()) };
        replica.applied.merge(&repair.target);
        replica.clock.observe(repair.clock);
        replica.raise_floors(&repair.floors);
        let filling = replica.stage == Stage::Filling;
        self.replica_changed = true;
        self.say(Severity::Info, format!("compared all slots with {}", repair.peer));
        if filling {
            self.filled_by(&repair);
            return self.fill_step();
        }
        self.reason.clear();
        self.notice_lag(&repair.peer);
        self.deliver_waiting()
    }
}

impl Repair {
    /// Strikes off what the last answer dealt with.
    fn compared(&mut self, rest: Option<(Slot, Option<Key>)>) {
        match rest {
            None => {
                self.todo.drain(..self.slots_asked.min(self.todo.len()));
            }
            Some((slot, after)) => {
                let at = self.todo.iter().position(|(other, _)| *other == slot).unwrap_or(0);
                self.todo.drain(..at);
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
}
