//! What nodes say to each other: one [`Batch`] at a time on a peer link, and one as its answer.
//!
//! On the wire a batch is the byte [`PROTOCOL_VERSION`] followed by its postcard encoding. Every message is idempotent or
//! numbered, so a batch may be lost, repeated or overtaken.

use bytes::Bytes;
use kvnode_types::causal::{Context, Vector};
use kvnode_types::ident::{Addr, Dot, Epoch, Incarnation, Key, NodeId, Origin, ShardId, Slot};
use kvnode_types::stamp::Stamp;
use serde::{Deserialize, Serialize};

use crate::replica::Handed;
use crate::request::{Answer, Op};
use crate::store::Version;
use crate::topology::{ClusterId, Proposal, RequestId, SlotRun, Topology, TopologyVersion};

/// First byte of every batch. A node refuses a version that it does not know.
pub const PROTOCOL_VERSION: u8 = 6;

/// Messages from one life of a node to one life of another.
///
/// Invariant: a receiver acts on `messages` only if `to_life` is its own life and `life` is the newest it knows of the
/// sender. What an earlier life of either sent can therefore never take effect late.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// `None`: the sender belongs to no cluster yet.
    pub cluster: Option<ClusterId>,
    /// The topology that the sender goes by. What it says about data is heard only by who knows that topology or a newer.
    pub version: TopologyVersion,
    pub from: Addr,
    pub life: Incarnation,
    /// The receiver's life as the sender knows it; `None` before the first contact.
    pub to_life: Option<Incarnation>,
    /// The sender's own clock when it made the batch, in ms; only the sender can read it.
    pub sent_ms: u64,
    /// The newest `sent_ms` that the sender has had from `to_life`: proof that what was sent then has arrived.
    pub echo_ms: u64,
    pub messages: Vec<Message>,
}

/// How far a replica is in serving its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Holds nothing complete; asks its shard's other replicas for everything.
    Filling,
    /// Has everything it acknowledged, and serves.
    Serving,
    /// Finishes what it began and takes nothing new.
    Leaving,
}

/// Per node and epoch, the lowest incarnation that is not retired. Everything an earlier incarnation wrote that still exists
/// is durable at every replica.
pub type Floors = Vec<(NodeId, Epoch, Incarnation)>;

/// What a shard has made stable, told to everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stable {
    pub vector: Vector,
    pub floors: Floors,
}

/// What a replica tells the other replicas of its shard about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The layout that the reporter goes by; what it says holds under no other.
    pub epoch: Epoch,
    /// The oldest layout of which the reporter may lack something; the same as `epoch` if it lacks nothing.
    pub oldest: Epoch,
    /// Slots are being copied: nothing is to become stable on the strength of this report.
    pub frozen: bool,
    /// Whether the reporter has room for what others write.
    pub takes_writes: bool,
    pub applied: Vector,
    pub durable: Vector,
    /// Of writes that are there and not in `applied`: the newest of each origin.
    pub uncovered: Vector,
    pub floors: Floors,
    /// The newest life that the reporter knows of each member of the shard.
    pub lives: Vec<(NodeId, Incarnation)>,
}

/// What a node tells everybody while a change of the layout is under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The job whose copies are all here.
    pub copied: Option<u32>,
    /// The epoch under which this member holds all that the members before held.
    pub settled: Option<Epoch>,
    /// What this node, as an old member, has to hand over.
    pub handed: Option<Handed>,
    /// What this member of the new layout has of the layout before.
    pub held: Vector,
    pub moves: Vec<Move>,
}

/// What a node has fetched from one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub from: ShardId,
    pub to: ShardId,
    pub keys: u64,
    /// As many as there were when the last look was taken.
    pub keys_total: u64,
    pub bytes: u64,
}

/// One write on its way to another replica of the shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    pub key: Key,
    pub version: Version,
    /// What the writer's client had seen of this shard: must be applied before this write is.
    pub own_deps: Vector,
}

impl Write {
    /// Roughly the memory and the wire bytes that the write takes.
    pub fn weight(&self) -> usize {
        192 + self.key.len()
            + self.version.value.as_ref().map_or(0, Bytes::len)
            + 24 * (self.version.deps.len() + self.own_deps.len())
    }
}

/// One slot in a repair request: what the asker has of it, in key order, after `after`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotListing {
    pub slot: Slot,
    pub after: Option<Key>,
    pub have: Vec<(Key, Dot)>,
}

