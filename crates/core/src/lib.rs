//! The protocol, as a pure state machine: no sockets, no clock, no threads, no randomness of its own.
//!
//! A driver (the node's loop, or the simulator) calls four kinds of methods:
//! - [`Core::handle`] takes an [`Event`]; `now` is always an argument. It changes the state and stages changes in the store.
//! - [`Core::commit`] ends a turn: everything staged goes to the store in one batch, with the vector.
//! - [`Core::take_effects`] gives the [`Effect`]s of the turn. They must not be acted on before `commit` has returned: no
//!   answer or message may tell of something that is not held.
//! - [`Core::next_batch`] gives what a peer link is to carry next; it, too, is called only between turns.
//!
//! The path of a PUT: [`serve`] (shard, context, dependencies) → [`replica`] (stamp, winner rule, log) → `commit` →
//! [`replicate`] (batches to the shard's other replicas, their acknowledgements) → [`serve`] (answer at a majority).
//! The path of a GET ends in [`serve`]. Either may begin in [`forward`], if another shard has the key.

pub mod admin;
pub mod clock;
pub mod inventory;
mod listing;
pub mod log;
pub mod loss;
pub mod messages;
pub mod notice;
pub mod replica;
pub mod request;
pub mod room;
pub mod settings;
pub mod status;
pub mod store;
pub mod token;
pub mod topology;

mod adopt;
mod arrival;
mod causality;
mod compare;
mod consensus;
mod contact;
mod cursor;
mod deadline;
mod dropping;
mod formation;
mod forward;
mod govern;
mod handover;
mod pace;
mod repair;
mod replicate;
mod seen;
mod serve;
mod stable;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use kvnode_types::ident::{Addr, Incarnation, NodeId, ShardId};

use crate::messages::{Batch, Floors, Message, Stable, Stage};
use crate::store::{Fact, Result, Store, StoreError};

use admin::{AdminAnswer, AdminOp};
use arrival::Arrival;
use compare::Uncovered;
use consensus::Consensus;
use contact::Peer;
use dropping::Dropping;
use forward::Forwards;
use govern::Office;
use handover::Copies;
use inventory::Inventory;
use kvnode_types::causal::Vector;
use listing::Listings;
use loss::Lost;
use notice::Minorities;
pub use notice::{Notice, Severity};
use pace::Pace;
use repair::Repair;
use replica::{Handed, Replica};
use request::{Answer, Op};
use room::Room;
use serve::Waiting;
use settings::{Mutant, Settings};
use stable::Settling;
use topology::{Bearings, Topology, TopologyVersion};

/// Readings of the driver's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Never goes back.
    pub mono_ms: u64,
    /// Since 1970; may be wrong and may jump.
    pub wall_ms: u64,
}

/// What happens to a core.
#[derive(Clone, Debug)]
pub enum Event {
    /// A client asks. `id` is the driver's, named again in [`Effect::Reply`]. `tokens`: its `causal-metadata`, 0 to 2. `arrived_ms`: when
    /// all of it had arrived, on the driver's monotonic clock.
    Client { id: u64, op: Op, tokens: Vec<String>, arrived_ms: u64 },
    /// An operator asks for a change. `id` is the driver's, named again in [`Effect::Decided`].
    Admin { id: u64, op: AdminOp },
    /// A batch from a peer.
    Batch(Batch),
    /// A batch that certainly did not reach its receiver: nobody listened, or who did says that the secret of its cluster is another.
    Undelivered { peer: Addr, batch: Batch, another_secret: bool },
    /// What was committed when [`Core::sync_mark`] gave this is now on stable media.
    Synced(Vector),
    /// The store's room has changed. To be said before what there is no room for.
    Room(Room),
    /// Time has passed. Expected [`Core::tick_interval_ms`] after the last one.
    Tick,
}

