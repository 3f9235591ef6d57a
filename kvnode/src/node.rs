//! A running node: collect what has happened, let the core handle it, commit, act.
//!
//! That is a *turn* ([`turn`]), taken at once by whoever brings an event, or by THE loop for what has gathered in the [`inbox`]. Here is
//! what everybody else sees of it.
//!
//! Invariant: the core is changed, and its effects are taken, in turns alone. A link takes its batches between them. Everybody else
//! brings events or looks. A read that has to wait for nothing is such a look, unless a turn waits for the disk just then.

mod inbox;
mod notices;
mod turn;

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kvnode_core::admin::{AdminAnswer, AdminOp, JobState};
use kvnode_core::messages::Batch;
use kvnode_core::request::{Answer, Op};
use kvnode_core::settings::Settings;
use kvnode_core::store::{Result, Store, Syncer};
use kvnode_core::{Core, Event, Now};
use kvnode_types::ident::{Addr, ShardId};
use tokio::sync::{Notify, oneshot, watch};
use tracing::{error, warn};

use self::inbox::{Inbox, Incoming, Source, Waiting};
use self::turn::{Driver, Held, arrive};
use crate::config::Fsync;
use crate::drill::{Drill, Injected, Way};
use crate::link::{Names, auth};
use crate::room::RoomGauge;
use crate::storage::dir::DataDir;

/// How long a node that leaves waits for its peers to hold what it wrote.
const DRAIN_MAX: Duration = Duration::from_secs(5);

const FAILING: &str = "This node is failing";

/// What a node is made of.
pub struct NodeParts {
    pub settings: Settings,
    pub store: Box<dyn Store>,
    /// The directory that the store is in; kept from other processes as long as the node runs.
    pub owned: Option<DataDir>,
    pub fsync: Fsync,
    pub secret: Option<String>,
    /// Bytes that the store may take before puts are refused; `None`: what its disk has.
    pub store_bytes_max: Option<u64>,
    /// Whether faults may be injected.
    pub drill: bool,
    /// Bytes of the largest answer to a batch that is taken.
    pub peer_body_max: usize,
}

/// Why a node can't say anything about shards yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady(pub String);

/// A running node. Clones are the same node.
#[derive(Clone)]
pub struct NodeHandle {
    shared: Arc<Shared>,
}

struct Shared {
    /// Locked in this order where more than one is.
    driver: Mutex<Driver>,
    core: Mutex<Core>,
    inbox: Mutex<Inbox>,
    held: Held,
    /// Nothing of what the store keeps outlives the process.
    is_volatile: bool,
    /// There is something for the loop.
    arrived: Notify,
    /// The core wants to tick sooner than the loop means to.
    sooner: Notify,
    /// Counts turns, for those who wait for a state to come about.
    turns: watch::Sender<u64>,
    /// Set when the node can't go on.
    failure: watch::Sender<Option<String>>,
    secret: auth::Secret,
    names: Arc<Names>,
    /// Bytes that the store may take; `u64::MAX`: what its disk has.
    bytes_max: u64,
    peer_body_max: usize,
    drill: Arc<Drill>,
    began: Instant,
    owned: Option<Arc<DataDir>>,
}

impl Shared {
    /// Mostly nobody waits for a state to come about.
    fn count_turn(&self) {
        if self.turns.receiver_count() > 0 {
            self.turns.send_modify(|turn| *turn += 1);
        }
    }
}

