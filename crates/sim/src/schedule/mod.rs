//! One simulated life of a cluster: clients that write, read, delete and hand contexts on, while things fail; then peace,
//! convergence, and judgement.

mod faults;
mod peace;

use std::collections::BTreeMap;

use kvnode_checker::Moment;
use kvnode_core::request::{Answer, Op};
use kvnode_core::settings::Mutant;
use kvnode_types::ident::Dot;

use crate::rng::Rng;
use crate::world::{JOINERS, World};
use faults::Faults;
use peace::Converged;

/// Nodes that form the cluster.
const FOUNDERS: usize = 6;
/// With those that join later.
const NODES: usize = FOUNDERS + JOINERS;
/// An operation takes no longer on average, whatever happens.
const OPERATION_MS_MAX: u64 = 300;

/// What clients do in a run.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub operations: u64,
    sessions: usize,
    keys: usize,
    /// How long a client pauses between two requests, at most.
    think_ms_max: u64,
}

impl Load {
    /// Few keys, so that writes meet; pauses that are long enough for faults, and for becoming stable, between two requests.
    fn usual(faults: &Faults) -> Self {
        // Where the topology changes, runs are longer.
        Self { operations: if faults.changes { 700 } else { 400 }, sessions: 8, keys: 5, think_ms_max: 80 }
    }

    /// A long history: more clients that pause less, so that more operations meet every fault.
    pub fn dense(operations: u64) -> Self {
        Self { operations, sessions: 24, keys: 12, think_ms_max: 30 }
    }
}

/// What a finished run tells.
pub struct Outcome {
    pub answered: u64,
    pub refused: u64,
    pub lost: usize,
    /// Reads of "no such key" of which it is known which deletion they saw.
    pub absences: u64,
    /// Layouts that came into force.
    pub layouts: u32,
}

#[derive(Default)]
struct Session {
    token: Option<String>,
    open: Option<Open>,
    wait_until_ms: u64,
    fresh: usize,
}

#[derive(Clone, Copy)]
enum Open {
    Put { id: u64, write: u64 },
    Delete { id: u64, write: u64, key: usize },
    Get { id: u64, key: usize },
}

impl Open {
    fn id(self) -> u64 {
        match self {
            Self::Put { id, .. } | Self::Delete { id, .. } | Self::Get { id, .. } => id,
        }
    }
}

struct Run {
    load: Load,
    world: World,
    faults: Faults,
    keys: Vec<String>,
    sessions: Vec<Session>,
    history: Vec<Moment>,
    /// Acknowledged deletions and their tombstones. Those of unknown fate never told theirs.
    deletions: Vec<(Dot, u64)>,
    /// Where in the history a tombstone was read. Whose it is may be known only later.
    absences: Vec<(usize, Dot)>,
    asked: u64,
    answered: u64,
    refused: u64,
    next_fault_ms: u64,
    isolated_until_ms: Option<u64>,
    down_until: BTreeMap<usize, u64>,
    next_change_ms: u64,
    changes_asked: u64,
}

/// The run for liveness: faults, then how long it took until all was well again. Nothing else is judged.
pub fn converge(seed: u64, mutant: Option<Mutant>) -> Result<Converged, String> {
    // Faults matter here, not long histories.
    let load = Load { operations: 150, ..Load::usual(&Faults::of(seed)) };
    lead(seed, load, mutant).1
}

/// Runs one seed for safety; `load`: another than the usual. The digest tells what the run did, whatever came of it. The error says what
/// was violated.
pub fn run(seed: u64, load: Option<Load>, mutant: Option<Mutant>) -> (u64, Result<Outcome, String>) {
    let load = load.unwrap_or_else(|| Load::usual(&Faults::of(seed)));
    let (mut run, converged) = lead(seed, load, mutant);
    let verdict = converged.and_then(|_| run.verdict());
    (run.world.digest.value(), verdict)
}

/// The life of a cluster up to the end of all faults, and until all is well.
fn lead(seed: u64, load: Load, mutant: Option<Mutant>) -> (Run, Result<Converged, String>) {
    let faults = Faults::of(seed);
    let log_weight_max = if faults.small_log { 2_000 } else { 1 << 20 };
    let mut world = World::new(seed, FOUNDERS, 2, log_weight_max, mutant);
    for node in 0..FOUNDERS {
        world.nodes[node].skew_ms = world.rng.between(0, 4_000) as i64 - 2_000;
        world.start(node);
    }
    let formed = world.run_until(5_000, World::all_ready);
    let sessions = (0..load.sessions).map(|fresh| Session { fresh, ..Session::default() }).collect();
    let mut run = Run {
        load,
        world,
        faults,
        // Keys of both shards.
        keys: (0..load.keys).map(|index| format!("key-{index}")).collect(),
        sessions,
        history: Vec::new(),
        deletions: Vec::new(),
        absences: Vec::new(),
        asked: 0,
        answered: 0,
        refused: 0,
        next_fault_ms: 0,
        isolated_until_ms: None,
        down_until: BTreeMap::new(),
        next_change_ms: 0,
        changes_asked: 0,
    };
    if !formed {
        return (run, Err("the cluster did not form within 5 s".into()));
    }
    run.next_change_ms = run.world.now_ms + run.world.rng.between(100, 2_500);
    run.work();
    let healed = run.heal();
    if std::env::var_os("KV_SEED").is_some() {
        run.world.said.iter().for_each(|said| println!("{said}"));
    }
    (run, healed)
}

impl Run {
    fn rng(&mut self) -> &mut Rng {
        &mut self.world.rng
    }

