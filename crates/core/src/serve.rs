//! Requests at a replica of their shard: check the context, read or write, answer.
//!
//! A request whose dependencies are not here yet is *parked*: the replica asks for them and tries again after every change,
//! until its time for that is over ([`super::deadline`]). An accepted write is answered once a majority of the shard's replicas hold it, or when
//! there is nobody left to wait for, or when `ack_wait_ms` is over; it always says how many copies there were.

use std::collections::VecDeque;

use kvnode_types::causal::{Context, Vector};
use kvnode_types::ident::{Addr, Dot, Incarnation, Key, NodeId, Origin, ShardId, Slot};

use super::causality::Check;
use super::contact::Peer;
use super::deadline::Span;
use super::replica::Replica;
use super::request::{Answer, Op};
use super::settings::Mutant;
use super::topology::slots_in;
use super::{Core, Effect, Now};
use crate::messages::{Message, Stage, Write};
use crate::store::{Result, Version};

/// Bytes of values that one turn hands out to requests that have waited, about: thousands may wait for the same write.
const ANSWERS_AT_ONCE_BYTES: usize = 8 << 20;

/// Who wants the answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Requester {
    /// A client of this node.
    Client(u64),
    /// Another node, on behalf of a client: in which life it asked, and its number for the request. A later life counts anew, so
    /// what is answered to an earlier one must never reach it.
    Peer(Addr, Incarnation, u64),
    /// A listing of this node that asks every shard.
    Gather(u64, ShardId),
}

/// Requests that were taken and not answered yet.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    parked: Vec<Parked>,
    /// Writes that wait for copies, in order of their numbers.
    unacknowledged: VecDeque<Unacknowledged>,
    /// Set when something was applied: parked requests are worth another look.
    pub changed: bool,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.parked.is_empty() && self.unacknowledged.is_empty()
    }

    pub fn len(&self) -> usize {
        self.parked.len() + self.unacknowledged.len()
    }

    pub fn parked(&self) -> usize {
        self.parked.len()
    }
}

#[derive(Debug)]
struct Parked {
    requester: Requester,
    op: Op,
    context: Context,
    span: Span,
}

#[derive(Debug)]
struct Unacknowledged {
    requester: Requester,
    dot: Dot,
    deadline_ms: u64,
    done: WriteDone,
    /// The own-shard part of the writer's context. The write's dot stands for it wherever the write is held; while that is
    /// here alone, the client has to carry it on, or the loss of this node would lose more than the write.
    own: Vector,
    /// The rest of the writer's context, and the dot.
    seen: Vector,
}

/// Up to which number other replicas hold the writes of one origin.
#[derive(Debug, Default)]
struct Acknowledgements {
    /// Replicas of the shard, this one included.
    size: usize,
    /// Of those that count, and of those among them that can be reached.
    all: Vec<u64>,
    reachable: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
enum WriteDone {
    Created,
    Replaced,
    Deleted,
}

impl Core {
    /// A client's request arrives.
    pub(super) fn client(&mut self, id: u64, op: Op, tokens: &[String], arrived_ms: u64) -> Result<()> {
        let span = Span::of_client(&self.settings, arrived_ms.min(self.now.mono_ms));
        let requester = Requester::Client(id);
        let Some(seal) = &self.bearings.seal else {
            let reason = self.reason.clone();
            self.answer(requester, Answer::NotReady { reason });
            return Ok(());
        };
        let mut context = Context::nothing();
        for text in tokens {
            match seal.decode(text) {
                Some(part) => context.merge(&part),
                None => {
                    self.answer(requester, Answer::Malformed);
                    return Ok(());
                }
            }
        }
        if self.draining || self.me.is_none() || self.dropping.is_some() {
            let reason = if self.draining { "shutting down".into() } else { self.reason.clone() };
            self.answer(requester, Answer::NotReady { reason });
            return Ok(());
        }
        self.route(requester, op, context, span)
    }

