//! The log of topologies from a node's point of view: its voter, requests to the leader, and the leader's duties.
//!
//! The data of the cluster never waits for any of this.

use std::collections::BTreeMap;

use kvnode_types::ident::{Addr, Incarnation, NodeId, ShardId};

use super::admin::{Asked, JobState};
use super::consensus::{Consensus, Sender};
use super::topology::{ChangeKind, Ended, Proposal, RequestId, Topology, Transition};
use super::{Core, FACT_RAFT, Severity};
use crate::messages::{Message, Progress, Stage};
use crate::store::Result;

/// A node that asks to join is proposed at most so often.
const JOIN_AGAIN_MS: u64 = 500;
/// Addresses that asked to join and are remembered.
const JOINERS_MAX: usize = 256;
/// Refused messages of the log are told at most so often.
const REFUSAL_AGAIN_MS: u64 = 60_000;
/// A node that is to be removed and was not heard for so long is not waited for.
const GIVEN_UP_MS: u64 = 3_000;

/// What a node does for the topology.
#[derive(Debug, Default)]
pub(super) struct Office {
    /// A node that has lost its data was told of another cluster than its own.
    pub another_cluster: bool,
    pub asked: Vec<Asked>,
    last_request: u64,
    last_tick_ms: u64,
    joiners: BTreeMap<Addr, u64>,
    /// Old shards that this replica was filled from, after the flip.
    pub filled_from: Vec<ShardId>,
    /// Set when this node founded the cluster, until it has called the first election.
    pub founded: bool,
    was_leader: bool,
    /// Messages of the log that were refused, and when that was said last.
    refused: u64,
    refusal_said_ms: Option<u64>,
    /// The leader that was heard last, and in which life.
    pub led_by: Option<(NodeId, Incarnation)>,
    /// The change that was heard of last, and when.
    pub change_heard: Option<(u32, u64)>,
    /// Set once there is nothing left here that belongs to others; until a topology comes that may change that.
    pub purged: bool,
}

impl Core {
    /// Goes on with the log of an earlier life.
    pub(super) fn recover_consensus(&mut self) -> Result<()> {
        let bytes = self.store.fact(FACT_RAFT)?;
        let (Some(me), Some(topology)) = (self.me, &self.topology) else { return Ok(()) };
        let recovered = bytes.and_then(|bytes| Consensus::recover(me, self.birth, &bytes, topology));
        match recovered.filter(|consensus| consensus.generation() == topology.version.generation) {
            Some(consensus) => self.consensus = Some(consensus),
            None => self.join_consensus(),
        }
        Ok(())
    }

    /// Takes this node's part in the log: from the start if it takes part in the formation, otherwise as told by the leader.
    pub(super) fn join_consensus(&mut self) {
        let Some(topology) = &self.topology else { return };
        // What an earlier seat promised is not this one's.
        self.store.set_fact(FACT_RAFT, Vec::new());
        self.consensus = self.me.map(|me| {
            let forms = topology.is_new() && topology.births.get(&me) == Some(&self.birth);
            if forms { Consensus::found(me, self.birth, topology) } else { Consensus::join(me, self.birth, topology) }
        });
    }

    /// Starts the log anew: an operator says that its majority is lost for good.
    pub(super) fn recover_log(&mut self) -> Result<()> {
        let (Some(topology), Some(me)) = (&self.topology, self.me) else { return Ok(()) };
        let mut next = topology.recovered(me, self.life);
        next.births.insert(me, self.birth);
        self.say(
            Severity::Warn,
            "the topology goes on from this node alone: an operator has given up the other voters",
        );
        let consensus = Consensus::restart(me, self.birth, &next);
        self.adopt(next)?;
        // Before anybody is told: nobody else has it.
        self.store.set_fact(FACT_RAFT, consensus.stored());
        self.urgent = true;
        self.consensus = Some(consensus);
        self.office.founded = true;
        Ok(())
    }

