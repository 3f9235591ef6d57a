//! A node of a distributed, replicated, causally consistent, sharded key-value store.

pub mod core;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod storage;
pub mod wire;