    /// A read that can be answered from what is here, at once, without effects: most can. `None`: an [`super::Event::Client`]
    /// has to find out. To be called between turns, when everything that is here is committed.
    pub fn read(&mut self, now: Now, op: &Op, tokens: &[String]) -> Option<Answer<String>> {
        let Op::Get { key } = op else { return None };
        if self.draining || !self.is_serving() || self.settings.broken(Mutant::ReadUnchecked) {
            return None;
        }
        self.now = Now { mono_ms: self.now.mono_ms.max(now.mono_ms), wall_ms: now.wall_ms };
        // Before the tokens are opened: where a request is passed on, that is done then.
        let shard = self.shard_for(op, None);
        let replica = self.replica.as_ref().filter(|replica| shard.is_some() && replica.shard == shard)?;
        let seal = self.bearings.seal.as_ref()?;
        let mut context = match tokens.first() {
            Some(text) => seal.decode(text)?,
            None => Context::nothing(),
        };
        for text in tokens.iter().skip(1) {
            context.merge(&seal.decode(text)?);
        }
        let Check::Satisfied { own, foreign, lost } = self.check(replica, &context) else { return None };
        let answer = lost.is_empty().then(|| self.value_of(key, own, foreign))?.ok()?;
        Some(self.with_token(answer))
    }

    /// Finds out who answers a request: this replica, another node, or several.
    fn route(&mut self, requester: Requester, op: Op, context: Context, span: Span) -> Result<()> {
        if let (Op::List { .. }, Requester::Client(_)) = (&op, &requester) {
            return self.gather(requester, op, context, span);
        }
        match self.shard_for(&op, None) {
            Some(shard) => self.ask_shard(requester, shard, op, context, span),
            None => {
                self.answer(requester, Answer::NoSuchShard);
                Ok(())
            }
        }
    }

    /// The shard that answers a request under the present layout. `asked`: the one that a page of a listing is for.
    pub(super) fn shard_for(&self, op: &Op, asked: Option<ShardId>) -> Option<ShardId> {
        let layout = &self.topology.as_ref().expect("requests are taken only in a cluster").layout;
        let shard = match op {
            Op::Get { key } | Op::Put { key, .. } | Op::Delete { key } => layout.shard_of_slot(Slot::of(key)),
            Op::KeyCount { shard } => *shard,
            Op::List { .. } => asked?,
        };
        layout.shards.contains_key(&shard).then_some(shard)
    }

    /// The layout has changed: what waits here may be for others now.
    pub(super) fn reroute(&mut self) -> Result<()> {
        for Parked { requester, op, context, span } in std::mem::take(&mut self.waiting.parked) {
            if let Requester::Peer(..) = requester {
                // Its sender has a time for it, and finds out who has the key now.
                self.answer(requester, Answer::NotReady { reason: "the layout has changed".into() });
                continue;
            }
            let asked = match &requester {
                Requester::Gather(_, shard) => Some(*shard),
                _ => self.replica.as_ref().and_then(|replica| replica.shard),
            };
            match self.shard_for(&op, asked) {
                Some(shard) => self.ask_shard(requester, shard, op, context, span)?,
                None => self.answer(requester, Answer::NoSuchShard),
            }
        }
        self.forward_step()
    }

    /// Serves a request of one shard here, or passes it on.
    pub(super) fn ask_shard(
        &mut self,
        requester: Requester,
        shard: ShardId,
        op: Op,
        context: Context,
        span: Span,
    ) -> Result<()> {
        let here = self.replica.as_ref().is_some_and(|replica| replica.shard == Some(shard));
        if here && self.is_serving() {
            self.serve(requester, op, context, span)
        } else {
            self.forward(requester, shard, op, context, span)
        }
    }

    /// Serves a request that is for this replica.
    pub(super) fn serve(&mut self, requester: Requester, op: Op, context: Context, span: Span) -> Result<()> {
        if self.waiting.len() >= self.settings.waiting_max {
            self.answer(requester, Answer::Busy { what: "too many requests wait at this replica".into() });
            return Ok(());
        }
        if let Some((parked, missing)) = self.try_serve(Parked { requester, op, context, span })? {
            if missing.is_empty() {
                // The client has seen a later layout: whoever hears from this node tells it.
                self.beat_quiet();
            }
            self.pull_missing(&missing);
            self.waiting.parked.push(parked);
        }
        Ok(())
    }

