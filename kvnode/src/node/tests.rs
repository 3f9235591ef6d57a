//! What the driver must keep to, with a disk that syncs when it is told to.

mod stall;

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use kvnode_core::store::StoreError;
use kvnode_core::store::gauge::Gauge;
use kvnode_core::store::memory::MemoryStore;
use kvnode_core::store::{Fact, Head, Listed, Version};
use kvnode_types::ident::{Incarnation, Key, Slot};
use tokio::time::timeout;

use super::*;

/// Syncs that wait until they are let through.
#[derive(Default)]
struct SlowDisk {
    state: Mutex<State>,
    changed: Condvar,
}

/// What a commit comes to.
#[derive(Clone, Copy, Default)]
enum Breaks {
    #[default]
    No,
    Fails,
    Panics,
}

#[derive(Default)]
struct State {
    breaks: Breaks,
    /// The next commit takes so long.
    stall: Option<Duration>,
    stuck: bool,
    /// Syncs that wait now.
    waiting: usize,
}

impl SlowDisk {
    fn set_stuck(&self, stuck: bool) {
        lock(&self.state).stuck = stuck;
        self.changed.notify_all();
    }

    /// Blocks until a sync waits; whether one did in time.
    fn await_sync(&self) -> bool {
        let state = lock(&self.state);
        let limit = Duration::from_secs(5);
        let (state, _) = self.changed.wait_timeout_while(state, limit, |state| state.waiting == 0).unwrap();
        state.waiting > 0
    }
}

/// Lets all syncs through in the end, also of a test that fails: the runtime waits for them.
struct Unstuck(Arc<SlowDisk>);

impl Drop for Unstuck {
    fn drop(&mut self) {
        self.0.set_stuck(false);
    }
}

impl Syncer for SlowDisk {
    fn sync(&self) -> Result<()> {
        let mut state = lock(&self.state);
        state.waiting += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| state.stuck).unwrap();
        state.waiting -= 1;
        Ok(())
    }
}

/// Memory that says it has to be synced, and breaks when it is told to.
struct SyncedStore(MemoryStore, Arc<SlowDisk>);

impl Store for SyncedStore {
    fn get(&self, slot: Slot, key: &Key) -> Result<Option<Version>> {
        self.0.get(slot, key)
    }

    fn head(&self, slot: Slot, key: &Key) -> Result<Option<Head>> {
        self.0.head(slot, key)
    }

    fn put(&mut self, slot: Slot, key: &Key, version: &Version) {
        self.0.put(slot, key, version);
    }

    fn remove(&mut self, slot: Slot, key: &Key) {
        self.0.remove(slot, key);
    }

    fn set_aside(&mut self, key: &Key, version: &Version) -> bool {
        self.0.set_aside(key, version)
    }

    fn fact(&self, name: Fact) -> Result<Option<Vec<u8>>> {
        self.0.fact(name)
    }

    fn outlives_process(&self) -> bool {
        true
    }

    fn set_fact(&mut self, name: Fact, value: Vec<u8>) {
        self.0.set_fact(name, value);
    }

    fn slot(&self, slot: Slot, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>> {
        self.0.slot(slot, after, limit)
    }

    fn keys(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Version)>> {
        self.0.keys(prefix, after, limit)
    }

    fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Listed)>> {
        self.0.list(prefix, after, limit)
    }

    fn scan(&self, visit: &mut dyn FnMut(Slot, &Key, &Version)) -> Result<()> {
        self.0.scan(visit)
    }

    fn commit(&mut self) -> Result<bool> {
        let (breaks, stall) = {
            let mut state = lock(&self.1.state);
            (state.breaks, state.stall.take())
        };
        if let Some(stall) = stall {
            std::thread::sleep(stall);
        }
        match breaks {
            Breaks::No => self.0.commit(),
            Breaks::Fails => Err(StoreError::Io("no disk any more".into())),
            Breaks::Panics => panic!("a broken engine"),
        }
    }

    fn syncer(&self) -> Option<Arc<dyn Syncer>> {
        Some(self.1.clone())
    }

    fn gauge(&self) -> Option<Arc<dyn Gauge>> {
        self.0.gauge()
    }
}

fn alone(store: Box<dyn Store>) -> NodeParts {
    let me: Addr = "127.0.0.1:8090".parse().unwrap();
    parts(store, &me, vec![me.clone()])
}

