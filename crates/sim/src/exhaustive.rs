//! A change of the layout with three nodes, in every order in which things can happen, to a stated depth.
//!
//! Nodes 0 and 1 are a shard's replicas; node 2 is being added to it, and copies. Two clients write and read one key, handing
//! their contexts on, at all three nodes. From the moment at which node 2 knows of the change every order is tried of: a batch
//! arrives, an answer to one arrives, a client asks, time passes. (Time stands still between these, so that orders are all that
//! differs.) At the end of each path everything is delivered, and the history is judged with what is stored then.
//!
//! A core is a function of the events that it has had. So two paths that gave each node the same events in the same order have
//! led to the same state, whatever came between at other nodes, and the second one is not followed (the traces of Mazurkiewicz,
//! 1977). Nothing is left out by that, but for collisions of 64-bit hashes.
//!
//! Cores can't be copied: every path is played from the beginning.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use kvnode_checker::{Moment, judge};
use kvnode_core::admin::AdminOp;
use kvnode_core::loss::Past;
use kvnode_core::messages::{decode, encode};
use kvnode_core::request::{Answer, Op};
use kvnode_core::settings::{Mutant, Settings};
use kvnode_core::store::memory::MemoryStore;
use kvnode_core::topology::Transition;
use kvnode_core::{Core, Effect, Event, Now};
use kvnode_types::ident::{Addr, Incarnation, ShardId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const NODES: usize = 3;
const WALL_BASE_MS: u64 = 1_900_000_000_000;
/// What "time passes" means: long enough for a beat to be due at every second one.
const PASSES_MS: u64 = 125;
const ADMIN: u64 = 1_000;

/// From where every order is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Node 2 has just learned that it is to copy.
    Copying,
    /// It has copied, and nobody else knows.
    Copied,
}

/// One thing that may happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Request { from: usize, to: usize },
    Answer { from: usize, to: usize },
    Client(usize),
    TimePasses,
}

enum InFlight {
    Request(Bytes),
    Answer(Bytes),
}

/// What a client does: at which node, and whether it writes.
#[derive(Clone, Copy)]
enum Deed {
    Put(usize),
    Get(usize),
}

const DEEDS: [&[Deed]; 2] =
    [&[Deed::Put(0), Deed::Get(2), Deed::Put(2)], &[Deed::Get(1), Deed::Put(1), Deed::Get(2), Deed::Get(0)]];

#[derive(Default)]
struct Client {
    next: usize,
    /// The request that is not answered yet.
    open: Option<u64>,
    token: Option<String>,
    stopped: bool,
}

struct Small {
    cores: Vec<Core>,
    addrs: Vec<Addr>,
    links: BTreeMap<(usize, usize), InFlight>,
    awake: Vec<BTreeSet<usize>>,
    now_ms: u64,
    /// Per node a hash of all events that it has had.
    pasts: [u64; NODES],
    clients: [Client; 2],
    history: Vec<Moment>,
    decided: bool,
}