    /// Serves a request if its dependencies are here; else gives it back, with what is missing.
    fn try_serve(&mut self, request: Parked) -> Result<Option<(Parked, Vector)>> {
        if let Some(full) = self.no_room_for(&request.op) {
            self.answer(request.requester, full);
            return Ok(None);
        }
        let replica = self.replica.as_ref().expect("only a serving replica serves");
        let reads = matches!(request.op, Op::Get { .. } | Op::List { .. });
        let mutant = if reads { Mutant::ReadUnchecked } else { Mutant::WriteUnchecked };
        let (own, foreign, lost) = match self.check(replica, &request.context) {
            Check::Satisfied { own, foreign, lost } => (own, foreign, lost),
            Check::Behind => return Ok(Some((request, Vector::new()))),
            Check::Missing(_) if self.settings.broken(mutant) => self.check_nothing(&request.context),
            Check::Missing(missing) if !matches!(request.op, Op::KeyCount { .. }) => {
                return Ok(Some((request, missing)));
            }
            Check::Missing(_) => (Vector::new(), Vector::new(), Vec::new()),
        };
        self.say_losses(&lost);
        let Parked { requester, op, span, .. } = request;
        match op {
            Op::Get { key } => self.get(requester, &key, own, foreign)?,
            Op::Put { key, value } => self.write(requester, key, Some(value), (own, foreign), span)?,
            Op::Delete { key } => self.write(requester, key, None, (own, foreign), span)?,
            Op::List { prefix, after, limit } => self.list(requester, &prefix, after, limit, own, foreign)?,
            Op::KeyCount { .. } => {
                let live = self.inventory.live_in(slots_in(&self.bearings.own_runs));
                self.answer(requester, Answer::Count(live));
            }
        }
        Ok(None)
    }

    /// For mutants that don't check: the context as if all of it were here.
    fn check_nothing(&self, context: &Context) -> (Vector, Vector, Vec<Origin>) {
        (Vector::new(), context.seen.clone(), Vec::new())
    }

    fn get(&mut self, requester: Requester, key: &Key, own: Vector, foreign: Vector) -> Result<()> {
        let answer = self.value_of(key, own, foreign)?;
        self.answer(requester, answer);
        Ok(())
    }

    /// What a key has, with the reader's context and what the version depends on.
    fn value_of(&self, key: &Key, own: Vector, foreign: Vector) -> Result<Answer> {
        let version = self.store.get(Slot::of(key), key)?;
        let mut seen = own;
        seen.merge(&foreign);
        if let Some(version) = &version {
            seen.raise(version.dot.origin, version.dot.seq);
            if !self.settings.broken(Mutant::DepsUnread) {
                seen.merge(&version.deps);
            }
        }
        let context = self.context(seen);
        let dot = version.as_ref().map(|version| version.dot);
        Ok(match version.and_then(|version| version.value) {
            Some(value) => Answer::Found { value, context },
            None => Answer::NotFound { context, tombstone: dot },
        })
    }

    /// A context to hand out: what was seen, less what everybody has.
    pub(super) fn context(&self, mut seen: Vector) -> Context {
        self.prune(&mut seen);
        let epoch = self.topology.as_ref().map_or(kvnode_types::ident::Epoch(0), |topology| topology.layout.epoch);
        Context { epoch, seen }
    }

