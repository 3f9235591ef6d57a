//! What a core is started with, and the mutants that tests start it with.

use kvnode_types::ident::{Addr, Incarnation};

use super::loss::Past;

/// Durations are in milliseconds of the clock that the driver passes in.
#[derive(Clone, Debug)]
pub struct Settings {
    pub me: Addr,
    /// All nodes a new cluster would have, `me` included, in order.
    pub view: Vec<Addr>,
    /// Nodes of the view that an operator says need not be waited for when a cluster, or a shard that lost everything,
    /// starts: they are taken to have nothing.
    pub form_without: Vec<Addr>,
    pub shard_count: u32,
    /// This life's number: the wall clock's milliseconds at start. Raised by the core where a larger one is known.
    pub life: Incarnation,
    /// Random bytes for a cluster that this node may found.
    pub entropy: [u8; 48],
    /// How long a request waits for its dependencies.
    pub causal_wait_ms: u64,
    /// How long an answer to a write waits for copies after the local write.
    pub ack_wait_ms: u64,
    /// Requests that wait for dependencies or for copies; beyond it clients are told to come back.
    pub waiting_max: usize,
    /// Requests under way at other nodes.
    pub forwards_max: usize,
    /// Bytes of messages that wait for one peer, replication not counted (that waits in the log).
    pub peer_queue_weight_max: usize,
    /// Bytes of recent writes kept for replicas that lag.
    pub log_weight_max: usize,
    /// Whether a committed batch survives what the configured durability promises to survive without a sync.
    pub durable_at_commit: bool,
    pub past: Past,
    pub mutant: Option<Mutant>,
}

impl Settings {
    /// Of a node in memory that is alone.
    pub fn alone(me: Addr) -> Self {
        Self {
            view: vec![me.clone()],
            me,
            form_without: Vec::new(),
            shard_count: 1,
            life: Incarnation(1),
            entropy: [7; 48],
            causal_wait_ms: 1_000,
            ack_wait_ms: 500,
            waiting_max: 100,
            forwards_max: 100,
            peer_queue_weight_max: 1 << 20,
            log_weight_max: 1 << 20,
            durable_at_commit: true,
            past: Past::InStore,
            mutant: None,
        }
    }
}

impl Settings {
    /// Whether the mechanism is broken on purpose. Always `false` without the feature `mutants`.
    pub(crate) fn broken(&self, mutant: Mutant) -> bool {
        cfg!(feature = "mutants") && self.mutant == Some(mutant)
    }
}

/// A mechanism broken on purpose, to see the checker turn red. For tests; without effect where the feature `mutants` is not chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Reads don't check the own-shard part of the context.
    ReadUnchecked,
    /// Writes don't check the own-shard part of the context.
    WriteUnchecked,
    /// A value's dependencies on other shards are not stored.
    DepsDropped,
    /// A read does not hand on what the value depends on.
    DepsUnread,
    /// What an ended life wrote is taken for lost without asking the other replicas.
    ExhaustedAlone,
    /// Writes of one origin are applied in any order, before their dependencies.
    OriginOrder,
    /// The wall clock alone decides between versions.
    WallClockWins,
    /// A new stamp follows only what this node wrote itself.
    StampFromSelf,
    /// Stable is counted from what was received instead of what is durable.
    StableFromReceived,
    /// A replica that is being filled does not hold stable back.
    FillingLeftOutOfStable,
    /// What a context names of an origin that nobody knows counts as retired.
    UnknownIsRetired,
    /// A forwarded write whose fate is unknown is sent again.
    ForwardTwice,
    /// A node that lost its data serves before it was filled.
    ServeUnfilled,
    /// A repair moves the vector before the slots are compared.
    RepairVectorFirst,
    /// Tombstones are dropped at once.
    TombstoneDroppedEarly,
    /// A restarted node goes on under its old origin from what it still has.
    LifeReused,
    /// A node behind the context's layout answers by its own.
    EpochIgnored,
    /// A new owner takes a key that the old one has, and that it does not list itself, for deleted.
    CoverageDuringCopy,
    /// What is durable becomes stable while slots are being copied.
    StableDuringCopy,
    /// Old copies are deleted, and the old epoch forgotten, before the new owners have everything.
    OldCopyDeletedEarly,
    /// A member of the old layout goes on under its old origin.
    OriginKept,
    /// A dependency that two shards have inherited is carried to none of them.
    HeirsForgotten,
    /// A new owner takes the old one's vector for its own before the copy is complete.
    CopyVectorFirst,
    /// A new owner serves although its copies are not here.
    ServeUncopied,
    /// A replica without room acknowledges writes that it does not take.
    FullAcknowledges,
    /// Tombstones are dropped while the old members still hand over.
    TombstoneDroppedWhileSettling,
    /// A node that begins anew goes on under the name that it has written under.
    LifeKept,
    /// Clients of a node that begins anew are told that the writes are done whose data it drops.
    DroppedIsDone,
    /// Nobody compares with a replica that has given up a repair halfway.
    HalfRepairUntold,
    /// What a repair brought beyond its end is left to its writer.
    BroughtUntold,
    /// A transfer goes on with a giver's next life, which has nothing.
    TransferOutlivesGiver,
    /// What another new owner has taken of the layout before counts for nobody.
    HeldUntold,
    /// That a mate lacks writes before those that it was sent is left to time.
    GapUnnoticed,
    /// What clients wait for when the layout changes is not sent to the other replicas again.
    EarlierWritesKept,
    /// A copy of slots goes on at once where answers are late, whatever else wants the same processors.
    RepairNeverRests,
    /// What an earlier life of a node had asked is answered to its present one.
    AnswersTheDead,
    /// What a node told of its progress counts although it did not know yet who is waited for.
    ProgressOfAnyTime,
    /// Writes of a member that was written off are still taken from it.
    TakesFromWrittenOff,
    /// A replica repairs from a mate that was given up.
    RepairsFromGivenUp,
    /// A node that has lost its data says that it has nothing.
    LostIsEmpty,
}
