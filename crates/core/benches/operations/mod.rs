//! What the benches measure: the protocol core's operations, each as something that can be done again and again.

use kvnode_core::loss::Past;
use kvnode_core::messages::{Batch, decode, encode};
use kvnode_core::request::{Answer, Op};
use kvnode_core::settings::Settings;
use kvnode_core::store::memory::MemoryStore;
use kvnode_core::token::Seal;
use kvnode_core::topology::{Layout, plan};
use kvnode_core::{Core, Effect, Event, Now};
use kvnode_types::causal::{Context, Vector};
use kvnode_types::ident::{Addr, Dot, Epoch, Incarnation, Key, NodeId, Origin};

pub const NAMES: [&str; 8] = [
    "get",
    "put at a majority",
    "put at all three",
    "merge two contexts",
    "encode a token",
    "decode a token",
    "encode and decode a batch of 16 writes",
    "plan 101 shards for 1,000 nodes",
];

const KEYS: usize = 1_000;
const VALUE: &str =
    "\"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn\"";

/// The operation of that name, ready to be done.
///
/// # Panics
/// If there is no such operation.
pub fn operation(name: &str) -> Box<dyn FnMut()> {
    match name {
        "get" => {
            let mut shard = Shard::new();
            Box::new(move || shard.get())
        }
        "put at a majority" => {
            let mut shard = Shard::new();
            Box::new(move || shard.put(&[1]))
        }
        "put at all three" => {
            let mut shard = Shard::new();
            Box::new(move || shard.put(&[1, 2]))
        }
        "merge two contexts" => {
            let (one, other) = (context(0), context(3));
            Box::new(move || {
                let mut both = one.clone();
                both.merge(&other);
                std::hint::black_box(both);
            })
        }
        "encode a token" => {
            let (seal, context) = (Seal::new(&[7; 32]), context(0));
            Box::new(move || drop(std::hint::black_box(seal.encode(&context))))
        }
        "decode a token" => {
            let seal = Seal::new(&[7; 32]);
            let text = seal.encode(&context(0));
            Box::new(move || drop(std::hint::black_box(seal.decode(&text)).expect("it is ours")))
        }
        "encode and decode a batch of 16 writes" => {
            let batch = Shard::new().batch_of_writes(16);
            Box::new(move || {
                let bytes = encode(&batch);
                let read: Batch = decode(&bytes).expect("it was encoded");
                std::hint::black_box(read);
            })
        }
        "plan 101 shards for 1,000 nodes" => {
            let nodes: Vec<NodeId> = (1..=1_000).map(NodeId).collect();
            let before = Layout::first(&nodes, 100);
            Box::new(move || {
                let after = plan::reshard(&before, &[], &Default::default(), 101, 101);
                drop(std::hint::black_box(after).expect("there are nodes enough"));
            })
        }
        _ => panic!("no operation '{name}'"),
    }
}

fn origin(node: u32) -> Origin {
    Origin { node: NodeId(node), epoch: Epoch(1), incarnation: Incarnation(1_900_000_000_000 + u64::from(node)) }
}

/// Six entries, as under load in a cluster of two shards of three.
fn context(first: u32) -> Context {
    let mut seen = Vector::new();
    (first..first + 6).for_each(|node| seen.raise(origin(node + 1), 1_000 + u64::from(node)));
    debug_assert!(seen.covers(Dot { origin: origin(first + 1), seq: 1 }));
    Context { epoch: Epoch(1), seen }
}

/// One shard of three replicas whose links are function calls.
struct Shard {
    cores: Vec<Core>,
    addrs: Vec<Addr>,
    keys: Vec<Key>,
    now: Now,
    asked: u64,
    context: Option<String>,
}

