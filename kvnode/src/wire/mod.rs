//! Types on the wire, without logic: what nodes, clients and `kvctl` say to each other.

pub mod ident;
pub mod peer;

/// A short mark that tells two contents apart (xxh3, 64 bits); no protection against forgery.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