impl Event {
    /// Whether it is of a kind that stages nothing in the store: reads, answers, acknowledgements. (What it tells beside that, such as
    /// a new life of its sender, may still be noted.)
    pub fn only_reads(&self) -> bool {
        let reads = |op: &Op| matches!(op, Op::Get { .. } | Op::List { .. } | Op::KeyCount { .. });
        match self {
            Self::Client { op, .. } => reads(op),
            Self::Batch(batch) => batch.messages.iter().all(|message| match message {
                Message::Forward { op, .. } => reads(op),
                Message::Answered { .. } | Message::Held { .. } => true,
                _ => false,
            }),
            _ => false,
        }
    }
}

/// What a turn has committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Anything at all.
    pub changed: bool,
    /// Something that must survive a loss of power before it is acted on, whatever the settings: the cluster that this node
    /// belongs to, its life, and that its replica is complete. All of that is rare.
    pub urgent: bool,
}

/// How often the driver should tick while there is something to do.
pub const TICK_MS: u64 = 25;

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Reply {
        id: u64,
        answer: Answer<String>,
    },
    /// An operator's request was decided, or could not be.
    Decided {
        id: u64,
        answer: AdminAnswer,
    },
    /// [`Core::next_batch`] has something for this peer.
    Wake(Addr),
    /// Something an operator should read.
    Say(Severity, String),
    Note(Notice),
}

const FACT_OWNER: Fact = Fact("owner");
const FACT_LIFE: Fact = Fact("life");
const FACT_TOPOLOGY: Fact = Fact("topology");
const FACT_REPLICA: Fact = Fact("replica");
/// The life in which the data here began.
const FACT_BIRTH: Fact = Fact("birth");
const FACT_RAFT: Fact = Fact("raft");

/// The part of a replica's state that is kept beside its data.
#[derive(serde::Serialize, serde::Deserialize)]
struct ReplicaFact<'a> {
    applied: Cow<'a, Vector>,
    floors: Floors,
    clock: kvnode_types::stamp::Stamp,
    complete: bool,
    /// The newest life known of each member: what was reported by an earlier one no longer counts (see [`stable`]).
    lives: Vec<(NodeId, Incarnation)>,
    handed: Option<Cow<'a, Handed>>,
}

/// One node's protocol state.
pub struct Core {
    settings: Settings,
    now: Now,
    life: Incarnation,
    birth: Incarnation,
    store: Box<dyn Store>,
    inventory: Inventory,
    topology: Option<Topology>,
    bearings: Bearings,
    /// The topology with which this node first saw the present layout, and who of the members before is not waited for.
    wanted_since: TopologyVersion,
    consensus: Option<Consensus>,
    office: Office,
    pace: Pace,
    me: Option<NodeId>,
    /// Every other node of the topology, or of VIEW before there is one.
    peers: BTreeMap<Addr, Peer>,
    replica: Option<Replica>,
    /// What was fetched for a layout that is not the present one yet.
    copies: Copies,
    /// Everything here is being dropped, for a topology that is not the present one yet.
    dropping: Option<Dropping>,
    /// Whether `replica`'s facts have changed since the last commit.
    replica_changed: bool,
    /// See [`Committed::urgent`].
    urgent: bool,
    /// What each shard has made stable, as far as this node knows.
    stables: BTreeMap<ShardId, Stable>,
    settling: Settling,
    waiting: Waiting,
    forwards: Forwards,
    listings: Listings,
    /// From another replica of this node's shard.
    repair: Option<Repair>,
    /// From a node of another shard, or of the layout before.
    transfer: Option<Repair>,
    last_repair_id: u64,
    uncovered: Uncovered,
    /// What keeps this node from serving, for people.
    reason: String,
    started_ms: u64,
    /// Whether this node has taken part in the formation of the cluster, and its replica has not been complete since.
    forms: bool,
    /// Whether this life asks to be in the view.
    arrival: Arrival,
    /// When this node took over the present layout.
    flipped_ms: u64,
    /// What this node has had, until it has it again.
    lost: Option<Lost>,
    losses_said: BTreeSet<kvnode_types::ident::Origin>,
    minorities: Minorities,
    draining: bool,
    room: Room,
    effects: Vec<Effect>,
    wakes: BTreeSet<Addr>,
}

