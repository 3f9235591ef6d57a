//! What the store of this node holds, counted: digests, keys, versions per slot; and the clock that is past all of it.
//!
//! A node holds more than it serves while slots change hands: what it fetches before it owns it, and what it gave away until
//! everybody has it. So everything here is per slot, whoever owns it.
//!
//! Invariant: the counts describe exactly what the store holds.

use kvnode_types::ident::{Dot, Key, Origin, SLOT_COUNT, Slot};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::clock::Clock;
use crate::store::{Result, Store, Version};

#[derive(Debug)]
pub struct Inventory {
    /// Past every stamp that is or was stored here.
    pub clock: Clock,
    /// Slots that may hold tombstones or dependencies that become droppable. None that is empty.
    pub dirty: SlotSet,
    /// Tombstones that have come since somebody asked.
    deleted: usize,
    slots: Vec<Tally>,
}

/// Some slots: a bit for each, because every write that has dependencies looks here.
#[derive(Debug)]
pub struct SlotSet {
    words: Vec<u64>,
    len: usize,
}

impl SlotSet {
    fn new() -> Self {
        Self { words: vec![0; usize::from(SLOT_COUNT).div_ceil(64)], len: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn insert(&mut self, slot: Slot) {
        let (word, bit) = Self::place(slot);
        self.len += usize::from(self.words[word] & bit == 0);
        self.words[word] |= bit;
    }

    pub fn remove(&mut self, slot: Slot) {
        let (word, bit) = Self::place(slot);
        self.len -= usize::from(self.words[word] & bit != 0);
        self.words[word] &= !bit;
    }

    /// The first one from `from` on.
    pub fn first_from(&self, from: u16) -> Option<Slot> {
        let (start, bit) = Self::place(Slot(from));
        let at_start = |word: usize| if word == start { !(bit - 1) } else { u64::MAX };
        let found = (start..self.words.len()).find(|&word| self.words[word] & at_start(word) != 0)?;
        Some(Slot((64 * found) as u16 + (self.words[found] & at_start(found)).trailing_zeros() as u16))
    }

    fn place(slot: Slot) -> (usize, u64) {
        (usize::from(slot.0 / 64), 1 << (slot.0 % 64))
    }
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
        let mut inventory = Self { clock: Clock::default(), dirty: SlotSet::new(), deleted: 0, slots };
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
        self.deleted += usize::from(version.value.is_none());
    }

    /// Tombstones that have come since the last call.
    pub fn take_deleted(&mut self) -> usize {
        std::mem::take(&mut self.deleted)
    }

    fn count_out(&mut self, slot: Slot, key: &Key, dot: Dot, has_value: bool) {
        let tally = &mut self.slots[usize::from(slot.0)];
        tally.digest = tally.digest.wrapping_sub(hash(key, dot));
        tally.live -= u32::from(has_value);
        tally.versions -= 1;
        if tally.versions == 0 {
            self.dirty.remove(slot);
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::memory::MemoryStore;
    use kvnode_types::causal::Vector;
    use kvnode_types::ident::{Epoch, Incarnation, NodeId};
    use kvnode_types::stamp::Stamp;

    /// A slot that is given away is emptied, and nothing has to be looked for in it any more.
    #[test]
    fn an_empty_slot_is_not_dirty() {
        let mut store = MemoryStore::new();
        let mut inventory = Inventory::of(&store).expect("memory does not fail");
        let key: Key = "key".into();
        let origin = Origin { node: NodeId(1), epoch: Epoch(1), incarnation: Incarnation(7) };
        let version = |seq| Version { stamp: Stamp(seq), dot: Dot { origin, seq }, value: None, deps: Vector::new() };
        for seq in 1..=2 {
            inventory.install(&mut store, &key, &version(seq)).expect("memory does not fail");
            assert_eq!(inventory.dirty.first_from(0), Some(Slot::of(&key)));
        }
        assert_eq!((inventory.take_deleted(), inventory.take_deleted()), (2, 0));
        inventory.discard(&mut store, &key, version(2).dot, false);
        assert!(inventory.dirty.is_empty());
    }

    #[test]
    fn a_set_of_slots_is_a_set() {
        let (mut slots, mut plain) = (SlotSet::new(), BTreeSet::new());
        for step in 0..20_000_u32 {
            let slot = (step.wrapping_mul(2_654_435_761) >> 11) as u16 % SLOT_COUNT;
            if step % 3 == 0 {
                slots.remove(Slot(slot / 2));
                plain.remove(&(slot / 2));
            } else {
                slots.insert(Slot(slot));
                plain.insert(slot);
            }
            let from = (step * 7 % u32::from(SLOT_COUNT)) as u16;
            assert_eq!(slots.first_from(from), plain.range(from..).next().map(|&slot| Slot(slot)), "from {from}");
            assert_eq!(slots.is_empty(), plain.is_empty());
        }
        plain.iter().for_each(|&slot| slots.remove(Slot(slot)));
        assert!(slots.is_empty() && slots.first_from(0).is_none());
        assert!(slots.first_from(SLOT_COUNT - 1).is_none() && slots.first_from(SLOT_COUNT).is_none());
    }
}
