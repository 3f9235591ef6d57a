//! The durable engine: fjall, a log-structured merge tree in pure Rust. Data may outgrow memory.
//!
//! Three keyspaces:
//! - `versions`: slot (2 bytes, big-endian) and the key's UTF-8 → a [`Version`], see [`encode`]. A slot is a
//!   range of keys.
//! - `keys`: the key's UTF-8 → its slot. The order for listings; written only when a key appears or disappears.
//! - `facts`: a name → its bytes. One of them is the number of the batch that wrote last.
//!
//! A crash of the process loses nothing committed: every commit is one journal entry, handed to the operating system. A loss
//! of power may tear the journal's tail off, and fjall then goes on from the last whole batch. But it would do the same for
//! an entry that was damaged later, in the middle, and silently drop acknowledged batches behind it. So after each sync the
//! number of the last synced batch goes to the file `synced`: a store that comes back with less has been damaged. What is damaged is set
//! aside, never deleted.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use kvnode_core::room::Room;
use kvnode_core::store::gauge::{Gauge, Usage};
use kvnode_core::store::{
    Fact, Head, Listed, Result, Store, StoreError, Syncer, Version, decode, decode_head, decode_listed, encode,
};
use kvnode_types::ident::{Key, Slot};

use super::aside::Aside;
use super::ballast::{Ballast, free_bytes};
use super::damaged::{SetAside, set_aside};
use super::error::{of_engine, of_io};
use super::opening::Opening;
use super::sync_mark::SyncMark;
use super::{format, probe};

/// Block cache. Small, for a container with a few hundred MiB.
const CACHE_BYTES: usize = 32 << 20;
/// What one table begins as, in memory. Up to five of them wait to be written before the engine lets writes wait. (A store keeps the
/// size that it was made with.)
const MEMTABLE_BYTES: usize = 64 << 20;
/// Journals that wait for their data to reach tables.
const JOURNAL_BYTES: u64 = 128 << 20;
/// The most that one compaction rewrites, about: the youngest tables and those below that they overlap.
const COMPACTION_BYTES: u64 = 512 << 20;
/// What is in memory and not in tables yet is written out at a sync when it is more than this, and more than [`UNFLUSHED_PER_STORED`]
/// times what the tables hold. (When it is more than 64 MiB, the engine does so itself; with `--fsync never` only then.) Every write of
/// a key stays in memory until then, the overwritten ones, too, and every look-up goes through them: with few keys nearly all of it is
/// old versions, and nearly nothing is left to be written. With many keys it is the other way around, and more in memory means less to
/// merge.
const UNFLUSHED_BYTES: u64 = 8 << 20;
const UNFLUSHED_PER_STORED: u64 = 4;
const BATCH: &str = "batch";
/// A file that is there while no process has the store open and the last one ended in order.
const ENDED_IN_ORDER: &str = "ended-in-order";

/// A staged change.
struct Staged {
    slot: Slot,
    /// `None`: removed.
    version: Option<Version>,
    /// Whether the engine has the key; `None`: not looked up.
    known: Option<bool>,
}

pub struct DurableStore {
    db: Database,
    versions: Keyspace,
    keys: Keyspace,
    facts: Keyspace,
    staged: BTreeMap<Key, Staged>,
    /// The keys of `staged`, by slot: a repair looks at one slot after the other.
    staged_keys: BTreeMap<Slot, BTreeSet<Key>>,
    /// What the engine has of the key that was looked up last. A write is decided on, counted and staged one after the other, and
    /// each of them asks.
    last_head: RefCell<Option<(Key, Option<Head>)>>,
    staged_facts: BTreeMap<&'static str, Vec<u8>>,
    aside: Aside,
    syncer: Arc<FjallSyncer>,
    gauge: Arc<FjallGauge>,
    opening: Arc<Opening>,
}

struct FjallGauge {
    db: Database,
    keyspaces: [Keyspace; 3],
    dir: PathBuf,
    ballast: Ballast,
}