pub(crate) fn parts(store: Box<dyn Store>, me: &Addr, view: Vec<Addr>) -> NodeParts {
    let settings = Settings { view, ..Settings::alone(me.clone()) };
    NodeParts {
        settings,
        store,
        owned: None,
        fsync: Fsync::Always,
        secret: None,
        store_bytes_max: None,
        drill: false,
        peer_body_max: 64 << 20,
    }
}

pub(crate) async fn ready(node: &NodeHandle) {
    let mut turns = node.shared.turns.subscribe();
    let formed = async { while node.ready().is_err() && turns.changed().await.is_ok() {} };
    timeout(Duration::from_secs(10), formed).await.expect("a node alone serves at once");
}

/// A reader must not be told of a write that a loss of power could still take, neither from its turn nor beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reads_what_still_waits_for_the_disk() {
    let disk = Arc::new(SlowDisk::default());
    let _unstuck = Unstuck(disk.clone());
    let node = NodeHandle::start(alone(Box::new(SyncedStore(MemoryStore::new(), disk.clone())))).unwrap();
    ready(&node).await;
    let key: Key = "k".into();
    let get = || Op::Get { key: key.clone() };
    assert!(matches!(node.request(get(), Vec::new()).await, Answer::NotFound { .. }));

    disk.set_stuck(true);
    let put = tokio::spawn({
        let (node, key) = (node.clone(), key.clone());
        async move { node.request(Op::Put { key, value: "1".into() }, Vec::new()).await }
    });
    let waits = tokio::task::spawn_blocking({
        let disk = disk.clone();
        move || disk.await_sync()
    });
    assert!(waits.await.unwrap(), "a put waits for the disk");
    let early = node.read(node.now(), &get(), &[]);
    assert_eq!(early, None, "told before it was synced");
    assert!(!put.is_finished());

    let read = tokio::spawn({
        let (node, get) = (node.clone(), get());
        async move { node.request(get, Vec::new()).await }
    });
    disk.set_stuck(false);
    assert!(matches!(put.await.unwrap(), Answer::Created { replicas: 1, .. }));
    assert!(matches!(read.await.unwrap(), Answer::Found { value, .. } if &*value == b"1"));
}

/// Nobody waits for a node that has failed, nobody is told that a write is not done that may be, and the process learns of it, also where
/// the loop has panicked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fails_leaves_nobody_waiting() {
    for breaks in [Breaks::Fails, Breaks::Panics] {
        let disk = Arc::new(SlowDisk::default());
        let node = NodeHandle::start(alone(Box::new(SyncedStore(MemoryStore::new(), disk.clone())))).unwrap();
        ready(&node).await;
        lock(&disk.state).breaks = breaks;
        let key: Key = "k".into();
        let limit = Duration::from_secs(5);
        let put = || node.request(Op::Put { key: key.clone(), value: "1".into() }, Vec::new());
        assert_eq!(timeout(limit, put()).await, Ok(Answer::OutcomeUnknown), "it may have got to others");
        assert!(!timeout(limit, node.failed()).await.expect("it says so").is_empty());
        // From now on nothing of a request is done.
        let failing = Ok(Answer::NotReady { reason: FAILING.into() });
        assert_eq!(timeout(limit, put()).await, failing);
        assert_eq!(timeout(limit, node.request(Op::Get { key: key.clone() }, Vec::new())).await, failing);
        let asked = timeout(limit, node.admin(AdminOp::Abort)).await;
        assert_eq!(asked, Ok(AdminAnswer::NotReady(FAILING.into())));
    }
}

/// A turn that is taken at once fails as the loop does: whoever takes it gets its panic, and everybody else learns of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_a_turn_at_once_ends_the_node() {
    let disk = Arc::new(SlowDisk::default());
    let node = NodeHandle::start(alone(Box::new(SyncedStore(MemoryStore::new(), disk.clone())))).unwrap();
    ready(&node).await;
    lock(&disk.state).breaks = Breaks::Panics;
    let limit = Duration::from_secs(5);
    let asked = tokio::spawn({
        let node = node.clone();
        async move { node.request(Op::KeyCount { shard: ShardId(1) }, Vec::new()).await }
    });
    assert!(timeout(limit, asked).await.unwrap().is_err_and(|error| error.is_panic()), "taken by who asks");
    assert!(!timeout(limit, node.failed()).await.expect("it says so").is_empty());
    assert_eq!(node.read(node.now(), &Op::Get { key: "k".into() }, &[]), None, "half a turn is shown to nobody");
    // Also once the engine works again.
    lock(&disk.state).breaks = Breaks::No;
    node.shared.arrived.notify_one();
    assert!(
        timeout(limit, node.request(Op::KeyCount { shard: ShardId(1) }, Vec::new()))
            .await
            .is_ok_and(|answer| { matches!(answer, Answer::NotReady { reason } if reason == FAILING) })
    );
    assert!(!node.shared.held.is_free());
}

