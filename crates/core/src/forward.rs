//! Requests for shards that this node does not serve: passed on to a replica that does.
//!
//! Rule: a write is handed to a second replica only if the first certainly did not get it: it was still queued here, nobody
//! listened there, or the replica itself refused it. Otherwise the client is told that the outcome is unknown. Reads are
//! free to try the next. All of it within the request's one deadline ([`super::deadline`]).

use std::collections::BTreeMap;

use kvnode_types::causal::Context;
use kvnode_types::ident::{Addr, NodeId, ShardId};

use super::Core;
use super::contact::Peer;
use super::deadline::Span;
use super::request::{Answer, Op};
use super::serve::Requester;
use super::settings::Mutant;
use crate::messages::{Batch, Message, Stage};
use crate::store::Result;

/// How long a request looks for a replica before the client is told that there is none.
const NO_REPLICA_MS: u64 = 1_800;
/// After so long those that refused a request are asked again.
const TRY_AGAIN_MS: u64 = 100;

/// Requests of this node's clients that other nodes answer.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    last_id: u64,
    open: BTreeMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    requester: Requester,
    shard: ShardId,
    op: Op,
    context: Context,
    span: Span,
    /// Replicas that were asked before and did not answer.
    tried: Vec<Addr>,
    /// Who is asked now; `None` while nobody can be.
    target: Option<Addr>,
    tried_since_ms: u64,
}

impl Forwards {
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub fn len(&self) -> usize {
        self.open.len()
    }
}

impl Open {
    fn is_write(&self) -> bool {
        matches!(self.op, Op::Put { .. } | Op::Delete { .. })
    }

    /// Until when it looks for a replica. After that one might not have the time to act on it.
    fn looks_until_ms(&self) -> u64 {
        self.span.others_act_until_ms().min(self.span.arrived_ms() + NO_REPLICA_MS)
    }
}

impl Core {
    /// Passes a request on.
    pub(super) fn forward(
        &mut self,
        requester: Requester,
        shard: ShardId,
        op: Op,
        context: Context,
        span: Span,
    ) -> Result<()> {
        if let Requester::Peer(..) = requester {
            // Two nodes that disagree must not pass a request back and forth: the first one finds another.
            let reason = self.reason.clone();
            self.answer(requester, Answer::NotReady { reason });
            return Ok(());
        }
        if self.forwards.open.len() >= self.settings.forwards_max {
            self.answer(requester, Answer::Busy { what: "too many requests wait for other nodes".into() });
            return Ok(());
        }
        let now = self.now.mono_ms;
        let open = Open { requester, shard, op, context, span, tried: Vec::new(), target: None, tried_since_ms: now };
        self.hand_over(open);
        Ok(())
    }

    /// Gives a request to the next replica, or keeps it while there is none.
    fn hand_over(&mut self, mut open: Open) {
        let now = self.now.mono_ms;
        if open.target.is_none() && open.tried_since_ms + TRY_AGAIN_MS <= now {
            // Those that refused may have learned the layout since.
            open.tried.clear();
            open.tried_since_ms = now;
        }
        // A new number for every hand-over: the receiver acts on each number once.
        self.forwards.last_id += 1;
        let id = self.forwards.last_id;
        let act_until_ms = open.span.others_act_until_ms();
        let Some(target) = self.choose(&open).filter(|_| now < act_until_ms) else {
            if self.is_gone(open.shard) {
                // Waiting is for replicas that may be there.
                self.answer(open.requester, Answer::NoReplica { shard: open.shard });
            } else {
                self.forwards.open.insert(id, open);
            }
            return;
        };
        let peer = &self.peers[&target];
        if peer.queue_weight() >= self.settings.peer_queue_weight_max {
            self.answer(open.requester, Answer::Busy { what: format!("too much waits for {target}") });
            return;
        }
        // The receiver's clock was there when its reading came, and has gone on since.
        let until_ms = peer.echo_ms + now.saturating_sub(peer.echo_heard_ms) + (act_until_ms - now);
        let (shard, op, context) = (open.shard, open.op.clone(), open.context.clone());
        self.send(&target, Message::Forward { id, shard, op, context, until_ms });
        open.target = Some(target);
        self.forwards.open.insert(id, open);
    }

