//! Where a replica keeps its versions and the few facts it must not forget.
//!
//! The core reads through [`Store`] and stages changes in it; a staged change is visible to reads at once. The node's
//! loop calls [`Store::commit`] once per turn, *before* any answer or message of that turn leaves: all staged changes
//! reach the operating system in one atomic batch. [`Store::syncer`] makes committed batches survive a loss of power.
//!
//! Invariant: after a crash the store holds a prefix of the committed batches, at least all that were synced, and, if
//! only the process died, all that were committed.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub mod gauge;
pub mod memory;

use gauge::Gauge;

use kvnode_types::causal::Vector;
use kvnode_types::ident::{Dot, Key, Slot};
use kvnode_types::stamp::Stamp;

/// One version of one key. `value` is the client's JSON text, byte for byte; `None` is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Decides between concurrent versions; larger (stamp, origin) wins.
    pub stamp: Stamp,
    /// The write that made this version.
    pub dot: Dot,
    pub value: Option<Bytes>,
    /// What the write depends on in other shards, less what is stable there.
    pub deps: Vector,
}

/// How a version begins as it is stored: all that it takes to decide between two, without a copy of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Head {
    pub stamp: Stamp,
    pub dot: Dot,
    /// No tombstone. (An option begins with the same byte as a boolean.)
    pub has_value: bool,
}

/// A version without its value, as a listing looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub dot: Dot,
    /// No tombstone.
    pub has_value: bool,
    pub deps: Vector,
    /// Bytes that were read for it.
    pub read: usize,
}

impl Listed {
    pub fn of(version: &Version) -> Self {
        let read = version.value.as_ref().map_or(0, Bytes::len);
        Self { dot: version.dot, has_value: version.value.is_some(), deps: version.deps.clone(), read }
    }
}

impl Version {
    pub fn head(&self) -> Head {
        Head { stamp: self.stamp, dot: self.dot, has_value: self.value.is_some() }
    }
}

const FORMAT: u8 = 1;

/// A version as it is stored: a byte that names the format, and postcard.
pub fn encode(version: &Version) -> Vec<u8> {
    /// Stamp, dot and lengths, as long as they get without dependencies.
    const HEAD: usize = 48;
    let value = version.value.as_ref().map_or(0, Bytes::len);
    let mut bytes = Vec::with_capacity(HEAD + value);
    bytes.push(FORMAT);
    postcard::to_extend(version, bytes).expect("a version holds nothing that postcard refuses")
}

/// A version from its stored form.
///
/// # Errors
/// [`StoreError::Unreadable`] if it is none.
pub fn decode(bytes: &[u8]) -> Result<Version> {
    postcard::from_bytes(body_of(bytes)?).map_err(|error| StoreError::Unreadable(error.to_string()))
}

/// The same without its value.
///
/// # Errors
/// [`StoreError::Unreadable`] if it is no version.
pub fn decode_listed(bytes: &[u8]) -> Result<Listed> {
    /// As [`Version`], where the value stays where it is.
    #[derive(Deserialize)]
    struct Borrowed<'a> {
        _stamp: Stamp,
        dot: Dot,
        #[serde(borrow)]
        value: Option<&'a [u8]>,
        deps: Vector,
    }
    let version: Borrowed<'_> =
        postcard::from_bytes(body_of(bytes)?).map_err(|error| StoreError::Unreadable(error.to_string()))?;
    Ok(Listed { dot: version.dot, has_value: version.value.is_some(), deps: version.deps, read: bytes.len() })
}

/// What a stored version begins with.
///
/// # Errors
/// [`StoreError::Unreadable`] if it is no version.
pub fn decode_head(bytes: &[u8]) -> Result<Head> {
    let head = postcard::take_from_bytes(body_of(bytes)?);
    head.map(|(head, _)| head).map_err(|error| StoreError::Unreadable(error.to_string()))
}

fn body_of(bytes: &[u8]) -> Result<&[u8]> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => Ok(body),
        other => Err(StoreError::Unreadable(format!("a version of format {:?}", other.map(|(format, _)| format)))),
    }
}

/// A small named fact, kept beside the data and changed in the same batch: the topology, the vector, the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fact(pub &'static str);