    /// Hands on what the log has brought about.
    pub(super) fn consensus_turn(&mut self) -> Result<()> {
        let Some(consensus) = self.consensus.as_mut() else { return Ok(()) };
        let turn = consensus.turn();
        let generation = consensus.generation();
        if let Some((bytes, must_sync)) = turn.persist {
            self.store.set_fact(FACT_RAFT, bytes);
            self.urgent |= must_sync;
        }
        for (node, bytes) in turn.messages {
            if let Some(addr) = self.addr_of(node).cloned() {
                self.send(&addr, Message::Raft { generation, bytes });
            }
        }
        if turn.applied {
            let state = self.consensus.as_ref().map(|consensus| consensus.state().clone());
            if let Some(state) = state {
                self.adopt(state)?;
                self.admin_step();
            }
        }
        Ok(())
    }

    pub(super) fn raft_message(&mut self, from: &Addr, generation: u64, bytes: &[u8]) {
        let sender = self.node_of(from).zip(self.peers.get(from).and_then(|peer| peer.life));
        let (Some(consensus), Some(topology)) = (self.consensus.as_mut(), &self.topology) else { return };
        if consensus.generation() != generation {
            return;
        }
        let by = Sender { node: sender.map(|(node, _)| node), births: &topology.births };
        if let Err(why) = consensus.step(bytes, &by) {
            self.refuse_log_message(from, why);
            return;
        }
        if let Some((node, _)) = sender
            && consensus.leader() == Some(node)
        {
            self.office.led_by = sender;
        }
    }

    /// Counts it, and says so now and then: who forges messages can send any number.
    fn refuse_log_message(&mut self, from: &Addr, why: &str) {
        let now = self.now.mono_ms;
        self.office.refused += 1;
        if self.office.refusal_said_ms.is_none_or(|at| now.saturating_sub(at) >= REFUSAL_AGAIN_MS) {
            self.office.refusal_said_ms = Some(now);
            let count = self.office.refused;
            let text = format!("a message of the topology's log from {from} was refused ({count} so far): {why}");
            self.say(Severity::Warn, text);
        }
    }

    /// Messages of the log that were refused since the start.
    pub fn refused_log_messages(&self) -> u64 {
        self.office.refused
    }

    pub(super) fn next_request(&mut self) -> RequestId {
        self.office.last_request += 1;
        let node = self.me.unwrap_or(NodeId(0));
        RequestId { node, life: self.life, number: self.office.last_request }
    }

    /// Brings a proposal to the leader, if one is known; otherwise to somebody who may know one.
    pub(super) fn submit(&mut self, request: Option<RequestId>, proposal: Proposal) {
        if let Some(consensus) = self.consensus.as_mut().filter(|consensus| consensus.is_leader()) {
            consensus.propose(request, &proposal);
            return;
        }
        let leader = self.consensus.as_ref().and_then(Consensus::leader).filter(|&leader| Some(leader) != self.me);
        let known = leader.and_then(|leader| self.addr_of(leader)).cloned();
        let target = known.or_else(|| {
            let here: Vec<&Addr> =
                self.peers.iter().filter(|(_, peer)| self.is_reachable(peer)).map(|(addr, _)| addr).collect();
            let at = (self.now.mono_ms / 100) as usize % here.len().max(1);
            here.get(at).map(|&addr| addr.clone())
        });
        if let Some(addr) = target {
            self.send(&addr, Message::Propose { request, proposal });
        }
    }

    /// A node brings a proposal.
    pub(super) fn proposed(&mut self, from: &Addr, request: Option<RequestId>, proposal: Proposal) {
        let Some(consensus) = self.consensus.as_mut() else { return };
        if consensus.is_leader() {
            let decided = request.is_some_and(|request| consensus.state().outcome_of(request).is_some());
            if !decided {
                consensus.propose(request, &proposal);
            }
            return;
        }
        let leader = consensus.leader().and_then(|leader| self.addr_of(leader)).cloned();
        if let Some(leader) = leader.filter(|leader| leader != from && *leader != self.settings.me) {
            self.send(&leader, Message::Propose { request, proposal });
        }
    }