    /// The same for one that is kept.
    fn hand_over_again(&mut self, id: u64) {
        if let Some(open) = self.forwards.open.remove(&id) {
            self.hand_over(open);
        }
    }

    /// A replica that serves the shard, can be reached, and was not tried. Always the same as long as nothing changes, so that
    /// it has what this node's clients wrote before, and requests go together; another for every node that asks.
    fn choose(&self, open: &Open) -> Option<Addr> {
        let topology = self.topology.as_ref()?;
        let members = topology.members(open.shard);
        let usable = |addr: &&Addr| {
            let serves = |peer: &Peer| matches!(peer.stage, Some(Stage::Serving)) && self.answers_lately(peer);
            !open.tried.contains(addr) && self.peers.get(*addr).is_some_and(serves)
        };
        let (before, from) = members.split_at(self.me.map_or(0, |me| me.0 as usize) % members.len().max(1));
        from.iter().chain(before).filter_map(|node| topology.nodes.get(node)).find(usable).cloned()
    }

    /// Whether this node knows of every replica of a shard that it is not there.
    fn is_gone(&self, shard: ShardId) -> bool {
        let Some(topology) = &self.topology else { return false };
        let gone = |&node: &NodeId| {
            Some(node) != self.me && self.peer_of(node).is_some_and(|peer| self.is_known_to_be_gone(peer))
        };
        let members = topology.members(shard);
        !members.is_empty() && members.iter().all(gone)
    }

    /// Another node passes a request on to this one.
    pub(super) fn forwarded(
        &mut self,
        from: &Addr,
        id: u64,
        shard: ShardId,
        op: Op,
        context: Context,
        until_ms: u64,
    ) -> Result<()> {
        let Some(peer) = self.peers.get_mut(from) else { return Ok(()) };
        let Some(life) = peer.life.filter(|_| peer.first_time(id)) else { return Ok(()) };
        let requester = Requester::Peer(from.clone(), life, id);
        // The sender may go by another layout than this node.
        let ours = self.topology.is_some() && self.shard_for(&op, Some(shard)) == Some(shard);
        let here = self.replica.as_ref().is_some_and(|replica| replica.shard == Some(shard));
        let reads = !matches!(op, Op::Put { .. } | Op::Delete { .. });
        if reads && self.peers[from].queue_weight() >= self.settings.peer_queue_weight_max {
            self.answer(requester, Answer::Busy { what: format!("too much waits for {from}") });
            return Ok(());
        }
        let span = Span::passed_on(&self.settings, until_ms, self.now.mono_ms);
        let late = !reads && !span.may_act(self.now.mono_ms);
        if here && ours && self.is_serving() && !late {
            return self.serve(requester, op, context, span);
        }
        let reason = match (self.draining, late) {
            (true, _) => "shutting down".to_owned(),
            (_, true) => "too late to act on it".to_owned(),
            _ => self.reason.clone(),
        };
        self.answer(requester, Answer::NotReady { reason });
        Ok(())
    }

    /// The answer to a request that was passed on.
    pub(super) fn answered(&mut self, from: &Addr, id: u64, answer: Answer) -> Result<()> {
        let expected = self.forwards.open.get(&id).is_some_and(|open| open.target.as_ref() == Some(from));
        if !expected {
            return Ok(());
        }
        let refused = matches!(answer, Answer::NotReady { .. }) || self.another_has_room(id, &answer);
        if refused {
            self.try_next(id);
            return Ok(());
        }
        if let Some(open) = self.forwards.open.remove(&id) {
            self.answer(open.requester, answer);
        }
        Ok(())
    }

    /// Whether a replica had no room for a write, and others were not asked yet that may have.
    fn another_has_room(&mut self, id: u64, answer: &Answer) -> bool {
        let Some(open) = self.forwards.open.get_mut(&id).filter(|_| matches!(answer, Answer::Full { .. })) else {
            return false;
        };
        open.tried.extend(open.target.clone());
        // `try_next` forgets now and then whom it has tried: this must end all the same.
        let open = &self.forwards.open[&id];
        self.now.mono_ms.saturating_sub(open.span.arrived_ms()) < TRY_AGAIN_MS && self.choose(open).is_some()
    }

