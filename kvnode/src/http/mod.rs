//! The HTTP front end: one port for clients, operators and the other nodes.
//!
//! A connection is hyper's own loop over a guarded socket ([`conn`]: time limits on silence, half headers and answers that
//! nobody takes). What it hands over goes through a shell, [`handle`], which looks it up in the table of routes:
//!
//! - [`accept`] → [`conn`] → [`handle`] → [`route`] (which request is it?) → [`filters`] (warp's: one file for each group of
//!   routes: [`listing`], [`view`], [`shard`], [`status`], [`probes`], [`metrics`], [`drill`]) → the node → [`reply`] (every answer
//!   and every refusal is written there).
//! - Requests for one [`key`] go past the filters, because that is what nearly all requests are, and cost counts.
//! - Other nodes turn their connections into [`streams`] of batches.
//!
//! On the way [`body`] reads a body within its bounds, and [`fields`] and [`query`] find out what was said.
//!
//! The accept loop is not warp's: that has no time-out for headers, sends small pieces late (no `TCP_NODELAY`), and sleeps for a
//! second where file handles run out.
//!
//! Decisions where the contract leaves room: HEAD is GET without the body; OPTIONS is a method that no path has (405). A
//! field given twice in a body is refused (400), an unknown one is ignored. A `%` that starts no escape is refused. Bodies
//! of requests that have no use for one are read, within the bounds, and ignored. In a query `+` is a space. A `#` ends the path, as
//! in any URL: in a key it has to be written `%23`. A page of keys has 1,000 at most, fewer where values are large; its cursor tells
//! whether there are more. A reshard that changes nothing has no job: with `?wait=false`, too, it is answered with its result.

use std::sync::Arc;

use crate::handles::Handles;
use crate::limits::Limits;
use crate::link::strangers::Strangers;
use crate::node::NodeHandle;

pub mod accept;
mod admin;
mod body;
mod conn;
mod drill;
mod fields;
mod filters;
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod handle;
mod key;
mod listing;
mod metrics;
pub mod opening;
mod places;
mod probes;
mod query;
mod reply;
mod route;
mod shard;
mod status;
mod streams;
mod view;

pub use gate::Gate;

/// What every request needs.
pub struct Front {
    node: NodeHandle,
    limits: Limits,
    gate: Arc<Gate>,
    /// Bodies of clients, both ways, and batches of nodes are counted apart, so that clients can't keep the nodes from talking.
    client_bodies: Arc<gate::Budget>,
    places: Arc<places::Places>,
    filters: filters::Root,
    strangers: Strangers,
}

impl Front {
    pub fn new(node: NodeHandle, limits: Limits, handles: &Handles) -> Arc<Self> {
        let client_bodies = gate::Budget::new(limits.max_bodies);
        let places = places::Places::new(node.clone(), &limits, handles);
        let (filters, strangers) = (filters::root(), Strangers::default());
        Arc::new(Self { node, limits, gate: Arc::default(), client_bodies, places, filters, strangers })
    }

    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}
