//! What a client asks of the store and what it is told: the protocol's side of the HTTP contract.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use kvnode_types::causal::Context;
use kvnode_types::ident::{Addr, Dot, Key, ShardId};

/// One data request. Values are JSON text, checked at the door, and are never parsed again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Get {
        key: Key,
    },
    Put {
        key: Key,
        value: Bytes,
    },
    Delete {
        key: Key,
    },
    /// A page of up to `limit` keys of the whole store that start with `prefix`, in key order, after `after`.
    List {
        prefix: String,
        after: Option<Key>,
        limit: u32,
    },
    /// Live keys of one shard. Carries no context.
    KeyCount {
        shard: ShardId,
    },
}

/// A dependency that a replica could not satisfy in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Who wrote what is missing: a node's address, or a description where the node is unknown.
    pub writer: String,
    /// First and last number missing.
    pub from: u64,
    pub to: u64,
    /// Nodes known to have it.
    pub held_by: Vec<Addr>,
}

/// The outcome of an [`Op`]. `C` is the context's form: [`Context`] between nodes, the token's text towards clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer<C = Context> {
    Found {
        value: Bytes,
        context: C,
    },
    /// `tombstone`: the deletion that was found; `None` if there is nothing of the key.
    NotFound {
        context: C,
        tombstone: Option<Dot>,
    },
    Created {
        context: C,
        replicas: u32,
    },
    Replaced {
        context: C,
        replicas: u32,
    },
    Deleted {
        context: C,
        replicas: u32,
        tombstone: Dot,
    },
    /// `next`: where the next page starts (pass it as `after`); `None` at the end.
    Keys {
        keys: Vec<Key>,
        next: Option<Key>,
        context: C,
    },
    Count(u64),
    /// The token was not made by this cluster, or was altered. 400.
    Malformed,
    /// The dependencies did not arrive within `--causal-wait`. 503.
    Unsatisfied {
        missing: Vec<Missing>,
    },
    /// Nobody who has the shard answers. 503.
    NoReplica {
        shard: ShardId,
    },
    /// `KeyCount` of a shard that is not. 404.
    NoSuchShard,
    /// A forwarded write may or may not have taken effect. 503 with `"outcome":"unknown"`.
    OutcomeUnknown,
    /// A bound is reached; `what` names it. 503 with `Retry-After: 1`.
    Busy {
        what: String,
    },
    /// This node can't serve and knows nobody who can. 503.
    NotReady {
        reason: String,
    },
    /// No room to store a write. 507; nothing has changed.
    Full {
        reason: String,
    },
}