    /// A node that the topology does not list asks to be in it.
    pub(super) fn newcomer(&mut self, addr: &Addr, birth: Incarnation) {
        let now = self.now.mono_ms;
        if self.topology.is_none() || self.me.is_none() {
            return;
        }
        if self.office.joiners.get(addr).is_some_and(|&at| now.saturating_sub(at) < JOIN_AGAIN_MS) {
            return;
        }
        if self.office.joiners.len() >= JOINERS_MAX {
            self.office.joiners.clear();
        }
        self.office.joiners.insert(addr.clone(), now);
        self.submit(None, Proposal::Join { addr: addr.clone(), birth: Some(birth) });
    }

    pub(super) fn govern_step(&mut self) -> Result<()> {
        self.admin_step();
        let now = self.now.mono_ms;
        if now.saturating_sub(self.office.last_tick_ms) < self.consensus_interval_ms() {
            return Ok(());
        }
        self.office.last_tick_ms = now;
        self.purge_step()?;
        let Some(consensus) = self.consensus.as_mut() else { return Ok(()) };
        consensus.tick();
        if std::mem::take(&mut self.office.founded) {
            consensus.campaign();
        }
        let leads = consensus.is_leader();
        if leads != self.office.was_leader {
            self.office.was_leader = leads;
            let text = if leads { "leads the topology" } else { "no longer leads the topology" };
            self.say(Severity::Info, text);
        }
        if leads && self.consensus.as_ref().is_some_and(Consensus::is_idle) {
            self.lead();
        }
        Ok(())
    }

