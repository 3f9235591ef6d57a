//! A whole cluster in one thread: cores, disks, clocks and a network, driven by a seeded scheduler in virtual time.
//!
//! The network is the real one's model: one batch per direction of a pair is on its way at a time, its answer carries a
//! batch back, either can be lost, late or doubled, and a node that is down refuses at once.

mod losses;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use kvnode_core::admin::AdminOp;
use kvnode_core::loss::{Lost, Past, is_blank};
use kvnode_core::messages::{Batch, decode, encode};
use kvnode_core::request::{Answer, Op};
use kvnode_core::room::Room;
use kvnode_core::settings::{Mutant, Settings};
use kvnode_core::store::Store;
use kvnode_core::topology::{Topology, Transition};
use kvnode_core::{Core, Effect, Event, Now, TICK_MS};
use kvnode_types::ident::{Addr, Incarnation, Key, NodeId};

use self::losses::Losses;
use crate::digest::{Digest, Kind};
use crate::rng::Rng;
use crate::store::Disk;

/// When the virtual wall clocks start.
const WALL_BASE_MS: u64 = 1_900_000_000_000;
/// How long a sender waits for the answer to a batch.
const ANSWER_TIMEOUT_MS: u64 = 600;
/// Nobody waits longer for an answer, whatever comes together: the deadline of a request with these settings, and a margin.
const REQUEST_MS_MAX: u64 = 2_200;
/// How often a node syncs; rarely in some runs, so that a loss of power takes much.
const SYNC_EVERY_MS: [u64; 3] = [200, 200, 1_500];

/// Nodes that are there to join.
pub const JOINERS: usize = 2;

/// What the network does to messages between two nodes, in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub delay_ms: (u64, u64),
    pub loss_percent: u64,
    pub double_percent: u64,
    pub cut: bool,
}

impl Weather {
    pub const FAIR: Self = Self { delay_ms: (1, 5), loss_percent: 0, double_percent: 0, cut: false };
}

#[derive(Debug)]
enum Step {
    Tick { node: usize, life: u64 },
    Request { from: usize, to: usize, life: u64, batch: Bytes, original: bool },
    Answer { from: usize, to: usize, life: u64, batch: Option<Bytes> },
    Refused { from: usize, to: usize, life: u64, batch: Bytes },
    SyncStart { node: usize, life: u64 },
    SyncEnd { node: usize, life: u64, mark: kvnode_types::causal::Vector, batches: usize },
    Client { node: usize, id: u64, op: Op, tokens: Vec<String> },
    Admin { node: usize, id: u64, op: AdminOp },
}

impl Step {
    /// A number for its kind, and the node that it happens to.
    fn kind(&self) -> (u64, usize) {
        match *self {
            Self::Tick { node, .. } => (1, node),
            Self::Request { to, .. } => (2, to),
            Self::Answer { from, .. } => (3, from),
            Self::Refused { from, .. } => (4, from),
            Self::SyncStart { node, .. } => (5, node),
            Self::SyncEnd { node, .. } => (6, node),
            Self::Client { node, .. } => (7, node),
            Self::Admin { node, .. } => (8, node),
        }
    }
}

pub struct SimNode {
    pub addr: Addr,
    pub core: Option<Core>,
    disk: Disk,
    /// What the file beside the store tells.
    pub past: Past,
    /// Counts restarts, to tell what belongs to an earlier process.
    life: u64,
    pub skew_ms: i64,
    room: Room,
    /// Whether it was being filled when it went down.
    was_filling: bool,
    busy: BTreeSet<usize>,
    /// Clients that wait for an answer, and since when.
    clients: BTreeMap<u64, u64>,
    admins: BTreeSet<u64>,
    awake: BTreeSet<Addr>,
    /// The least that the life of the running process may be.
    incarnation: Incarnation,
    log_position: u64,
    last_tick_ms: u64,
    tick_due_ms: u64,
}

