//! The replicated log behind the topology: Raft (Ongaro and Ousterhout, 2014), from the `raft` crate of TiKV.
//!
//! The crate does no input or output of its own, and no more does this: messages come in, messages and facts to store go out.
//! A voter is named by its *seat*: its node and the life in which its data began. A node that lost its data therefore is
//! another voter, and can't break a promise that it has forgotten.

mod electorate;
mod ledger;
mod vet;

use std::collections::{BTreeMap, BTreeSet};

use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, EntryType, Message as RaftMessage, MessageType, Snapshot,
};
use raft::{Config, Progress, ProgressState, RawNode, SnapshotStatus, StateRole, Storage};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use electorate::{Electorate, Step};
use kvnode_types::ident::{Incarnation, NodeId};
use ledger::{Ledger, decode_state};

use super::topology::{Proposal, RequestId, Topology};

/// Ticks without a word from the leader after which an election begins: this many to twice this many.
const ELECTION_TICKS: usize = 8;
const HEARTBEAT_TICKS: usize = 2;
/// How often [`Consensus::tick`] is expected.
pub const CONSENSUS_TICK_MS: u64 = 125;
/// Entries after which the log is cut.
const LOG_LENGTH_MAX: usize = 64;
/// Names a voter: a node, and the life in which its data began. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat(u64);

impl Seat {
    pub fn of(node: NodeId, birth: Incarnation) -> Self {
        Self((u64::from(node.0) << Incarnation::BITS) | (birth.0 & ((1 << Incarnation::BITS) - 1)))
    }

    pub fn node(self) -> NodeId {
        NodeId((self.0 >> Incarnation::BITS) as u32)
    }
}

/// Who has sent a message of the log, as far as the node knows.
pub struct Sender<'a> {
    /// The node at the address that the batch came from.
    pub node: Option<NodeId>,
    /// The births of the topology that this node goes by, which may be ahead of its log.
    pub births: &'a BTreeMap<NodeId, Incarnation>,
}

/// What one turn of the log leaves to be done.
#[derive(Debug, Default)]
pub struct Turn {
    /// To whom, and the encoded message. To be sent once `persist` is stored.
    pub messages: Vec<(NodeId, Vec<u8>)>,
    /// What has to be stored, and whether it must be synced before the messages go.
    pub persist: Option<(Vec<u8>, bool)>,
    /// The state has moved.
    pub applied: bool,
}

pub struct Consensus {
    seat: Seat,
    raw: RawNode<Ledger>,
    state: Topology,
    /// Something has happened since the last turn.
    stirred: bool,
    /// Counts ticks from 0 to [`ELECTION_TICKS`].
    ticks: usize,
}

#[derive(Serialize, Deserialize)]
struct Logged {
    request: Option<RequestId>,
    proposal: Proposal,
}

impl Consensus {
    /// The log as the formation record starts it: the same at every node that takes part in the formation.
    pub fn found(me: NodeId, birth: Incarnation, formation: &Topology) -> Self {
        let mut conf = ConfState::default();
        conf.set_voters(formation.electors().iter().map(|&node| Seat::of(node, formation.births[&node]).0).collect());
        let mut ledger = Ledger::default();
        ledger.restart(formation, conf, 1);
        Self::open(Seat::of(me, birth), ledger, formation.clone())
    }

    /// The log anew, with this node as its only voter.
    pub fn restart(me: NodeId, birth: Incarnation, topology: &Topology) -> Self {
        let seat = Seat::of(me, birth);
        let mut conf = ConfState::default();
        conf.set_voters(vec![seat.0]);
        let mut ledger = Ledger::default();
        ledger.restart(topology, conf, 1);
        Self::open(seat, ledger, topology.clone())
    }

    /// A node that knows the topology, and nothing of the log: the leader will tell.
    pub fn join(me: NodeId, birth: Incarnation, topology: &Topology) -> Self {
        let mut state = topology.clone();
        state.version.index = 0;
        Self::open(Seat::of(me, birth), Ledger::default(), state)
    }

    /// Goes on from what [`Turn::persist`] stored; `None` if that can't be read.
    pub fn recover(me: NodeId, birth: Incarnation, bytes: &[u8], topology: &Topology) -> Option<Self> {
        let ledger = Ledger::decode(bytes)?;
        let state = ledger.state().unwrap_or_else(|| {
            let mut state = topology.clone();
            state.version.index = 0;
            state
        });
        Some(Self::open(Seat::of(me, birth), ledger, state))
    }

    fn open(seat: Seat, ledger: Ledger, state: Topology) -> Self {
        let config = Config {
            id: seat.0,
            election_tick: ELECTION_TICKS,
            heartbeat_tick: HEARTBEAT_TICKS,
            max_election_tick: 2 * ELECTION_TICKS,
            applied: ledger.snapshot.get_metadata().index,
            max_size_per_msg: 256 << 10,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, ledger, &logger).expect("the configuration is constant and valid");
        let mut consensus = Self { seat, raw, state, stirred: true, ticks: 0 };
        consensus.spread_elections();
        consensus
    }

