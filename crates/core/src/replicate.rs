//! How writes reach the other replicas of the shard.
//!
//! A replica *pushes* its own writes: each peer has a cursor into the log, and every batch to the peer takes what follows.
//! A client waits for a majority only, so only as many others as that takes are sent a write at once, the next ones in a ring; for the
//! rest writes are gathered for [`LINGER_MS`], unless a batch goes there anyway. With three replicas that halves the
//! batches. If the next in the ring is slow, the others have the write a moment later, and acknowledge it in its place.
//! The peer acknowledges by number. What is not acknowledged for a while is sent again. A replica *pulls* what it is seen to
//! lack otherwise: writes of a node that is gone or cut off, or dependencies of writes that came first. Whoever is asked
//! for more than its log holds says so, and the asker repairs from its store.
//!
//! Invariant: a write is applied only when it is its origin's next and its own-shard dependencies are applied. So what a
//! replica has applied is always closed under causality within the shard, and a dot stands for all before it.

use kvnode_types::causal::Vector;
use kvnode_types::ident::{Addr, Dot, Origin};

use super::Core;
use super::settings::Mutant;
use crate::messages::{Floors, Message, Stage, Write};
use crate::store::Result;

use super::contact::Peer;

/// Writes that no client waits for are gathered for so long before they go. Short against what a person notices, long against
/// what a batch takes.
const LINGER_MS: u64 = 3;
/// A pull that was not answered for so long is made again.
const PULL_MS: u64 = 300;
/// A replica that is behind a peer waits so long for writes that are probably on their way, before it pulls.
const LAG_MS: u64 = 250;
/// Bytes of writes that answer one pull.
const PULL_WEIGHT_MAX: usize = 1 << 20;

/// Whether our writes that a peer lacks go to it now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Push {
    /// With the next batch, and a batch is made for them.
    #[default]
    Now,
    /// All has been handed to the link.
    Done,
    /// With the next batch; one is made for them when the first of them, written then, has waited long enough.
    Lingering { since_ms: u64 },
}

/// What a mate has told to have, and is not all here.
#[derive(Debug)]
pub(super) struct Lag {
    pub since_ms: u64,
    pub goal: Vector,
}

enum Turn {
    /// Already applied, or of a retired origin.
    Known,
    Ready,
    Early,
}

impl Core {
    /// Whether this peer lacks writes of ours that were not handed to its link yet.
    fn lacks_writes(&self, addr: &Addr, peer: &Peer) -> bool {
        let Some(replica) = &self.replica else { return false };
        let has_room = peer.report.as_ref().is_some_and(|report| report.takes_writes);
        let takes = has_room && matches!(peer.stage, Some(Stage::Serving | Stage::Leaving));
        takes && peer.cursor.lacks(replica.seq()) && self.is_mate(addr)
    }

    /// Whether a batch is to be made for writes of ours that this peer lacks.
    pub(super) fn has_writes_for(&self, addr: &Addr, peer: &Peer) -> bool {
        (peer.is_eager || peer.push == Push::Now) && self.lacks_writes(addr, peer)
    }

    /// Writes for the next batch to a peer. Moves its cursor.
    pub(super) fn take_writes_for(&mut self, addr: &Addr, weight_max: usize) -> Option<Message> {
        let peer = self.peers.get(addr)?;
        if !self.lacks_writes(addr, peer) {
            return None;
        }
        let replica = self.replica.as_ref()?;
        let writes = replica.log.of_origin(replica.origin, peer.cursor.sent(), weight_max);
        let (now, seq) = (self.now.mono_ms, replica.seq());
        let peer = self.peers.get_mut(addr)?;
        let Some(writes) = writes else {
            peer.cursor.fall_behind(now);
            peer.push = Push::Done;
            return Some(Message::Behind);
        };
        peer.cursor.send(writes.last()?.version.dot.seq, now);
        peer.push = if peer.cursor.lacks(seq) { Push::Now } else { Push::Done };
        Some(Message::Writes { writes, pulled: false })
    }