pub struct World {
    pub rng: Rng,
    pub now_ms: u64,
    pub nodes: Vec<SimNode>,
    steps: BinaryHeap<Reverse<(u64, u64, usize)>>,
    pending: BTreeMap<usize, Step>,
    counter: usize,
    pub weather: BTreeMap<(usize, usize), Weather>,
    /// Answers to clients, by request; `None`: the node died first.
    pub answers: Vec<(u64, Option<Answer<String>>)>,
    /// The first so many nodes form the cluster; the others join it.
    founders: usize,
    shard_count: u32,
    log_weight_max: usize,
    mutant: Option<Mutant>,
    sync_every_ms: u64,
    /// Batches sent on links, and ticks, so far.
    pub sent: u64,
    /// Bytes of these batches and of what they were answered with.
    pub bytes: u64,
    pub ticks: u64,
    /// Everything that happened, in order: equal for equal seeds.
    pub digest: Digest,
    pub said: Vec<String>,
    /// Every batch on its way, where somebody wants them.
    pub batches: Option<Vec<Bytes>>,
    pub losses: Losses,
}

impl World {
    pub fn new(seed: u64, nodes: usize, shard_count: u32, log_weight_max: usize, mutant: Option<Mutant>) -> Self {
        let node = |index: usize| SimNode {
            addr: format!("10.10.{}.{}:8090", (index + 2) / 256, (index + 2) % 256).parse().expect("an address"),
            core: None,
            disk: Disk::new(),
            past: Past::InStore,
            life: 0,
            skew_ms: 0,
            room: Room::Enough,
            was_filling: false,
            busy: BTreeSet::new(),
            clients: BTreeMap::new(),
            admins: BTreeSet::new(),
            awake: BTreeSet::new(),
            incarnation: Incarnation(0),
            log_position: 0,
            last_tick_ms: 0,
            tick_due_ms: 0,
        };
        Self {
            rng: Rng::new(seed),
            now_ms: 1,
            nodes: (0..nodes + JOINERS).map(node).collect(),
            steps: BinaryHeap::new(),
            pending: BTreeMap::new(),
            counter: 0,
            weather: BTreeMap::new(),
            answers: Vec::new(),
            founders: nodes,
            shard_count,
            log_weight_max,
            mutant,
            sync_every_ms: SYNC_EVERY_MS[(seed / 5 % 3) as usize],
            sent: 0,
            bytes: 0,
            ticks: 0,
            digest: Digest::default(),
            said: Vec::new(),
            batches: None,
            losses: Losses::default(),
        }
    }

    fn later(&mut self, in_ms: u64, step: Step) {
        self.counter += 1;
        self.steps.push(Reverse((self.now_ms + in_ms, self.counter as u64, self.counter)));
        self.pending.insert(self.counter, step);
    }

    fn wall_ms(&self, node: usize) -> u64 {
        (WALL_BASE_MS + self.now_ms).saturating_add_signed(self.nodes[node].skew_ms)
    }

    fn now(&self, node: usize) -> Now {
        Now { mono_ms: self.now_ms, wall_ms: self.wall_ms(node) }
    }

    pub fn start(&mut self, node: usize) {
        assert!(self.nodes[node].core.is_none(), "it runs already");
        let mut entropy = [0; 48];
        entropy.iter_mut().for_each(|byte| *byte = self.rng.next() as u8);
        let settings = Settings {
            me: self.nodes[node].addr.clone(),
            view: self.nodes[..self.founders.max(node + 1)].iter().map(|node| node.addr.clone()).collect(),
            form_without: Vec::new(),
            shard_count: self.shard_count,
            life: Incarnation(self.wall_ms(node)),
            entropy,
            causal_wait_ms: 1_000,
            ack_wait_ms: 500,
            waiting_max: 1_000,
            forwards_max: 1_000,
            peer_queue_weight_max: 1 << 20,
            log_weight_max: self.log_weight_max,
            durable_at_commit: false,
            past: self.past(node),
            mutant: self.mutant,
        };
        let now = self.now(node);
        let disk = self.nodes[node].disk.clone();
        let core = Core::start(settings, Box::new(disk), now).expect("memory does not fail");
        let staged = self.nodes[node].disk.take_staged();
        self.digest.commit(node, staged);
        self.nodes[node].core = Some(core);
        self.nodes[node].life += 1;
        self.nodes[node].incarnation = Incarnation(self.wall_ms(node));
        self.nodes[node].log_position = 0;
        self.set_room(node, self.nodes[node].room);
        let life = self.nodes[node].life;
        let jitter = self.rng.below(TICK_MS);
        (self.nodes[node].last_tick_ms, self.nodes[node].tick_due_ms) = (self.now_ms, self.now_ms + jitter);
        self.later(jitter, Step::Tick { node, life });
        self.later(self.sync_every_ms, Step::SyncStart { node, life });
    }

