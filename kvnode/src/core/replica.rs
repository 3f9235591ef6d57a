//! One replica of one shard: what it has applied, and the rule by which a write wins.
//!
//! Invariants:
//! - `applied` only grows within a life, and every write it covers has met the winner rule here.
//! - The clock is past every stamp applied here.
//! - `digests` and `live` describe exactly what the store holds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::causal::Vector;
use super::clock::Clock;
use super::log::Log;
use crate::storage::{Result, Store, Version};
use crate::wire::ident::{Dot, Incarnation, Key, NodeId, Origin, SLOT_COUNT, ShardId, Slot};
use crate::wire::peer::{Floors, Stage, Write};

/// Bytes of writes that wait for their dependencies, per origin. What does not fit is sent again.
const INBOX_WEIGHT_MAX: usize = 4 << 20;

#[derive(Debug)]
pub struct Replica {
    pub shard: ShardId,
    /// The other members of the shard.
    pub others: Vec<NodeId>,
    /// Under which this replica writes now.
    pub origin: Origin,
    pub stage: Stage,
    pub applied: Vector,
    /// The part of `applied` that would survive a loss of power.
    pub durable: Vector,
    pub floors: BTreeMap<NodeId, Incarnation>,
    pub clock: Clock,
    pub log: Log,
    /// Per slot, the sum of the hashes of (key, dot) of all its versions.
    pub digests: Vec<u64>,
    /// Keys that have a value.
    pub live: u64,
    /// Slots that may hold tombstones or dependencies that become droppable.
    pub dirty: BTreeSet<Slot>,
    /// Writes that arrived before their dependencies.
    inbox: BTreeMap<Origin, Inbox>,
}

#[derive(Debug, Default)]
struct Inbox {
    writes: VecDeque<Write>,
    weight: usize,
}

fn hash(key: &str, dot: Dot) -> u64 {
    let Origin { node, epoch, incarnation } = dot.origin;
    let place =
        xxh3_64_with_seed(&dot.seq.to_le_bytes(), incarnation.0 ^ (u64::from(node.0) << 32) ^ u64::from(epoch.0));
    xxh3_64_with_seed(key.as_bytes(), place)
}

impl Replica {
    /// An empty replica that has to be filled.
    pub fn new(shard: ShardId, others: Vec<NodeId>, origin: Origin, log_weight_max: usize) -> Self {
        Self {
            shard,
            others,
            origin,
            stage: Stage::Filling,
            applied: Vector::new(),
            durable: Vector::new(),
            floors: BTreeMap::new(),
            clock: Clock::default(),
            log: Log::new(log_weight_max),
            digests: vec![0; usize::from(SLOT_COUNT)],
            live: 0,
            dirty: BTreeSet::new(),
            inbox: BTreeMap::new(),
        }
    }

    /// Takes stock of what the store holds; once, at start.
    pub fn recover(&mut self, store: &dyn Store) -> Result<()> {
        store.scan(&mut |slot, key, version| {
            self.count_in(slot, key, version);
            self.clock.observe(version.stamp);
        })
    }

    /// Number of this replica's newest write under its current origin.
    pub fn seq(&self) -> u64 {
        self.applied.get(self.origin)
    }

    /// Replicas of the shard, this one included.
    pub fn size(&self) -> usize {
        self.others.len() + 1
    }

    pub fn is_retired(&self, origin: Origin) -> bool {
        self.floors.get(&origin.node).is_some_and(|&floor| origin.incarnation < floor)
    }

    pub fn floors_list(&self) -> Floors {
        self.floors.iter().map(|(&node, &floor)| (node, floor)).collect()
    }

    /// Takes over floors of a replica whose whole state is held here too.
    pub fn raise_floors(&mut self, floors: &Floors) {
        for &(node, floor) in floors {
            let mine = self.floors.entry(node).or_insert(floor);
            *mine = (*mine).max(floor);
        }
        let floors = &self.floors;
        let current = self.origin;
        let keep = |origin: Origin| {
            origin == current || floors.get(&origin.node).is_none_or(|&floor| origin.incarnation >= floor)
        };
        self.applied.retain(|origin, _| keep(origin));
        self.durable.retain(|origin, _| keep(origin));
        self.inbox.retain(|&origin, _| keep(origin));
    }

    fn count_in(&mut self, slot: Slot, key: &Key, version: &Version) {
        let digest = &mut self.digests[usize::from(slot.0)];
        *digest = digest.wrapping_add(hash(key, version.dot));
        self.live += u64::from(version.value.is_some());
        if version.value.is_none() || !version.deps.is_empty() {
            self.dirty.insert(slot);
        }
    }

    fn count_out(&mut self, slot: Slot, key: &Key, version: &Version) {
        let digest = &mut self.digests[usize::from(slot.0)];
        *digest = digest.wrapping_sub(hash(key, version.dot));
        self.live -= u64::from(version.value.is_some());
    }

    /// Puts a version in the store if it wins against what is there: larger (stamp, origin).
    pub fn install(&mut self, store: &mut dyn Store, key: &Key, version: Version) -> Result<()> {
        self.clock.observe(version.stamp);
        let slot = Slot::of(key);
        if let Some(present) = store.get(slot, key)? {
            if (version.stamp, version.dot.origin, version.dot.seq)
                <= (present.stamp, present.dot.origin, present.dot.seq)
            {
                return Ok(());
            }
            self.count_out(slot, key, &present);
        }
        self.count_in(slot, key, &version);
        store.put(slot, key, version);
        Ok(())
    }

    /// Removes a key's version without trace.
    pub fn discard(&mut self, store: &mut dyn Store, key: &Key, version: &Version) {
        let slot = Slot::of(key);
        self.count_out(slot, key, version);
        store.remove(slot, key);
    }

    /// Applies a write whose turn it is: installs it, covers it, and logs it.
    pub fn apply(&mut self, store: &mut dyn Store, write: Write) -> Result<()> {
        let dot = write.version.dot;
        self.install(store, &write.key, write.version.clone())?;
        self.applied.raise(dot.origin, dot.seq);
        self.log.push(write);
        Ok(())
    }

    /// Keeps a write for later if it continues what waits already, or is next; anything else will be sent again.
    pub fn put_aside(&mut self, write: Write) {
        let dot = write.version.dot;
        let inbox = self.inbox.entry(dot.origin).or_default();
        while inbox.writes.front().is_some_and(|first| self.applied.covers(first.version.dot)) {
            inbox.weight -= inbox.writes.pop_front().map_or(0, |write| write.weight());
        }
        let last = inbox.writes.back().map_or(self.applied.get(dot.origin), |last| last.version.dot.seq);
        if dot.seq == last + 1 && inbox.weight + write.weight() <= INBOX_WEIGHT_MAX {
            inbox.weight += write.weight();
            inbox.writes.push_back(write);
        }
    }

    /// The first write that waits, of each origin.
    pub fn first_waiting(&self) -> impl Iterator<Item = &Write> {
        self.inbox.values().filter_map(|inbox| inbox.writes.front())
    }

    /// Takes the first write of an origin that waits.
    pub fn take_waiting(&mut self, origin: Origin) -> Option<Write> {
        let inbox = self.inbox.get_mut(&origin)?;
        let write = inbox.writes.pop_front()?;
        inbox.weight -= write.weight();
        if inbox.writes.is_empty() {
            self.inbox.remove(&origin);
        }
        Some(write)
    }

    pub fn has_waiting(&self) -> bool {
        !self.inbox.is_empty()
    }
}
