//! Makes the planned faults happen, and undoes them.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kvnode_client::{Answer, Client, Session};
use reqwest::Method;
use serde_json::{Value, json};

use super::fault::Kind;
use super::history::{Happened, Recorder};
use super::rng::Rng;
use super::schedule::{Deed, Planned};
use super::workload::Target;
use crate::cluster::NodeSpec;
use crate::error::{Code, Failure, Result};
use crate::goal::Goal;
use crate::interrupt::Interrupt;
use crate::observe::Observer;
use crate::render::Progress;
use crate::runtime::{NodeAction, NodeState, Runtime};
use crate::state::Record;

/// Faults inside nodes end by themselves after this, should this process end before it has healed them.
const FOR_MS: u64 = 120_000;
/// How long a node gets to take a request about faults. One that is frozen takes none.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a node that was started gets until it serves.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// How long a wipe waits until all replicas are equal, so that it takes no only copy.
const EQUAL_WITHIN: Duration = Duration::from_secs(10);
/// How long a number of shards that is to be restored is asked for at least.
const RESTORE_WITHIN: Duration = Duration::from_secs(30);
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A fault that goes on.
struct Active {
    deed: Deed,
    until_ms: f64,
    record: Happened,
    /// Of one inside the nodes: whether any of them has taken it; and what the last one that did not says.
    is_taken: bool,
    refusal: Option<String>,
}

pub struct Injector<'a> {
    pub record: &'a Record,
    pub runtime: &'a Runtime,
    pub nodes: &'a [NodeSpec],
    pub targets: &'a [Target],
    pub recorder: &'a RefCell<Recorder>,
    pub interrupt: &'a Interrupt,
    pub progress: &'a Progress,
    rng: Rng,
    active: Vec<Active>,
    /// Shards that there are meant to be in the end.
    shards: u32,
    /// Whether faults were asked of the nodes themselves.
    inside: bool,
    /// Nodes that are down because of a fault.
    down: BTreeSet<usize>,
    /// What nobody had injected.
    troubles: Vec<String>,
}

