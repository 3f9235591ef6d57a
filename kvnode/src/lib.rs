//! A node of a distributed, replicated, causally consistent, sharded key-value store: the process around `kvnode-core`.

pub mod config;
pub mod drill;
pub mod handles;
pub mod http;
pub mod limits;
pub mod link;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod node;
mod room;
pub mod run;
mod setting;
pub mod storage;
pub mod threads;