/// What counts a request's memory is held until the request is over, not only as long as its client listens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_holds_outlives_its_client() {
    let disk = Arc::new(SlowDisk::default());
    let unstuck = Unstuck(disk.clone());
    let node = NodeHandle::start(alone(Box::new(SyncedStore(MemoryStore::new(), disk.clone())))).unwrap();
    ready(&node).await;
    disk.set_stuck(true);
    let held = Arc::new(());
    let op = Op::Put { key: "k".into(), value: "1".into() };
    let put = node.request_holding(op, Vec::new(), Some(Box::new(held.clone())));
    timeout(Duration::from_millis(200), put).await.expect_err("it waits for the disk");
    assert_eq!(Arc::strong_count(&held), 2, "the request goes on");
    drop(unstuck);
    let mut turns = node.shared.turns.subscribe();
    let given_back = async { while Arc::strong_count(&held) > 1 && turns.changed().await.is_ok() {} };
    timeout(Duration::from_secs(5), given_back).await.expect("the request is over");
}

/// A node, and the port where its peers reach it. The server ends with what is returned last.
fn listening(
    store: Box<dyn Store>,
    listener: tokio::net::TcpListener,
    view: Vec<Addr>,
) -> (NodeHandle, watch::Sender<bool>) {
    let me: Addr = listener.local_addr().unwrap().to_string().parse().unwrap();
    let node = NodeHandle::start(parts(store, &me, view)).unwrap();
    let (close, closing) = watch::channel(false);
    let handles = crate::handles::Handles::of_process().unwrap();
    let front = crate::http::Front::new(node.clone(), crate::limits::Limits::default(), &handles);
    tokio::spawn(crate::http::accept::serve(listener, front, closing));
    (node, close)
}

/// Two replicas of one shard: one that syncs, one that has nothing to sync.
struct Pair {
    one: NodeHandle,
    other: NodeHandle,
    other_address: Addr,
    _open: [watch::Sender<bool>; 2],
}

async fn pair(disk: &Arc<SlowDisk>) -> Pair {
    let (one, other) = (
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let view = [&one, &other].map(|listener| listener.local_addr().unwrap().to_string().parse::<Addr>().unwrap());
    let other_address = view[1].clone();
    let store = Box::new(SyncedStore(MemoryStore::new(), disk.clone()));
    let (one, one_open) = listening(store, one, view.to_vec());
    let (other, other_open) = listening(Box::new(MemoryStore::new()), other, view.to_vec());
    ready(&one).await;
    ready(&other).await;
    Pair { one, other, other_address, _open: [one_open, other_open] }
}

/// A turn that was taken at once and then has something to sync after all tells nothing before: here of a peer's new life, which a
/// batch without any message has told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_at_once_waits_for_the_disk_if_it_must() {
    let disk = Arc::new(SlowDisk::default());
    let _unstuck = Unstuck(disk.clone());
    let Pair { one, other_address: from, .. } = &pair(&disk).await;

    disk.set_stuck(true);
    let batch = Batch {
        cluster: None,
        version: kvnode_core::topology::TopologyVersion::default(),
        from: from.clone(),
        life: Incarnation(1 << 42),
        to_life: None,
        sent_ms: 1,
        echo_ms: 0,
        messages: Vec::new(),
    };
    assert!(Event::Batch(batch.clone()).only_reads());
    let answer = tokio::spawn({
        let one = one.clone();
        async move { one.peer_batch(batch).await }
    });
    let waits = tokio::task::spawn_blocking({
        let disk = disk.clone();
        move || disk.await_sync()
    });
    assert!(waits.await.unwrap(), "what was learned waits for the disk");
    assert_eq!(one.read(one.now(), &Op::Get { key: "k".into() }, &[]), None, "and holds back what else is there");
    assert!(!answer.is_finished());
    disk.set_stuck(false);
    let answer = timeout(Duration::from_secs(5), answer).await.expect("it is answered then").unwrap();
    assert!(answer.is_some_and(|answer| answer.to_life == Some(Incarnation(1 << 42))));
}

