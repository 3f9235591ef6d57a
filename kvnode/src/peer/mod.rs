//! Peer links: one HTTP connection each way between two nodes, one batch on its way at a time.
//!
//! While a batch travels, the core gathers what the next one will carry; under load batches grow by themselves, at rest
//! nothing waits. The answer to a batch carries what the receiver has to say at once, such as acknowledgements.

pub mod auth;
mod link;

pub use link::{Link, LinkDone};

/// Where peers post their batches.
pub const PATH: &str = "/peer/v1";