    /// As the process that starts a node finds it.
    fn past(&self, node: usize) -> Past {
        let SimNode { past, disk, .. } = &self.nodes[node];
        match past {
            Past::Lost(_) if !is_blank(disk).expect("memory does not fail") => Past::InStore,
            past => past.clone(),
        }
    }

    /// The node's disk has so much room from now on.
    pub fn set_room(&mut self, node: usize, room: Room) {
        self.nodes[node].room = room;
        if self.is_up(node) {
            self.event(node, Event::Room(room));
        }
    }

    /// The process dies; committed data stays.
    pub fn kill(&mut self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        self.nodes[node].was_filling = self.is_filling(node);
        self.nodes[node].core = None;
        self.nodes[node].busy.clear();
        self.nodes[node].awake.clear();
        self.nodes[node].admins.clear();
        let clients = std::mem::take(&mut self.nodes[node].clients);
        for id in clients.into_keys() {
            self.digest.reply(node, id, None);
            self.answers.push((id, None));
        }
        self.nodes[node].disk.lock().crash(0);
    }

    /// The process is told to stop, and finishes what it has begun.
    pub fn drain(&mut self, node: usize) {
        self.nodes[node].core.as_mut().expect("it runs").begin_drain();
        self.event(node, Event::Tick);
    }

    /// The machine dies: a part of what was not synced is gone too.
    pub fn lose_power(&mut self, node: usize) {
        self.kill(node);
        self.said.push(format!("{} {}: lost power", self.now_ms, self.nodes[node].addr));
        let unsynced = self.nodes[node].disk.lock().unsynced() as u64;
        let lost = self.rng.between(0, unsynced) as usize;
        self.nodes[node].disk.lock().crash(lost);
        self.forget_held(node, self.now_ms.saturating_sub(2 * self.sync_every_ms));
    }

    /// The machine dies, and takes everything that was not synced.
    pub fn lose_all_unsynced(&mut self, node: usize) {
        self.kill(node);
        let unsynced = self.nodes[node].disk.lock().unsynced();
        self.nodes[node].disk.lock().crash(unsynced);
    }

    /// The node dies and loses everything.
    pub fn wipe(&mut self, node: usize) {
        self.kill(node);
        self.said.push(format!("{} {}: wiped", self.now_ms, self.nodes[node].addr));
        self.nodes[node].disk = Disk::new();
        self.forget_held(node, 0);
    }

    /// The same, but the file that tells of the data is still there.
    pub fn lose_data(&mut self, node: usize) {
        let cluster = self.topology().map(|topology| topology.cluster);
        self.wipe(node);
        let what = format!("the data of {} is gone", self.nodes[node].addr);
        self.nodes[node].past = Past::Lost(Lost::new(cluster, what));
    }

    pub fn request(&mut self, node: usize, id: u64, op: Op, tokens: Vec<String>) {
        let delay = self.rng.between(0, 2);
        self.later(delay, Step::Client { node, id, op, tokens });
    }

    pub fn admin(&mut self, node: usize, id: u64, op: AdminOp) {
        self.later(1, Step::Admin { node, id, op });
    }