    /// The current target certainly does not act on the request: on to the next.
    fn try_next(&mut self, id: u64) {
        if let Some(open) = self.forwards.open.get_mut(&id) {
            open.tried.extend(open.target.take());
            self.hand_over_again(id);
        }
    }

    /// A batch found nobody who listens: nothing in it was acted on.
    pub(super) fn undelivered(&mut self, peer: &Addr, batch: Batch) {
        for message in batch.messages {
            if let Message::Forward { id, .. } = message
                && self.forwards.open.get(&id).is_some_and(|open| open.target.as_ref() == Some(peer))
            {
                self.try_next(id);
            }
        }
    }

    /// A peer has begun another life: what the earlier one was asked is not answered any more.
    pub(super) fn forwards_lost_to(&mut self, addr: &Addr) {
        let lost: Vec<u64> = self
            .forwards
            .open
            .iter()
            .filter(|(_, open)| open.target.as_ref() == Some(addr))
            .map(|(&id, _)| id)
            .collect();
        lost.into_iter().for_each(|id| self.target_lost(id, true));
    }

    /// The target does not answer. It may have acted on the request.
    fn target_lost(&mut self, id: u64, life_ended: bool) {
        let Some(open) = self.forwards.open.get(&id) else { return };
        let recalled = open
            .target
            .clone()
            .is_some_and(|target| self.peers.get_mut(&target).is_some_and(|peer| peer.recall_forward(id)));
        let unknown = self.forwards.open.get(&id).is_some_and(|open| open.is_write() && !recalled);
        // Until its time is over the target may still act on it: told earlier, the client could be overtaken by its own write.
        let acts_until_ms = self.forwards.open.get(&id).map_or(0, |open| open.span.others_act_until_ms());
        if unknown && !life_ended && self.now.mono_ms < acts_until_ms {
            return;
        }
        if unknown && !self.settings.broken(Mutant::ForwardTwice) {
            if let Some(open) = self.forwards.open.remove(&id) {
                self.answer(open.requester, Answer::OutcomeUnknown);
            }
            return;
        }
        self.try_next(id);
    }

    /// Gives up on targets that are gone, tries those that have come, and ends what took too long.
    pub(super) fn forward_step(&mut self) -> Result<()> {
        self.list_again()?;
        let now = self.now.mono_ms;
        for id in self.forwards.open.keys().copied().collect::<Vec<u64>>() {
            let Some(open) = self.forwards.open.get(&id) else { continue };
            let overdue = now >= open.span.deadline_ms();
            if overdue && !open.is_write() {
                self.end_without_replica(id);
            } else if let Some(target) = &open.target {
                let silent = self.peers.get(target).is_none_or(|peer| !self.answers_lately(peer));
                if overdue || silent {
                    self.target_lost(id, false);
                }
            } else if now >= open.looks_until_ms() {
                self.end_without_replica(id);
            } else {
                self.look_again(id)?;
            }
        }
        Ok(())
    }

    /// Nobody has taken a request yet: the layout may have given it to another shard, or to this node.
    fn look_again(&mut self, id: u64) -> Result<()> {
        let Some(open) = self.forwards.open.get(&id) else { return Ok(()) };
        let shard = self.shard_for(&open.op, Some(open.shard));
        let here = shard.is_some() && self.replica.as_ref().is_some_and(|replica| replica.shard == shard);
        if let Some(shard) = shard
            && !(here && self.is_serving())
        {
            if let Some(open) = self.forwards.open.get_mut(&id) {
                open.shard = shard;
            }
            self.hand_over_again(id);
            return Ok(());
        }
        let Some(open) = self.forwards.open.remove(&id) else { return Ok(()) };
        if shard.is_some() {
            return self.serve(open.requester, open.op, open.context, open.span);
        }
        self.answer(open.requester, Answer::NoSuchShard);
        Ok(())
    }

    fn end_without_replica(&mut self, id: u64) {
        if let Some(open) = self.forwards.open.remove(&id) {
            self.answer(open.requester, Answer::NoReplica { shard: open.shard });
        }
    }
}
