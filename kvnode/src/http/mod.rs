//! The HTTP front end: one port for clients, operators and the other nodes.
//!
//! A connection is hyper's own loop over a guarded socket ([`conn`]: time limits on silence, half headers and answers that
//! nobody takes). What it hands over goes through plain code:
//!
//! [`accept`] → [`conn`] → [`handle`] → [`route`] (which request is it?) → [`body`] (read it, within bounds) →
//! [`fields`], [`query`] (what does it say?) → the node → [`reply`] (every answer and every refusal is written there).
//! Other nodes turn their connections into [`streams`] of batches.
//!
//! No framework stands between: one with filters or extractors would know no header time-out, not decode paths as the
//! contract does, and answer text where it refuses; nothing would be left of it but its cost.
//!
//! Decisions where the contract leaves room: HEAD is GET without the body; OPTIONS is a method that no path has (405). A
//! field given twice in a body is refused (400), an unknown one is ignored. A `%` that starts no escape is refused. Bodies
//! of requests that have no use for one are read, within the bounds, and ignored. In a query `+` is a space. A `#` ends the path, as
//! in any URL: in a key it has to be written `%23`. A page of keys has 1,000 at most, fewer where values are large; its cursor tells
//! whether there are more. A reshard that changes nothing has no job: with `?wait=false`, too, it is answered with its result.

use std::sync::Arc;

use crate::limits::Limits;
use crate::node::NodeHandle;

pub mod accept;
mod admin;
mod body;
mod conn;
mod drill;
mod fields;
mod gate;
mod handle;
#[doc(hidden)]
pub mod probe;
mod query;
mod reply;
mod route;
mod streams;

pub use gate::Gate;

/// Bytes of peer batches held at once, as a multiple of the largest one.
const PEER_BODIES_HELD: usize = 4;

/// What every request needs.
pub struct Front {
    node: NodeHandle,
    limits: Limits,
    gate: Gate,
    /// Bodies of clients, both ways, and bodies of peers are counted apart, so that clients can't keep the nodes from talking.
    client_bodies: Arc<gate::Budget>,
    peer_bodies: Arc<gate::Budget>,
}

impl Front {
    pub fn new(node: NodeHandle, limits: Limits) -> Arc<Self> {
        let client_bodies = gate::Budget::new(limits.max_bodies);
        let peer_bodies = gate::Budget::new(limits.max_peer_body.saturating_mul(PEER_BODIES_HELD));
        Arc::new(Self { node, limits, gate: Gate::default(), client_bodies, peer_bodies })
    }

    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}