/// PUT or DELETE /drill at a node.
async fn ask(client: &Client, method: Method, body: Option<&Value>) -> std::result::Result<Answer, String> {
    let body = body.map(Value::to_string);
    let mut session = Session::default();
    let request = client.request(method, "/drill", body, &mut session);
    match tokio::time::timeout(ASK_TIMEOUT, request).await {
        Ok(Ok(answer)) if answer.is_success() => Ok(answer),
        Ok(Ok(answer)) => Err(answer.error()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {ASK_TIMEOUT:?}")),
    }
}

/// Whether a node lets faults be injected, and a full disk among them.
///
/// # Errors
/// Why not.
pub async fn probe(target: &Target, disk: bool) -> std::result::Result<(), String> {
    ask(&target.client, Method::GET, None).await?;
    if disk {
        ask(&target.client, Method::PUT, Some(&json!({ "store-bytes-max": 1_u64 << 50, "for-ms": 1_000 }))).await?;
        ask(&target.client, Method::DELETE, None).await?;
    }
    Ok(())
}

impl<'a> Injector<'a> {
    #[expect(clippy::too_many_arguments, reason = "it sees all of the drill")]
    pub fn new(
        record: &'a Record,
        runtime: &'a Runtime,
        nodes: &'a [NodeSpec],
        targets: &'a [Target],
        recorder: &'a RefCell<Recorder>,
        interrupt: &'a Interrupt,
        progress: &'a Progress,
        seed: u64,
        shards: u32,
    ) -> Self {
        let (rng, active) = (Rng::new(seed), Vec::new());
        let (down, troubles) = (BTreeSet::new(), Vec::new());
        Self {
            record,
            runtime,
            nodes,
            targets,
            recorder,
            interrupt,
            progress,
            rng,
            active,
            shards,
            inside: false,
            down,
            troubles,
        }
    }

    fn now_ms(&self) -> f64 {
        self.recorder.borrow().now_ms()
    }

    fn say(&self, text: &str) {
        self.progress.step(&format!("{:6.1} s  {text}", self.now_ms() / 1_000.0));
    }

    /// Waits until a time of the drill.
    async fn sleep_until(&self, at_ms: f64) -> Result<()> {
        let wait = Duration::from_secs_f64(((at_ms - self.now_ms()) / 1_000.0).max(0.0));
        self.interrupt
            .or(async {
                tokio::time::sleep(wait).await;
                Ok(())
            })
            .await
    }

    /// Carries out a plan, and goes on until at least `duration_ms`. What goes wrong with a fault is noted with it.
    ///
    /// # Errors
    /// If interrupted; faults may go on then.
    pub async fn run(&mut self, plan: &[Planned], duration_ms: u64) -> Result<()> {
        // What took longer than planned puts off the rest.
        let mut late_ms = 0.0;
        for planned in plan {
            let from_ms = planned.from_ms as f64 + late_ms;
            self.heal_until(from_ms).await?;
            self.sleep_until(from_ms).await?;
            let lasts_ms = (planned.to_ms - planned.from_ms) as f64;
            if planned.deed.kind() == Kind::Wipe {
                self.heal_until(f64::INFINITY).await?;
                self.wipe(&planned.deed).await?;
                late_ms += (self.now_ms() - from_ms - late_ms - lasts_ms).max(0.0);
            } else {
                self.begin(&planned.deed, lasts_ms).await;
            }
        }
        self.heal_until(f64::INFINITY).await?;
        self.sleep_until(duration_ms as f64).await
    }

    /// Ends, each in its time, the faults that are to end before `at_ms`.
    async fn heal_until(&mut self, at_ms: f64) -> Result<()> {
        loop {
            let next =
                (0..self.active.len()).min_by(|&a, &b| self.active[a].until_ms.total_cmp(&self.active[b].until_ms));
            let Some(next) = next.filter(|&next| self.active[next].until_ms <= at_ms) else { return Ok(()) };
            self.sleep_until(self.active[next].until_ms).await?;
            let active = self.active.remove(next);
            self.undo(active).await;
        }
    }

    fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    fn happens(&self, deed: &Deed) -> Happened {
        let names = self.names();
        let what = deed.describe(&names);
        self.say(&format!("{} {what}", deed.kind()));
        let nodes = deed.nodes().into_iter().map(|node| names[node].clone()).collect();
        let from_ms = self.now_ms();
        Happened { fault: deed.kind(), nodes, what, from_ms, to_ms: from_ms, problem: None, equal_ms: None }
    }

    async fn begin(&mut self, deed: &Deed, lasts_ms: f64) {
        let mut record = self.happens(deed);
        let until_ms = record.from_ms + lasts_ms;
        let deed = deed.clone();
        let done = match &deed {
            Deed::Kill(nodes) => self.act(nodes, NodeAction::Kill).await,
            Deed::Pause(nodes) => self.act(nodes, NodeAction::Pause).await,
            Deed::Reshard(count) => self.reshard(*count).await,
            _ => Ok(()),
        };
        record.problem = done.err();
        self.active.push(Active { deed, until_ms, record, is_taken: false, refusal: None });
        self.apply().await;
    }

    async fn undo(&mut self, active: Active) {
        let Active { deed, mut record, is_taken, refusal, .. } = active;
        if deed.kind().is_inside() && !is_taken {
            let why = refusal.unwrap_or_else(|| "no node was asked".to_owned());
            record.problem.get_or_insert(format!("it did not take effect: {why}"));
        }
        self.say(&format!("healed: {} {}", record.fault, record.what));
        let mut back = Vec::new();
        let done = match &deed {
            Deed::Kill(nodes) => {
                back.clone_from(nodes);
                self.act(nodes, NodeAction::Start).await
            }
            Deed::Pause(nodes) => self.act(nodes, NodeAction::Unpause).await,
            Deed::Reshard(_) => self.change_is_over().await,
            _ => Ok(()),
        };
        for &node in &back {
            self.answers(node).await;
        }
        self.apply().await;
        record.problem = record.problem.or(done.err());
        record.to_ms = self.now_ms();
        self.recorder.borrow_mut().fault(record);
    }

    /// Does this to nodes; another fault may have done it already.
    async fn act(&mut self, nodes: &[usize], action: NodeAction) -> std::result::Result<(), String> {
        for &index in nodes {
            let node = &self.nodes[index];
            let state = self.runtime.state(node).await.map_err(|failure| failure.message)?;
            self.note_end(index, state);
            let fits = match action {
                NodeAction::Kill => state != NodeState::Stopped && state != NodeState::Missing,
                NodeAction::Pause => state == NodeState::Running,
                NodeAction::Unpause => state == NodeState::Paused,
                NodeAction::Start | NodeAction::Stop => state == NodeState::Stopped || state == NodeState::Missing,
            };
            if fits {
                self.runtime.act(node, action).await.map_err(|failure| failure.message)?;
            }
            match action {
                NodeAction::Kill | NodeAction::Stop => drop(self.down.insert(index)),
                NodeAction::Start => drop(self.down.remove(&index)),
                NodeAction::Pause | NodeAction::Unpause => {}
            }
        }
        Ok(())
    }

    /// A node that is down, and that no fault has taken down, has ended by itself.
    fn note_end(&mut self, index: usize, state: NodeState) {
        if matches!(state, NodeState::Stopped | NodeState::Missing) && self.down.insert(index) {
            let text = format!("{} ended by itself, before {:.1} s", self.nodes[index].name, self.now_ms() / 1_000.0);
            self.say(&text);
            self.troubles.push(text);
        }
    }

    /// What went wrong that nobody had injected.
    pub fn troubles(&mut self) -> Vec<String> {
        std::mem::take(&mut self.troubles)
    }

    /// What is to be injected inside a node now.
    fn inside_of(&self, node: usize) -> Value {
        let address = |node: usize| self.runtime.address(&self.nodes[node]);
        let (mut links, mut clock_ms, mut store) = (Vec::new(), 0, None);
        let mut cut = |from: usize, to: usize, delay_ms: u64| {
            if from == node {
                links.push(json!({ "to": address(to), "cut": delay_ms == 0, "delay-ms": delay_ms }));
            } else if to == node && delay_ms == 0 {
                // At both ends, so that it holds when one of them starts again.
                links.push(json!({ "from": address(from), "cut": true }));
            }
        };
        for active in &self.active {
            match &active.deed {
                Deed::Partition(group) => {
                    for from in 0..self.nodes.len() {
                        for to in 0..self.nodes.len() {
                            if group.contains(&from) != group.contains(&to) {
                                cut(from, to, 0);
                            }
                        }
                    }
                }
                Deed::OneWay(cuts) => cuts.iter().for_each(|&(from, to)| cut(from, to, 0)),
                Deed::Slow(slow) => slow.iter().for_each(|&(from, to, ms)| cut(from, to, ms)),
                Deed::Clock(one, ms) if *one == node => clock_ms += *ms,
                Deed::DiskFull(one) if *one == node => store = Some(1),
                _ => {}
            }
        }
        let mut all = json!({ "links": links, "clock-offset-ms": clock_ms, "for-ms": FOR_MS });
        if let Some(bytes) = store {
            all["store-bytes-max"] = json!(bytes);
        }
        all
    }

    /// Has every node suffer what it is to suffer now. One that can't be asked is none the worse for it, unless it is still
    /// to be healed; then it is asked again in the end.
    async fn apply(&mut self) {
        let inside = self.active.iter().any(|active| active.deed.kind().is_inside());
        if !inside && !self.inside {
            return;
        }
        self.inside = true;
        let targets = self.targets;
        let bodies: Vec<Value> = (0..self.nodes.len()).map(|node| self.inside_of(node)).collect();
        let asked = bodies.iter().zip(targets).map(|(body, target)| ask(&target.client, Method::PUT, Some(body)));
        let answers = futures_util::future::join_all(asked).await;
        for active in self.active.iter_mut().filter(|active| active.deed.kind().is_inside()) {
            for node in active.deed.nodes() {
                match &answers[node] {
                    Ok(_) => active.is_taken = true,
                    Err(why) => active.refusal = Some(format!("{}: {why}", self.nodes[node].name)),
                }
            }
        }
    }

    /// Waits until a node that was started takes requests; whether it does.
    async fn answers(&self, node: usize) -> bool {
        self.node_is(node, "/health").await
    }

    async fn node_is(&self, node: usize, path: &str) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < BACK_WITHIN && self.interrupt.check().is_ok() {
            let look = tokio::time::timeout(ASK_TIMEOUT, self.targets[node].client.look(path)).await;
            if look.is_ok_and(|answer| answer.is_ok_and(|answer| answer.is_success())) {
                return true;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        false
    }

    /// A wipe, from the look whether it can be survived until the node is back.
    async fn wipe(&mut self, deed: &Deed) -> Result<()> {
        let &Deed::Wipe(node) = deed else { return Ok(()) };
        let mut record = self.happens(deed);
        match self.equal().await {
            Ok(equal_ms) => {
                record.from_ms = self.now_ms();
                record.equal_ms = Some(equal_ms);
                self.targets_lose(node, &mut record).await;
            }
            Err(why) => record.problem = Some(why),
        }
        record.to_ms = self.now_ms();
        self.say(&match &record.problem {
            None => format!("back with all data: {}", self.nodes[node].name),
            Some(problem) => format!("wipe of {}: {problem}", self.nodes[node].name),
        });
        self.recorder.borrow_mut().fault(record);
        self.interrupt.check()
    }

    async fn targets_lose(&mut self, node: usize, record: &mut Happened) {
        let spec = &self.nodes[node];
        let state = self.runtime.state(spec).await;
        if let Ok(state) = state {
            self.note_end(node, state);
        }
        self.down.insert(node);
        let wiped = self.runtime.wipe(spec).await;
        let down = Duration::from_millis(self.rng.between(300, 1_500));
        tokio::time::sleep(down).await;
        let started = match wiped {
            Ok(()) => self.runtime.act(spec, NodeAction::Start).await,
            Err(failure) => Err(failure),
        };
        if started.is_ok() {
            self.down.remove(&node);
        }
        if let Err(failure) = started {
            record.problem = Some(failure.message);
        } else if !self.node_is(node, "/ready").await {
            self.say(&format!("{} does not serve {BACK_WITHIN:?} after its start", spec.name));
        }
    }

    /// Waits until all replicas hold the same; when the look that found it began.
    async fn equal(&self) -> std::result::Result<f64, String> {
        let mut observer = Observer::new(self.record, self.runtime);
        let begun = Instant::now();
        loop {
            let at_ms = self.now_ms();
            let seen = observer.look().await;
            let unmet = Goal::Converged.unmet(&seen).into_iter().chain(Goal::Ready.unmet(&seen)).next();
            let Some(unmet) = unmet else { return Ok(at_ms) };
            if begun.elapsed() > EQUAL_WITHIN || self.interrupt.check().is_err() {
                let why = format!("left out, as replicas were not equal: {}: {}", unmet.who, unmet.why);
                return Err(why);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks for another number of shards, at nodes that may be of use.
    async fn reshard(&mut self, count: u32) -> std::result::Result<(), String> {
        let start = self.rng.below(self.nodes.len() as u64) as usize;
        let body = json!({ "shard-count": count }).to_string();
        let mut why = String::new();
        for step in 0..2 {
            let target = &self.targets[(start + step) % self.targets.len()];
            let mut session = Session::default();
            let path = "/shard/reshard?wait=false";
            let request = target.client.request(Method::PUT, path, Some(body.clone()), &mut session);
            why = match tokio::time::timeout(Duration::from_secs(4), request).await {
                Ok(Ok(answer)) if answer.is_success() => return Ok(()),
                Ok(Ok(answer)) => answer.error(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "not decided in time; it may be yet".into(),
            };
        }
        Err(why)
    }

    /// Looks whether the change is over, without waiting long: the bar of the report ends there.
    async fn change_is_over(&self) -> std::result::Result<(), String> {
        for _ in 0..20 {
            for target in self.targets {
                let look = tokio::time::timeout(Duration::from_millis(500), target.client.look("/shard/reshard")).await;
                if let Ok(Ok(answer)) = look
                    && matches!(answer.json()["phase"].as_str(), Some("done" | "aborted" | "idle"))
                {
                    return Ok(());
                }
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        Ok(())
    }

    /// Ends all that goes on, whatever happened: every node runs, nothing is injected, and there are as many shards as before. `limit`:
    /// how long keys may take to move back.
    ///
    /// # Errors
    /// What could not be healed.
    pub async fn heal(&mut self, limit: Duration) -> Result<()> {
        for active in std::mem::take(&mut self.active) {
            self.undo(active).await;
        }
        let mut left = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let state = self.runtime.state(node).await;
            if let Ok(state) = state {
                self.note_end(index, state);
            }
            let healed = async {
                if state? == NodeState::Paused {
                    self.runtime.act(node, NodeAction::Unpause).await?;
                }
                self.runtime.act(node, NodeAction::Start).await
            };
            if let Err(failure) = healed.await {
                left.push(format!("{}: {failure}", node.name));
            } else if self.inside
                && let Err(why) = self.nothing_injected(index).await
            {
                let by_itself = FOR_MS / 1_000;
                left.push(format!("{}: {why}; what is injected there ends by itself within {by_itself} s", node.name));
            }
        }
        if let Err(why) = self.restore_shards(limit.max(RESTORE_WITHIN)).await {
            left.push(format!("the number of shards is not {} again: {why}", self.shards));
        }
        if left.is_empty() {
            Ok(())
        } else {
            Err(Failure::new(Code::Failed, format!("not healed: {}", left.join("\n  "))))
        }
    }

    async fn nothing_injected(&self, node: usize) -> std::result::Result<(), String> {
        let begun = Instant::now();
        loop {
            match ask(&self.targets[node].client, Method::DELETE, None).await {
                Ok(_) => return Ok(()),
                Err(why) if begun.elapsed() > BACK_WITHIN => return Err(why),
                Err(_) => tokio::time::sleep(AGAIN_AFTER).await,
            }
        }
    }

    async fn restore_shards(&mut self, limit: Duration) -> std::result::Result<(), String> {
        let changed = self.recorder.borrow().history().faults.iter().any(|one| one.fault == Kind::Reshard);
        if !changed {
            return Ok(());
        }
        self.say(&format!("back to {} shards", self.shards));
        let begun = Instant::now();
        loop {
            // A change that was asked for may still be decided: what counts is that none runs and the number is right.
            let why = match self.reshard(self.shards).await {
                Ok(()) => match self.shards_now().await {
                    Some(count) if count == self.shards => return Ok(()),
                    count => format!("there are {count:?}"),
                },
                Err(why) => why,
            };
            if begun.elapsed() > limit {
                return Err(why);
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    async fn shards_now(&self) -> Option<u32> {
        let mut least = None;
        for target in self.targets {
            let count = shards_at(target).await?;
            if least.is_some_and(|least| least != count) {
                return None;
            }
            least = Some(count);
        }
        least
    }
}

/// How many shards a node knows.
pub async fn shards_at(target: &Target) -> Option<u32> {
    let look = tokio::time::timeout(ASK_TIMEOUT, target.client.look("/shard/ids")).await;
    let ids = look.ok()?.ok()?.json()["shard-ids"].as_array()?.len();
    u32::try_from(ids).ok()
}