/// The other replica's disk works while this node's does, and the client waits for both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_goes_to_the_others_while_it_waits_for_the_disk() {
    let disk = Arc::new(SlowDisk::default());
    let _unstuck = Unstuck(disk.clone());
    let Pair { one, other, other_address, .. } = &pair(&disk).await;
    let key: Key = "k".into();
    let put = |value: &'static str| {
        let (node, key) = (one.clone(), key.clone());
        async move { node.request(Op::Put { key, value: value.into() }, Vec::new()).await }
    };
    // Until the link is open and each knows that the other serves, a write is answered with one copy.
    let two_copies = async {
        while !matches!(put("1").await, Answer::Created { replicas: 2, .. } | Answer::Replaced { replicas: 2, .. }) {}
    };
    timeout(Duration::from_secs(5), two_copies).await.expect("two replicas that hear each other");

    disk.set_stuck(true);
    let put = tokio::spawn(put("2"));
    let mut turns = other.shared.turns.subscribe();
    let get = Op::Get { key: key.clone() };
    let arrived = async {
        while !matches!(other.read(other.now(), &get, &[]), Some(Answer::Found { value, .. }) if &*value == b"2") {
            turns.changed().await.unwrap();
        }
    };
    timeout(Duration::from_secs(5), arrived).await.expect("the other has it meanwhile");
    assert!(!put.is_finished(), "answered before it was synced");
    let unheard = || lock(&one.shared.inbox).unheard.contains(other_address);
    let answered = async {
        while !unheard() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(5), answered).await.expect("its answer waits for the disk, too");
    disk.set_stuck(false);
    assert!(matches!(put.await.unwrap(), Answer::Replaced { replicas: 2, .. }));
    assert!(!unheard());
}

/// What a peer owes is counted by the order of batch, answer, batch.
#[tokio::test(flavor = "current_thread")]
async fn a_link_rests_until_its_answer_is_heard() {
    let [me, other] = ["127.0.0.1:1", "127.0.0.1:2"].map(|addr| addr.parse::<Addr>().unwrap());
    let node = NodeHandle::start(parts(Box::new(MemoryStore::new()), &me, vec![me.clone(), other.clone()])).unwrap();
    lock(&node.shared.inbox).unheard.insert(other.clone());
    let mut turns = node.shared.turns.subscribe();
    let wants = async { while !node.look(|core| core.wants(&other)) && turns.changed().await.is_ok() {} };
    timeout(Duration::from_secs(5), wants).await.expect("it seeks the other");
    assert_eq!(turn::next_batch(&node.shared, &other), None);
    lock(&node.shared.inbox).unheard.clear();
    assert!(turn::next_batch(&node.shared, &other).is_some());
}

/// What others say of lives leaves a node a next one, and its peers in contact with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_takes_away_the_next_life() {
    let (me, other): (Addr, Addr) = ("127.0.0.1:8090".parse().unwrap(), "127.0.0.1:8091".parse().unwrap());
    let node = NodeHandle::start(parts(Box::new(MemoryStore::new()), &me, vec![me.clone(), other.clone()])).unwrap();
    let batch = |life: u64, messages: Vec<kvnode_core::messages::Message>| Batch {
        cluster: None,
        version: kvnode_core::topology::TopologyVersion::default(),
        from: other.clone(),
        life: Incarnation(life),
        to_life: None,
        sent_ms: 1,
        echo_ms: 0,
        messages,
    };
    let told = |known: u64| kvnode_core::messages::Message::Superseded { known: Incarnation(known) };
    for known in [u64::MAX, u64::MAX - 1, 1 << 43] {
        node.peer_batch(batch(5, vec![told(known)])).await.expect("an answer");
        assert_eq!(node.status()["life"], 1, "{known} is no life of a node");
    }
    node.peer_batch(batch(u64::MAX, Vec::new())).await.expect("an answer");
    let answer = node.peer_batch(batch(5, vec![told(6)])).await.expect("an answer");
    assert_eq!(answer.to_life, Some(Incarnation(5)), "the forged life has not taken its place");
    assert_eq!(node.status()["life"], 7, "what can be true is believed");
}