/// One shard of one layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    pub epoch: Epoch,
    pub shard: ShardId,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// "I belong to no cluster. This is what I was started with."
    Seek {
        view: Vec<Addr>,
        shard_count: u32,
        /// The life in which the sender's data began.
        birth: Incarnation,
    },
    /// The cluster that runs, as agreed.
    Topology(Box<Topology>),
    /// The answer of a member to a stranger whose address the topology does not list.
    Stranger,
    /// Your life is older than one I know of your address.
    Superseded {
        known: Incarnation,
    },

    /// Liveness. `stage` is `None` for a node without a shard.
    Beat {
        wall_ms: u64,
        epoch: Epoch,
        birth: Incarnation,
        progress: Option<Box<Progress>>,
        stage: Option<Stage>,
        stable: Option<(ShardId, Stable)>,
    },
    Report(Report),

    /// A message of the log of topologies, in its own encoding.
    Raft {
        generation: u64,
        bytes: Vec<u8>,
    },
    /// "Put this in the log", to its leader or to who may know it.
    Propose {
        request: Option<RequestId>,
        proposal: Proposal,
    },

    /// Writes, each origin's in order, in an order in which the receiver can apply them.
    Writes {
        writes: Vec<Write>,
        pulled: bool,
    },
    /// "I hold your current origin's writes up to `seq`, and keep so many `beyond` that, which wait for others."
    Held {
        origin: Origin,
        seq: u64,
        beyond: u64,
    },
    /// "Send me what I lack."
    Pull {
        have: Vector,
        floors: Floors,
    },
    /// "My log does not reach back to what you lack: repair from my store."
    Behind,
    /// "I have compared all that I have of our shard with what you had when I began this repair."
    Compared {
        id: u64,
    },

    /// "Give me these slots as the shard has them in that epoch."
    RepairStart {
        id: u64,
        scope: Scope,
        runs: Vec<SlotRun>,
    },
    /// The state of the source when the repair starts; `digests` holds one per slot asked for, in slot order.
    RepairBegin {
        id: u64,
        /// Whether the source has all that was ever stable in the shard.
        whole: bool,
        keys: u64,
        target: Vector,
        floors: Floors,
        clock: Stamp,
        digests: Vec<u64>,
    },
    RepairAsk {
        id: u64,
        scope: Scope,
        round: u64,
        slots: Vec<SlotListing>,
    },
    /// `dropped`: keys that the asker has, whose write the source had too and no longer has: deleted. `rest`: where the
    /// source stopped.
    RepairData {
        id: u64,
        round: u64,
        entries: Vec<(Key, Version)>,
        dropped: Vec<(Key, Dot)>,
        rest: Option<(Slot, Option<Key>)>,
    },

    /// A client's request, passed on to a replica of its shard. `id` rises with every forward of the sender's life.
    Forward {
        id: u64,
        shard: ShardId,
        op: Op,
        context: Context,
        /// On the receiver's clock: a write that was not applied until then must not be any more.
        until_ms: u64,
    },
    Answered {
        id: u64,
        answer: Answer,
    },
}

/// Roughly the wire bytes of one version that a repair brings.
pub fn entry_weight(key: &Key, version: &Version) -> usize {
    64 + key.len() + version.value.as_ref().map_or(0, Bytes::len) + 24 * version.deps.len()
}

impl Message {
    /// Roughly the wire bytes, to fill a batch up to its limit.
    pub fn weight(&self) -> usize {
        let op_weight = |op: &Op| match op {
            Op::Put { key, value } => key.len() + value.len(),
            Op::List { prefix, .. } => prefix.len(),
            Op::Get { key } | Op::Delete { key } => key.len(),
            Op::KeyCount { .. } => 8,
        };
        match self {
            Self::Writes { writes, .. } => writes.iter().map(Write::weight).sum(),
            Self::Forward { op, context, .. } => 64 + op_weight(op) + 16 * context.seen.len(),
            Self::Answered { answer: Answer::Found { value, .. }, .. } => 64 + value.len(),
            Self::Answered { answer: Answer::Keys { keys, .. }, .. } => keys.iter().map(|key| key.len() + 2).sum(),
            Self::RepairBegin { digests, .. } => 64 + 8 * digests.len(),
            Self::RepairAsk { slots, .. } => {
                slots.iter().flat_map(|slot| &slot.have).map(|(key, _)| key.len() + 24).sum()
            }
            Self::RepairData { entries, .. } => entries.iter().map(|(key, version)| entry_weight(key, version)).sum(),
            Self::Topology(topology) => 256 + 64 * topology.nodes.len(),
            Self::Raft { bytes, .. } => 16 + bytes.len(),
            _ => 64,
        }
    }
}

/// The bytes of a batch.
pub fn encode(batch: &Batch) -> Bytes {
    encode_onto(batch, Vec::new()).into()
}

/// The same at the end of other bytes.
pub fn encode_onto(batch: &Batch, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.push(PROTOCOL_VERSION);
    postcard::to_extend(batch, bytes).expect("a batch holds nothing that postcard refuses")
}

/// Reads a batch, or says what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Batch, String> {
    match bytes.split_first() {
        None => Err("an empty batch".into()),
        Some((&PROTOCOL_VERSION, body)) => {
            postcard::from_bytes(body).map_err(|error| format!("a batch that can't be read: {error}"))
        }
        Some((other, _)) => Err(format!("peer protocol version {other}; this node speaks {PROTOCOL_VERSION}")),
    }
}