impl Small {
    fn new(mutant: Option<Mutant>) -> Self {
        let addrs: Vec<Addr> =
            (0..NODES).map(|node| format!("10.10.0.{}:8090", node + 2).parse().expect("an address")).collect();
        let core = |node: usize| {
            let settings = Settings {
                me: addrs[node].clone(),
                view: addrs[..2.max(node + 1)].to_vec(),
                form_without: Vec::new(),
                shard_count: 1,
                life: Incarnation(WALL_BASE_MS),
                entropy: [node as u8; 48],
                causal_wait_ms: 1_000,
                ack_wait_ms: 500,
                waiting_max: 100,
                forwards_max: 100,
                peer_queue_weight_max: 1 << 20,
                log_weight_max: 1 << 20,
                durable_at_commit: true,
                past: Past::InStore,
                mutant,
            };
            let now = Now { mono_ms: 1, wall_ms: WALL_BASE_MS };
            Core::start(settings, Box::new(MemoryStore::new()), now).expect("memory does not fail")
        };
        Self {
            cores: (0..NODES).map(core).collect(),
            links: BTreeMap::new(),
            awake: vec![BTreeSet::new(); NODES],
            now_ms: 1,
            pasts: [0; NODES],
            clients: [Client::default(), Client::default()],
            history: Vec::new(),
            decided: false,
            addrs,
        }
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, wall_ms: WALL_BASE_MS + self.now_ms }
    }

    fn event(&mut self, node: usize, event: Event, bytes: &[u8]) {
        self.pasts[node] = xxh3_64_with_seed(bytes, self.pasts[node] ^ self.now_ms.rotate_left(32));
        let now = self.now();
        self.cores[node].handle(now, event).expect("memory does not fail");
        self.cores[node].commit().expect("memory does not fail");
    }

    /// What a node's driver does after a turn.
    fn turn_end(&mut self, node: usize) {
        for effect in self.cores[node].take_effects() {
            match effect {
                Effect::Reply { id, answer } => self.answered(id, answer),
                Effect::Decided { .. } => self.decided = true,
                Effect::Wake(peer) => {
                    let to = self.addrs.iter().position(|addr| *addr == peer).expect("peers are nodes");
                    self.awake[node].insert(to);
                }
                Effect::Say(..) | Effect::Note(_) => {}
            }
        }
        let now = self.now();
        for to in std::mem::take(&mut self.awake[node]) {
            if !self.links.contains_key(&(node, to))
                && let Some(batch) = self.cores[node].next_batch(now, &self.addrs[to])
            {
                self.links.insert((node, to), InFlight::Request(encode(&batch)));
            }
        }
    }

    fn choices(&self) -> Vec<Choice> {
        let flying = self.links.iter().map(|(&(from, to), what)| match what {
            InFlight::Request(_) => Choice::Request { from, to },
            InFlight::Answer(_) => Choice::Answer { from, to },
        });
        let ready = |&client: &usize| {
            let Client { next, open, stopped, .. } = &self.clients[client];
            open.is_none() && !stopped && *next < DEEDS[client].len()
        };
        flying.chain((0..2).filter(ready).map(Choice::Client)).chain([Choice::TimePasses]).collect()
    }

    fn take(&mut self, choice: Choice) {
        match choice {
            Choice::Request { from, to } => {
                let Some(InFlight::Request(bytes)) = self.links.remove(&(from, to)) else { panic!("not in flight") };
                self.event(to, Event::Batch(decode(&bytes).expect("it was sent")), &bytes);
                let now = self.now();
                let answer = self.cores[to].answer_batch(now, &self.addrs[from]);
                self.links.insert((from, to), InFlight::Answer(encode(&answer)));
                self.turn_end(to);
            }
            Choice::Answer { from, to } => {
                let Some(InFlight::Answer(bytes)) = self.links.remove(&(from, to)) else { panic!("not in flight") };
                self.awake[from].insert(to);
                self.event(from, Event::Batch(decode(&bytes).expect("it was sent")), &bytes);
                self.turn_end(from);
            }
            Choice::Client(client) => self.ask(client),
            Choice::TimePasses => {
                self.now_ms += PASSES_MS;
                for node in 0..NODES {
                    self.event(node, Event::Tick, b"tick");
                    self.turn_end(node);
                }
            }
        }
    }

    fn ask(&mut self, client: usize) {
        let deed = DEEDS[client][self.clients[client].next];
        let id = 100 * (client as u64 + 1) + self.clients[client].next as u64;
        let (node, op) = match deed {
            Deed::Put(node) => {
                self.history.push(Moment::Invoke { session: client, key: 0, write: id, delete: false });
                (node, Op::Put { key: "key".into(), value: id.to_string().into() })
            }
            Deed::Get(node) => (node, Op::Get { key: "key".into() }),
        };
        let tokens: Vec<String> = self.clients[client].token.iter().cloned().collect();
        self.clients[client].next += 1;
        self.clients[client].open = Some(id);
        let what = format!("{id} {tokens:?}");
        self.event(node, Event::Client { id, op, tokens, arrived_ms: self.now_ms }, what.as_bytes());
        self.turn_end(node);
    }

    fn answered(&mut self, id: u64, answer: Answer<String>) {
        let Some(session) = (0..2).find(|&client| self.clients[client].open == Some(id)) else { return };
        self.clients[session].open = None;
        let token = match answer {
            Answer::Found { value, context } => {
                let saw = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
                self.history.push(Moment::Read { session, key: 0, saw });
                context
            }
            Answer::NotFound { context, .. } => {
                self.history.push(Moment::Read { session, key: 0, saw: None });
                context
            }
            Answer::Created { context, .. } | Answer::Replaced { context, .. } => {
                self.history.push(Moment::Done { session, write: id });
                context
            }
            Answer::OutcomeUnknown => return self.clients[session].stopped = true,
            _ => {
                if matches!(DEEDS[session][self.clients[session].next - 1], Deed::Put(_)) {
                    self.history.push(Moment::Failed { write: id });
                }
                return;
            }
        };
        self.clients[session].token = Some(token);
    }

    /// Delivers everything in order and lets time pass, until it is so.
    fn settle(&mut self, limit_ms: u64, clients: bool, until: impl Fn(&Self) -> bool) -> bool {
        let end = self.now_ms + limit_ms;
        while !until(self) {
            let choices = self.choices();
            let next = choices.iter().find(|choice| match choice {
                Choice::Client(_) => clients,
                _ => true,
            });
            self.take(*next.expect("time always passes"));
            if self.now_ms > end {
                return false;
            }
        }
        true
    }

    fn epoch(&self, node: usize) -> u32 {
        self.cores[node].topology().map_or(0, |topology| topology.layout.epoch.0)
    }

    /// To the moment from which every order is tried.
    fn prepare(start: Start, mutant: Option<Mutant>) -> Self {
        let mut small = Self::new(mutant);
        assert!(small.settle(5_000, false, |small| (0..2).all(|node| small.cores[node].ready().is_ok())));
        let listed = |small: &Self| small.cores[0].topology().is_some_and(|topology| topology.nodes.len() == 3);
        assert!(small.settle(5_000, false, listed), "node 2 is in the view");
        assert!(small.settle(5_000, false, |small| small.cores[0].status().leader.is_some()), "a leader");
        let begun = small.now_ms;
        small.settle(2_000, false, |small| small.now_ms >= begun + 1_500);
        let addr = small.addrs[2].clone();
        small.event(0, Event::Admin { id: ADMIN, op: AdminOp::AddMember { shard: ShardId(1), addr } }, b"add");
        small.turn_end(0);
        let copying = |small: &Self| {
            let topology = small.cores[2].topology();
            topology.is_some_and(|topology| matches!(topology.transition, Transition::Copying { .. }))
        };
        assert!(small.settle(5_000, false, copying), "the change begins");
        assert!(!small.cores[2].has_copies(), "nothing is copied yet");
        if start == Start::Copied {
            assert!(small.settle(5_000, false, |small| small.cores[2].has_copies()), "the copy");
        }
        assert!((0..NODES).all(|node| small.epoch(node) == 1), "nobody has flipped");
        small
    }

    fn key(&self) -> u64 {
        let mut bytes = Vec::new();
        self.pasts.iter().for_each(|past| bytes.extend_from_slice(&past.to_le_bytes()));
        for (&(from, to), what) in &self.links {
            bytes.extend_from_slice(&[from as u8, to as u8, u8::from(matches!(what, InFlight::Request(_)))]);
        }
        xxh3_64_with_seed(&bytes, self.now_ms)
    }

    /// Lets everything end, and judges.
    fn verdict(mut self) -> Result<(), String> {
        let ended = |small: &Self| {
            let contents = |node: usize| small.cores[node].contents().expect("memory does not fail");
            let clients = small
                .clients
                .iter()
                .zip(DEEDS)
                .all(|(client, deeds)| client.stopped || (client.open.is_none() && client.next == deeds.len()));
            let steady = |node: usize| {
                let topology = small.cores[node].topology();
                small.epoch(node) == 2 && topology.is_some_and(|topology| topology.transition == Transition::Steady)
            };
            let alike = || contents(0) == contents(1) && contents(1) == contents(2);
            clients && (0..NODES).all(steady) && alike()
        };
        if !self.settle(20_000, true, ended) {
            return Err(format!("it does not end: {:?}", self.history));
        }
        let contents = self.cores[0].contents().expect("memory does not fail");
        let value = contents.first().and_then(|(_, version)| version.value.clone());
        let last = value.and_then(|value| std::str::from_utf8(&value).ok()?.parse().ok());
        judge(&self.history, &BTreeSet::new(), &BTreeMap::from([(0, last)]))
            .map_err(|why| format!("{why}: {:?}", self.history))
    }
}