/// A poisoned lock means that a turn has panicked; what it guards is still good to look at, and the process ends.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NodeHandle {
    /// Starts a node on the current runtime.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn start(parts: NodeParts) -> Result<Self> {
        let NodeParts { settings, store, owned, fsync, secret, store_bytes_max, drill, peer_body_max } = parts;
        let drill = Arc::new(Drill::new(drill));
        let began = Instant::now();
        let (syncer, gauge) = (store.syncer(), RoomGauge::new(store.gauge()));
        let is_volatile = !store.outlives_process();
        let core = Core::start(settings, store, now(began, &drill))?;
        let shared = Arc::new(Shared {
            driver: Mutex::new(Driver::new(syncer.clone(), gauge, fsync == Fsync::Always)),
            core: Mutex::new(core),
            inbox: Mutex::new(Inbox::default()),
            held: Held::nothing(),
            is_volatile,
            arrived: Notify::new(),
            sooner: Notify::new(),
            turns: watch::Sender::new(0),
            failure: watch::Sender::new(None),
            secret: auth::Secret::new(secret.as_deref()),
            names: Arc::default(),
            bytes_max: store_bytes_max.unwrap_or(u64::MAX),
            peer_body_max,
            drill,
            began,
            owned: owned.map(Arc::new),
        });
        if let (Some(syncer), Fsync::Interval(every)) = (syncer, fsync) {
            tokio::spawn(sync_regularly(shared.clone(), syncer, every));
        }
        tokio::spawn(turn::run(shared.clone()));
        Ok(Self { shared })
    }

    /// Asks the store. `tokens`: the client's `causal-metadata`, 0 to 2 of them.
    pub async fn request(&self, op: Op, tokens: Vec<String>) -> Answer<String> {
        self.request_holding(op, tokens, None).await
    }

    /// The same; `held` is dropped once it is answered, even if this future is dropped before: what counts the memory of a request
    /// must outlive a client that has gone away.
    pub async fn request_holding(
        &self,
        op: Op,
        tokens: Vec<String>,
        held: Option<Box<dyn Any + Send>>,
    ) -> Answer<String> {
        let at = self.now();
        if let Some(answer) = self.read(at, &op, &tokens) {
            return answer;
        }
        let writes = matches!(op, Op::Put { .. } | Op::Delete { .. });
        // A write may have reached others before the node failed.
        let none = || if writes { Answer::OutcomeUnknown } else { Answer::NotReady { reason: FAILING.into() } };
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut inbox = lock(&self.shared.inbox);
            if inbox.closed {
                return Answer::NotReady { reason: FAILING.into() };
            }
            inbox.last_client += 1;
            let id = inbox.last_client;
            inbox.clients.insert(id, Waiting { sender, _held: held });
            id
        };
        arrive(&self.shared, Event::Client { id, op, tokens, arrived_ms: at.mono_ms }.into());
        answer.await.unwrap_or_else(|_| none())
    }

    fn now(&self) -> Now {
        now(self.shared.began, &self.shared.drill)
    }

    /// The answer to a read that has to wait for nothing.
    fn read(&self, at: Now, op: &Op, tokens: &[String]) -> Option<Answer<String>> {
        if !matches!(op, Op::Get { .. }) {
            return None;
        }
        // Where a turn has panicked, what the core holds may be half of it.
        let mut core = self.shared.core.lock().ok()?;
        if self.shared.held.is_free() { core.read(at, op, tokens) } else { None }
    }

    /// Asks for a change of the topology, and waits for the decision (not for what follows from it).
    pub async fn admin(&self, op: AdminOp) -> AdminAnswer {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut inbox = lock(&self.shared.inbox);
            if inbox.closed {
                return AdminAnswer::NotReady(FAILING.into());
            }
            inbox.last_client += 1;
            let id = inbox.last_client;
            inbox.admins.insert(id, sender);
            id
        };
        arrive(&self.shared, Event::Admin { id, op }.into());
        answer.await.unwrap_or_else(|_| AdminAnswer::Undecided(FAILING.into()))
    }

    /// Waits until a change of the layout is as far as wanted; `None` if that takes longer than `limit`.
    pub async fn wait_for_job(
        &self,
        job: u32,
        wanted: impl Fn(&JobState) -> bool,
        limit: Duration,
    ) -> Option<JobState> {
        let mut turns = self.shared.turns.subscribe();
        let reached = async {
            loop {
                let state = self.look(|core| core.job_state(job));
                if wanted(&state) || turns.changed().await.is_err() {
                    return state;
                }
            }
        };
        tokio::time::timeout(limit, reached).await.ok()
    }

    /// The layout that a reshard would lead to: the present epoch, the plan, and warnings.
    ///
    /// # Errors
    /// Why there is none.
    pub fn plan_reshard(&self, count: u32) -> std::result::Result<(u32, serde_json::Value, Vec<String>), AdminAnswer> {
        self.look(|core| {
            let (before, after, warnings) = core.plan_reshard(count)?;
            let plan = serde_json::to_value(core.describe_plan(&before, &after)).unwrap_or_default();
            Ok((before.epoch.0, plan, warnings))
        })
    }

    /// The change of the layout that runs, or the last one.
    ///
    /// # Errors
    /// While there is no cluster.
    pub fn change(&self) -> std::result::Result<serde_json::Value, NotReady> {
        let change = self.look(Core::change).map_err(NotReady)?;
        Ok(serde_json::to_value(change).unwrap_or_default())
    }

    /// Takes a peer's batch and gives the answer; `None` if there is none: the node is failing, or the link is cut by a drill.
    pub async fn peer_batch(&self, batch: Batch) -> Option<Batch> {
        let (drill, from) = (&self.shared.drill, batch.from.clone());
        drill.pass(Way::From, &from).await.ok()?;
        if lock(&self.shared.inbox).closed {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        arrive(&self.shared, Incoming { event: Event::Batch(batch), source: Source::Asks(sender) });
        let answer = answer.await.ok()?;
        drill.pass(Way::To, &from).await.ok()?;
        Some(answer)
    }

    /// What nodes of this cluster prove to each other.
    pub fn secret(&self) -> &auth::Secret {
        &self.shared.secret
    }

    fn look<T>(&self, at: impl FnOnce(&Core) -> T) -> T {
        at(&lock(&self.shared.core))
    }

    /// The members that this node can reach now.
    pub fn view(&self) -> Vec<Addr> {
        self.look(Core::view)
    }

    /// Whether the topology has a node there, reachable or not.
    pub fn lists(&self, addr: &Addr) -> bool {
        self.look(|core| core.lists(addr))
    }

    /// Whether it has two, of which one is only another spelling.
    pub fn lists_twice(&self, addr: &Addr) -> bool {
        self.look(|core| core.lists_twice(addr))
    }

    /// # Errors
    /// While there is no cluster.
    pub fn shard_ids(&self) -> std::result::Result<Vec<ShardId>, NotReady> {
        self.look(Core::shard_ids).map_err(NotReady)
    }

    /// # Errors
    /// While there is no cluster.
    pub fn own_shard(&self) -> std::result::Result<Option<ShardId>, NotReady> {
        self.look(Core::own_shard).map_err(NotReady)
    }

    /// # Errors
    /// While there is no cluster.
    pub fn shard_members(&self, id: ShardId) -> std::result::Result<Option<Vec<Addr>>, NotReady> {
        self.look(|core| core.shard_members(id)).map_err(NotReady)
    }

    /// # Errors
    /// Why the node does not serve.
    pub fn ready(&self) -> std::result::Result<(), NotReady> {
        self.look(Core::ready).map_err(NotReady)
    }

    pub fn status(&self) -> serde_json::Value {
        serde_json::to_value(self.look(Core::status)).unwrap_or_default()
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        crate::metrics::render(&self.look(Core::status))
    }

    /// Stops taking requests, and waits until the peers that can be reached hold all that was written here.
    pub async fn drain(&self) {
        lock(&self.shared.core).begin_drain();
        self.shared.arrived.notify_one();
        let mut turns = self.shared.turns.subscribe();
        let drained = async { while !self.look(Core::is_drained) && turns.changed().await.is_ok() {} };
        if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
            warn!("left without all peers holding everything: they did not acknowledge it within {DRAIN_MAX:?}");
        }
    }

    /// The faults that are injected here; see [`crate::drill`].
    pub fn drill(&self) -> &Drill {
        &self.shared.drill
    }

    /// Whether this is another node that this one knows: of its cluster, or of those that it was started with.
    pub fn is_peer(&self, addr: &Addr) -> bool {
        self.look(|core| core.is_peer(addr))
    }

    /// The other nodes that this one knows.
    pub fn peers(&self) -> Vec<Addr> {
        self.look(Core::peers)
    }

    /// Injects these faults in the place of all that were injected before.
    pub fn inject(&self, injected: Injected) {
        self.shared.drill.inject(injected);
        self.shared.arrived.notify_one();
    }

    /// Whether the node can't go on.
    pub fn has_failed(&self) -> bool {
        self.shared.held.has_failed()
    }

    /// Resolves when the node can't go on, with the reason.
    pub async fn failed(&self) -> String {
        let mut failure = self.shared.failure.subscribe();
        let reason = failure.wait_for(Option::is_some).await;
        reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
    }
}

