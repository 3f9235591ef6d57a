//! Turns.
//!
//! A turn takes events, hands them to the core, commits what they changed in one batch (and syncs it, under `--fsync always`), and
//! only then sends the answers and wakes the links. There are two ways to one:
//!
//! - *At once*, by whoever brings an event, where gathering gains nothing: the store does not outlive the process, or the event is of
//!   a kind that stages nothing. So most requests cross no other task here.
//! - By THE loop, for what the inbox has gathered, and for time that passes. While a turn waits for the disk, the next one gathers:
//!   that is the group commit. Only a node's own writes go to the other replicas before, so that all disks sync them at the same time.
//!
//! Invariant: one turn at a time. Whoever takes one holds the [`Driver`]; one that has to wait for the disk lets go of it, and
//! leaves a mark ([`Held`]) that lets nobody else begin.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use kvnode_core::loss::Identity;
use kvnode_core::messages::Batch;
use kvnode_core::store::{Result, StoreError, Syncer};
use kvnode_core::{Committed, Core, Effect, Event, Now, Severity};
use kvnode_types::ident::Addr;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::inbox::{Incoming, Source};
use super::{Shared, fail, lock, notices, now};
use crate::link::{Link, LinkDone};
use crate::room::{self, RoomGauge};
use crate::storage::dir::DataDir;

/// Notes that a turn has panicked. Without it the node would stay there, answer reads from a core that is half changed, and
/// leave everybody else waiting.
struct Fallen<'a>(&'a Shared);

impl Drop for Fallen<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail(self.0, "a turn has panicked");
        }
    }
}

/// What may be told of what the core holds. Changed under the core's lock, but for a failure.
pub(super) struct Held(AtomicU8);

const ALL_MAY: u8 = 0;
/// A turn waits for the disk. This node's own writes may leave all the same, for who is waited for.
const WRITES_MAY: u8 = 1;
/// A turn waits for the disk with more than data (see [`Committed::urgent`]), or has failed just now.
const NOTHING_MAY: u8 = 2;
/// The node has failed: nothing may, ever again.
const FAILED: u8 = 3;

impl Held {
    pub const fn nothing() -> Self {
        Self(AtomicU8::new(ALL_MAY))
    }

    pub fn is_free(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ALL_MAY
    }

    fn lets_writes(&self) -> bool {
        self.0.load(Ordering::Relaxed) == WRITES_MAY
    }

    pub fn has_failed(&self) -> bool {
        self.0.load(Ordering::Relaxed) == FAILED
    }

    /// Does nothing once the node has failed.
    fn set(&self, what: u8) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| (now != FAILED).then_some(what));
    }

    /// For good. Whether it was so before.
    pub fn fail(&self) -> bool {
        self.0.swap(FAILED, Ordering::Relaxed) == FAILED
    }
}

/// Peers that wait for the answer to their batch.
type PeersWaiting = Vec<(Addr, oneshot::Sender<Batch>)>;

/// A turn up to its commit.
pub(super) struct Handled {
    at: Now,
    senders: PeersWaiting,
    /// What has to be synced before anything of the turn is told.
    syncer: Option<Arc<dyn Syncer>>,
}

/// What a turn needs beside the core. Locked before the core.
pub(super) struct Driver {
    /// `None` for a store that has nothing to sync.
    syncer: Option<Arc<dyn Syncer>>,
    /// `--fsync always`
    always: bool,
    gauge: RoomGauge,
    links: BTreeMap<Addr, Link>,
    /// How long after the last tick the loop means to tick again, in ms.
    planned_ms: u64,
}

impl Driver {
    pub fn new(syncer: Option<Arc<dyn Syncer>>, gauge: RoomGauge, always: bool) -> Self {
        Self { syncer, always, gauge, links: BTreeMap::new(), planned_ms: 0 }
    }

    /// Ends the links.
    pub fn close(&mut self) {
        self.links.clear();
    }

    /// Handles and commits. On a failure nothing may be told any more.
    fn handle(&mut self, shared: &Shared, events: impl Iterator<Item = Incoming>, tick: bool) -> Result<Handled> {
        let at = now(shared.began, &shared.drill);
        let mut core = lock(&shared.core);
        let done = self.handle_all(shared, &mut core, at, events, tick);
        let due = |committed: &Committed| committed.urgent || (committed.changed && self.always);
        let syncer = done.as_ref().ok().and_then(|(_, committed)| self.syncer.clone().filter(|_| due(committed)));
        match &done {
            Err(_) => shared.held.set(NOTHING_MAY),
            Ok((_, committed)) if syncer.is_some() => {
                shared.held.set(if committed.urgent { NOTHING_MAY } else { WRITES_MAY });
            }
            Ok(_) => {}
        }
        done.map(|(senders, _)| Handled { at, senders, syncer })
    }

