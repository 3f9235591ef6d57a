//! The loop: turn after turn.
//!
//! A turn takes all events that have gathered, hands them to the core, commits what they changed in one batch (and syncs it, under
//! `--fsync always`), and only then sends the answers and messages of the turn. While a turn waits for the disk, the next one
//! gathers: that is the group commit. Only a node's own writes go to the other replicas before, so that all disks sync them at the
//! same time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{debug, info, warn};

use super::{Shared, fail, lock, now};
use crate::core::{Committed, Core, Effect, Event, Severity};
use crate::peer::{Link, LinkDone};
use crate::room::{self, RoomGauge};
use crate::storage::{Result, StoreError, Syncer};
use crate::wire::ident::Addr;
use crate::wire::peer::Batch;

/// Notes that the loop has panicked. Without it the node would stay there, answer reads from a core that is half changed, and
/// leave everybody else waiting.
struct Fallen(Arc<Shared>);

impl Drop for Fallen {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail(&self.0, "the node's loop has panicked");
        }
    }
}

/// Peers that wait for the answer to their batch.
type PeersWaiting = Vec<(Addr, oneshot::Sender<Batch>)>;

/// A turn up to its commit.
struct Handled {
    senders: PeersWaiting,
    /// What has to be synced before anything of the turn is told.
    syncer: Option<Arc<dyn Syncer>>,
    /// That is more than data: see [`Committed::urgent`].
    urgent: bool,
}

/// The loop's own state.
pub(super) struct Loop {
    shared: Arc<Shared>,
    /// `None` for a store that has nothing to sync.
    syncer: Option<Arc<dyn Syncer>>,
    /// `--fsync always`
    always: bool,
    gauge: RoomGauge,
    links: BTreeMap<Addr, Link>,
    /// Links with a batch on its way.
    busy: BTreeSet<Addr>,
    /// Peers that the core has something for.
    awake: BTreeSet<Addr>,
}

impl Loop {
    pub fn new(shared: Arc<Shared>, syncer: Option<Arc<dyn Syncer>>, gauge: RoomGauge, always: bool) -> Self {
        let (links, busy, awake) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { shared, syncer, always, gauge, links, busy, awake }
    }

    pub async fn run(mut self) {
        let shared = self.shared.clone();
        let _fallen = Fallen(shared.clone());
        let mut last_tick = tokio::time::Instant::now();
        let alarm = tokio::time::sleep_until(last_tick);
        tokio::pin!(alarm);
        loop {
            let tick = tokio::select! {
                () = shared.arrived.notified() => false,
                () = &mut alarm => true,
            };
            if !tick {
                // Whatever else has come by now belongs to the same turn, and to the same batches.
                tokio::task::yield_now().await;
            }
            if tick {
                last_tick = tokio::time::Instant::now();
            }
            if let Err(error) = self.turn(tick).await {
                return fail(&shared, &error.to_string());
            }
            // Mostly nobody waits for a state to come about.
            if shared.turns.receiver_count() > 0 {
                shared.turns.send_modify(|turn| *turn += 1);
            }
            let due = last_tick + Duration::from_millis(lock(&shared.core).tick_interval_ms());
            if alarm.deadline() != due {
                alarm.as_mut().reset(due);
            }
        }
    }

    async fn turn(&mut self, tick: bool) -> Result<()> {
        let (events, batches) = {
            let mut inbox = lock(&self.shared.inbox);
            for idle in std::mem::take(&mut inbox.idle) {
                self.busy.remove(&idle);
                self.awake.insert(idle);
            }
            (std::mem::take(&mut inbox.events), std::mem::take(&mut inbox.batches))
        };
        let handled = self.handle(events, batches, tick)?;
        if let Some(syncer) = handled.syncer {
            if !handled.urgent {
                self.send_writes();
            }
            self.sync(syncer).await?;
        }
        self.act(handled.senders);
        Ok(())
    }

    /// Sends the writes that clients wait for ahead of the sync that their answers wait for, too.
    fn send_writes(&mut self) {
        let at = now(self.shared.began, &self.shared.drill);
        let awaited = lock(&self.shared.core).awaited_peers();
        for peer in awaited.into_iter().filter(|peer| !self.busy.contains(peer)).collect::<Vec<_>>() {
            let batch = lock(&self.shared.core).next_writes(at, &peer);
            if let Some(batch) = batch {
                self.link(&peer).send(batch);
                self.busy.insert(peer);
            }
        }
    }