    fn work(&mut self) {
        let operations = self.load.operations;
        let deadline = self.world.now_ms + OPERATION_MS_MAX * operations;
        while (self.asked < operations || self.sessions.iter().any(|s| s.open.is_some()))
            && self.world.now_ms < deadline
        {
            if self.asked < operations {
                self.ask();
            }
            self.fail_something();
            self.change_something();
            let until = self.world.now_ms + 5;
            while self.world.step(until) {}
            self.take_answers();
        }
    }

    fn ask(&mut self) {
        for index in 0..self.load.sessions {
            let session = &self.sessions[index];
            if session.open.is_some() || self.world.now_ms < session.wait_until_ms {
                continue;
            }
            self.change_context(index);
            self.ask_one(index);
        }
    }

    /// Fresh clients, and contexts handed from one client to another.
    fn change_context(&mut self, index: usize) {
        if self.rng().percent(5) {
            self.sessions[index].token = None;
            self.sessions[index].fresh += self.load.sessions;
        } else if self.rng().percent(10) {
            let from = self.world.rng.below(self.load.sessions as u64) as usize;
            // The context replaces the taker's own: from here on it is a new session that knows what the giver knew.
            self.sessions[index].token = self.sessions[from].token.clone();
            self.sessions[index].fresh += self.load.sessions;
            let (from, to) = (self.sessions[from].fresh, self.sessions[index].fresh);
            self.history.push(Moment::Hand { from, to });
        }
    }

    fn ask_one(&mut self, index: usize) {
        self.asked += 1;
        let id = self.asked;
        let write = id + 1_000_000;
        let key = self.world.rng.below(self.load.keys as u64) as usize;
        let text: kvnode_types::ident::Key = self.keys[key].as_str().into();
        let session = self.sessions[index].fresh;
        let (op, open) = match self.rng().below(100) {
            // Without deletions "no such key" has no excuse.
            0..45 => (Op::Get { key: text }, Open::Get { id, key }),
            random if random < 90 || !self.faults.deletes => {
                self.history.push(Moment::Invoke { session, key, write, delete: false });
                (Op::Put { key: text, value: write.to_string().into() }, Open::Put { id, write })
            }
            _ => {
                self.history.push(Moment::Invoke { session, key, write, delete: true });
                self.world.losses.deletes.insert(write, text.clone());
                (Op::Delete { key: text }, Open::Delete { id, write, key })
            }
        };
        let node = self.some_node();
        let tokens = self.sessions[index].token.iter().cloned().collect();
        self.world.request(node, id, op, tokens);
        self.sessions[index].open = Some(open);
    }

    fn take_answers(&mut self) {
        for (id, answer) in std::mem::take(&mut self.world.answers) {
            let session = self.sessions.iter().position(|s| s.open.is_some_and(|open| open.id() == id));
            let Some(index) = session else { continue };
            let open = self.sessions[index].open.take().expect("found by it");
            let think = self.world.rng.between(0, self.load.think_ms_max);
            self.sessions[index].wait_until_ms = self.world.now_ms + think;
            self.take_answer(index, open, answer);
        }
    }

    fn take_answer(&mut self, index: usize, open: Open, answer: Option<Answer<String>>) {
        let session = self.sessions[index].fresh;
        let token = match (open, answer) {
            (Open::Get { key, .. }, Some(Answer::Found { value, context })) => {
                let saw = std::str::from_utf8(&value).ok().and_then(|text| text.parse().ok());
                self.history.push(Moment::Read { session, key, saw });
                context
            }
            (Open::Get { key, .. }, Some(Answer::NotFound { context, tombstone })) => {
                self.read_nothing(session, key, tombstone);
                context
            }
            (Open::Delete { key, write, .. }, Some(Answer::NotFound { context, tombstone })) => {
                self.history.push(Moment::Failed { write });
                self.world.losses.deletes.remove(&write);
                self.read_nothing(session, key, tombstone);
                context
            }
            (Open::Put { write, .. }, Some(Answer::Created { context, .. } | Answer::Replaced { context, .. })) => {
                self.history.push(Moment::Done { session, write });
                context
            }
            (Open::Delete { write, .. }, Some(Answer::Deleted { context, tombstone, .. })) => {
                self.history.push(Moment::Done { session, write });
                self.deletions.push((tombstone, write));
                self.world.losses.deletes.remove(&write);
                context
            }
            // A node that dies, or a forward that is not answered: the write may or may not have happened.
            (_, None | Some(Answer::OutcomeUnknown)) => {
                self.refused += 1;
                return;
            }
            (Open::Put { write, .. } | Open::Delete { write, .. }, Some(_)) => {
                self.world.losses.deletes.remove(&write);
                self.history.push(Moment::Failed { write });
                self.refused += 1;
                return;
            }
            (Open::Get { .. }, Some(_)) => {
                self.refused += 1;
                return;
            }
        };
        self.answered += 1;
        self.sessions[index].token = Some(token);
    }

    fn read_nothing(&mut self, session: usize, key: usize, tombstone: Option<Dot>) {
        self.absences.extend(tombstone.map(|dot| (self.history.len(), dot)));
        self.history.push(Moment::Read { session, key, saw: None });
    }

    /// Puts into the history which deletions were seen, and gives all that told their tombstones.
    fn name_deletions(&mut self) -> Result<BTreeMap<Dot, u64>, String> {
        let mut named = BTreeMap::new();
        for &(dot, write) in &self.deletions {
            if let Some(other) = named.insert(dot, write) {
                return Err(format!("{other} and {write} are both the deletion {dot}"));
            }
        }
        for (at, dot) in &self.absences {
            if let Moment::Read { saw, .. } = &mut self.history[*at] {
                *saw = named.get(dot).copied();
            }
        }
        Ok(named)
    }
}