fn now(began: Instant, drill: &Drill) -> Now {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Never 0: a reading of 0 means "none" between nodes.
    Now { mono_ms: began.elapsed().as_millis() as u64 + 1, wall_ms: drill.wall_ms(wall.as_millis() as u64) }
}

/// Syncs what was committed, every so often.
async fn sync_regularly(shared: Arc<Shared>, syncer: Arc<dyn Syncer>, every: Duration) {
    let mut synced = lock(&shared.core).sync_mark();
    loop {
        tokio::time::sleep(every).await;
        let mark = lock(&shared.core).sync_mark();
        if mark == synced {
            continue;
        }
        let syncer = syncer.clone();
        match tokio::task::spawn_blocking(move || syncer.sync()).await {
            Ok(Ok(())) => {
                synced = mark.clone();
                arrive(&shared, Event::Synced(mark).into());
            }
            Ok(Err(error)) => return fail(&shared, &error.to_string()),
            Err(panic) => return fail(&shared, &panic.to_string()),
        }
    }
}

/// The node can't go on. Nobody is answered any more: what was not committed must not be told. Not to be called under a lock.
fn fail(shared: &Shared, why: &str) {
    if shared.held.fail() {
        // It was said.
        return;
    }
    lock(&shared.inbox).close();
    lock(&shared.driver).close();
    // The loop ends.
    shared.arrived.notify_one();
    error!("{why}; this node stops");
    shared.failure.send_replace(Some(why.to_owned()));
}

#[cfg(test)]
pub(crate) mod tests;