    /// The synchronous part of a turn: handle and commit.
    fn handle(
        &mut self,
        events: Vec<Event>,
        batches: Vec<(Batch, oneshot::Sender<Batch>)>,
        tick: bool,
    ) -> Result<Handled> {
        let shared = self.shared.clone();
        let mut core = lock(&shared.core);
        let done = self.handle_all(&mut core, events, batches, tick);
        let due = |committed: &Committed| committed.urgent || (committed.changed && self.always);
        let syncer = done.as_ref().ok().and_then(|(_, committed)| self.syncer.clone().filter(|_| due(committed)));
        shared.held.store(syncer.is_some() || done.is_err(), Ordering::Relaxed);
        done.map(|(senders, committed)| Handled { senders, syncer, urgent: committed.urgent })
    }

    fn handle_all(
        &mut self,
        core: &mut Core,
        events: Vec<Event>,
        batches: Vec<(Batch, oneshot::Sender<Batch>)>,
        tick: bool,
    ) -> Result<(PeersWaiting, Committed)> {
        let at = now(self.shared.began, &self.shared.drill);
        let limit = self.shared.drill.store_bytes_max().unwrap_or(self.shared.bytes_max);
        let mut handle = |event: Event| {
            if let Some(room) = self.gauge.before(room::weight(&event), limit) {
                core.handle(at, room)?;
            }
            core.handle(at, event)
        };
        for event in events {
            handle(event)?;
        }
        let mut senders = Vec::with_capacity(batches.len());
        for (batch, sender) in batches {
            senders.push((batch.from.clone(), sender));
            handle(Event::Batch(batch))?;
        }
        if tick {
            handle(Event::Tick)?;
        }
        let committed = core.commit()?;
        Ok((senders, committed))
    }

    async fn sync(&self, syncer: Arc<dyn Syncer>) -> Result<()> {
        let mark = lock(&self.shared.core).sync_mark();
        let done = tokio::task::spawn_blocking(move || syncer.sync()).await;
        done.map_err(|panic| StoreError::Io(panic.to_string()))??;
        lock(&self.shared.inbox).events.push(Event::Synced(mark));
        Ok(())
    }

    /// Sends the answers and messages of the turn.
    fn act(&mut self, senders: PeersWaiting) {
        let at = now(self.shared.began, &self.shared.drill);
        let effects = {
            let mut core = lock(&self.shared.core);
            self.shared.held.store(false, Ordering::Relaxed);
            core.take_effects()
        };
        for effect in effects {
            match effect {
                Effect::Reply { id, answer } => {
                    if let Some(client) = lock(&self.shared.inbox).clients.remove(&id) {
                        // A client that has gone away needs no answer.
                        let _ = client.sender.send(answer);
                    }
                }
                Effect::Decided { id, answer } => {
                    if let Some(admin) = lock(&self.shared.inbox).admins.remove(&id) {
                        let _ = admin.send(answer);
                    }
                }
                Effect::Wake(peer) => {
                    self.awake.insert(peer);
                }
                Effect::Say(Severity::Info, text) => info!("{text}"),
                Effect::Say(Severity::Warn, text) => warn!("{text}"),
            }
        }
        for (from, sender) in senders {
            let answer = lock(&self.shared.core).answer_batch(at, &from);
            // A peer that has gone away asks again.
            let _ = sender.send(answer);
        }
        for peer in std::mem::take(&mut self.awake) {
            if self.busy.contains(&peer) {
                continue;
            }
            let batch = lock(&self.shared.core).next_batch(at, &peer);
            if let Some(batch) = batch {
                self.link(&peer).send(batch);
                self.busy.insert(peer);
            }
        }
    }

    fn link(&mut self, peer: &Addr) -> &Link {
        let shared = &self.shared;
        self.links.entry(peer.clone()).or_insert_with(|| {
            let (shared, drill) = (shared.clone(), shared.drill.clone());
            let done = move |peer: &Addr, fate: LinkDone| link_done(&shared, peer, fate);
            let (secret, max) = (self.shared.secret.clone(), self.shared.peer_body_max);
            Link::start(secret, drill, peer.clone(), max, done)
        })
    }
}

fn link_done(shared: &Shared, peer: &Addr, fate: LinkDone) {
    let mut inbox = lock(&shared.inbox);
    match fate {
        LinkDone::Answered(batch) => inbox.events.push(Event::Batch(batch)),
        LinkDone::Undelivered(batch) => inbox.events.push(Event::Undelivered { peer: peer.clone(), batch }),
        LinkDone::Lost { why } => debug!("a message to {peer} is lost: {why}"),
    }
    inbox.idle.push(peer.clone());
    drop(inbox);
    shared.arrived.notify_one();
}