    /// Accepts a put (`value`) or a delete (`None`).
    fn write(
        &mut self,
        requester: Requester,
        key: Key,
        value: Option<bytes::Bytes>,
        (own, foreign): (Vector, Vector),
        span: Span,
    ) -> Result<()> {
        let exists = self.store.head(Slot::of(&key), &key)?.is_some_and(|present| present.has_value);
        if value.is_none() && !exists {
            return self.get(requester, &key, own, foreign);
        }
        let done = match (&value, exists) {
            (None, _) => WriteDone::Deleted,
            (Some(_), true) => WriteDone::Replaced,
            (Some(_), false) => WriteDone::Created,
        };
        let dot = self.apply_own_write(key, value, own.clone(), foreign.clone())?;
        let mut seen = foreign;
        seen.raise(dot.origin, dot.seq);
        let deadline_ms = span.deadline_ms().min(self.now.mono_ms + self.settings.ack_wait_ms);
        self.waiting.unacknowledged.push_back(Unacknowledged { requester, dot, deadline_ms, done, own, seen });
        self.wake_mates();
        Ok(())
    }

    fn apply_own_write(
        &mut self,
        key: Key,
        value: Option<bytes::Bytes>,
        mut own: Vector,
        foreign: Vector,
    ) -> Result<Dot> {
        let physical = self.physical_ms();
        let broken = (self.settings.broken(Mutant::WallClockWins), self.settings.broken(Mutant::StampFromSelf));
        let drops_deps = self.settings.broken(Mutant::DepsDropped);
        // What everybody has need not be waited for anywhere.
        own.retain(|origin, seq| !self.is_stable(origin, seq));
        let replica = self.replica.as_mut().expect("only a serving replica accepts writes");
        let stamp = match broken {
            (true, _) => kvnode_types::stamp::Stamp::from_millis(physical),
            (_, true) => kvnode_types::stamp::Stamp::from_millis(replica.seq()),
            _ => self.inventory.clock.next(physical),
        };
        let dot = Dot { origin: replica.origin, seq: replica.seq() + 1 };
        own.retain(|origin, _| origin != dot.origin);
        let deps = if drops_deps { Vector::new() } else { foreign };
        let write = Write { key, version: Version { stamp, dot, value, deps }, own_deps: own };
        replica.apply(&mut self.inventory, &mut *self.store, write)?;
        self.replica_changed = true;
        self.waiting.changed = true;
        Ok(dot)
    }

    /// Looks at parked requests again after something was applied.
    pub(super) fn retry_parked(&mut self) -> Result<()> {
        let changed = std::mem::take(&mut self.waiting.changed);
        if !changed || self.waiting.parked.is_empty() || !self.is_serving() {
            return Ok(());
        }
        let mut left = ANSWERS_AT_ONCE_BYTES;
        for parked in std::mem::take(&mut self.waiting.parked) {
            if !parked.span.may_act(self.now.mono_ms) || left == 0 {
                self.waiting.parked.push(parked);
                continue;
            }
            let read = if let Op::Get { key } = &parked.op { Some(key.clone()) } else { None };
            if let Some(addr) = self.is_read_of_full_peer(&parked) {
                self.answer(parked.requester, Answer::Busy { what: format!("too much waits for {addr}") });
            } else if let Some((parked, _)) = self.try_serve(parked)? {
                self.waiting.parked.push(parked);
            } else if let Some(key) = read {
                left = left.saturating_sub(self.value_bytes(&key)?);
            }
        }
        // The others have their turn with the next event.
        self.waiting.changed |= left == 0;
        Ok(())
    }

    /// The peer that a read was passed on by, if it has as much to take already as may wait for it.
    fn is_read_of_full_peer(&self, parked: &Parked) -> Option<Addr> {
        let (Requester::Peer(addr, ..), Op::Get { .. } | Op::List { .. }) = (&parked.requester, &parked.op) else {
            return None;
        };
        let is_full = self.peers.get(addr)?.queue_weight() >= self.settings.peer_queue_weight_max;
        is_full.then(|| addr.clone())
    }

    fn value_bytes(&self, key: &Key) -> Result<usize> {
        let version = self.store.get(Slot::of(key), key)?;
        Ok(version.and_then(|version| version.value).map_or(0, |value| value.len()))
    }