    fn handle_all(
        &mut self,
        shared: &Shared,
        core: &mut Core,
        at: Now,
        events: impl Iterator<Item = Incoming>,
        tick: bool,
    ) -> Result<(PeersWaiting, Committed)> {
        let limit = shared.drill.store_bytes_max().unwrap_or(shared.bytes_max);
        let mut handle = |event: Event| {
            if let Some(room) = self.gauge.before(room::weight(&event), limit) {
                core.handle(at, room)?;
            }
            core.handle(at, event)
        };
        let mut senders = PeersWaiting::new();
        for Incoming { event, source } in events {
            if let (Event::Batch(batch), Source::Asks(sender)) = (&event, source) {
                senders.push((batch.from.clone(), sender));
            }
            handle(event)?;
        }
        if tick {
            handle(Event::Tick)?;
        }
        let committed = core.commit()?;
        Ok((senders, committed))
    }

    /// Sends the answers of a turn and wakes the links.
    fn act(&mut self, shared: &Arc<Shared>, at: Now, senders: PeersWaiting) {
        if shared.held.has_failed() {
            return;
        }
        let mut core = lock(&shared.core);
        for effect in core.take_effects() {
            match effect {
                Effect::Reply { id, answer } => {
                    if let Some(client) = lock(&shared.inbox).clients.remove(&id) {
                        // A client that has gone away needs no answer.
                        let _ = client.sender.send(answer);
                    }
                }
                Effect::Decided { id, answer } => {
                    if let Some(admin) = lock(&shared.inbox).admins.remove(&id) {
                        let _ = admin.send(answer);
                    }
                }
                Effect::Wake(peer) => self.wake(shared, &peer),
                Effect::Say(Severity::Info, text) => info!("{text}"),
                Effect::Say(Severity::Warn, text) => warn!("{text}"),
                Effect::Note(notice) => notices::log(&notice),
            }
        }
        for (from, sender) in senders {
            // A peer that has gone away asks again.
            let _ = sender.send(core.answer_batch(at, &from));
        }
        shared.count_turn();
    }

    fn wake(&mut self, shared: &Arc<Shared>, peer: &Addr) {
        if shared.held.has_failed() {
            return;
        }
        if let Some(link) = self.links.get(peer) {
            return link.wake();
        }
        let (for_next, for_done) = (shared.clone(), shared.clone());
        let next = move |peer: &Addr| next_batch(&for_next, peer);
        let done = move |peer: &Addr, fate: LinkDone| link_done(&for_done, peer, fate);
        let (secret, names, drill) = (shared.secret.clone(), shared.names.clone(), shared.drill.clone());
        let link = Link::start(secret, names, drill, peer.clone(), shared.peer_body_max, next, done);
        link.wake();
        self.links.insert(peer.clone(), link);
    }

    /// Wakes the links to those whose copies clients wait for: they may take writes while the disk works.
    fn wake_awaited(&mut self, shared: &Arc<Shared>) {
        let awaited = lock(&shared.core).awaited_peers();
        awaited.iter().for_each(|peer| self.wake(shared, peer));
    }

    /// The disk is done, and everything may be told. A link that found nothing meanwhile was told to wait for this.
    fn release(&mut self, shared: &Arc<Shared>, senders: PeersWaiting) {
        let wanted: Vec<Addr> = {
            let core = lock(&shared.core);
            shared.held.set(ALL_MAY);
            self.links.keys().filter(|peer| core.wants(peer)).cloned().collect()
        };
        self.act(shared, now(shared.began, &shared.drill), senders);
        wanted.iter().for_each(|peer| self.wake(shared, peer));
    }
}

/// The driver, for a turn; `None` if none may begin: another waits for the disk, or has failed or panicked.
fn begin(shared: &Shared) -> Option<MutexGuard<'_, Driver>> {
    let driver = shared.driver.lock().ok()?;
    (shared.held.is_free() && !shared.core.is_poisoned()).then_some(driver)
}

