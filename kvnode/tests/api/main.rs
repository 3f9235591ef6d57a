//! Black-box tests: real `kvnode` processes on loopback addresses, driven by nothing but the HTTP contract.

mod bad_input;
mod causal;
mod chains;
mod failures;
mod http;
mod joined;
mod keys;
mod races;
mod restarts;
mod routes;
mod secrets;
mod soak;
mod startup;
mod support;
mod topology;
mod unknown;
