//! What a message of the log must be before the crate sees it.
//!
//! The crate trusts its messages: a heartbeat that commits more than there is, entries with a gap, or a snapshot with a voter
//! twice end the process, and a term or an index near the end of its numbers leaves no next one. So whatever no voter of
//! this cluster sends is refused here, whoever sends it.

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfState, Entry, EntryType, Message, MessageType, SnapshotMetadata};
use raft::{Raft, StateRole};

use super::ledger::{Ledger, decode_state};
use super::{Seat, Sender};
use crate::topology::Topology;

/// So far ahead of one's own a term may be: elections that a cluster can't have had meanwhile.
const TERMS_AHEAD_MAX: u64 = 1 << 32;
/// No log gets so long.
const INDEX_MAX: u64 = 1 << 48;

/// Refuses a message for this seat that no voter sends.
///
/// # Errors
/// Why.
pub fn vet(raft: &Raft<Ledger>, state: &Topology, message: &Message, sender: &Sender<'_>) -> Result<(), &'static str> {
    vet_sender(raft, state, message.from, sender)?;
    vet_numbers(raft, message)?;
    match message.get_msg_type() {
        MessageType::MsgHeartbeat if message.commit > raft.raft_log.last_index() => Err("it commits what is not here"),
        MessageType::MsgAppend => vet_entries(message),
        MessageType::MsgSnapshot => vet_snapshot(state, message),
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote if message.log_term == 0 => {
            Err("it asks for votes without a log")
        }
        MessageType::MsgAppendResponse => vet_acknowledgement(raft, message),
        MessageType::MsgHeartbeat
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgTimeoutNow => Ok(()),
        // Proposals go to the leader in another way, and the rest is what a voter says to itself.
        _ => Err("voters don't send such messages"),
    }
}

/// It is named by the voters here, or by the topology: the log of a node that was away ends before others became voters.
fn vet_sender(raft: &Raft<Ledger>, state: &Topology, from: u64, sender: &Sender<'_>) -> Result<(), &'static str> {
    let seat = Seat(from);
    if sender.node.is_some_and(|node| node != seat.node()) {
        return Err("its sender is another node than it says");
    }
    let node = seat.node();
    let born = |birth| Seat::of(node, birth) == seat;
    let is_known = raft.prs().get(from).is_some()
        || state.births.get(&node).is_some_and(|&birth| born(birth))
        || sender.births.get(&node).is_some_and(|&birth| born(birth));
    if is_known { Ok(()) } else { Err("its sender is no voter") }
}

fn vet_numbers(raft: &Raft<Ledger>, message: &Message) -> Result<(), &'static str> {
    if message.term == 0 || message.term > raft.term.saturating_add(TERMS_AHEAD_MAX) {
        return Err("no such term can have been reached");
    }
    if [message.log_term, message.commit_term].iter().any(|&term| term > message.term.max(raft.term)) {
        return Err("it tells of a term that is still to come");
    }
    let indices = [message.index, message.commit, message.reject_hint];
    if indices.iter().any(|&index| index > INDEX_MAX) {
        return Err("no log is so long");
    }
    // Nobody here asks for snapshots, or comes before others in an election.
    if message.request_snapshot != 0 || message.priority != 0 || message.deprecated_priority != 0 {
        return Err("voters don't ask for that");
    }
    Ok(())
}

fn vet_entries(message: &Message) -> Result<(), &'static str> {
    // What is beyond the log's end counts as term 0 to the crate: there anything would fit.
    if (message.log_term == 0) != (message.index == 0) {
        return Err("its entries follow nothing");
    }
    let (mut index, mut term) = (message.index, message.log_term.max(1));
    for entry in &message.entries {
        if entry.index != index + 1 {
            return Err("its entries have gaps");
        }
        if entry.term < term || entry.term > message.term {
            return Err("its entries are not in the order of their terms");
        }
        vet_entry(entry)?;
        (index, term) = (entry.index, entry.term);
    }
    Ok(())
}

/// Which changes there are of the voters; whatever else an entry holds is read when it is applied.
fn vet_entry(entry: &Entry) -> Result<(), &'static str> {
    let is_fine = match entry.get_entry_type() {
        EntryType::EntryNormal => true,
        EntryType::EntryConfChange => ConfChange::parse_from_bytes(&entry.data).is_ok_and(|change| change.node_id != 0),
        EntryType::EntryConfChangeV2 => false,
    };
    if is_fine { Ok(()) } else { Err("it changes the voters in a way that there is not") }
}

fn vet_snapshot(state: &Topology, message: &Message) -> Result<(), &'static str> {
    let snapshot = message.get_snapshot();
    let SnapshotMetadata { index, term, .. } = *snapshot.get_metadata();
    if index == 0 || index > INDEX_MAX || term == 0 || term > message.term {
        return Err("its snapshot is of no place in the log");
    }
    if !is_sane(snapshot.get_metadata().get_conf_state()) {
        return Err("its snapshot has no such voters as there can be");
    }
    match decode_state(snapshot) {
        Some(told) if told.version.generation == state.version.generation && told.cluster == state.cluster => Ok(()),
        Some(_) => Err("its snapshot is of another log"),
        None => Err("its snapshot can't be read"),
    }
}

/// Votes change one at a time: there never are two sets of voters.
fn is_sane(conf: &ConfState) -> bool {
    let mut seats: Vec<u64> = conf.get_voters().iter().chain(conf.get_learners()).copied().collect();
    seats.sort_unstable();
    let differ = seats.windows(2).all(|pair| pair[0] != pair[1]);
    let single = conf.get_voters_outgoing().is_empty() && conf.get_learners_next().is_empty() && !conf.auto_leave;
    single && differ && !conf.get_voters().is_empty() && seats[0] != 0
}

/// A leader is told of nothing that it does not have itself: it would count it, and never send what is missing.
fn vet_acknowledgement(raft: &Raft<Ledger>, message: &Message) -> Result<(), &'static str> {
    let counts = raft.state == StateRole::Leader && message.term == raft.term;
    if counts && message.index.max(message.commit).max(message.reject_hint) > raft.raft_log.last_index() {
        return Err("it acknowledges what is not here");
    }
    Ok(())
}