fn read_fact<T: serde::de::DeserializeOwned>(store: &dyn Store, name: Fact) -> Result<Option<T>> {
    let Some(bytes) = store.fact(name)? else { return Ok(None) };
    postcard::from_bytes(&bytes)
        .map(Some)
        .map_err(|error| StoreError::Unreadable(format!("fact '{}': {error}", name.0)))
}

fn encode_fact<T: serde::Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("facts hold nothing that postcard refuses")
}

impl Core {
    /// Starts from what the store holds. The life that begins is larger than every earlier one that the store knows.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn start(settings: Settings, mut store: Box<dyn Store>, now: Now) -> Result<Self> {
        let last_life: Option<Incarnation> = read_fact(&*store, FACT_LIFE)?;
        let mut life = last_life.map_or(settings.life, |last| settings.life.max(last.next()));
        if let Some(last) = last_life
            && settings.broken(Mutant::LifeReused)
        {
            life = last;
        }
        let birth: Incarnation = read_fact(&*store, FACT_BIRTH)?.unwrap_or(life);
        store.set_fact(FACT_LIFE, encode_fact(&life));
        store.set_fact(FACT_BIRTH, encode_fact(&birth));
        store.set_fact(FACT_OWNER, settings.me.as_str().as_bytes().to_vec());
        let topology: Option<Topology> = read_fact(&*store, FACT_TOPOLOGY)?;
        let fact: Option<ReplicaFact<'_>> = read_fact(&*store, FACT_REPLICA)?;
        let copies: Option<Copies> = read_fact(&*store, handover::FACT_COPIES)?;
        let uncovered: Option<Uncovered> = read_fact(&*store, compare::FACT_UNCOVERED)?;
        let forms: Option<bool> = read_fact(&*store, formation::FACT_FORMS)?;
        let noted: Option<Stable> = read_fact(&*store, stable::FACT_STABLE)?;
        let lost = loss::at_start(&settings.past, &mut *store)?.filter(|_| !settings.broken(Mutant::LostIsEmpty));
        let inventory = Inventory::of(&*store)?;
        let peers = settings.view.iter().filter(|&addr| *addr != settings.me);
        let mut core = Self {
            now,
            life,
            birth,
            store,
            inventory,
            topology: None,
            bearings: Bearings::default(),
            wanted_since: TopologyVersion::default(),
            consensus: None,
            office: Office::default(),
            pace: Pace::default(),
            me: None,
            peers: peers.map(|addr| (addr.clone(), Peer::new())).collect(),
            replica: None,
            copies: copies.unwrap_or_default(),
            dropping: None,
            replica_changed: false,
            urgent: true,
            stables: BTreeMap::new(),
            settling: Settling::recovered(noted.unwrap_or_default()),
            waiting: Waiting::default(),
            forwards: Forwards::default(),
            listings: Listings::default(),
            repair: None,
            transfer: None,
            last_repair_id: 0,
            uncovered: uncovered.unwrap_or_default().recovered(),
            reason: "starting".into(),
            started_ms: now.mono_ms,
            forms: forms.unwrap_or(false),
            arrival: Arrival::default(),
            flipped_ms: 0,
            lost,
            losses_said: BTreeSet::new(),
            minorities: Minorities::default(),
            draining: false,
            room: Room::Enough,
            effects: Vec::new(),
            wakes: BTreeSet::new(),
            settings,
        };
        if let Some(topology) = topology {
            core.say_ghosts(&topology);
            core.take_place(topology);
            if core.lost.as_ref().is_some_and(|lost| lost.is_dropped) {
                // An earlier life has begun to drop what that tells of.
                core.has_nothing();
            } else {
                core.recover(fact);
            }
            core.recover_consensus()?;
        }
        core.commit()?;
        core.urgent = true;
        Ok(core)
    }

    /// Goes on from the data of an earlier life.
    fn recover(&mut self, fact: Option<ReplicaFact<'_>>) {
        let (Some(replica), Some(fact)) = (self.replica.as_mut(), fact) else { return };
        for (node, life) in fact.lives {
            let addr = self.topology.as_ref().and_then(|topology| topology.nodes.get(&node));
            if let Some(peer) = addr.and_then(|addr| self.peers.get_mut(addr)) {
                peer.learn_life(life);
            }
        }
        self.inventory.clock.observe(fact.clock);
        replica.applied = fact.applied.into_owned();
        replica.durable = replica.applied.clone();
        replica.raise_floors(&fact.floors);
        if fact.handed.is_some() {
            replica.handed = fact.handed.map(Cow::into_owned);
        }
        if fact.complete {
            replica.stage = if replica.shard.is_some() { Stage::Serving } else { Stage::Leaving };
        }
        self.replica_changed = true;
    }

    /// Takes an event. Its effects wait for [`Core::take_effects`].
    ///
    /// # Errors
    /// If the store failed: the core must not be used any more.
    pub fn handle(&mut self, now: Now, event: Event) -> Result<()> {
        self.now = Now { mono_ms: self.now.mono_ms.max(now.mono_ms), wall_ms: now.wall_ms };
        match event {
            Event::Client { id, op, tokens, arrived_ms } => self.client(id, op, &tokens, arrived_ms)?,
            Event::Admin { id, op } => self.admin(id, op)?,
            Event::Batch(batch) => self.batch(batch)?,
            Event::Undelivered { peer, batch, another_secret } => {
                self.note_secret(&peer, another_secret);
                self.undelivered(&peer, batch);
            }
            Event::Synced(mark) => self.synced(&mark),
            Event::Room(room) => self.room_is(room),
            Event::Tick => self.tick()?,
        }
        self.settle_turn()
    }

    /// What has to be looked at after any change.
    fn settle_turn(&mut self) -> Result<()> {
        self.consensus_turn()?;
        self.deliver_waiting()?;
        self.retry_parked()?;
        self.answer_acknowledged();
        Ok(())
    }

    /// Wakes what has lingered or rested; the remainder is done in steps of [`TICK_MS`], or more slowly while quiet.
    fn tick(&mut self) -> Result<()> {
        self.linger_step();
        self.rested_step()?;
        if !self.pace_tick() {
            return Ok(());
        }
        self.notice_lost_peers();
        self.drop_step()?;
        self.majorities_step();
        self.formation_step()?;
        self.govern_step()?;
        self.repair_step();
        self.handover_step();
        self.fill_step()?;
        self.expire_waiting()?;
        self.forward_step()?;
        self.anti_entropy_step();
        self.stable_step()?;
        self.beat_step();
        self.pace_step();
        Ok(())
    }

    /// Ends a turn: hands everything that changed to the store, in one batch.
    ///
    /// # Errors
    /// If the store failed: the effects of the turn must be dropped, and the core with them.
    ///
    /// Tells what the driver has to sync before it acts.
    pub fn commit(&mut self) -> Result<Committed> {
        if self.replica_changed
            && self.store.outlives_process()
            && let Some(replica) = &self.replica
        {
            let fact = ReplicaFact {
                applied: Cow::Borrowed(&replica.applied),
                floors: replica.floors_list(),
                clock: self.inventory.clock.last(),
                complete: replica.stage != Stage::Filling,
                handed: replica.handed.as_ref().map(Cow::Borrowed),
                lives: replica.others.iter().filter_map(|&node| Some((node, self.newest_life(node)?))).collect(),
            };
            self.store.set_fact(FACT_REPLICA, encode_fact(&fact));
            self.replica_changed = false;
        }
        let changed = self.store.commit()?;
        let received = self.settings.broken(Mutant::StableFromReceived);
        if (self.settings.durable_at_commit || received)
            && let Some(replica) = self.replica.as_mut()
        {
            replica.durable = replica.applied.clone();
        }
        let urgent = std::mem::take(&mut self.urgent);
        Ok(Committed { changed, urgent })
    }

    /// The effects since the last call, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        let mut effects = std::mem::take(&mut self.effects);
        effects.extend(std::mem::take(&mut self.wakes).into_iter().map(Effect::Wake));
        effects
    }

    /// What a sync that starts now will make durable; for [`Event::Synced`].
    pub fn sync_mark(&self) -> Vector {
        self.replica.as_ref().map(|replica| replica.applied.clone()).unwrap_or_default()
    }

    fn synced(&mut self, mark: &Vector) {
        if let Some(replica) = self.replica.as_mut() {
            for (origin, seq) in mark.iter().filter(|&(origin, _)| replica.applied.get(origin) > 0) {
                replica.durable.raise(origin, seq);
            }
        }
    }

    /// Begins to leave: no new requests of clients, `ready` says no.
    pub fn begin_drain(&mut self) {
        self.draining = true;
        if let Some(replica) = self.replica.as_mut()
            && replica.stage == Stage::Serving
        {
            replica.stage = Stage::Leaving;
        }
        self.beat_all();
    }

    /// Whether the other replicas that can be reached hold all that this one wrote, no request waits, and whoever passed one on has its
    /// answer.
    pub fn is_drained(&self) -> bool {
        let Some(replica) = &self.replica else { return true };
        if self.peers.values().any(|peer| peer.has_answers_waiting() && self.is_reachable(peer)) {
            return false;
        }
        let held = |node: &NodeId| {
            let peer = self.peer_of(*node);
            peer.is_none_or(|peer| !self.is_reachable(peer) || peer.cursor.held() >= replica.seq())
        };
        replica.others.iter().all(held) && self.waiting.is_empty() && self.forwards.is_empty()
    }

    /// An earlier release listed two spellings of one address as two nodes.
    fn say_ghosts(&mut self, topology: &Topology) {
        for ghost in topology.ghosts() {
            let addr = &topology.nodes[&ghost];
            let text =
                format!("{addr} is listed twice, as two spellings of one address; DELETE /view of it once leaves one");
            self.say(Severity::Warn, text);
        }
    }

    fn peer_of(&self, node: NodeId) -> Option<&Peer> {
        self.peers.get(self.topology.as_ref()?.nodes.get(&node)?)
    }

    fn addr_of(&self, node: NodeId) -> Option<&Addr> {
        self.topology.as_ref()?.nodes.get(&node)
    }

    fn node_of(&self, addr: &Addr) -> Option<NodeId> {
        self.bearings.node_at(addr)
    }

    /// Whether `addr` is another replica of this node's shard.
    fn is_mate(&self, addr: &Addr) -> bool {
        self.replica.is_some() && self.bearings.ring.contains(addr)
    }

    /// Whether `addr` was one under the layout before, and what was written then is not at its heirs yet.
    fn was_mate(&self, addr: &Addr) -> bool {
        let handed = self.replica.as_ref().and_then(|replica| replica.handed.as_ref());
        handed.is_some_and(|handed| self.node_of(addr).is_some_and(|node| handed.members.contains(&node)))
    }

    /// Addresses of the other replicas of this node's shard.
    fn mates(&self) -> Vec<Addr> {
        if self.replica.is_some() { self.bearings.ring.clone() } else { Vec::new() }
    }

    fn is_serving(&self) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.stage == Stage::Serving)
    }

    /// Whether an answer to a pull or a repair waits for a peer already. It asks again for what it needs; to answer every time would
    /// fill memory.
    fn is_clogged(&self, peer: &Addr) -> bool {
        self.peers.get(peer).is_some_and(Peer::has_bulk_waiting)
    }

    fn send(&mut self, to: &Addr, message: Message) {
        if let Some(peer) = self.peers.get_mut(to) {
            peer.push(message);
            self.wakes.insert(to.clone());
        }
    }
}
