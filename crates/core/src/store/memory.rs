//! The engine in memory: as durable as the process.
//!
//! Versions are kept by slot, so that what is looked at together lies together and few keys have to be compared to find one. All keys in
//! order are a second index, for listings, which shares their text. A version is kept encoded, in one piece: that is half of what its
//! parts take, and reading it costs less than the index does.
//!
//! [`MemoryStore::with_undo`] makes one that can model a crash: it remembers how to undo every batch since the last sync, and
//! [`MemoryStore::crash`] takes back as many of them as the simulated loss of power does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvnode_types::ident::{Key, SLOT_COUNT, Slot};

use super::gauge::{Counter, Gauge};
use super::{Fact, Head, Listed, Result, Store, Syncer, Version, decode, decode_head, decode_listed, encode};

#[derive(Debug)]
pub struct MemoryStore {
    /// One for each slot.
    slots: Vec<BTreeMap<Key, Encoded>>,
    keys: BTreeSet<Key>,
    facts: BTreeMap<Fact, Vec<u8>>,
    /// How to take back what was staged since the last commit.
    staged: Vec<Undo>,
    changed: bool,
    bytes: Arc<Counter>,
    /// The same per committed batch that was not synced, oldest first; `None` where no crash is modelled.
    unsynced: Option<VecDeque<Vec<Undo>>>,
}

type Encoded = Box<[u8]>;

#[derive(Debug)]
enum Undo {
    Version(Key, Option<Encoded>),
    Fact(Fact, Option<Vec<u8>>),
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self {
            slots: vec![BTreeMap::new(); usize::from(SLOT_COUNT)],
            keys: BTreeSet::new(),
            facts: BTreeMap::new(),
            staged: Vec::new(),
            changed: false,
            bytes: Arc::default(),
            unsynced: None,
        }
    }
}

impl MemoryStore {
    pub fn new() -> Self {
        Self::default()
    }

    /// A store that can lose its unsynced tail.
    pub fn with_undo() -> Self {
        Self { unsynced: Some(VecDeque::new()), ..Self::default() }
    }

    /// Committed batches that a loss of power could take.
    pub fn unsynced(&self) -> usize {
        self.unsynced.as_ref().map_or(0, VecDeque::len)
    }

    /// The oldest `batches` of the unsynced batches are on stable media now.
    pub fn mark_synced(&mut self, batches: usize) {
        if let Some(unsynced) = self.unsynced.as_mut() {
            unsynced.drain(..batches.min(unsynced.len()));
        }
    }

    /// What a crash leaves: nothing staged, and the newest `lost` of the unsynced batches gone.
    pub fn crash(&mut self, lost: usize) {
        let staged = std::mem::take(&mut self.staged);
        self.undo(staged);
        for _ in 0..lost {
            let Some(batch) = self.unsynced.as_mut().and_then(VecDeque::pop_back) else { break };
            self.undo(batch);
        }
    }

    fn undo(&mut self, batch: Vec<Undo>) {
        for change in batch.into_iter().rev() {
            match change {
                Undo::Version(key, Some(version)) => {
                    self.place(Slot::of(&key), &key, version);
                }
                Undo::Version(key, None) => {
                    self.displace(Slot::of(&key), &key);
                }
                Undo::Fact(name, Some(value)) => {
                    self.facts.insert(name, value);
                }
                Undo::Fact(name, None) => {
                    self.facts.remove(&name);
                }
            }
        }
    }

    fn versions(&self, slot: Slot) -> &BTreeMap<Key, Encoded> {
        &self.slots[usize::from(slot.0)]
    }

    fn place(&mut self, slot: Slot, key: &Key, version: Encoded) -> Option<Encoded> {
        self.bytes.0.fetch_add(bytes_of(key, &version), Ordering::Relaxed);
        let versions = &mut self.slots[usize::from(slot.0)];
        if let Some(present) = versions.get_mut(key) {
            let before = std::mem::replace(present, version);
            self.bytes.0.fetch_sub(bytes_of(key, &before), Ordering::Relaxed);
            return Some(before);
        }
        self.keys.insert(key.clone());
        versions.insert(key.clone(), version)
    }

