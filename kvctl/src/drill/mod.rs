//! `kvctl drill`: a workload of causal sessions, faults on purpose, and a judge.
//!
//! `fault` and `schedule` (what goes wrong when: pure, from a seed) → `inject` (makes it happen, and heals) beside `workload` (the
//! clients) → `history` (every operation, a line each) → `moments` (the same for the judge) → `verdict` → `report` (a page).

mod availability;
pub mod fault;
pub mod history;
pub mod inject;
mod moments;
pub mod report;
pub mod rng;
pub mod schedule;
pub mod verdict;
pub mod workload;
