//! What nodes, clients and tools all speak of: names, stamps, vectors. Data without the protocol's logic.

pub mod causal;
pub mod ident;
pub mod stamp;

/// The header of HTTP that carries the causal context.
pub const METADATA_HEADER: &str = "x-causal-metadata";

/// A short mark that tells two contents apart (xxh3, 64 bits); no protection against forgery.
pub fn fingerprint(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