    /// Election time-outs that differ from seat to seat and from term to term, and are the same in every replay.
    fn spread_elections(&mut self) {
        let name = [self.seat.0.to_le_bytes(), self.raw.raft.term.to_le_bytes()].concat();
        let spread = xxh3_64(&name) as usize % ELECTION_TICKS;
        self.raw.raft.set_randomized_election_timeout(ELECTION_TICKS + spread);
    }

    pub fn tick(&mut self) {
        self.stirred = true;
        self.spread_elections();
        self.raw.tick();
        self.ticks = (self.ticks + 1) % ELECTION_TICKS;
        if self.ticks == 0 {
            self.send_snapshots_again();
        }
    }

    /// Nobody tells whether a snapshot has arrived but who it was for; the crate waits for that without end, and sends nothing else.
    fn send_snapshots_again(&mut self) {
        let waits = |(&seat, progress): (&u64, &Progress)| (progress.state == ProgressState::Snapshot).then_some(seat);
        let all: Vec<u64> = self.raw.raft.prs().iter().filter_map(waits).collect();
        for seat in all {
            self.raw.report_snapshot(seat, SnapshotStatus::Failure);
        }
    }

    /// What [`Consensus::recover`] goes on from.
    pub fn stored(&self) -> Vec<u8> {
        self.raw.store().encode()
    }

    /// Calls an election now, if this node votes. (Raft's code takes for granted that only voters do.)
    pub fn campaign(&mut self) {
        self.stirred = true;
        if self.raw.raft.promotable() {
            // Who leads already goes on.
            let _ = self.raw.campaign();
        }
    }