impl Shard {
    fn new() -> Self {
        let addrs: Vec<Addr> = (2..5).map(|n| format!("10.10.0.{n}:8090").parse().expect("an address")).collect();
        let now = Now { mono_ms: 1, wall_ms: 1_900_000_000_000 };
        let start = |(index, me): (usize, &Addr)| {
            let settings = Settings {
                me: me.clone(),
                view: addrs.clone(),
                form_without: Vec::new(),
                shard_count: 1,
                life: Incarnation(now.wall_ms),
                entropy: [index as u8; 48],
                causal_wait_ms: 1_000,
                ack_wait_ms: 500,
                waiting_max: 1_000,
                forwards_max: 1_000,
                peer_queue_weight_max: 1 << 20,
                log_weight_max: 1 << 20,
                durable_at_commit: true,
                past: Past::InStore,
                mutant: None,
            };
            Core::start(settings, Box::new(MemoryStore::new()), now).expect("memory does not fail")
        };
        let cores = addrs.iter().enumerate().map(start).collect();
        let keys = (0..KEYS).map(|number| Key::from(format!("key-{number:012}").as_str())).collect();
        let mut shard = Self { cores, addrs, keys, now, asked: 0, context: None };
        while !shard.cores.iter().all(|core| core.ready().is_ok()) {
            shard.pass_time();
            assert!(shard.now.mono_ms < 60_000, "three nodes form a cluster");
        }
        // Everybody has told everybody what it has, before the keys are written and after.
        (0..40).for_each(|_| shard.pass_time());
        (0..KEYS).for_each(|_| shard.put(&[1, 2]));
        (0..40).for_each(|_| shard.pass_time());
        shard
    }

    fn pass_time(&mut self) {
        self.now.mono_ms += 25;
        self.now.wall_ms += 25;
        for at in 0..3 {
            self.handle(at, Event::Tick);
        }
        for from in 0..3 {
            (0..3).filter(|&to| to != from).for_each(|to| self.exchange(from, to));
        }
    }

    fn handle(&mut self, at: usize, event: Event) -> Vec<Effect> {
        self.cores[at].handle(self.now, event).expect("memory does not fail");
        self.cores[at].commit().expect("memory does not fail");
        self.cores[at].take_effects()
    }

    /// A batch and its answer, if there is anything to say.
    fn exchange(&mut self, from: usize, to: usize) {
        let Some(batch) = self.cores[from].next_batch(self.now, &self.addrs[to]) else { return };
        self.handle(to, Event::Batch(batch));
        let answer = self.cores[to].answer_batch(self.now, &self.addrs[from]);
        self.handle(from, Event::Batch(answer));
    }

    fn key(&self) -> Key {
        self.keys[self.asked as usize * 7 % KEYS].clone()
    }

    fn ask(&mut self, op: Op) -> Vec<Effect> {
        self.asked += 1;
        let tokens = self.context.iter().cloned().collect();
        self.handle(0, Event::Client { id: self.asked, op, tokens, arrived_ms: self.now.mono_ms })
    }

    fn get(&mut self) {
        let op = Op::Get { key: self.key() };
        let effects = self.ask(op);
        let [Effect::Reply { answer: Answer::Found { context, .. }, .. }] = &effects[..] else {
            panic!("a read is answered at once: {effects:?}");
        };
        self.context = Some(context.clone());
    }

    /// A write that goes to these others, and is answered then.
    fn put(&mut self, others: &[usize]) {
        let op = Op::Put { key: self.key(), value: VALUE.into() };
        self.ask(op);
        // The answer comes with the first copy.
        for &to in others {
            let batch = self.cores[0].next_batch(self.now, &self.addrs[to]).unwrap_or_else(|| {
                // The third replica's copy lingers.
                self.now.mono_ms += 3;
                self.handle(0, Event::Tick);
                self.cores[0].next_batch(self.now, &self.addrs[to]).expect("it has lingered long enough")
            });
            self.handle(to, Event::Batch(batch));
            let answer = self.cores[to].answer_batch(self.now, &self.addrs[0]);
            for effect in self.handle(0, Event::Batch(answer)) {
                let Effect::Reply { answer, .. } = effect else { continue };
                if let Answer::Created { context, .. } | Answer::Replaced { context, .. } = answer {
                    self.context = Some(context);
                }
            }
        }
        assert!(self.context.is_some(), "a write is answered once another replica has it");
    }

    fn batch_of_writes(&mut self, count: usize) -> Batch {
        for _ in 0..count {
            let op = Op::Put { key: self.key(), value: VALUE.into() };
            self.ask(op);
        }
        self.cores[0].next_batch(self.now, &self.addrs[1]).expect("there are writes for it")
    }
}
