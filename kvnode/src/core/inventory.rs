//! What the store of this node holds, counted: digests, keys, versions per slot; and the clock that is past all of it.
//!
//! A node holds more than it serves while slots change hands: what it fetches before it owns it, and what it gave away until
//! everybody has it. So everything here is per slot, whoever owns it.
//!
//! Invariant: the counts describe exactly what the store holds.

use std::collections::BTreeSet;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::clock::Clock;
use crate::storage::{Result, Store, Version};
use crate::wire::ident::{Dot, Key, Origin, SLOT_COUNT, Slot};

#[derive(Debug)]
pub struct Inventory {
    /// Past every stamp that is or was stored here.
    pub clock: Clock,
    /// Slots that may hold tombstones or dependencies that become droppable.
    pub dirty: BTreeSet<Slot>,
    slots: Vec<Tally>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Sum of the hashes of (key, dot) of all versions.
    digest: u64,
    /// Keys that have a value.
    live: u32,
    versions: u32,
}

fn hash(key: &str, dot: Dot) -> u64 {
    let Origin { node, epoch, incarnation } = dot.origin;
    let place =
        xxh3_64_with_seed(&dot.seq.to_le_bytes(), incarnation.0 ^ (u64::from(node.0) << 32) ^ u64::from(epoch.0));
    xxh3_64_with_seed(key.as_bytes(), place)
}

impl Inventory {
    /// Takes stock of what the store holds.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn of(store: &dyn Store) -> Result<Self> {
        let slots = vec![Tally::default(); usize::from(SLOT_COUNT)];
        let mut inventory = Self { clock: Clock::default(), dirty: BTreeSet::new(), slots };
        store.scan(&mut |slot, key, version| {
            inventory.count_in(slot, key, version);
            inventory.clock.observe(version.stamp);
        })?;
        Ok(inventory)
    }

    fn count_in(&mut self, slot: Slot, key: &Key, version: &Version) {
        let tally = &mut self.slots[usize::from(slot.0)];
        tally.digest = tally.digest.wrapping_add(hash(key, version.dot));
        tally.live += u32::from(version.value.is_some());
        tally.versions += 1;
        if version.value.is_none() || !version.deps.is_empty() {
            self.dirty.insert(slot);
        }
    }

    fn count_out(&mut self, slot: Slot, key: &Key, dot: Dot, has_value: bool) {
        let tally = &mut self.slots[usize::from(slot.0)];
        tally.digest = tally.digest.wrapping_sub(hash(key, dot));
        tally.live -= u32::from(has_value);
        tally.versions -= 1;
    }

    /// Equal at two nodes that hold the same versions of a slot.
    pub fn digest(&self, slot: Slot) -> u64 {
        self.slots[usize::from(slot.0)].digest
    }

    /// Keys that have a value, in some slots.
    pub fn live_in(&self, slots: impl Iterator<Item = Slot>) -> u64 {
        slots.map(|slot| u64::from(self.slots[usize::from(slot.0)].live)).sum()
    }

    /// Versions in some slots, tombstones included.
    pub fn versions_in(&self, slots: impl Iterator<Item = Slot>) -> u64 {
        slots.map(|slot| u64::from(self.slots[usize::from(slot.0)].versions)).sum()
    }

    /// Whether a slot holds nothing at all.
    pub fn is_empty(&self, slot: Slot) -> bool {
        self.slots[usize::from(slot.0)].versions == 0
    }

    /// Puts a version in the store if it wins against what is there: larger (stamp, origin).
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn install(&mut self, store: &mut dyn Store, key: &Key, version: &Version) -> Result<()> {
        self.clock.observe(version.stamp);
        let slot = Slot::of(key);
        if let Some(present) = store.head(slot, key)? {
            if (version.stamp, version.dot.origin, version.dot.seq)
                <= (present.stamp, present.dot.origin, present.dot.seq)
            {
                return Ok(());
            }
            self.count_out(slot, key, present.dot, present.has_value);
        }
        self.count_in(slot, key, version);
        store.put(slot, key, version);
        Ok(())
    }

    /// Removes a key's version without trace.
    pub fn discard(&mut self, store: &mut dyn Store, key: &Key, dot: Dot, has_value: bool) {
        let slot = Slot::of(key);
        self.count_out(slot, key, dot, has_value);
        store.remove(slot, key);
    }
}
