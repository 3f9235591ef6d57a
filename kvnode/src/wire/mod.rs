//! Messages between nodes.

pub mod peer;