    /// One step of what a leader has to see to. Nothing else is under way in the log.
    fn lead(&mut self) {
        if let Some(proposal) = self.duty() {
            self.submit(None, proposal);
            return;
        }
        let here: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| self.is_reachable(peer))
            .filter_map(|(addr, _)| self.node_of(addr))
            .collect();
        if let Some(consensus) = self.consensus.as_mut() {
            consensus.elect_voters(|node| here.contains(&node));
        }
    }

    fn duty(&self) -> Option<Proposal> {
        let topology = self.topology.as_ref()?;
        // A node that lost its data votes under another name.
        let reborn = self.peers.iter().find_map(|(addr, peer)| {
            let node = topology.node_at(addr)?;
            let birth = peer.birth.filter(|birth| topology.births.get(&node) != Some(birth))?;
            (peer.life == peer.newest_life).then(|| Proposal::Join { addr: addr.clone(), birth: Some(birth) })
        });
        let voters = self.consensus.as_ref().map(Consensus::voters).unwrap_or_default();
        let forget = || {
            let voteless = topology.leaving().keys().find(|node| !voters.contains(node));
            voteless.map(|&node| Proposal::Forget { node })
        };
        reborn.or_else(|| self.own_rebirth(topology)).or_else(forget).or_else(|| self.advance_change(topology))
    }

    fn own_rebirth(&self, topology: &Topology) -> Option<Proposal> {
        let me = self.me?;
        let differs = topology.births.get(&me) != Some(&self.birth);
        differs.then(|| Proposal::Join { addr: self.settings.me.clone(), birth: Some(self.birth) })
    }

    /// The next step of a change, if all that it waits for is there.
    fn advance_change(&self, topology: &Topology) -> Option<Proposal> {
        match &topology.transition {
            Transition::Steady => None,
            Transition::Copying { change, target } => {
                let ready = |node: NodeId| {
                    topology.gains(node, &topology.layout, target).is_empty()
                        || self.told(node).is_some_and(|progress| progress.copied == Some(change.job))
                };
                target.all_members().all(ready).then_some(Proposal::Flip { job: change.job })
            }
            Transition::Settling { change, written_off, .. } => {
                if let ChangeKind::Remove(node) = change.kind
                    && !written_off.contains(&node)
                    && self.is_given_up(node)
                {
                    return Some(Proposal::WriteOff { node });
                }
                // It is forgotten when this is over, and must not have a vote then.
                let voters = self.consensus.as_ref().map(Consensus::voters).unwrap_or_default();
                if topology.transition.leaving().is_some_and(|node| voters.contains(&node)) {
                    return None;
                }
                let epoch = topology.layout.epoch;
                let settled = |node: NodeId| {
                    written_off.contains(&node)
                        || self.told(node).is_some_and(|progress| progress.settled == Some(epoch))
                };
                topology.layout.all_members().all(settled).then_some(Proposal::Settled { epoch })
            }
        }
    }

    fn is_given_up(&self, node: NodeId) -> bool {
        let now = self.now.mono_ms;
        let silent = |peer: &super::contact::Peer| {
            !self.is_in_view(peer) && now.saturating_sub(peer.proven_ms.unwrap_or(self.started_ms)) >= GIVEN_UP_MS
        };
        Some(node) != self.me && self.peer_of(node).is_none_or(silent)
    }

    /// Whether the topology has a node there, reachable or not.
    pub fn lists(&self, addr: &Addr) -> bool {
        self.topology.as_ref().is_some_and(|topology| topology.node_at(addr).is_some())
    }

    /// Whether the topology has two nodes there, of which one is only another spelling of the address.
    pub fn lists_twice(&self, addr: &Addr) -> bool {
        let Some(topology) = &self.topology else { return false };
        topology.ghosts().iter().any(|ghost| topology.nodes.get(ghost) == Some(addr))
    }

    /// The life in which this node's data began.
    pub fn birth(&self) -> Incarnation {
        self.birth
    }

    /// Whether this node leads, and the voters are those that the topology asks for, in their present lives.
    pub fn leads_the_electors(&self) -> bool {
        self.consensus.as_ref().is_some_and(|consensus| consensus.is_leader() && consensus.is_elected_as_planned())
    }

    /// What a node says of its part in the change, in its present life; nothing old counts.
    fn told(&self, node: NodeId) -> Option<Progress> {
        if Some(node) == self.me {
            return self.progress().map(|progress| *progress);
        }
        let peer = self.peer_of(node)?;
        let present = peer.life.is_some() && peer.life == peer.newest_life && self.is_in_view(peer);
        if present && self.knew_who_counts(peer) { peer.progress.as_deref().cloned() } else { None }
    }

    /// Where a change stands.
    pub fn job_state(&self, job: u32) -> JobState {
        let Some(topology) = &self.topology else { return JobState::Unknown };
        match &topology.transition {
            Transition::Copying { change, .. } if change.job == job => return JobState::Copying,
            Transition::Settling { change, .. } if change.job == job => {
                return JobState::Flipped { serving: self.all_serve(topology) };
            }
            _ => {}
        }
        if topology.leaving().values().any(|&leaving| leaving == job) {
            return JobState::Copying;
        }
        match &topology.last {
            Some((change, Ended::Done)) if change.job == job => JobState::Done,
            Some((change, Ended::Aborted)) if change.job == job => JobState::Aborted,
            // It ended, and another after it: which is remembered does not go by their numbers.
            _ if topology.has_begun(job) => JobState::Done,
            _ => JobState::Unknown,
        }
    }

    /// Whether every member of the layout that can be reached serves under it.
    fn all_serve(&self, topology: &Topology) -> bool {
        let serves = |node: NodeId| {
            if Some(node) == self.me {
                return self.is_serving();
            }
            let Some(peer) = self.peer_of(node) else { return false };
            !self.is_in_view(peer) || peer.stage == Some(Stage::Serving)
        };
        topology.layout.all_members().all(serves)
    }
}