/// The store can't go on. The process that owns it stops serving. (Room is judged before, see [`gauge`]; [`StoreError::Full`]
/// comes only where somebody else takes it in between.)
#[derive(Debug)]
pub enum StoreError {
    /// No room left; nothing of the batch was kept.
    Full(String),
    /// A checksum has failed: what was read is not what was written.
    Damaged(String),
    /// What was read makes no sense here. Another release may have written it; or it is damaged where there is no checksum.
    Unreadable(String),
    /// Anything else the engine or the operating system reports.
    Io(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(what) => write!(f, "no room left to store data: {what}"),
            Self::Damaged(what) => write!(f, "stored data is damaged: {what}"),
            Self::Unreadable(what) => write!(f, "stored data can't be read: {what}"),
            Self::Io(what) => write!(f, "storage failed: {what}"),
        }
    }
}

impl std::error::Error for StoreError {}

pub type Result<T> = std::result::Result<T, StoreError>;

/// Forces what was committed before the call to stable media. May block; may be called from another thread.
pub trait Syncer: Send + Sync {
    fn sync(&self) -> Result<()>;
}

/// Versions by slot and key, and facts. One writer.
pub trait Store: Send {
    fn get(&self, slot: Slot, key: &Key) -> Result<Option<Version>>;

    /// The same without the value.
    fn head(&self, slot: Slot, key: &Key) -> Result<Option<Head>>;

    /// Stages a version in place of whatever the key has.
    fn put(&mut self, slot: Slot, key: &Key, version: &Version);

    /// Stages the removal of the key's version, tombstone or not.
    fn remove(&mut self, slot: Slot, key: &Key);

    /// Stages a version to be kept where a person finds it and this store never reads it again. `false`: there is no such place.
    fn set_aside(&mut self, key: &Key, version: &Version) -> bool;

    fn fact(&self, name: Fact) -> Result<Option<Vec<u8>>>;

    /// Whether a later life will ever read what is kept here. Facts that change with every write need not be set otherwise.
    fn outlives_process(&self) -> bool;

    fn set_fact(&mut self, name: Fact, value: Vec<u8>);

    /// Up to `limit` versions of one slot, tombstones included, in key order, after `after`. Staged changes included.
    fn slot(&self, slot: Slot, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>>;

    /// Up to `limit` versions, tombstones included, whose keys start with `prefix`, over all slots in key order, after
    /// `after`. Staged changes included.
    fn keys(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>>;

    /// The same without a copy of the values.
    fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Listed)>>;

    /// Calls `visit` once for every version, in no particular order. For start-up, when nothing is staged.
    fn scan(&self, visit: &mut dyn FnMut(Slot, &Key, &Version)) -> Result<()>;

    /// Hands all staged changes to the operating system as one atomic batch; with nothing staged it does nothing.
    /// Whether there was anything. After an error the store must not be used any more.
    fn commit(&mut self) -> Result<bool>;

    /// `None` where there is nothing to sync: data in memory lives and dies with the process.
    fn syncer(&self) -> Option<std::sync::Arc<dyn Syncer>>;

    /// Tells how much room there is; `None` where nobody counts.
    fn gauge(&self) -> Option<std::sync::Arc<dyn Gauge>>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvnode_types::ident::{Epoch, Incarnation, NodeId, Origin};

    #[test]
    fn a_head_is_what_the_whole_version_begins_with() {
        let origin = Origin { node: NodeId(3), epoch: Epoch(300), incarnation: Incarnation(1_900_000_000_000) };
        let dot = Dot { origin, seq: 77_777 };
        for value in [None, Some(Bytes::from_static(b"\"x\"")), Some(Bytes::new())] {
            let version = Version { stamp: Stamp::from_millis(1_900_000_000_001), dot, value, deps: Vector::of(dot) };
            let bytes = encode(&version);
            assert_eq!(decode_head(&bytes).expect("it was encoded"), version.head());
            let listed = decode_listed(&bytes).expect("it was encoded");
            let has_value = version.value.is_some();
            assert_eq!(listed, Listed { dot, has_value, deps: Vector::of(dot), read: bytes.len() });
            assert_eq!(decode(&bytes).expect("it was encoded"), version);
        }
        assert!(decode_head(&[FORMAT, 1]).is_err());
        assert!(decode_head(&[FORMAT + 1]).is_err());
    }
}