    /// Answers what has waited long enough, and asks again for what others still wait for.
    pub(super) fn expire_waiting(&mut self) -> Result<()> {
        // Time and reports of others can satisfy a dependency too.
        self.waiting.changed = true;
        let mut all_missing = Vector::new();
        for parked in std::mem::take(&mut self.waiting.parked) {
            let missing = match (&self.replica, self.is_serving()) {
                (Some(replica), true) => match self.check(replica, &parked.context) {
                    Check::Missing(missing) => missing,
                    Check::Satisfied { .. } | Check::Behind => Vector::new(),
                },
                _ => Vector::new(),
            };
            if self.now.mono_ms < self.causal_until_ms(parked.span) && self.is_serving() {
                all_missing.merge(&missing);
                self.waiting.parked.push(parked);
            } else {
                let missing = self.explain(&missing);
                self.answer(parked.requester, Answer::Unsatisfied { missing });
            }
        }
        if !all_missing.is_empty() {
            self.pull_missing(&all_missing);
        }
        Ok(())
    }

    /// Answers the writes that enough replicas hold, or that have waited long enough.
    pub(super) fn answer_acknowledged(&mut self) {
        if self.waiting.unacknowledged.is_empty() {
            return;
        }
        let Some(replica) = &self.replica else { return };
        // Who has not said yet what it is under a layout that has just come into force may well serve.
        let serves = |peer: &Peer| peer.stage != Some(Stage::Filling) && !peer.has_lost;
        if self.first_waits_on(replica, serves) {
            return;
        }
        let present =
            self.acknowledgements(replica.others.iter().copied(), |peer| serves(peer).then_some(peer.cursor.held()));
        // What was written under the layout before waits for the replicas that the shard had then.
        let before = replica.before.zip(replica.handed.as_ref()).map(|(origin, handed)| {
            let others = handed.members.iter().copied().filter(|&node| node != origin.node);
            (origin, self.acknowledgements(others, |peer| Some(peer.held_before)))
        });
        let origin = replica.origin;
        let none = Acknowledgements::default();
        let of = |dot: &Dot| match &before {
            _ if dot.origin == origin => &present,
            Some((before, held)) if dot.origin == *before => held,
            _ => &none,
        };
        let now = self.now.mono_ms;
        let is_done = |write: &Unacknowledged| {
            let (held, seq) = (of(&write.dot), write.dot.seq);
            let copies = 1 + held.all.iter().filter(|&&to| to >= seq).count();
            let possible = copies + held.reachable.iter().filter(|&&to| to < seq).count();
            let enough = copies >= (held.size / 2 + 1).min(possible);
            (enough || now >= write.deadline_ms).then_some(copies as u32)
        };
        let (mut answers, mut kept) = (Vec::new(), Vec::new());
        while let Some(write) = self.waiting.unacknowledged.pop_front() {
            match is_done(&write) {
                Some(copies) => answers.push((write, copies)),
                None => {
                    // What has come after it under the same origin waits too.
                    let last = write.dot.origin == origin;
                    kept.push(write);
                    if last {
                        break;
                    }
                }
            }
        }
        kept.into_iter().rev().for_each(|write| self.waiting.unacknowledged.push_front(write));
        for (write, replicas) in answers {
            let Unacknowledged { requester, dot, done, mut seen, own, .. } = write;
            if replicas == 1 {
                seen.merge(&own);
            }
            let context = self.context(seen);
            let answer = match done {
                WriteDone::Created => Answer::Created { context, replicas },
                WriteDone::Replaced => Answer::Replaced { context, replicas },
                WriteDone::Deleted => Answer::Deleted { context, replicas, tombstone: dot },
            };
            self.answer(requester, answer);
        }
    }

    /// Nobody is told that writes are done whose data this node drops.
    pub(super) fn give_up_unacknowledged(&mut self) {
        for write in std::mem::take(&mut self.waiting.unacknowledged) {
            self.answer(write.requester, Answer::OutcomeUnknown);
        }
    }