    /// Takes a message of another voter. What can't be read or is not for this seat is dropped; so is what no voter of this cluster
    /// sends, which the crate would panic at or believe.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn step(&mut self, bytes: &[u8], sender: &Sender<'_>) -> Result<(), &'static str> {
        let Ok(message) = RaftMessage::parse_from_bytes(bytes) else { return Err("it can't be read") };
        if message.to == self.seat.0 {
            vet::vet(&self.raw.raft, &self.state, &message, sender)?;
            self.stirred = true;
            self.leave_former_leader(&message);
            // Refusals (of a stale term, of an unknown voter) are Raft's way of ignoring a message.
            let _ = self.raw.step(message);
        }
        Ok(())
    }

    /// Who asks for votes does not lead any more. The crate would keep it for the leader, and vote for nobody, until the time of an
    /// election is over here: where every vote counts, that long nobody leads.
    fn leave_former_leader(&mut self, message: &RaftMessage) {
        let asks = matches!(message.get_msg_type(), MessageType::MsgRequestPreVote | MessageType::MsgRequestVote);
        let raft = &mut self.raw.raft;
        if asks && message.from == raft.leader_id && message.term > raft.term {
            raft.become_follower(raft.term, 0);
        }
    }

    /// Puts a proposal in the log; only a leader can. `request`: who wants to know the outcome.
    pub fn propose(&mut self, request: Option<RequestId>, proposal: &Proposal) {
        let logged = Logged { request, proposal: proposal.clone() };
        self.stirred = true;
        let data = postcard::to_stdvec(&logged).expect("a proposal holds nothing that postcard refuses");
        // A leader that has just lost its office drops it; the requester asks again.
        let _ = self.raw.propose(Vec::new(), data);
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub fn leader(&self) -> Option<NodeId> {
        let id = self.raw.raft.leader_id;
        (id != 0).then(|| Seat(id).node())
    }

    /// Whether everything in the log is applied here: what a leader decides on is then the present.
    pub fn is_idle(&self) -> bool {
        let log = &self.raw.raft.raft_log;
        log.last_index() == log.applied
    }

    /// The topology as far as this node has applied the log.
    pub fn state(&self) -> &Topology {
        &self.state
    }

    pub fn generation(&self) -> u64 {
        self.state.version.generation
    }

    /// The nodes that vote now.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.raw.raft.prs().conf().voters().ids().iter().map(|id| Seat(id).node()).collect()
    }

    fn wanted(&self) -> BTreeSet<Seat> {
        let births = &self.state.births;
        self.state.electors().into_iter().map(|node| Seat::of(node, births[&node])).collect()
    }

    /// Whether those vote that the topology asks for.
    pub fn is_elected_as_planned(&self) -> bool {
        let conf = self.raw.raft.prs().conf();
        conf.learners().is_empty() && self.wanted() == conf.voters().ids().iter().map(Seat).collect()
    }

    /// Brings the voters one step closer to those that the topology asks for. Only for a leader with nothing under way.
    pub fn elect_voters(&mut self, reachable: impl Fn(NodeId) -> bool) {
        self.stirred = true;
        let wanted = self.wanted();
        let raft = &self.raw.raft;
        let conf = raft.prs().conf();
        let voters: BTreeSet<Seat> = conf.voters().ids().iter().map(Seat).collect();
        let learners: BTreeSet<Seat> = conf.learners().iter().copied().map(Seat).collect();
        let births = &self.state.births;
        let present = |seat: Seat| births.get(&seat.node()).is_some_and(|&birth| Seat::of(seat.node(), birth) == seat);
        let electorate = Electorate {
            leader: self.seat,
            wanted: &wanted,
            voters: &voters,
            learners: &learners,
            speaks: &|seat| present(seat) && reachable(seat.node()),
            agrees: &|seat| raft.prs().get(seat.0).is_some_and(|told| told.matched >= raft.raft_log.committed),
        };
        let (kind, seat) = match electorate.next() {
            Some(Step::Teach(seat)) => (ConfChangeType::AddLearnerNode, seat),
            Some(Step::Promote(seat)) => (ConfChangeType::AddNode, seat),
            Some(Step::Dismiss(seat)) => (ConfChangeType::RemoveNode, seat),
            Some(Step::HandOver(seat)) => return self.raw.transfer_leader(seat.0),
            None => return,
        };
        let mut conf_change = ConfChange::default();
        conf_change.set_change_type(kind);
        conf_change.set_node_id(seat.0);
        let _ = self.raw.propose_conf_change(Vec::new(), conf_change);
    }

    #[cfg(test)]
    fn votes(&self) -> bool {
        self.raw.raft.prs().conf().voters().contains(self.seat.0)
    }

    /// Every leader votes. The crate leaves one in office that has taken its own vote away (its predecessor had asked for that, and it
    /// was not agreed on yet at the election): it is heard, can put nothing in the log, and looks for its own progress, which it no
    /// longer has, when anything else is agreed on, and panics. And it leaves the others waiting for one that can't call an election.
    fn leave_leader_without_vote(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.leader_id != 0 && !raft.prs().conf().voters().contains(raft.leader_id) {
            raft.become_follower(raft.term, 0);
        }
    }

    /// Handles what has gathered since the last turn. Costs next to nothing if that is nothing.
    pub fn turn(&mut self) -> Turn {
        let mut turn = Turn::default();
        if !std::mem::take(&mut self.stirred) {
            return turn;
        }
        let (mut changed, mut must_sync) = (false, false);
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            must_sync |= ready.must_sync();
            self.send(ready.take_messages(), &mut turn);
            if *ready.snapshot() != Snapshot::default() {
                let snapshot = ready.snapshot().clone();
                if let Some(state) = decode_state(&snapshot) {
                    self.state = state;
                    turn.applied = true;
                }
                self.raw.mut_store().take_snapshot(snapshot);
                changed = true;
            }
            let committed = ready.take_committed_entries();
            if !ready.entries().is_empty() {
                let entries = ready.take_entries();
                self.raw.mut_store().append(entries);
                changed = true;
            }
            if let Some(hard) = ready.hs() {
                self.raw.mut_store().hard = hard.clone();
                changed = true;
            }
            self.send(ready.take_persisted_messages(), &mut turn);
            self.apply(committed, &mut turn);
            let mut light = self.raw.advance(ready);
            if let Some(commit) = light.commit_index() {
                self.raw.mut_store().hard.set_commit(commit);
                changed = true;
            }
            self.send(light.take_messages(), &mut turn);
            self.apply(light.take_committed_entries(), &mut turn);
            self.raw.advance_apply();
        }
        if turn.applied {
            self.take_stock();
        }
        if turn.applied || changed {
            turn.persist = Some((self.stored(), must_sync || turn.applied));
        }
        turn
    }

    fn send(&self, messages: Vec<RaftMessage>, turn: &mut Turn) {
        for message in messages {
            let bytes = message.write_to_bytes().expect("a message that Raft made can be encoded");
            turn.messages.push((Seat(message.to).node(), bytes));
        }
    }

    fn apply(&mut self, entries: Vec<Entry>, turn: &mut Turn) {
        for entry in entries {
            let index = entry.index;
            match entry.get_entry_type() {
                EntryType::EntryNormal => {
                    if let Ok(logged) = postcard::from_bytes::<Logged>(&entry.data) {
                        self.state.apply(logged.request, &logged.proposal);
                    }
                }
                EntryType::EntryConfChange => {
                    // One that takes the last vote away is no change, at any voter.
                    let change = ConfChange::parse_from_bytes(&entry.data);
                    if let Some(conf) = change.ok().and_then(|change| self.raw.apply_conf_change(&change).ok()) {
                        self.raw.mut_store().conf = conf;
                        self.leave_leader_without_vote();
                    }
                }
                EntryType::EntryConfChangeV2 => {}
            }
            self.state.version.index = index;
            turn.applied = true;
        }
    }

    /// Keeps the state at hand for newcomers, and replaces a long log by it.
    fn take_stock(&mut self) {
        let applied = self.raw.raft.raft_log.applied;
        let state = postcard::to_stdvec(&self.state).expect("a topology holds nothing that postcard refuses");
        let ledger = self.raw.mut_store();
        let Ok(term) = ledger.term(applied) else { return };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = applied;
        metadata.term = term;
        metadata.set_conf_state(ledger.conf.clone());
        snapshot.set_data(state.into());
        if ledger.entries.len() > LOG_LENGTH_MAX {
            ledger.entries.retain(|entry| entry.index > applied);
            ledger.snapshot = snapshot.clone();
        }
        ledger.present = snapshot;
    }
}

#[cfg(test)]
mod tests;