struct FjallSyncer {
    db: Database,
    keyspaces: [Keyspace; 3],
    /// Number of the last committed batch.
    committed: AtomicU64,
    /// The file `synced`, and the number in it.
    synced: Mutex<SyncMark>,
}

fn version_key(slot: Slot, key: &str) -> Vec<u8> {
    [&slot.0.to_be_bytes(), key.as_bytes()].concat()
}

fn decode_key(bytes: &[u8]) -> Result<Key> {
    std::str::from_utf8(bytes).map(Key::from).map_err(|_| StoreError::Unreadable("a key that is no UTF-8".into()))
}

fn decode_slot(bytes: &[u8]) -> Result<Slot> {
    let slot = bytes.try_into().map(u16::from_be_bytes);
    slot.map(Slot).map_err(|_| StoreError::Unreadable("a slot that is not two bytes".into()))
}

impl DurableStore {
    /// Opens the store in `dir`, or makes an empty one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a checksum fails, or what was synced is not all there.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_telling(dir, Arc::default())
    }

    fn open_telling(dir: &Path, opening: Arc<Opening>) -> Result<Self> {
        opening.is_read();
        fs::create_dir_all(dir).map_err(|error| of_io(&error))?;
        let ballast = Ballast::open(dir);
        let db = Database::builder(dir.join("fjall"))
            .cache_size(crate::memory::share(CACHE_BYTES, 16) as u64)
            .max_cached_files(Some(crate::handles::engine_files()))
            .max_journaling_size(JOURNAL_BYTES)
            // The first only flushes: with one, a long compaction would leave what is in memory to grow.
            .worker_threads(2)
            // Commits say themselves when the journal is handed to the operating system.
            .manual_journal_persist(true)
            .open()
            .map_err(of_engine)?;
        let memtable = crate::memory::share(MEMTABLE_BYTES, 16) as u64;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(memtable);
        let keyspace = |name| db.keyspace(name, options).map_err(of_engine);
        let (versions, keys, facts) = (keyspace("versions")?, keyspace("keys")?, keyspace("facts")?);
        let recovered = facts.get(BATCH).map_err(of_engine)?.map_or(Ok(0), |bytes| decode_number(&bytes))?;
        let mark = SyncMark::open(&dir.join("synced")).map_err(|error| of_io(&error))?;
        let synced = mark.number;
        // A checksum of the journal has failed, and the engine has cut it off there.
        if recovered < synced {
            return Err(StoreError::Damaged(format!("it ends at batch {recovered}, but {synced} were on the disk")));
        }
        let keyspaces = [versions.clone(), keys.clone(), facts.clone()];
        let (committed, synced) = (AtomicU64::new(recovered), Mutex::new(mark));
        let syncer = FjallSyncer { db: db.clone(), keyspaces: keyspaces.clone(), committed, synced };
        let gauge = Arc::new(FjallGauge { db: db.clone(), keyspaces, dir: dir.to_owned(), ballast });
        let (staged, last_head, staged_facts) = (BTreeMap::new(), RefCell::default(), BTreeMap::new());
        let staged_keys = BTreeMap::new();
        let aside = Aside::new(dir.join("set-aside.jsonl"));
        Ok(Self {
            db,
            versions,
            keys,
            facts,
            staged,
            staged_keys,
            last_head,
            staged_facts,
            aside,
            syncer: Arc::new(syncer),
            gauge,
            opening,
        })
    }

    /// Opens the store in `dir`, if it is of a format that this release reads. A damaged one is set aside, and an empty one takes its
    /// place; then where the damaged one is now is told, too. `prober` is the program that tries it first (see [`probe`]), unless the
    /// last process said that it ended in order.
    ///
    /// # Errors
    /// If the folder can't be used. Nothing in it was moved then.
    pub fn open_or_set_aside(dir: &Path, prober: Option<&Path>) -> Result<(Self, Option<SetAside>)> {
        Self::open_or_set_aside_telling(dir, prober, &Arc::default())
    }

    /// The same, where somebody asks meanwhile how far it is.
    ///
    /// # Errors
    /// As above.
    pub fn open_or_set_aside_telling(
        dir: &Path,
        prober: Option<&Path>,
        opening: &Arc<Opening>,
    ) -> Result<(Self, Option<SetAside>)> {
        format::check(dir).map_err(StoreError::Unreadable)?;
        let in_order = fs::remove_file(dir.join(ENDED_IN_ORDER)).is_ok();
        let tried = match prober.filter(|_| !in_order && dir.join("fjall").exists()) {
            Some(program) => {
                opening.is_tried();
                probe::probe(program, dir)
            }
            None => Ok(()),
        };
        let open = || Self::open_telling(dir, opening.clone());
        let opened = match tried.and_then(|()| open()) {
            Err(StoreError::Damaged(why)) => {
                let place = set_aside(dir)?;
                (open()?, Some(SetAside { place, why }))
            }
            opened => (opened?, None),
        };
        format::note(dir).map_err(StoreError::Io)?;
        Ok(opened)
    }

    /// Notes in `dir` that the process that had it open ends in order. Only to spare the next one a look; if that is not true, the
    /// next but one takes it.
    pub fn note_end(dir: &Path) {
        let _ = fs::write(dir.join(ENDED_IN_ORDER), b"");
    }

    /// The staged changes of a slot after a key.
    fn staged_of(&self, slot: Slot, after: Option<&Key>) -> BTreeMap<Key, Option<Version>> {
        let start = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
        let keys =
            self.staged_keys.get(&slot).into_iter().flat_map(|keys| keys.range((start.clone(), Bound::Unbounded)));
        keys.filter_map(|key| Some((key.clone(), self.staged.get(key)?.version.clone()))).collect()
    }

    /// The staged changes of keys that start with `prefix`, after a key.
    fn staged_within<T>(
        &self,
        prefix: &str,
        after: Option<&Key>,
        staged_as: impl Fn(&Version) -> T,
    ) -> BTreeMap<Key, Option<T>> {
        let start = match after {
            Some(after) if after.as_ref() >= prefix => Bound::Excluded(after.clone()),
            _ => Bound::Included(Key::from(prefix)),
        };
        let staged = self.staged.range((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        staged.map(|(key, Staged { version, .. })| (key.clone(), version.as_ref().map(&staged_as))).collect()
    }

    /// What there is of keys that start with `prefix`, in key order: what is stored by way of `stored_as`, staged changes by way of
    /// `staged_as`.
    fn in_order<T>(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
        stored_as: impl Fn(&[u8]) -> Result<T>,
        staged_as: impl Fn(&Version) -> T,
    ) -> Result<Vec<(Key, T)>> {
        let start = match after {
            Some(after) if after.as_ref() >= prefix => Bound::Excluded(after.as_bytes().to_vec()),
            _ => Bound::Included(prefix.as_bytes().to_vec()),
        };
        let range = self.keys.range::<Vec<u8>, _>((start, Bound::Unbounded)).map(|entry| -> Result<_> {
            let (key, slot) = entry.into_inner().map_err(of_engine)?;
            Ok((decode_key(&key)?, decode_slot(&slot)?))
        });
        let within = range.take_while(|entry| entry.as_ref().map_or(true, |(key, _)| key.starts_with(prefix)));
        let stored = within.map(|entry| {
            let (key, slot) = entry?;
            let bytes = self.versions.get(version_key(slot, &key)).map_err(of_engine)?;
            let bytes = bytes.ok_or_else(|| StoreError::Unreadable("a listed key without a version".into()))?;
            Ok((key, stored_as(&bytes)?))
        });
        overlay(stored, self.staged_within(prefix, after, staged_as), limit)
    }

    fn stage(&mut self, slot: Slot, key: &Key, version: Option<Version>) {
        let looked_up =
            self.last_head.borrow().as_ref().filter(|(last, _)| last == key).map(|(_, head)| head.is_some());
        let known = self.staged.get(key).map_or(looked_up, |staged| staged.known);
        self.staged_keys.entry(slot).or_default().insert(key.clone());
        self.staged.insert(key.clone(), Staged { slot, version, known });
    }
}

fn decode_number(bytes: &[u8]) -> Result<u64> {
    let number = bytes.try_into().map(u64::from_be_bytes);
    number.map_err(|_| StoreError::Unreadable("a number that is not eight bytes".into()))
}

/// Takes up to `limit` of what is stored, in order, with the staged changes over it.
fn overlay<T>(
    stored: impl Iterator<Item = Result<(Key, T)>>,
    mut staged: BTreeMap<Key, Option<T>>,
    limit: usize,
) -> Result<Vec<(Key, T)>> {
    let mut all = Vec::new();
    for entry in stored {
        let (key, version) = entry?;
        while let Some(first) = staged.first_entry().filter(|first| *first.key() < key) {
            let (key, version) = first.remove_entry();
            all.extend(version.map(|version| (key, version)));
        }
        match staged.remove(&key) {
            Some(changed) => all.extend(changed.map(|version| (key, version))),
            None => all.push((key, version)),
        }
        if all.len() >= limit {
            all.truncate(limit);
            return Ok(all);
        }
    }
    all.extend(staged.into_iter().filter_map(|(key, version)| Some((key, version?))));
    all.truncate(limit);
    Ok(all)
}

impl Store for DurableStore {
    fn get(&self, slot: Slot, key: &Key) -> Result<Option<Version>> {
        if let Some(staged) = self.staged.get(key) {
            return Ok(staged.version.clone());
        }
        let stored = self.versions.get(version_key(slot, key)).map_err(of_engine)?;
        stored.map(|bytes| decode(&bytes)).transpose()
    }

    fn head(&self, slot: Slot, key: &Key) -> Result<Option<Head>> {
        if let Some(staged) = self.staged.get(key) {
            return Ok(staged.version.as_ref().map(Version::head));
        }
        let mut last = self.last_head.borrow_mut();
        if let Some((_, head)) = last.as_ref().filter(|(last, _)| last == key) {
            return Ok(*head);
        }
        let stored = self.versions.get(version_key(slot, key)).map_err(of_engine)?;
        let head = stored.map(|bytes| decode_head(&bytes)).transpose()?;
        *last = Some((key.clone(), head));
        Ok(head)
    }

    fn put(&mut self, slot: Slot, key: &Key, version: &Version) {
        self.stage(slot, key, Some(version.clone()));
    }

    fn remove(&mut self, slot: Slot, key: &Key) {
        self.stage(slot, key, None);
    }

    fn set_aside(&mut self, key: &Key, version: &Version) -> bool {
        self.aside.push(key, version);
        true
    }

    fn fact(&self, name: Fact) -> Result<Option<Vec<u8>>> {
        if let Some(staged) = self.staged_facts.get(name.0) {
            return Ok(Some(staged.clone()));
        }
        Ok(self.facts.get(name.0).map_err(of_engine)?.map(|bytes| bytes.to_vec()))
    }

    fn outlives_process(&self) -> bool {
        true
    }

    fn set_fact(&mut self, name: Fact, value: Vec<u8>) {
        self.staged_facts.insert(name.0, value);
    }

    fn slot(&self, slot: Slot, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>> {
        let start = match after {
            Some(key) => Bound::Excluded(version_key(slot, key)),
            None => Bound::Included(version_key(slot, "")),
        };
        let end = slot.0.checked_add(1).map_or(Bound::Unbounded, |next| Bound::Excluded(version_key(Slot(next), "")));
        let stored = self.versions.range((start, end)).map(|entry| {
            let (key, bytes) = entry.into_inner().map_err(of_engine)?;
            Ok((decode_key(key.get(2..).unwrap_or_default())?, decode(&bytes)?))
        });
        overlay(stored, self.staged_of(slot, after), limit)
    }

    fn keys(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>> {
        self.in_order(prefix, after, limit, decode, Version::clone)
    }

    fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Listed)>> {
        self.in_order(prefix, after, limit, decode_listed, Listed::of)
    }

    fn scan(&self, visit: &mut dyn FnMut(Slot, &Key, &Version)) -> Result<()> {
        for entry in self.versions.iter() {
            let (key, bytes) = entry.into_inner().map_err(of_engine)?;
            let (slot, key) = key.split_at_checked(2).ok_or_else(|| StoreError::Unreadable("a short key".into()))?;
            visit(decode_slot(slot)?, &decode_key(key)?, &decode(&bytes)?);
            self.opening.counts();
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<bool> {
        if self.staged.is_empty() && self.staged_facts.is_empty() {
            return Ok(false);
        }
        // First: what the batch removes must not be lost between the two.
        self.aside.write().map_err(|error| of_io(&error))?;
        let number = self.syncer.committed.load(Ordering::Relaxed) + 1;
        let mut batch = self.db.batch().durability(Some(PersistMode::Buffer));
        self.last_head.take();
        self.staged_keys.clear();
        for (key, Staged { slot, version, known }) in std::mem::take(&mut self.staged) {
            let place = version_key(slot, &key);
            let known = known.map_or_else(|| self.versions.contains_key(&place), Ok).map_err(of_engine)?;
            match version {
                Some(version) => {
                    if !known {
                        batch.insert(&self.keys, key.as_bytes(), slot.0.to_be_bytes());
                    }
                    batch.insert(&self.versions, place, encode(&version));
                }
                None if known => {
                    batch.remove(&self.versions, place);
                    batch.remove(&self.keys, key.as_bytes());
                }
                None => {}
            }
        }
        for (name, value) in std::mem::take(&mut self.staged_facts) {
            batch.insert(&self.facts, name, value);
        }
        batch.insert(&self.facts, BATCH, number.to_be_bytes());
        batch.commit().map_err(of_engine)?;
        self.syncer.committed.store(number, Ordering::Release);
        Ok(true)
    }

    fn syncer(&self) -> Option<Arc<dyn Syncer>> {
        Some(self.syncer.clone())
    }

    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        Some(self.gauge.clone())
    }
}

impl Gauge for FjallGauge {
    fn measure(&self) -> Result<Usage> {
        // What is in the journal alone, and has to be written once more before the journal can go.
        let unflushed = self.db.write_buffer_size();
        let tables = stored_bytes(&self.keyspaces);
        Ok(Usage {
            used: tables + unflushed,
            free: free_bytes(&self.dir),
            engine_needs: unflushed + tables.min(COMPACTION_BYTES),
        })
    }

    fn judged(&self, room: Room) {
        self.ballast.adjust(room, free_bytes(&self.dir).unwrap_or(u64::MAX));
    }
}

/// Bytes of the tables.
fn stored_bytes(keyspaces: &[Keyspace]) -> u64 {
    keyspaces.iter().map(Keyspace::disk_space).sum()
}

impl FjallSyncer {
    /// Has what is in memory written out if it is too much (see [`UNFLUSHED_BYTES`]), unless that is being done. Not in a commit,
    /// because then the folder of the journals is tidied up, too: that is for a thread that may block.
    fn bound_unflushed(&self) -> Result<()> {
        let unflushed = self.db.write_buffer_size();
        // Where there is little memory, this is bound by that, whatever it costs to merge.
        let most = crate::memory::share(usize::MAX, 8) as u64;
        if unflushed > UNFLUSHED_BYTES
            && (unflushed > UNFLUSHED_PER_STORED * stored_bytes(&self.keyspaces) || unflushed > most)
            && self.keyspaces.iter().all(|keyspace| keyspace.sealed_memtable_count() == 0)
        {
            for keyspace in &self.keyspaces {
                keyspace.rotate_memtable().map_err(of_engine)?;
            }
        }
        Ok(())
    }
}

impl Syncer for FjallSyncer {
    fn sync(&self) -> Result<()> {
        let number = self.committed.load(Ordering::Acquire);
        self.db.persist(PersistMode::SyncData).map_err(of_engine)?;
        self.bound_unflushed()?;
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        synced.raise(number).map_err(|error| of_io(&error))
    }
}

#[cfg(test)]
mod tests;