#[derive(Default)]
struct Explored {
    /// Per state, how deep it was followed.
    states: HashMap<u64, usize>,
    paths: u64,
    /// Paths on which the layout has flipped at some node before their end.
    flipped: u64,
}

/// Depth-first. A path that was walked to its end costs one replay.
fn explore(start: Start, depth: usize, mutant: Option<Mutant>) -> Result<Explored, String> {
    let mut explored = Explored::default();
    let mut stack: Vec<Vec<Choice>> = vec![Vec::new()];
    while let Some(mut path) = stack.pop() {
        let mut small = Small::prepare(start, mutant);
        path.iter().for_each(|&choice| small.take(choice));
        loop {
            let left = depth - path.len();
            let known = explored.states.entry(small.key()).or_insert(usize::MAX);
            if *known != usize::MAX && *known >= left {
                break;
            }
            *known = left;
            if left == 0 {
                explored.paths += 1;
                explored.flipped += u64::from((0..NODES).any(|node| small.epoch(node) == 2));
                small.verdict().map_err(|why| format!("{why}\nafter {path:?}"))?;
                break;
            }
            let mut choices = small.choices().into_iter();
            let first = choices.next().expect("time always passes");
            stack.extend(choices.map(|choice| path.iter().copied().chain([choice]).collect()));
            small.take(first);
            path.push(first);
        }
    }
    Ok(explored)
}