    /// The newest write under the layout before that a client waits for, and where it has to begin, if this peer has something to do
    /// with it and was not sent it since. Once, because heirs get all of it in the end without (see [`super::handover`]); at once,
    /// because that takes longer than a client should wait.
    pub(super) fn earlier_writes_for(&self, addr: &Addr) -> Option<(Origin, u64)> {
        let origin = self.replica.as_ref()?.before.filter(|_| !self.settings.broken(Mutant::EarlierWritesKept))?;
        let last = self.last_awaited_of(origin)?;
        let peer = self.peers.get(addr)?;
        let from = peer.held_before.max(peer.sent_before);
        (from < last && (self.was_mate(addr) || self.is_mate(addr))).then_some((origin, from))
    }

    pub(super) fn take_earlier_writes_for(&mut self, addr: &Addr, weight_max: usize) -> Option<Message> {
        let (origin, from) = self.earlier_writes_for(addr)?;
        // What a short log has dropped is left to the handing over.
        let writes = self.replica.as_ref()?.log.of_origin(origin, from, weight_max).unwrap_or_default();
        let sent = writes.last().map_or(u64::MAX, |write| write.version.dot.seq);
        self.peers.get_mut(addr)?.sent_before = sent;
        (!writes.is_empty()).then_some(Message::Writes { writes, pulled: false })
    }

    /// Something was written here: the other replicas are to have it.
    pub(super) fn wake_mates(&mut self) {
        if self.replica.is_none() {
            return;
        }
        // With this one they make a majority.
        let mut wanted = self.bearings.ring.len().div_ceil(2);
        let now = self.now.mono_ms;
        for at in 0..self.bearings.ring.len() {
            let addr = &self.bearings.ring[at];
            let Some(peer) = self.peers.get(addr) else { continue };
            let is_eager = wanted > 0 && self.lacks_writes(addr, peer) && self.is_reachable(peer);
            wanted -= usize::from(is_eager);
            let Some(peer) = self.peers.get_mut(addr) else { continue };
            peer.is_eager = is_eager;
            if peer.push == Push::Done {
                peer.push = Push::Lingering { since_ms: now };
            }
            if (is_eager || peer.push == Push::Now) && !self.wakes.contains(addr) {
                self.wakes.insert(addr.clone());
            }
        }
    }

    /// When writes have lingered long enough, if any do.
    pub(super) fn linger_until_ms(&self) -> Option<u64> {
        let until = |peer: &Peer| match peer.push {
            Push::Lingering { since_ms } => Some(since_ms + LINGER_MS),
            Push::Now | Push::Done => None,
        };
        self.peers.values().filter_map(until).min()
    }

    pub(super) fn linger_step(&mut self) {
        let now = self.now.mono_ms;
        for (addr, peer) in &mut self.peers {
            if matches!(peer.push, Push::Lingering { since_ms } if since_ms + LINGER_MS <= now) {
                peer.push = Push::Now;
                self.wakes.insert(addr.clone());
            }
        }
    }

    pub(super) fn writes(&mut self, from: &Addr, writes: Vec<Write>, pulled: bool) -> Result<()> {
        let last = writes.last().map(|write| write.version.dot.origin);
        if !self.takes_writes() {
            if self.settings.broken(Mutant::FullAcknowledges)
                && let Some(write) = writes.last()
            {
                let Dot { origin, seq } = write.version.dot;
                self.send(from, Message::Held { origin, seq, beyond: 0 });
            }
            return Ok(());
        }
        let before = self.replica.as_ref().filter(|_| pulled).map(|replica| replica.applied.clone());
        for write in writes {
            if !self.is_written_off(from, write.version.dot.origin) {
                self.deliver(write)?;
            }
        }
        self.deliver_waiting()?;
        if let Some(origin) = last
            && !pulled
            && let Some(replica) = &self.replica
        {
            let held = replica.held_of(origin);
            self.send(from, held);
        }
        if pulled && let Some(peer) = self.peers.get_mut(from) {
            peer.pulled_ms = None;
            // What did not fit into the answer; what is newer comes by itself. An answer of no use would be the same again.
            let is_of_use = self.replica.as_ref().map(|replica| &replica.applied) != before.as_ref();
            if is_of_use
                && self.peers.get(from).and_then(|peer| peer.lag.as_ref()).is_some_and(|lag| self.lacks_any(&lag.goal))
            {
                self.pull(from);
            }
        }
        Ok(())
    }