/// Takes a turn of one event, at once if that is any good; otherwise leaves it to the loop.
pub(super) fn arrive(shared: &Arc<Shared>, incoming: Incoming) {
    let at_once = shared.is_volatile || incoming.event.only_reads();
    let left = if at_once { take_at_once(shared, incoming) } else { Some(incoming) };
    if let Some(incoming) = left {
        let mut inbox = lock(&shared.inbox);
        // Whoever asks finds that nobody answers.
        if !inbox.closed {
            if let Source::Link(peer) = &incoming.source {
                inbox.unheard.insert(peer.clone());
            }
            inbox.events.push(incoming);
        }
        drop(inbox);
        shared.arrived.notify_one();
    }
}

/// Gives the event back if no turn may begin.
fn take_at_once(shared: &Arc<Shared>, incoming: Incoming) -> Option<Incoming> {
    let _fallen = Fallen(shared);
    let Some(mut driver) = begin(shared) else { return Some(incoming) };
    match driver.handle(shared, std::iter::once(incoming), false) {
        Err(error) => {
            drop(driver);
            fail(shared, &error.to_string());
        }
        Ok(handled) if handled.syncer.is_some() => {
            // Rare: something that only reads has told of a new life, or the like.
            lock(&shared.inbox).begun = Some(handled);
            shared.arrived.notify_one();
        }
        Ok(handled) => {
            driver.act(shared, handled.at, handled.senders);
            if lock(&shared.core).tick_interval_ms() < driver.planned_ms {
                shared.sooner.notify_one();
            }
        }
    }
    None
}

pub(super) async fn run(shared: Arc<Shared>) {
    let _fallen = Fallen(&shared);
    let mut last_tick = Instant::now();
    let alarm = tokio::time::sleep_until(last_tick);
    tokio::pin!(alarm);
    loop {
        let tick = tokio::select! {
            () = shared.arrived.notified() => Some(false),
            () = &mut alarm => Some(true),
            () = shared.sooner.notified() => None,
        };
        if tick == Some(true) {
            last_tick = Instant::now();
        } else if tick == Some(false) {
            // Whatever else has come by now belongs to the same turn, and to the same batches.
            tokio::task::yield_now().await;
        }
        if let Some(tick) = tick
            && let Err(error) = turn(&shared, tick).await
        {
            fail(&shared, &error.to_string());
        }
        if shared.held.has_failed() {
            return;
        }
        let planned_ms = {
            let mut driver = lock(&shared.driver);
            driver.planned_ms = lock(&shared.core).tick_interval_ms();
            driver.planned_ms
        };
        let due = last_tick + Duration::from_millis(planned_ms);
        if alarm.deadline() != due {
            alarm.as_mut().reset(due);
        }
    }
}

/// What has gathered; and first what another has begun and left for the disk.
async fn turn(shared: &Arc<Shared>, tick: bool) -> Result<()> {
    // Whoever begins a turn that must wait puts it there before letting go of the driver, and then nobody else begins one.
    let begun = {
        let _driver = lock(&shared.driver);
        lock(&shared.inbox).begun.take()
    };
    if let Some(begun) = begun {
        finish(shared, begun).await?;
    }
    let heard;
    let waiting = {
        let Some(mut driver) = begin(shared) else { return Ok(()) };
        let events = std::mem::take(&mut lock(&shared.inbox).events);
        heard = events.iter().filter_map(Incoming::link).cloned().collect::<Vec<Addr>>();
        let handled = driver.handle(shared, events.into_iter(), tick)?;
        lock(&shared.inbox).unheard.retain(|peer| !heard.contains(peer));
        if handled.syncer.is_some() {
            Some(handled)
        } else {
            driver.act(shared, handled.at, handled.senders);
            None
        }
    };
    if let Some(handled) = waiting {
        finish(shared, handled).await?;
    }
    let mut driver = lock(&shared.driver);
    heard.iter().for_each(|peer| driver.wake(shared, peer));
    Ok(())
}

/// The rest of a turn that has something to sync.
async fn finish(shared: &Arc<Shared>, handled: Handled) -> Result<()> {
    let Handled { senders, syncer, .. } = handled;
    let Some(syncer) = syncer else { return Ok(()) };
    if shared.held.lets_writes() {
        lock(&shared.driver).wake_awaited(shared);
    }
    sync(shared, syncer).await?;
    lock(&shared.driver).release(shared, senders);
    Ok(())
}

