//! Peer links: one stream each way between two nodes, one batch on its way at a time.
//!
//! While a batch travels, the core gathers what the next one will carry; under load batches grow by themselves, at rest
//! nothing waits. The answer to a batch carries what the receiver has to say at once, such as acknowledgements.
//!
//! A stream begins as an HTTP request to the port that serves everybody, and is then [upgraded](frames): a batch as an HTTP
//! request of its own costs several times what the batch itself does.

pub mod auth;
pub mod frames;
mod names;
mod sending;
pub mod strangers;

pub use names::Names;
pub use sending::{Link, LinkDone};

use kvnode_core::messages::PROTOCOL_VERSION;

/// Where a stream begins.
pub const PATH: &str = "/peer";

/// What the connection is upgraded to: the name of the protocol and its version, so that nodes that can't understand each other
/// find out before they say anything.
pub fn protocol() -> String {
    format!("kvnode-peer/{PROTOCOL_VERSION}")
}