    fn turn_of(&self, write: &Write) -> Turn {
        let Some(replica) = &self.replica else { return Turn::Known };
        let dot = write.version.dot;
        let known = replica.applied.covers(dot) || self.is_retired(replica, dot.origin);
        if known || !self.concerns(replica, dot.origin) {
            return Turn::Known;
        }
        let next = dot.seq.checked_sub(1) == Some(replica.applied.get(dot.origin));
        let ready = next && self.dependencies_are_here(replica, &write.own_deps);
        if ready || self.settings.broken(Mutant::OriginOrder) { Turn::Ready } else { Turn::Early }
    }

    fn deliver(&mut self, mut write: Write) -> Result<()> {
        let (turn, has_ended) = (self.turn_of(&write), self.has_ended(write.version.dot.origin));
        let Some(replica) = self.replica.as_mut() else { return Ok(()) };
        match turn {
            Turn::Known => {}
            // What waits is not reported, so it must not count later for an origin of which all have told how much they have.
            Turn::Early if has_ended => {}
            Turn::Early => replica.put_aside(write),
            Turn::Ready => {
                if self.settings.broken(Mutant::DepsDropped) {
                    write.version.deps = Vector::new();
                }
                replica.apply(&mut self.inventory, &mut *self.store, write)?;
                self.replica_changed = true;
                self.waiting.changed = true;
            }
        }
        Ok(())
    }

    /// Applies what waited for dependencies and waits no longer.
    pub(super) fn deliver_waiting(&mut self) -> Result<()> {
        let mut progress = false;
        if !self.takes_writes() {
            return Ok(());
        }
        while let Some(origin) = self.waiting_no_longer() {
            let write = self.replica.as_mut().and_then(|replica| replica.take_waiting(origin));
            if let Some(write) = write {
                self.deliver(write)?;
                progress = true;
            }
        }
        if progress {
            self.tell_held();
        }
        Ok(())
    }

    fn waiting_no_longer(&self) -> Option<Origin> {
        let replica = self.replica.as_ref().filter(|replica| replica.has_waiting())?;
        let ended = |write: &&Write| !matches!(self.turn_of(write), Turn::Early);
        replica.first_waiting().find(ended).map(|write| write.version.dot.origin)
    }

    /// Acknowledges to every mate what is held of its current origin.
    pub(super) fn tell_held(&mut self) {
        for addr in self.mates() {
            let (Some(replica), Some(node)) = (&self.replica, self.node_of(&addr)) else { continue };
            let Some(incarnation) = self.peers.get(&addr).and_then(|peer| peer.life) else { continue };
            let origin = Origin { node, epoch: replica.origin.epoch, incarnation };
            if replica.applied.get(origin) > 0 {
                let held = replica.held_of(origin);
                self.send(&addr, held);
            }
        }
    }

    pub(super) fn held(&mut self, from: &Addr, origin: Origin, seq: u64, beyond: Option<u64>) {
        let Some(replica) = &self.replica else { return };
        if replica.origin == origin {
            self.note_held(from, seq, beyond);
        } else if replica.before == Some(origin)
            && let Some(peer) = self.peers.get_mut(from)
        {
            peer.held_before = peer.held_before.max(seq);
        }
    }

    pub(super) fn note_held(&mut self, from: &Addr, seq: u64, beyond: Option<u64>) {
        let now = self.now.mono_ms;
        let beyond = beyond.filter(|_| !self.settings.broken(Mutant::GapUnnoticed));
        let Some(peer) = self.peers.get_mut(from) else { return };
        if peer.cursor.acknowledge(seq, beyond, now) {
            peer.push = Push::Now;
            self.wakes.insert(from.clone());
        }
    }

    /// A mate has told what it has applied: is it ahead? Under load it nearly always is, by what is on its way; what counts is how
    /// long it takes to get where it was.
    pub(super) fn notice_lag(&mut self, from: &Addr) {
        let Some(peer) = self.peers.get(from) else { return };
        // It may have lost what it had.
        let still_has = |goal: &Vector| peer.report.as_ref().is_some_and(|report| report.applied.includes(goal));
        if peer.lag.as_ref().is_some_and(|lag| still_has(&lag.goal) && self.lacks_any(&lag.goal)) {
            return;
        }
        let ahead = peer.report.as_ref().filter(|report| self.lacks_any(&report.applied));
        let lag = ahead.map(|report| Lag { since_ms: self.now.mono_ms, goal: report.applied.clone() });
        if let Some(peer) = self.peers.get_mut(from) {
            peer.lag = lag;
        }
    }