async fn sync(shared: &Shared, syncer: Arc<dyn Syncer>) -> Result<()> {
    let (mark, identity) = {
        let core = lock(&shared.core);
        (core.sync_mark(), core.identity())
    };
    let owned = shared.owned.clone();
    let work = move || {
        syncer.sync()?;
        // After the store: it must not tell of data that a loss of power could still take. And before anybody hears of it.
        note_identity(owned.as_deref(), identity);
        Result::Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|panic| StoreError::Io(panic.to_string()))??;
    // For the next turn, which comes with a tick at the latest.
    lock(&shared.inbox).events.push(Event::Synced(mark).into());
    Ok(())
}

/// A full disk does not end a node for it: an older one, or none, protects less.
fn note_identity(owned: Option<&DataDir>, identity: Option<Identity>) {
    if let (Some(owned), Some(identity)) = (owned, identity)
        && let Err(error) = owned.identity.note(identity)
    {
        warn!("who has the data here can't be noted beside it: {error}");
    }
}

/// What a link that is idle carries next.
pub(super) fn next_batch(shared: &Shared, peer: &Addr) -> Option<Batch> {
    let _fallen = Fallen(shared);
    if lock(&shared.inbox).unheard.contains(peer) {
        return None;
    }
    let at = now(shared.began, &shared.drill);
    let mut core = shared.core.lock().ok()?;
    if shared.held.is_free() {
        core.next_batch(at, peer)
    } else if shared.held.lets_writes() && core.is_awaited(peer) {
        core.next_writes(at, peer)
    } else {
        None
    }
}

fn link_done(shared: &Arc<Shared>, peer: &Addr, fate: LinkDone) {
    let told = |event| arrive(shared, Incoming { event, source: Source::Link(peer.clone()) });
    match fate {
        LinkDone::Answered(batch) => told(Event::Batch(batch)),
        LinkDone::Undelivered { batch, another_secret } => {
            told(Event::Undelivered { peer: peer.clone(), batch, another_secret });
        }
        LinkDone::Lost { why } => debug!("a message to {peer} is lost: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{NodeHandle, tests::parts};
    use kvnode_core::request::Op;
    use kvnode_core::store::memory::MemoryStore;
    use kvnode_types::ident::ShardId;

    #[test]
    fn a_failure_is_for_good() {
        let held = Held::nothing();
        held.set(WRITES_MAY);
        assert!(held.lets_writes() && !held.fail() && held.has_failed());
        held.set(ALL_MAY);
        assert!(held.has_failed() && held.fail() && !held.is_free());
    }

    /// What a turn at once makes due before the next tick that the loop has planned does not wait for that.
    #[tokio::test(flavor = "current_thread")]
    async fn the_loop_learns_that_it_has_to_tick_sooner() {
        let me: Addr = "127.0.0.1:1".parse().unwrap();
        let node = NodeHandle::start(parts(Box::new(MemoryStore::new()), &me, vec![me.clone()])).unwrap();
        let shared = &node.shared;
        let mut turns = shared.turns.subscribe();
        turns.changed().await.unwrap();
        tokio::task::yield_now().await;
        lock(&shared.driver).planned_ms = u64::MAX;
        let op = Op::KeyCount { shard: ShardId(1) };
        arrive(shared, Event::Client { id: 0, op, tokens: Vec::new(), arrived_ms: 0 }.into());
        // No tick comes in between.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_ne!(lock(&shared.driver).planned_ms, u64::MAX);
    }

    /// A link that asked while a turn waited for the disk was given nothing, and is not told again of what was there before.
    #[tokio::test(flavor = "current_thread")]
    async fn links_go_on_after_the_disk() {
        let [me, other] = ["127.0.0.1:1", "127.0.0.1:2"].map(|addr| addr.parse::<Addr>().unwrap());
        let view = vec![me.clone(), other.clone()];
        let node = NodeHandle::start(parts(Box::new(MemoryStore::new()), &me, view)).unwrap();
        let shared = &node.shared;
        lock(&shared.inbox).unheard.insert(other.clone());
        let mut turns = shared.turns.subscribe();
        let wants = || node.look(|core| core.wants(&other));
        let said = async { while !wants() && turns.changed().await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(5), said).await.expect("it seeks the other");
        shared.held.set(WRITES_MAY);
        lock(&shared.inbox).unheard.clear();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(wants(), "the link was given nothing");
        lock(&shared.driver).release(shared, PeersWaiting::new());
        // No tick comes in between.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!wants());
    }
}
