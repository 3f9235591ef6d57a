//! Types on the wire, without logic: what nodes, clients and `kvctl` say to each other.

pub mod ident;
pub mod peer;
