//! A store that outlives its core: the simulator keeps hold of it through a crash.

use std::sync::{Arc, Mutex, MutexGuard};

use kvnode_core::store::gauge::Gauge;
use kvnode_core::store::memory::MemoryStore;
use kvnode_core::store::{Fact, Head, Listed, Result, Store, Syncer, Version};
use kvnode_types::ident::{Key, Slot};

use crate::digest::Staged;

#[derive(Clone)]
pub struct Disk {
    store: Arc<Mutex<MemoryStore>>,
    /// What was put since somebody last asked.
    written: Arc<Mutex<Vec<(Key, Version)>>>,
    /// Removals since the last commit, and the most there have been in one.
    removed: Arc<Mutex<(usize, usize)>>,
    /// What the next commit brings.
    staged: Arc<Mutex<Staged>>,
}

impl Disk {
    pub fn new() -> Self {
        let store = Arc::new(Mutex::new(MemoryStore::with_undo()));
        Self { store, written: Arc::default(), removed: Arc::default(), staged: Arc::default() }
    }

    pub fn lock(&self) -> MutexGuard<'_, MemoryStore> {
        self.store.lock().expect("one thread")
    }

    /// The most that one batch has removed.
    pub fn removed_at_once(&self) -> usize {
        self.removed.lock().expect("one thread").1
    }

    pub fn take_written(&self) -> Vec<(Key, Version)> {
        std::mem::take(&mut self.written.lock().expect("one thread"))
    }
}

impl Disk {
    /// What was staged since somebody last asked: to be asked after each commit.
    pub fn take_staged(&self) -> Staged {
        std::mem::take(&mut self.staged.lock().expect("one thread"))
    }

    fn stage(&self, slot: Slot, key: &Key, version: Option<&Version>) {
        self.staged.lock().expect("one thread").versions.push((slot, key.clone(), version.cloned()));
    }
}

impl Store for Disk {
    fn get(&self, slot: Slot, key: &Key) -> Result<Option<Version>> {
        self.lock().get(slot, key)
    }

    fn head(&self, slot: Slot, key: &Key) -> Result<Option<Head>> {
        self.lock().head(slot, key)
    }

    fn put(&mut self, slot: Slot, key: &Key, version: &Version) {
        self.written.lock().expect("one thread").push((key.clone(), version.clone()));
        self.stage(slot, key, Some(version));
        self.lock().put(slot, key, version);
    }

    fn remove(&mut self, slot: Slot, key: &Key) {
        self.removed.lock().expect("one thread").0 += 1;
        self.stage(slot, key, None);
        self.lock().remove(slot, key);
    }

    fn set_aside(&mut self, _key: &Key, _version: &Version) -> bool {
        false
    }

    fn fact(&self, name: Fact) -> Result<Option<Vec<u8>>> {
        self.lock().fact(name)
    }

    fn outlives_process(&self) -> bool {
        true
    }

    fn set_fact(&mut self, name: Fact, value: Vec<u8>) {
        self.staged.lock().expect("one thread").facts.push((name, value.clone()));
        self.lock().set_fact(name, value);
    }

    fn slot(&self, slot: Slot, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>> {
        self.lock().slot(slot, after, limit)
    }

    fn keys(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>> {
        self.lock().keys(prefix, after, limit)
    }

    fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Listed)>> {
        self.lock().list(prefix, after, limit)
    }

    fn scan(&self, visit: &mut dyn FnMut(Slot, &Key, &Version)) -> Result<()> {
        self.lock().scan(visit)
    }

    fn commit(&mut self) -> Result<bool> {
        let mut removed = self.removed.lock().expect("one thread");
        *removed = (0, removed.1.max(removed.0));
        drop(removed);
        self.lock().commit()
    }

    fn syncer(&self) -> Option<Arc<dyn Syncer>> {
        None
    }

    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        None
    }
}