    /// The newest write that a client waits for of an origin that has ended: all of them are before those of the present one.
    pub(super) fn last_awaited_of(&self, ended: Origin) -> Option<u64> {
        let of_it = self.waiting.unacknowledged.iter().take_while(|write| write.dot.origin == ended);
        of_it.last().map(|write| write.dot.seq)
    }

    /// Whether the first write under the present layout has to go on waiting, and so have all after it. This is asked far more often
    /// than anything has changed, so it costs little.
    fn first_waits_on(&self, replica: &Replica, serves: impl Fn(&Peer) -> bool) -> bool {
        let Some(first) = self.waiting.unacknowledged.front().filter(|first| first.dot.origin == replica.origin) else {
            return false;
        };
        let (mut copies, mut possible) = (1, 1);
        for peer in self.bearings.ring.iter().filter_map(|addr| self.peers.get(addr)).filter(|peer| serves(peer)) {
            let holds = peer.cursor.held() >= first.dot.seq;
            copies += usize::from(holds);
            possible += usize::from(holds || (self.is_reachable(peer) && takes_writes(peer)));
        }
        self.now.mono_ms < first.deadline_ms && copies < (replica.size() / 2 + 1).min(possible)
    }

    /// Up to which number each of some other replicas holds our writes; those without a number don't count.
    fn acknowledgements(
        &self,
        others: impl Iterator<Item = NodeId>,
        held: impl Fn(&Peer) -> Option<u64>,
    ) -> Acknowledgements {
        let mut told = Acknowledgements { size: 1, ..Acknowledgements::default() };
        for node in others {
            told.size += 1;
            let Some(peer) = self.peer_of(node) else { continue };
            let Some(seq) = held(peer) else { continue };
            told.all.push(seq);
            if self.is_reachable(peer) && takes_writes(peer) {
                told.reachable.push(seq);
            }
        }
        told
    }

    /// Hands an answer to whoever wants it.
    pub(super) fn answer(&mut self, requester: Requester, answer: Answer) {
        match requester {
            Requester::Client(id) => {
                let answer = self.with_token(answer);
                self.effects.push(Effect::Reply { id, answer });
            }
            Requester::Peer(addr, life, id) => {
                let lives = self.peers.get(&addr).is_some_and(|peer| peer.life == Some(life));
                if lives || self.settings.broken(Mutant::AnswersTheDead) {
                    self.send(&addr, Message::Answered { id, answer });
                }
            }
            Requester::Gather(id, shard) => self.gathered(id, shard, answer),
        }
    }

    /// The same answer with its context as a token.
    fn with_token(&self, answer: Answer) -> Answer<String> {
        let text =
            |context: Context| self.bearings.seal.as_ref().expect("contexts exist only in a cluster").encode(&context);
        match answer {
            Answer::Found { value, context } => Answer::Found { value, context: text(context) },
            Answer::NotFound { context, tombstone } => Answer::NotFound { context: text(context), tombstone },
            Answer::Created { context, replicas } => Answer::Created { context: text(context), replicas },
            Answer::Replaced { context, replicas } => Answer::Replaced { context: text(context), replicas },
            Answer::Deleted { context, replicas, tombstone } => {
                Answer::Deleted { context: text(context), replicas, tombstone }
            }
            Answer::Keys { keys, next, context } => Answer::Keys { keys, next, context: text(context) },
            Answer::Count(count) => Answer::Count(count),
            Answer::Malformed => Answer::Malformed,
            Answer::Unsatisfied { missing } => Answer::Unsatisfied { missing },
            Answer::NoReplica { shard } => Answer::NoReplica { shard },
            Answer::NoSuchShard => Answer::NoSuchShard,
            Answer::OutcomeUnknown => Answer::OutcomeUnknown,
            Answer::Busy { what } => Answer::Busy { what },
            Answer::NotReady { reason } => Answer::NotReady { reason },
            Answer::Full { reason } => Answer::Full { reason },
        }
    }
}

/// Whether a peer has room for writes, as far as is known.
fn takes_writes(peer: &Peer) -> bool {
    peer.report.as_ref().is_none_or(|report| report.takes_writes)
}
