//! A node of a distributed, replicated, causally consistent, sharded key-value store.

pub mod config;
pub mod drill;
pub mod handles;
pub mod http;
pub mod limits;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod peer;
mod room;
pub mod run;
mod setting;
pub mod storage;
pub mod threads;
