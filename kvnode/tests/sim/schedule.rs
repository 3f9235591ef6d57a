//! One simulated life of a cluster: clients that write, read, delete and hand contexts on, while things fail; then peace,
//! convergence, and judgement.

use std::collections::{BTreeMap, BTreeSet};

use kvnode::checker::{Moment, judge};
use kvnode::core::admin::AdminOp;
use kvnode::core::request::{Answer, Op};
use kvnode::core::room::Room;
use kvnode::core::settings::Mutant;
use kvnode::wire::ident::ShardId;

use crate::naive;
use crate::rng::Rng;
use crate::world::{JOINERS, Weather, World};

/// Nodes that form the cluster.
const FOUNDERS: usize = 6;
/// With those that join later.
const NODES: usize = FOUNDERS + JOINERS;
const KEYS: usize = 5;
const SESSIONS: usize = 8;
const OPERATIONS: u64 = 400;
/// Where the topology changes, runs are longer.
const CHANGING_OPERATIONS: u64 = 700;
/// Histories up to this length are also judged by the naive form of the rules.
const NAIVE_MAX: usize = 5_000;
/// An operation takes no longer on average, whatever happens.
const OPERATION_MS_MAX: u64 = 300;
/// How long a client pauses between two requests. Long enough for faults, and for becoming stable, between them.
const THINK_MS_MAX: u64 = 80;
/// The longest a healed cluster may take to serve and to be equal again: two seconds, and what a fill and a beat take.
const CONVERGENCE_MS: u64 = 6_000;
/// The same where a change of the topology has to be finished, a leader to be elected first, and a node to be given up.
const CHANGED_CONVERGENCE_MS: u64 = 15_000;

/// What a finished run tells.
pub struct Outcome {
    pub trace: u64,
    pub answered: u64,
    pub refused: u64,
    pub lost: usize,
    /// Layouts that came into force.
    pub layouts: u32,
}

/// What goes wrong in a run; derived from the seed.
#[derive(Debug)]
struct Faults {
    kills: bool,
    network: bool,
    power: bool,
    wipes: bool,
    small_log: bool,
    deletes: bool,
    /// The topology changes.
    changes: bool,
    /// Disks fill up, and have room again.
    disks: bool,
}

impl Faults {
    fn of(seed: u64) -> Self {
        let kind = seed % 5;
        Self {
            kills: kind >= 1,
            // Without a network that fails, too, more becomes stable, and what is stable is what must not be lost.
            network: kind == 2 || (kind >= 3 && (seed / 10).is_multiple_of(2)),
            power: kind >= 3,
            wipes: kind == 4,
            small_log: seed / 5 % 2 == 1,
            deletes: (seed / 20).is_multiple_of(2),
            changes: !seed.is_multiple_of(3),
            disks: seed % 7 == 3,
        }
    }
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
    world: World,
    faults: Faults,
    keys: Vec<String>,
    sessions: Vec<Session>,
    history: Vec<Moment>,
    asked: u64,
    answered: u64,
    refused: u64,
    next_fault_ms: u64,
    isolated_until_ms: Option<u64>,
    down_until: BTreeMap<usize, u64>,
    next_change_ms: u64,
    changes_asked: u64,
    /// Nodes whose removal was asked for while faults were about: what only they have may be lost.
    risky: BTreeSet<usize>,
}

/// Keys of both shards.
fn keys() -> Vec<String> {
    (0..KEYS).map(|index| format!("key-{index}")).collect()
}

/// Runs one seed. The error says what was violated.
pub fn run(seed: u64, mutant: Option<Mutant>) -> Result<Outcome, String> {
    let faults = Faults::of(seed);
    let log_weight_max = if faults.small_log { 2_000 } else { 1 << 20 };
    let mut world = World::new(seed, FOUNDERS, 2, log_weight_max, mutant);
    for node in 0..FOUNDERS {
        world.nodes[node].skew_ms = world.rng.between(0, 4_000) as i64 - 2_000;
        world.start(node);
    }
    if !world.run_until(5_000, World::all_ready) {
        return Err("the cluster did not form within 5 s".into());
    }
    let sessions = (0..SESSIONS).map(|fresh| Session { fresh, ..Session::default() }).collect();
    let mut run = Run {
        world,
        faults,
        keys: keys(),
        sessions,
        history: Vec::new(),
        asked: 0,
        answered: 0,
        refused: 0,
        next_fault_ms: 0,
        isolated_until_ms: None,
        down_until: BTreeMap::new(),
        next_change_ms: 0,
        changes_asked: 0,
        risky: BTreeSet::new(),
    };
    run.next_change_ms = run.world.now_ms + run.world.rng.between(100, 2_500);
    run.work();
    let healed = run.heal();
    if std::env::var_os("KV_SEED").is_some() {
        run.world.said.iter().for_each(|said| println!("{said}"));
    }
    healed?;
    run.verdict()
}

