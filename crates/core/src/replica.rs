//! One replica of one shard: what it has applied, and under which name it writes.
//!
//! Invariants:
//! - `applied` only grows within a life, and every write it covers *to a slot that the shard has* has met the winner rule
//!   here. (Writes to other slots concern other shards: see [`super::topology`].)
//! - `handed` covers only writes of the layout before that have met the winner rule here, whatever their slot.

use std::collections::{BTreeMap, VecDeque};

use kvnode_types::causal::Vector;
use kvnode_types::ident::{Epoch, Incarnation, NodeId, Origin, ShardId};

use super::inventory::Inventory;
use super::log::Log;
use crate::messages::{Floors, Message, Stage, Write};
use crate::store::{Result, Store};

/// Bytes of writes that wait for their dependencies, per origin. What does not fit is sent again.
const INBOX_WEIGHT_MAX: usize = 4 << 20;

#[derive(Debug)]
pub struct Replica {
    /// `None`: this node has been taken out of its shard and only hands over what it has.
    pub shard: Option<ShardId>,
    /// The other members of the shard.
    pub others: Vec<NodeId>,
    /// Under which this replica writes now.
    pub origin: Origin,
    /// Under which it wrote before the last change of layout, while writes under it may still wait for copies.
    pub before: Option<Origin>,
    pub stage: Stage,
    pub applied: Vector,
    /// The part of `applied` that would survive a loss of power.
    pub durable: Vector,
    pub floors: BTreeMap<(NodeId, Epoch), Incarnation>,
    pub log: Log,
    /// What this node has, as a member of the layout before, to hand over; `None` if it had no shard then.
    pub handed: Option<Handed>,
    /// Writes that arrived before their dependencies.
    inbox: BTreeMap<Origin, Inbox>,
}

/// What a member of the layout before has of its old shard.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Handed {
    pub epoch: Epoch,
    pub shard: ShardId,
    /// All members of the old shard.
    pub members: Vec<NodeId>,
    /// Everything that it covers is here, in all slots of the old shard.
    pub vector: Vector,
    /// Whether the node served the old shard, and so has all that was ever stable in it.
    pub whole: bool,
}

#[derive(Debug, Default)]
struct Inbox {
    writes: VecDeque<Write>,
    weight: usize,
}

impl Replica {
    /// An empty replica that has to be filled.
    pub fn new(shard: ShardId, others: Vec<NodeId>, origin: Origin, log_weight_max: usize) -> Self {
        Self {
            shard: Some(shard),
            others,
            origin,
            before: None,
            stage: Stage::Filling,
            applied: Vector::new(),
            durable: Vector::new(),
            floors: BTreeMap::new(),
            log: Log::new(log_weight_max),
            handed: None,
            inbox: BTreeMap::new(),
        }
    }

    /// Number of this replica's newest write under its current origin.
    pub fn seq(&self) -> u64 {
        self.applied.get(self.origin)
    }

    /// Replicas of the shard, this one included.
    pub fn size(&self) -> usize {
        self.others.len() + 1
    }

    /// Whether the floors retire an origin of a living epoch.
    pub fn is_retired(&self, origin: Origin) -> bool {
        self.floors.get(&(origin.node, origin.epoch)).is_some_and(|&floor| origin.incarnation < floor)
    }

    pub fn floors_list(&self) -> Floors {
        self.floors.iter().map(|(&(node, epoch), &floor)| (node, epoch, floor)).collect()
    }

    /// Takes over floors of a replica whose whole state is held here too.
    pub fn raise_floors(&mut self, floors: &Floors) {
        for &(node, epoch, floor) in floors {
            let mine = self.floors.entry((node, epoch)).or_insert(floor);
            *mine = (*mine).max(floor);
        }
        let floors = &self.floors;
        let current = self.origin;
        let keep = |origin: Origin| {
            let floor = floors.get(&(origin.node, origin.epoch));
            origin == current || floor.is_none_or(|&floor| origin.incarnation >= floor)
        };
        self.applied.retain(|origin, _| keep(origin));
        self.durable.retain(|origin, _| keep(origin));
        self.inbox.retain(|&origin, _| keep(origin));
    }

    /// Forgets the names of epochs before `oldest`: all that exists of them is everywhere.
    pub fn retire_epochs(&mut self, oldest: Epoch) {
        self.applied.retain(|origin, _| origin.epoch >= oldest);
        self.durable.retain(|origin, _| origin.epoch >= oldest);
        self.inbox.retain(|origin, _| origin.epoch >= oldest);
        self.floors.retain(|(_, epoch), _| *epoch >= oldest);
        if self.handed.as_ref().is_some_and(|handed| handed.epoch < oldest) {
            self.handed = None;
        }
    }

    /// Applies a write whose turn it is: installs it, covers it, and logs it.
    pub fn apply(&mut self, inventory: &mut Inventory, store: &mut dyn Store, write: Write) -> Result<()> {
        let dot = write.version.dot;
        inventory.install(store, &write.key, &write.version)?;
        self.applied.raise(dot.origin, dot.seq);
        if let Some(handed) = self.handed.as_mut()
            && handed.epoch == dot.origin.epoch
            && handed.members.contains(&dot.origin.node)
            && dot.seq.checked_sub(1) == Some(handed.vector.get(dot.origin))
        {
            handed.vector.raise(dot.origin, dot.seq);
        }
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
        if dot.seq.checked_sub(1) == Some(last) && inbox.weight + write.weight() <= INBOX_WEIGHT_MAX {
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

    /// The acknowledgement of an origin's writes.
    pub fn held_of(&self, origin: Origin) -> Message {
        let seq = self.applied.get(origin);
        let last = self.inbox.get(&origin).and_then(|inbox| inbox.writes.back());
        Message::Held { origin, seq, beyond: last.map_or(0, |last| last.version.dot.seq.saturating_sub(seq)) }
    }

    /// Origins of writes that wait.
    pub fn waiting_origins(&self) -> impl Iterator<Item = Origin> + '_ {
        self.inbox.keys().copied()
    }

    pub fn drop_waiting(&mut self, origin: Origin) {
        self.inbox.remove(&origin);
    }

    pub fn has_waiting(&self) -> bool {
        !self.inbox.is_empty()
    }
}