fn depth(default: usize) -> usize {
    std::env::var("KV_DEPTH").ok().and_then(|depth| depth.parse().ok()).unwrap_or(default)
}

/// `KV_DEPTH=8` goes deeper.
fn every_order(start: Start, depth: usize) -> Explored {
    let begun = std::time::Instant::now();
    let explored = explore(start, depth, None).unwrap_or_else(|offence| panic!("{offence}"));
    println!(
        "{start:?}, depth {depth}: {} states, {} paths judged, {} of them after a flip, {:?}",
        explored.states.len(),
        explored.paths,
        explored.flipped,
        begun.elapsed()
    );
    assert!(explored.paths > 100, "{} paths are no exploration", explored.paths);
    explored
}

#[test]
fn every_order_while_a_third_node_copies() {
    every_order(Start::Copying, depth(4));
}

#[test]
fn every_order_around_the_flip() {
    let explored = every_order(Start::Copied, depth(5));
    assert!(explored.flipped > 0, "no path reaches the flip");
}

#[test]
fn an_order_that_shows_a_broken_mechanism_is_found() {
    for mutant in [Mutant::ReadUnchecked, Mutant::StampFromSelf, Mutant::UnknownIsRetired] {
        let found = explore(Start::Copied, 4, Some(mutant)).err();
        println!("{mutant:?}: {found:?}");
        assert!(found.is_some(), "{mutant:?} is not caught");
    }
}
