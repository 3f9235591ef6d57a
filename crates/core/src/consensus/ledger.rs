//! What Raft keeps: its promises, the voters, and the log since the last snapshot.

use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use serde::{Deserialize, Serialize};

use crate::topology::{Topology, TopologyVersion};

/// The topology that a snapshot holds; `None` if it can't be read.
pub fn decode_state(snapshot: &Snapshot) -> Option<Topology> {
    let mut state: Topology = postcard::from_bytes(snapshot.get_data()).ok()?;
    state.version = TopologyVersion { index: snapshot.get_metadata().index, ..state.version };
    Some(state)
}

/// What Raft keeps: its promises, the voters, and the log since the last snapshot.
#[derive(Default)]
pub struct Ledger {
    pub hard: HardState,
    /// The voters at the end of what is applied.
    pub conf: ConfState,
    /// The state that the log starts from.
    pub snapshot: Snapshot,
    /// The state that what is applied of the log has led to.
    pub present: Snapshot,
    pub entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    hard: Vec<u8>,
    conf: Vec<u8>,
    snapshot: Vec<u8>,
    entries: Vec<Vec<u8>>,
}

impl Ledger {
    pub fn restart(&mut self, topology: &Topology, conf: ConfState, term: u64) {
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

    pub fn state(&self) -> Option<Topology> {
        decode_state(&self.snapshot)
    }

    pub fn take_snapshot(&mut self, snapshot: Snapshot) {
        let metadata = snapshot.get_metadata();
        self.conf = metadata.get_conf_state().clone();
        self.hard.set_term(self.hard.term.max(metadata.term));
        self.hard.set_commit(metadata.index);
        self.entries.clear();
        self.present = snapshot.clone();
        self.snapshot = snapshot;
    }

    pub fn append(&mut self, entries: Vec<Entry>) {
        if let Some(first) = entries.first() {
            self.entries.retain(|entry| entry.index < first.index);
        }
        self.entries.extend(entries);
    }

    pub fn encode(&self) -> Vec<u8> {
        let bytes = |message: &dyn protobuf::Message| message.write_to_bytes().expect("made by Raft");
        let stored = Stored {
            hard: bytes(&self.hard),
            conf: bytes(&self.conf),
            snapshot: bytes(&self.snapshot),
            entries: self.entries.iter().map(|entry| bytes(entry)).collect(),
        };
        postcard::to_stdvec(&stored).expect("bytes only")
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
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
