//! The replicated log behind the topology: Raft (Ongaro and Ousterhout, 2014), from the `raft` crate of TiKV.
//!
//! The crate does no input or output of its own, and no more does this: messages come in, messages and facts to store go out.
//! A voter is named by its *seat*: its node and the life in which its data began. A node that lost its data therefore is
//! another voter, and can't break a promise that it has forgotten.

mod electorate;

use std::collections::BTreeSet;

use protobuf::Message as _;
use raft::eraftpb::{
    ConfChange, ConfChangeType, ConfState, Entry, EntryType, HardState, Message as RaftMessage, MessageType, Snapshot,
};
use raft::{
    Config, GetEntriesContext, Progress, ProgressState, RaftState, RawNode, SnapshotStatus, StateRole, Storage,
    StorageError,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use electorate::{Electorate, Step};

use super::topology::{Proposal, RequestId, Topology, TopologyVersion};
use crate::wire::ident::{Incarnation, NodeId};

/// Ticks without a word from the leader after which an election begins: this many to twice this many.
const ELECTION_TICKS: usize = 8;
const HEARTBEAT_TICKS: usize = 2;
/// How often [`Consensus::tick`] is expected.
pub const CONSENSUS_TICK_MS: u64 = 125;
/// Entries after which the log is cut.
const LOG_LENGTH_MAX: usize = 64;
/// Bits of a seat that tell the life.
const LIFE_BITS: u32 = 44;

/// Names a voter: a node, and the life in which its data began. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat(u64);

impl Seat {
    pub fn of(node: NodeId, birth: Incarnation) -> Self {
        Self((u64::from(node.0) << LIFE_BITS) | (birth.0 & ((1 << LIFE_BITS) - 1)))
    }

    pub fn node(self) -> NodeId {
        NodeId((self.0 >> LIFE_BITS) as u32)
    }
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

    /// Takes a message of another voter. What can't be read or is not for this seat is dropped.
    pub fn step(&mut self, bytes: &[u8]) {
        let Ok(message) = RaftMessage::parse_from_bytes(bytes) else { return };
        if message.to == self.seat.0 {
            self.stirred = true;
            self.leave_former_leader(&message);
            // Refusals (of a stale term, of an unknown voter) are Raft's way of ignoring a message.
            let _ = self.raw.step(message);
        }
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
                    let change = ConfChange::parse_from_bytes(&entry.data).expect("proposed by this code");
                    let conf = self.raw.apply_conf_change(&change).expect("a change of one voter is valid");
                    self.raw.mut_store().conf = conf;
                    self.leave_leader_without_vote();
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

fn decode_state(snapshot: &Snapshot) -> Option<Topology> {
    let mut state: Topology = postcard::from_bytes(snapshot.get_data()).ok()?;
    state.version = TopologyVersion { index: snapshot.get_metadata().index, ..state.version };
    Some(state)
}

/// What Raft keeps: its promises, the voters, and the log since the last snapshot.
#[derive(Default)]
struct Ledger {
    hard: HardState,
    /// The voters at the end of what is applied.
    conf: ConfState,
    /// The state that the log starts from.
    snapshot: Snapshot,
    /// The state that what is applied of the log has led to.
    present: Snapshot,
    entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    hard: Vec<u8>,
    conf: Vec<u8>,
    snapshot: Vec<u8>,
    entries: Vec<Vec<u8>>,
}

impl Ledger {
    fn restart(&mut self, topology: &Topology, conf: ConfState, term: u64) {
        let metadata = self.snapshot.mut_metadata();
        metadata.index = topology.version.index;
        metadata.term = term;
        metadata.set_conf_state(conf.clone());
        let data = postcard::to_stdvec(topology).expect("a topology holds nothing that postcard refuses");
        self.snapshot.set_data(data.into());
        self.hard.set_term(term);
        self.hard.set_commit(topology.version.index);
        self.conf = conf;
        self.present = self.snapshot.clone();
    }

    fn state(&self) -> Option<Topology> {
        decode_state(&self.snapshot)
    }

    fn take_snapshot(&mut self, snapshot: Snapshot) {
        let metadata = snapshot.get_metadata();
        self.conf = metadata.get_conf_state().clone();
        self.hard.set_term(self.hard.term.max(metadata.term));
        self.hard.set_commit(metadata.index);
        self.entries.clear();
        self.present = snapshot.clone();
        self.snapshot = snapshot;
    }

    fn append(&mut self, entries: Vec<Entry>) {
        if let Some(first) = entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
        }
        self.entries.extend(entries);
    }

    fn encode(&self) -> Vec<u8> {
        let bytes = |message: &dyn protobuf::Message| message.write_to_bytes().expect("made by Raft");
        let stored = Stored {
            hard: bytes(&self.hard),
            conf: bytes(&self.conf),
            snapshot: bytes(&self.snapshot),
            entries: self.entries.iter().map(|entry| bytes(entry)).collect(),
        };
        postcard::to_stdvec(&stored).expect("bytes only")
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let stored: Stored = postcard::from_bytes(bytes).ok()?;
        let snapshot = Snapshot::parse_from_bytes(&stored.snapshot).ok()?;
        Some(Self {
            hard: HardState::parse_from_bytes(&stored.hard).ok()?,
            conf: ConfState::parse_from_bytes(&stored.conf).ok()?,
            present: snapshot.clone(),
            snapshot,
            entries: stored.entries.iter().map(|entry| Entry::parse_from_bytes(entry).ok()).collect::<Option<_>>()?,
        })
    }

    fn first(&self) -> u64 {
        self.snapshot.get_metadata().index + 1
    }

    fn last(&self) -> u64 {
        self.entries.last().map_or(self.snapshot.get_metadata().index, |entry| entry.index)
    }
}

impl Storage for Ledger {
    fn initial_state(&self) -> raft::Result<RaftState> {
        // Entries after the snapshot are applied again at start, changes of voters among them.
        Ok(RaftState::new(self.hard.clone(), self.snapshot.get_metadata().get_conf_state().clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let wanted = self.entries.iter().filter(|entry| (low..high).contains(&entry.index));
        let mut entries: Vec<Entry> = wanted.cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let metadata = self.snapshot.get_metadata();
        if index == metadata.index {
            return Ok(metadata.term);
        }
        if index < metadata.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let entry = self.entries.iter().find(|entry| entry.index == index);
        entry.map(|entry| entry.term).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _: u64) -> raft::Result<Snapshot> {
        if request_index > self.present.get_metadata().index {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.present.clone())
    }
}

#[cfg(test)]
mod tests;