    /// Runs the next step, if it is due before `until_ms`. Whether there was one.
    pub fn step(&mut self, until_ms: u64) -> bool {
        // Time passes also when no node runs and nothing is on its way.
        let next = self.steps.peek().map(|&Reverse((at, _, index))| (at, index));
        let Some((at, index)) = next.filter(|&(at, _)| at <= until_ms) else {
            self.now_ms = until_ms;
            return false;
        };
        self.steps.pop();
        self.now_ms = self.now_ms.max(at);
        let step = self.pending.remove(&index).expect("scheduled once");
        let (kind, node) = step.kind();
        self.digest.fold(Kind::Step, &[self.now_ms, kind, node as u64], &[]);
        self.run(step);
        true
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node].core.is_some() && self.nodes[node].life == life
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Tick { node, life } if self.lives(node, life) && self.nodes[node].tick_due_ms <= self.now_ms => {
                self.ticks += 1;
                self.nodes[node].last_tick_ms = self.now_ms;
                self.nodes[node].tick_due_ms = u64::MAX;
                self.event(node, Event::Tick);
            }
            Step::SyncStart { node, life } if self.lives(node, life) => self.sync_start(node, life),
            Step::SyncEnd { node, life, mark, batches } if self.lives(node, life) => {
                self.nodes[node].disk.lock().mark_synced(batches);
                self.event(node, Event::Synced(mark));
            }
            Step::Client { node, id, op, tokens } => {
                self.digest.request(node, id, &op, &tokens);
                if self.nodes[node].core.is_none() {
                    self.answers.push((id, Some(Answer::NotReady { reason: "connection refused".into() })));
                } else if let Some(answer) = self.read(node, &op, &tokens) {
                    self.digest.reply(node, id, Some(&answer));
                    self.answers.push((id, Some(answer)));
                } else {
                    self.nodes[node].clients.insert(id, self.now_ms);
                    self.event(node, Event::Client { id, op, tokens, arrived_ms: self.now_ms });
                }
            }
            Step::Admin { node, id, op } if self.is_up(node) => {
                self.nodes[node].admins.insert(id);
                self.event(node, Event::Admin { id, op });
            }
            Step::Request { from, to, life, batch, original } => self.arrive(from, to, life, &batch, original),
            Step::Answer { from, to, life, batch } if self.lives(from, life) => {
                self.nodes[from].busy.remove(&to);
                let peer = self.nodes[to].addr.clone();
                self.nodes[from].awake.insert(peer);
                match batch {
                    Some(batch) => self.event(from, Event::Batch(read(&batch))),
                    None => self.turn_end(from),
                }
            }
            Step::Refused { from, to, life, batch } if self.lives(from, life) => {
                self.nodes[from].busy.remove(&to);
                let peer = self.nodes[to].addr.clone();
                self.event(from, Event::Undelivered { peer, batch: read(&batch), another_secret: false });
            }
            _ => {}
        }
    }

    /// A read that has to wait for nothing, as the node's driver tries it first.
    fn read(&mut self, node: usize, op: &Op, tokens: &[String]) -> Option<Answer<String>> {
        let now = self.now(node);
        self.nodes[node].core.as_mut().expect("it runs").read(now, op, tokens)
    }

    fn sync_start(&mut self, node: usize, life: u64) {
        let mark = self.nodes[node].core.as_ref().expect("it lives").sync_mark();
        let batches = self.nodes[node].disk.lock().unsynced();
        let takes = self.rng.between(1, 40);
        self.later(takes, Step::SyncEnd { node, life, mark, batches });
        self.later(self.sync_every_ms, Step::SyncStart { node, life });
    }

    /// A batch reaches its receiver, if that is there.
    fn arrive(&mut self, from: usize, to: usize, life: u64, batch: &Bytes, original: bool) {
        if self.nodes[to].core.is_none() {
            if original {
                self.later(1, Step::Refused { from, to, life, batch: batch.clone() });
            }
            return;
        }
        self.handle(to, Event::Batch(read(batch)));
        let (now, peer) = (self.now(to), self.nodes[from].addr.clone());
        let core = self.nodes[to].core.as_mut().expect("it was there a moment ago");
        let answer = encode(&core.answer_batch(now, &peer));
        self.digest.fold(Kind::Batch, &[to as u64, from as u64, 1], &answer);
        self.bytes += answer.len() as u64;
        if original {
            let arrival = self.travel(to, from);
            let (in_ms, batch) = arrival.map_or((ANSWER_TIMEOUT_MS, None), |in_ms| (in_ms, Some(answer)));
            self.later(in_ms, Step::Answer { from, to, life, batch });
        }
        // As the driver does: what the answer carried needs no batch of its own.
        self.turn_end(to);
        self.set_alarm(to);
    }

    fn weather(&self, from: usize, to: usize) -> Weather {
        self.weather.get(&(from, to)).copied().unwrap_or(Weather::FAIR)
    }

    /// How long a message takes; `None` if it is lost.
    fn travel(&mut self, from: usize, to: usize) -> Option<u64> {
        let weather = self.weather(from, to);
        let lost = weather.cut || self.rng.percent(weather.loss_percent);
        (!lost).then(|| self.rng.between(weather.delay_ms.0, weather.delay_ms.1))
    }

    fn event(&mut self, node: usize, event: Event) {
        self.handle(node, event);
        self.turn_end(node);
        self.set_alarm(node);
    }

    /// The part of a turn up to the commit.
    fn handle(&mut self, node: usize, event: Event) {
        let now = self.now(node);
        let core = self.nodes[node].core.as_mut().expect("events go to nodes that run");
        core.handle(now, event).expect("memory does not fail");
        let urgent = core.commit().expect("memory does not fail").urgent;
        let staged = self.nodes[node].disk.take_staged();
        self.digest.commit(node, staged);
        if urgent {
            let mut disk = self.nodes[node].disk.lock();
            let all = disk.unsynced();
            disk.mark_synced(all);
        }
        self.note_held(node);
        self.note_given_up(node);
    }

    /// An event may make the next tick due earlier.
    fn set_alarm(&mut self, node: usize) {
        let SimNode { core, last_tick_ms, tick_due_ms, life, .. } = &self.nodes[node];
        let interval = core.as_ref().expect("it runs").tick_interval_ms();
        let due = (last_tick_ms + interval).max(self.now_ms);
        if due < *tick_due_ms {
            let life = *life;
            self.nodes[node].tick_due_ms = due;
            self.later(due - self.now_ms, Step::Tick { node, life });
        }
    }

    fn turn_end(&mut self, node: usize) {
        let now = self.now(node);
        let effects = self.nodes[node].core.as_mut().expect("it runs").take_effects();
        for effect in effects {
            match effect {
                Effect::Reply { id, answer } => {
                    let asked_ms = self.nodes[node].clients.remove(&id);
                    let took_ms = self.now_ms - asked_ms.unwrap_or_else(|| panic!("request {id} was answered twice"));
                    assert!(took_ms <= REQUEST_MS_MAX, "request {id} was answered after {took_ms} ms: {answer:?}");
                    self.digest.reply(node, id, Some(&answer));
                    self.answers.push((id, Some(answer)));
                }
                Effect::Decided { id, answer } => {
                    self.digest.decision(node, id, &answer);
                    self.said.push(format!("{} {}: request {id}: {answer:?}", self.now_ms, self.nodes[node].addr));
                    self.nodes[node].admins.remove(&id);
                }
                Effect::Wake(peer) => {
                    self.digest.fold(Kind::Wake, &[node as u64], peer.as_str().as_bytes());
                    self.nodes[node].awake.insert(peer);
                }
                Effect::Say(_, text) => {
                    assert!(!text.contains("topology's log from"), "what a voter sends is not refused: {text}");
                    // It went on for a while after it was given up, and has just learned of it.
                    if text.contains("was given up") && self.losses.risky.contains(&node) {
                        self.forget_held(node, 0);
                    }
                    self.said.push(format!("{} {}: {text}", self.now_ms, self.nodes[node].addr));
                }
                Effect::Note(notice) => {
                    self.said.push(format!("{} {}: {notice:?}", self.now_ms, self.nodes[node].addr));
                }
            }
        }
        for peer in std::mem::take(&mut self.nodes[node].awake) {
            let to = self.nodes.iter().position(|other| other.addr == peer).expect("peers are nodes");
            if self.nodes[node].busy.contains(&to) {
                continue;
            }
            let core = self.nodes[node].core.as_mut().expect("it runs");
            if let Some(batch) = core.next_batch(now, &peer) {
                self.nodes[node].busy.insert(to);
                self.post(node, to, encode(&batch));
            }
        }
    }

    fn post(&mut self, from: usize, to: usize, batch: Bytes) {
        self.sent += 1;
        self.digest.fold(Kind::Batch, &[from as u64, to as u64, 0], &batch);
        self.bytes += batch.len() as u64;
        let life = self.nodes[from].life;
        if let Some(batches) = &mut self.batches {
            batches.push(batch.clone());
        }
        let travels = self.travel(from, to);
        match travels {
            Some(in_ms) => self.later(in_ms, Step::Request { from, to, life, batch: batch.clone(), original: true }),
            None => self.later(ANSWER_TIMEOUT_MS, Step::Answer { from, to, life, batch: None }),
        }
        let weather = self.weather(from, to);
        if !weather.cut && self.rng.percent(weather.double_percent) {
            // Never ahead of the first: that may find nobody, and its sender is told that nothing of it was seen.
            let in_ms = travels.unwrap_or(0) + self.rng.between(0, 1_500);
            self.later(in_ms, Step::Request { from, to, life, batch, original: false });
        }
    }

    /// Whether the node ever ran.
    pub fn is_started(&self, node: usize) -> bool {
        self.nodes[node].life > 0
    }

    /// Whether the node has not all of its shard's data yet, or had not when it went down.
    fn is_filling(&self, node: usize) -> bool {
        self.core(node).map_or(self.nodes[node].was_filling, |core| core.status().stage == "filling")
    }

    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].core.is_some()
    }

    pub fn core(&self, node: usize) -> Option<&Core> {
        self.nodes[node].core.as_ref()
    }

    /// The most that a node has removed in one batch.
    pub fn removed_at_once(&self, node: usize) -> usize {
        self.nodes[node].disk.removed_at_once()
    }

    /// Keys that a node's disk holds, whether the node owns their slots or not.
    pub fn stored(&self, node: usize) -> Vec<Key> {
        let all = self.nodes[node].disk.lock().keys("", None, usize::MAX).expect("memory does not fail");
        all.into_iter().map(|(key, _)| key).collect()
    }

    /// Runs until `done` or for `limit_ms`. Whether it came to be.
    pub fn run_until(&mut self, limit_ms: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now_ms + limit_ms;
        while !done(self) {
            if !self.step(end) {
                return done(self);
            }
        }
        true
    }

    /// The newest topology that any running node goes by.
    pub fn topology(&self) -> Option<&Topology> {
        let known = self.nodes.iter().filter_map(|node| node.core.as_ref()?.topology());
        known.max_by_key(|topology| topology.version)
    }

    pub fn index_of(&self, addr: &Addr) -> usize {
        self.nodes.iter().position(|node| node.addr == *addr).expect("an address of the world")
    }

    /// The nodes of the newest topology that were ever started (an operator may add one in advance); before there is one, those that are to form the cluster.
    pub fn members(&self) -> Vec<usize> {
        match self.topology() {
            Some(topology) => {
                let all = topology.nodes.values().map(|addr| self.index_of(addr));
                all.filter(|&node| self.is_started(node)).collect()
            }
            None => (0..self.founders).collect(),
        }
    }

    /// The members of each shard.
    pub fn shards(&self) -> Vec<Vec<usize>> {
        let Some(topology) = self.topology() else { return Vec::new() };
        let index = |node: &NodeId| self.index_of(&topology.nodes[node]);
        topology.layout.shards.values().map(|members| members.iter().map(index).collect()).collect()
    }

    pub fn is_ready(&self, node: usize) -> bool {
        self.core(node).is_some_and(|core| core.ready().is_ok())
    }

    /// Whether those vote that the topology wants to.
    pub fn votes_are_as_planned(&self) -> bool {
        let Some(topology) = self.topology() else { return false };
        // A leader may not have heard yet that one has lost its data.
        let known = |(node, birth): (&NodeId, &Incarnation)| {
            let addr = topology.nodes.get(node);
            addr.and_then(|addr| self.core(self.index_of(addr))).is_none_or(|core| core.birth() == *birth)
        };
        let all_known = topology.births.iter().all(known);
        all_known && self.nodes.iter().filter_map(|node| node.core.as_ref()).any(Core::leads_the_electors)
    }

    /// Whether a request of an operator is not decided yet.
    pub fn decisions_are_due(&self) -> bool {
        self.nodes.iter().any(|node| !node.admins.is_empty())
    }

    /// Whether all members serve, under one topology, and no change runs.
    pub fn all_ready(&self) -> bool {
        let Some(topology) = self.topology() else { return false };
        let agrees = |node: &usize| {
            self.is_ready(*node)
                && self.core(*node).and_then(Core::topology).is_some_and(|t| t.version == topology.version)
        };
        topology.transition == Transition::Steady && self.members().iter().all(agrees)
    }
}

/// The bytes went through the real codec.
fn read(bytes: &Bytes) -> Batch {
    decode(bytes).expect("the network delivers what was sent")
}