impl Run {
    fn rng(&mut self) -> &mut Rng {
        &mut self.world.rng
    }

    fn work(&mut self) {
        let usual = if self.faults.changes { CHANGING_OPERATIONS } else { OPERATIONS };
        let operations = crate::number("KV_OPERATIONS").unwrap_or(usual);
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
        for index in 0..SESSIONS {
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
            self.sessions[index].fresh += SESSIONS;
        } else if self.rng().percent(10) {
            let from = self.rng().below(SESSIONS as u64) as usize;
            // The context replaces the taker's own: from here on it is a new session that knows what the giver knew.
            self.sessions[index].token = self.sessions[from].token.clone();
            self.sessions[index].fresh += SESSIONS;
            let (from, to) = (self.sessions[from].fresh, self.sessions[index].fresh);
            self.history.push(Moment::Hand { from, to });
        }
    }

    fn ask_one(&mut self, index: usize) {
        self.asked += 1;
        let id = self.asked;
        let write = id + 1_000_000;
        let key = self.rng().below(KEYS as u64) as usize;
        let text: kvnode::wire::ident::Key = self.keys[key].as_str().into();
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
                self.world.deletes.insert(write, text.clone());
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
            let think = self.rng().between(0, THINK_MS_MAX);
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
            (Open::Get { key, .. }, Some(Answer::NotFound { context })) => {
                self.history.push(Moment::Read { session, key, saw: None });
                context
            }
            (Open::Delete { key, write, .. }, Some(Answer::NotFound { context })) => {
                self.history.push(Moment::Failed { write });
                self.world.deletes.remove(&write);
                self.history.push(Moment::Read { session, key, saw: None });
                context
            }
            (
                Open::Put { write, .. } | Open::Delete { write, .. },
                Some(
                    Answer::Created { context, .. }
                    | Answer::Replaced { context, .. }
                    | Answer::Deleted { context, .. },
                ),
            ) => {
                self.history.push(Moment::Done { session, write });
                self.world.deletes.remove(&write);
                context
            }
            // A node that dies, or a forward that is not answered: the write may or may not have happened.
            (_, None | Some(Answer::OutcomeUnknown)) => {
                self.refused += 1;
                return;
            }
            (Open::Put { write, .. } | Open::Delete { write, .. }, Some(_)) => {
                self.world.deletes.remove(&write);
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

    fn fail_something(&mut self) {
        let now = self.world.now_ms;
        let back: Vec<usize> = self.down_until.iter().filter(|&(_, &at)| at <= now).map(|(&node, _)| node).collect();
        for node in back {
            self.down_until.remove(&node);
            self.world.start(node);
        }
        if self.isolated_until_ms.is_some_and(|until| now >= until) {
            self.isolated_until_ms = None;
            self.world.weather.clear();
        }
        if now < self.next_fault_ms {
            return;
        }
        self.next_fault_ms = now + self.rng().between(20, 400);
        if self.faults.disks {
            let node = self.some_node();
            let room = [Room::Enough, Room::Enough, Room::Low, Room::None][self.rng().below(4) as usize];
            self.world.set_room(node, room);
        }
        if self.faults.network && self.rng().percent(60) {
            self.change_weather();
        } else if self.faults.kills && self.rng().percent(30) {
            self.take_down();
        }
    }

    /// Any node that was ever started.
    fn some_node(&mut self) -> usize {
        let started = (0..NODES).filter(|&node| self.world.is_started(node)).count() as u64;
        let nth = self.rng().below(started) as usize;
        (0..NODES).filter(|&node| self.world.is_started(node)).nth(nth).expect("counted")
    }

    /// What an operator might do at any time.
    fn change_something(&mut self) {
        let now = self.world.now_ms;
        if !self.faults.changes || now < self.next_change_ms {
            return;
        }
        self.next_change_ms = now + self.rng().between(100, 2_000);
        self.changes_asked += 1;
        let joiner = FOUNDERS + self.rng().below(JOINERS as u64) as usize;
        let op = match self.rng().below(10) {
            0..3 if !self.world.is_started(joiner) => {
                self.world.start(joiner);
                return;
            }
            0..5 => AdminOp::Reshard { count: self.rng().between(1, 3) as u32, epoch: None },
            5..7 => {
                let shard = ShardId(self.rng().between(1, 4) as u32);
                AdminOp::AddMember { shard, addr: self.world.nodes[joiner].addr.clone() }
            }
            7 => AdminOp::AddNode(self.world.nodes[joiner].addr.clone()),
            8 => AdminOp::Abort,
            _ => {
                let Some(node) = self.removable() else { return };
                let quiet = !self.faults.network && self.world.all_ready();
                if !quiet {
                    self.risky.insert(node);
                }
                AdminOp::RemoveNode(self.world.nodes[node].addr.clone())
            }
        };
        let node = self.some_node();
        if self.world.is_up(node) {
            self.world.admin(node, self.changes_asked, op);
        }
    }

    /// A node without which every shard keeps two replicas.
    fn removable(&mut self) -> Option<usize> {
        let shards = self.world.shards();
        let of_large = |shard: &Vec<usize>| shard.len() > 2;
        let all: Vec<usize> = shards.iter().filter(|shard| of_large(shard)).flatten().copied().collect();
        let nth = self.rng().below(all.len().max(1) as u64) as usize;
        all.get(nth).copied()
    }

    fn change_weather(&mut self) {
        match self.rng().below(6) {
            0 | 1 => self.world.weather.clear(),
            2 => self.cut_off_some(),
            3 => {
                let (from, to) = (self.rng().below(NODES as u64) as usize, self.rng().below(NODES as u64) as usize);
                self.world.weather.insert((from, to), Weather { cut: true, ..Weather::FAIR });
            }
            _ => {
                for _ in 0..4 {
                    let (from, to) = (self.rng().below(NODES as u64) as usize, self.rng().below(NODES as u64) as usize);
                    let slow = self.rng().between(20, 300);
                    let storm = Weather { delay_ms: (1, slow), loss_percent: 10, double_percent: 20, cut: false };
                    self.world.weather.insert((from, to), storm);
                }
            }
        }
    }

    /// Splits the nodes in two groups that don't hear each other.
    fn cut_off_some(&mut self) {
        let group: BTreeSet<usize> = (0..NODES).filter(|_| self.world.rng.percent(35)).collect();
        for from in 0..NODES {
            for to in 0..NODES {
                if group.contains(&from) != group.contains(&to) {
                    self.world.weather.insert((from, to), Weather { cut: true, ..Weather::FAIR });
                }
            }
        }
    }

    /// Cuts a node off from all others.
    fn isolate(&mut self, node: usize) {
        let cut = Weather { cut: true, ..Weather::FAIR };
        self.isolated_until_ms = Some(self.world.now_ms + self.world.rng.between(500, 2_500));
        for other in (0..NODES).filter(|&other| other != node) {
            self.world.weather.insert((node, other), cut);
            self.world.weather.insert((other, node), cut);
        }
    }

    fn take_down(&mut self) {
        let node = self.some_node();
        if !self.world.is_up(node) {
            return;
        }
        let how = self.rng().below(3);
        if self.faults.changes && self.faults.wipes && how == 0 {
            // Where shards have two replicas, and data is under way, one at a time is all that must be survived.
            if !self.world.all_ready() {
                return;
            }
            self.world.wipe(node);
        } else if self.faults.wipes && how == 0 && self.cluster_is_known_beyond(node) {
            self.world.wipe(node);
            // Now and then a whole shard loses everything together.
            if self.rng().percent(15) {
                let shard = node / 3 * 3;
                for other in (shard..shard + 3).filter(|&other| other != node) {
                    self.world.wipe(other);
                    self.down_for_a_while(other);
                }
            }
        } else if self.faults.power && how == 1 {
            self.world.lose_power(node);
            // What it lost matters most to clients that reach it before its peers do.
            if self.rng().percent(50) {
                self.isolate(node);
                let back = self.world.now_ms + self.rng().between(1, 60);
                self.down_until.insert(node, back);
                return;
            }
        } else {
            self.world.kill(node);
        }
        self.down_for_a_while(node);
    }

    /// Whether a node of the other shard runs and knows the cluster. If all nodes lost everything, a new one would form, by
    /// right.
    fn cluster_is_known_beyond(&self, node: usize) -> bool {
        let knows = |other: &usize| self.world.core(*other).is_some_and(|core| core.shard_ids().is_ok());
        (0..NODES).filter(|other| other / 3 != node / 3).any(|other| knows(&other))
    }

    fn down_for_a_while(&mut self, node: usize) {
        let until = self.world.now_ms + self.rng().between(1, 1_500);
        self.down_until.insert(node, until);
    }

    /// Everything works again: everybody must serve, and replicas must become equal.
    fn heal(&mut self) -> Result<(), String> {
        self.world.weather.clear();
        (0..NODES).for_each(|node| self.world.set_room(node, Room::Enough));
        for node in 0..NODES {
            if self.world.is_started(node) && !self.world.is_up(node) {
                self.world.start(node);
            }
        }
        let limit = if self.faults.changes { CHANGED_CONVERGENCE_MS } else { CONVERGENCE_MS };
        let quiet = |world: &World| world.all_ready() && !world.decisions_are_due() && unequal(world).is_none();
        if self.world.run_until(limit, quiet) {
            for node in std::mem::take(&mut self.risky) {
                self.world.given_up(node);
            }
            return Ok(());
        }
        for node in std::mem::take(&mut self.risky) {
            self.world.given_up(node);
        }
        let waits: Vec<String> = (0..NODES)
            .filter_map(|node| self.world.core(node)?.ready().err().map(|why| format!("{node}: {why}")))
            .collect();
        let change = self.world.topology().map(|topology| format!("{:?}", topology.transition));
        let waits_for: Vec<_> =
            (0..NODES).filter_map(|node| self.world.core(node)?.change().ok()).map(|c| c.waiting_for).collect();
        Err(format!(
            "not converged {limit} ms after all faults ended: {waits:?} {:?} {change:?} {waits_for:?}",
            unequal(&self.world)
        ))
    }

    fn verdict(mut self) -> Result<Outcome, String> {
        let last = self.final_state()?;
        let verdict = judge(&self.history, &self.world.lost, &last);
        if self.history.len() <= NAIVE_MAX {
            let naive = naive::judge(&self.history, &self.world.lost, &last);
            assert_eq!(verdict.is_ok(), naive.is_ok(), "the checkers disagree: {verdict:?}, {naive:?}");
        }
        verdict?;
        self.quiet_contexts_are_nearly_empty()?;
        Ok(Outcome {
            trace: self.world.trace,
            answered: self.answered,
            refused: self.refused,
            lost: self.world.lost.len(),
            layouts: self.world.topology().map_or(0, |topology| topology.layout.epoch.0),
        })
    }

    /// What every key holds at the replicas of its shard.
    fn final_state(&self) -> Result<BTreeMap<usize, Option<u64>>, String> {
        let mut last: BTreeMap<usize, Option<u64>> = (0..KEYS).map(|key| (key, None)).collect();
        for shard in self.world.shards() {
            let node = shard[0];
            let contents = self.world.core(node).expect("all run").contents().map_err(|error| error.to_string())?;
            for (key, version) in contents {
                let index = self.keys.iter().position(|known| **known == *key).ok_or("a key that nobody wrote")?;
                let value = version.value.as_deref().and_then(|v| std::str::from_utf8(v).ok()?.parse().ok());
                last.insert(index, value);
            }
        }
        Ok(last)
    }

    /// P8: once all is quiet, a context that goes round comes back with nothing in it.
    fn quiet_contexts_are_nearly_empty(&mut self) -> Result<(), String> {
        self.world.run_until(3_000, |_| false);
        let mut token = self.sessions.iter().find_map(|session| session.token.clone());
        let keys = self.keys.clone();
        for (round, key) in keys.iter().enumerate() {
            let id = 10_000_000 + round as u64;
            let members = self.world.members();
            let node = members[round % members.len()];
            self.world.request(node, id, Op::Get { key: key.as_str().into() }, token.iter().cloned().collect());
            self.world.run_until(3_000, |world| world.answers.iter().any(|(answered, _)| *answered == id));
            token = match self.world.answers.pop() {
                Some((_, Some(Answer::Found { context, .. } | Answer::NotFound { context }))) => Some(context),
                other => return Err(format!("a healed cluster answers {other:?} with an old context")),
            };
        }
        let length = token.map_or(0, |token| token.len());
        if length > 24 {
            let held_back: Vec<_> = (0..NODES)
                .filter_map(|node| {
                    let status = self.world.core(node)?.status();
                    Some((node, status.shard, status.stable_held_back_by, status.vector_entries, status.life))
                })
                .collect();
            return Err(format!("a context is {length} characters long in a quiet cluster: {held_back:?}"));
        }
        Ok(())
    }
}

/// The first two replicas of one shard that differ.
fn unequal(world: &World) -> Option<String> {
    for shard in world.shards() {
        let contents: Vec<_> =
            shard.iter().map(|&node| world.core(node).and_then(|core| core.contents().ok())).collect();
        for pair in contents.windows(2) {
            if pair[0] != pair[1] {
                return Some(format!("{:?} differs from {:?}", pair[0], pair[1]));
            }
        }
    }
    None
}