    fn within<'a>(&'a self, prefix: &'a str, after: Option<&Key>) -> impl Iterator<Item = (&'a Key, &'a Encoded)> {
        let start = match after {
            Some(after) if after.as_ref() >= prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(Key::from(prefix)),
        };
        let keys = self.keys.range((start, Bound::Unbounded)).take_while(move |key| key.starts_with(prefix));
        keys.map(|key| (key, &self.versions(Slot::of(key))[key]))
    }

    fn displace(&mut self, slot: Slot, key: &Key) -> Option<Encoded> {
        let before = self.slots[usize::from(slot.0)].remove(key)?;
        self.keys.remove(key);
        self.bytes.0.fetch_sub(bytes_of(key, &before), Ordering::Relaxed);
        Some(before)
    }

    /// Notes a change, and, in a store that models crashes, how to take it back.
    fn remember(&mut self, undo: impl FnOnce() -> Undo) {
        self.changed = true;
        if self.unsynced.is_some() {
            self.staged.push(undo());
        }
    }
}

/// About what a version takes.
fn bytes_of(key: &Key, version: &[u8]) -> u64 {
    (128 + key.len() + version.len()) as u64
}

fn after_bound(after: Option<&Key>) -> Bound<Key> {
    after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()))
}

impl Store for MemoryStore {
    fn get(&self, slot: Slot, key: &Key) -> Result<Option<Version>> {
        self.versions(slot).get(key).map(|bytes| decode(bytes)).transpose()
    }

    fn head(&self, slot: Slot, key: &Key) -> Result<Option<Head>> {
        self.versions(slot).get(key).map(|bytes| decode_head(bytes)).transpose()
    }

    fn put(&mut self, slot: Slot, key: &Key, version: &Version) {
        let before = self.place(slot, key, encode(version).into());
        self.remember(|| Undo::Version(key.clone(), before));
    }

    fn remove(&mut self, slot: Slot, key: &Key) {
        let before = self.displace(slot, key);
        self.remember(|| Undo::Version(key.clone(), before));
    }

    fn set_aside(&mut self, _key: &Key, _version: &Version) -> bool {
        false
    }

    fn fact(&self, name: Fact) -> Result<Option<Vec<u8>>> {
        Ok(self.facts.get(&name).cloned())
    }

    /// Only where crashes are modelled.
    fn outlives_process(&self) -> bool {
        self.unsynced.is_some()
    }

    fn set_fact(&mut self, name: Fact, value: Vec<u8>) {
        let before = self.facts.insert(name, value);
        self.remember(|| Undo::Fact(name, before));
    }

    fn slot(&self, slot: Slot, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>> {
        let versions = self.versions(slot).range((after_bound(after), Bound::Unbounded)).take(limit);
        versions.map(|(key, version)| Ok((key.clone(), decode(version)?))).collect()
    }

    fn keys(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>> {
        self.within(prefix, after).take(limit).map(|(key, version)| Ok((key.clone(), decode(version)?))).collect()
    }

    fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Listed)>> {
        let within = self.within(prefix, after).take(limit);
        within.map(|(key, version)| Ok((key.clone(), decode_listed(version)?))).collect()
    }

    fn scan(&self, visit: &mut dyn FnMut(Slot, &Key, &Version)) -> Result<()> {
        (0..).zip(&self.slots).try_for_each(|(slot, versions)| {
            versions.iter().try_for_each(|(key, version)| {
                visit(Slot(slot), key, &decode(version)?);
                Ok(())
            })
        })
    }

    fn commit(&mut self) -> Result<bool> {
        let changed = std::mem::take(&mut self.changed);
        let staged = std::mem::take(&mut self.staged);
        if let Some(unsynced) = self.unsynced.as_mut().filter(|_| !staged.is_empty()) {
            unsynced.push_back(staged);
        }
        Ok(changed)
    }

    fn syncer(&self) -> Option<Arc<dyn Syncer>> {
        None
    }

    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        Some(self.bytes.clone())
    }
}
