//! The load generator: `kvctl bench`.
//!
//! `targets` (who has which key) and `keys` (which key next) → `load` (the connections, over `wire`, when `pace` says so) → `tally` →
//! `report` and `plot`. All of it is one thread, which leaves the rest of the machine to the servers.

pub mod cpu;
mod keys;
pub mod load;
pub mod pace;
pub mod plot;
pub mod report;
pub mod tally;
pub mod targets;
mod wire;