    /// Whether something in a vector is lacking here that should be here.
    fn lacks_any(&self, goal: &Vector) -> bool {
        let Some(replica) = &self.replica else { return false };
        let lacks = |(origin, seq)| {
            replica.applied.get(origin) < seq && !self.is_retired(replica, origin) && self.concerns(replica, origin)
        };
        goal.iter().any(lacks)
    }

    fn pull_if_late(&mut self, addr: &Addr) {
        let lag = self.peers.get(addr).and_then(|peer| peer.lag.as_ref());
        if lag.is_some_and(|lag| self.now.mono_ms.saturating_sub(lag.since_ms) >= LAG_MS) {
            self.pull(addr);
        }
    }

    /// Asks a peer for what is lacking here, unless that was just done.
    pub(super) fn pull(&mut self, addr: &Addr) {
        let Some(replica) = self.replica.as_ref().filter(|replica| replica.stage != Stage::Filling) else { return };
        if !self.takes_writes() {
            return;
        }
        let message = Message::Pull { have: replica.applied.clone(), floors: replica.floors_list() };
        let now = self.now.mono_ms;
        let Some(peer) = self.peers.get_mut(addr) else { return };
        if peer.pulled_ms.is_none_or(|at| now.saturating_sub(at) >= PULL_MS) {
            peer.pulled_ms = Some(now);
            self.send(addr, message);
        }
    }

    /// Asks for dependencies that a request waits for: those known to have them, or else everybody.
    pub(super) fn pull_missing(&mut self, missing: &Vector) {
        let knows = |core: &Self, addr: &Addr| {
            let report = core.peers.get(addr).and_then(|peer| peer.report.as_ref());
            report.is_some_and(|report| missing.iter().any(|(origin, seq)| report.applied.get(origin) >= seq))
        };
        let mates = self.mates();
        let holders: Vec<Addr> = mates.iter().filter(|&addr| knows(self, addr)).cloned().collect();
        for addr in if holders.is_empty() { &mates } else { &holders } {
            self.pull(addr);
        }
        // What was written under the layout before may be at nodes of other shards now.
        self.handover_step();
    }

    /// Sends again what was not acknowledged, and pulls what has been lacking for a while.
    pub(super) fn anti_entropy_step(&mut self) {
        self.comparison_step();
        let now = self.now.mono_ms;
        for addr in self.mates() {
            let Some(peer) = self.peers.get_mut(&addr) else { continue };
            if peer.cursor.give_up_waiting(now) {
                peer.push = Push::Now;
                self.wakes.insert(addr.clone());
            }
            if peer.lag.as_ref().is_some_and(|lag| now.saturating_sub(lag.since_ms) >= LAG_MS) {
                self.notice_lag(&addr);
                self.pull_if_late(&addr);
            }
        }
    }

    pub(super) fn pull_asked(&mut self, from: &Addr, have: &Vector, floors: &Floors) {
        let Some(replica) = self.replica.as_ref().filter(|_| !self.is_clogged(from)) else { return };
        let mut wanted = replica.applied.clone();
        let retired = |origin: Origin| {
            let below = |&(node, epoch, floor): &(_, _, _)| {
                (node, epoch) == (origin.node, origin.epoch) && origin.incarnation < floor
            };
            floors.iter().any(below)
        };
        wanted.retain(|origin, _| !retired(origin));
        match replica.log.since(have, &wanted, PULL_WEIGHT_MAX) {
            Some(writes) if writes.is_empty() => {}
            Some(writes) => self.send(from, Message::Writes { writes, pulled: true }),
            None if replica.stage == Stage::Filling => {}
            None => self.send(from, Message::Behind),
        }
    }

    pub(super) fn told_behind(&mut self, from: &Addr) {
        let serving = self.is_serving() && !self.node_of(from).is_some_and(|node| self.is_cut_off(node));
        if serving && self.repair.is_none() && self.takes_writes() {
            self.begin_repair(from);
        }
    }
}
