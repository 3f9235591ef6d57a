//! Contact with peers: who is heard, which life of a node speaks, and what the next batch to it carries.
//!
//! Two clocks never meet: a batch carries its sender's own reading and gives the receiver's back. A reading that came back
//! proves that what was sent then has arrived. Who counts as reachable because of it, [`super::pace`] says.

use std::collections::VecDeque;

use kvnode_types::ident::{Addr, Epoch, Incarnation};

use super::compare::Compares;
use super::cursor::Cursor;
use super::formation::Seeks;
use super::repair::Began;
use super::replicate::{Lag, Push};
use super::seen::Seen;
use super::settings::Mutant;
use super::topology::TopologyVersion;
use super::{Core, Now, Severity};
use crate::messages::{Batch, Message, Move, Progress, Report, Stage};
use crate::store::Result;

/// Bytes of messages after which a batch is full. One message may go beyond it.
const BATCH_WEIGHT_MAX: usize = 1 << 20;
/// Between two beats that clients cause.
const BEAT_AGAIN_MS: u64 = 50;
/// Beyond it no clock of a node has ever been: a sum of two such readings is still a number.
const CLOCK_MS_MAX: u64 = 1 << 62;

/// What this node knows of another.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// The life that contact was made with.
    pub life: Option<Incarnation>,
    /// The newest life known from anybody; contact with an older one counts for nothing.
    pub newest_life: Option<Incarnation>,
    /// When anything valid came last.
    pub heard_ms: Option<u64>,
    /// Our newest reading that came back.
    pub proven_ms: Option<u64>,
    /// When the first batch was sent that no proof has come for since: it owes an answer. `None`: it owes none.
    pub owes_since_ms: Option<u64>,
    /// The peer's newest reading, to be given back.
    pub echo_ms: u64,
    /// When that came, on our clock.
    pub echo_heard_ms: u64,
    last_beat_ms: Option<u64>,
    pub stage: Option<Stage>,
    /// It has lost the data of its replica, and nobody has filled it yet (see [`super::loss`]).
    pub has_lost: bool,
    /// The peer's wall clock minus our monotonic clock, in ms.
    pub wall_offset_ms: Option<i64>,
    pub report: Option<Report>,
    /// What it was started with, while it belongs to no cluster.
    pub seeks: Option<Seeks>,
    /// The life in which its data began.
    pub birth: Option<Incarnation>,
    /// Its part in a change of the layout.
    pub progress: Option<Box<Progress>>,
    /// The topology that it went by when it told that.
    pub progress_version: TopologyVersion,
    /// What it fetched for the last change.
    pub moves: Vec<Move>,
    /// The topology that it goes by, and whether ours was sent since it told that.
    version: TopologyVersion,
    told_topology: bool,
    queue: VecDeque<Message>,
    queue_weight: usize,
    forwards_seen: Seen,
    /// How far it is with our writes.
    pub cursor: Cursor,
    /// Whether those that it lacks wait for other writes to go with them, and whether clients wait for it to have them.
    pub push: Push,
    pub is_eager: bool,
    /// Of our origin under the layout before: acknowledged up to, and sent again up to.
    pub held_before: u64,
    pub sent_before: u64,
    /// When we last asked it for what we lack.
    pub pulled_ms: Option<u64>,
    /// Whether a repair from this life of it has filled us.
    pub filled_us: bool,
    pub compares: Compares,
    /// The last repair from here that it has begun.
    pub last_comparison: u64,
    /// Whether it refuses this node, because one of both has another secret; and when that was said last.
    pub refuses: bool,
    pub refusal_said_ms: Option<u64>,
    /// It belongs to a cluster that does not list this node.
    pub told_stranger: bool,
    /// Set while it is known to be ahead of us.
    pub lag: Option<Lag>,
    was_in_view: bool,
}

impl Peer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, message: Message) {
        self.queue_weight += message.weight();
        self.queue.push_back(message);
    }

    pub fn queue_weight(&self) -> usize {
        self.queue_weight
    }

    /// Whether answers to requests that it has passed on wait for it.
    pub fn has_answers_waiting(&self) -> bool {
        self.queue.iter().any(|message| matches!(message, Message::Answered { .. }))
    }

    /// Whether what it has asked for to catch up waits for it.
    pub fn has_bulk_waiting(&self) -> bool {
        let is_bulk =
            |message: &Message| matches!(message, Message::RepairData { .. } | Message::Writes { pulled: true, .. });
        self.queue.iter().any(is_bulk)
    }

    /// Takes a forward out of the queue if it was not handed to the link yet.
    pub fn recall_forward(&mut self, forward: u64) -> bool {
        let at = self.queue.iter().position(|m| matches!(m, Message::Forward { id, .. } if *id == forward));
        let message = at.and_then(|at| self.queue.remove(at));
        self.queue_weight -= message.as_ref().map_or(0, Message::weight);
        message.is_some()
    }

    /// Whether this forward comes for the first time.
    pub fn first_time(&mut self, forward: u64) -> bool {
        self.forwards_seen.first_time(forward)
    }

    /// Another life of the node: nothing that was said to or by the earlier one counts.
    fn begin_life(&mut self, life: Incarnation) {
        let newest = self.newest_life.max(Some(life));
        let heard = std::mem::take(self);
        *self = Self {
            life: Some(life),
            newest_life: newest,
            wall_offset_ms: heard.wall_offset_ms,
            was_in_view: heard.was_in_view,
            // What it was to compare it may not have compared yet.
            compares: heard.compares.begun_anew(),
            ..Self::default()
        };
    }

    /// What was sent at `sent_ms` has arrived.
    fn prove(&mut self, sent_ms: u64) {
        self.proven_ms = self.proven_ms.max(Some(sent_ms));
        if self.owes_since_ms.is_some_and(|since| since <= sent_ms) {
            self.owes_since_ms = None;
        }
    }

    /// Somebody else knows a later life of this node. One that the node itself would not follow is not believed: it could never be heard
    /// again.
    pub fn learn_life(&mut self, life: Incarnation) {
        if !life.may_be_followed() {
            return;
        }
        self.newest_life = self.newest_life.max(Some(life));
        if self.life < self.newest_life {
            (self.stage, self.has_lost) = (None, false);
            self.report = None;
            self.progress = None;
            self.seeks = None;
        }
    }
}

impl Core {
    /// Takes a batch. What is refused is said and otherwise ignored.
    pub(super) fn batch(&mut self, batch: Batch) -> Result<()> {
        if let Some(why) = self.refusal(&batch) {
            self.say(Severity::Warn, format!("a message from {} was refused: {why}", batch.from));
            return Ok(());
        }
        let now = self.now.mono_ms;
        let my_life = self.life;
        let from = batch.from.clone();
        let Some(peer) = self.peers.get_mut(&from) else { return self.hear_stranger(batch) };
        if peer.newest_life.is_some_and(|newest| batch.life < newest) {
            // Also where contact was made with this life before a third node told of a later one.
            let known = peer.newest_life.expect("just compared");
            self.send(&from, Message::Superseded { known });
            return Ok(());
        }
        let new_life = peer.life != Some(batch.life);
        if new_life {
            peer.begin_life(batch.life);
            self.replica_changed = true;
        }
        peer.heard_ms = Some(now);
        peer.refuses = false;
        (peer.version, peer.told_topology) = (batch.version, false);
        if batch.sent_ms > peer.echo_ms {
            (peer.echo_ms, peer.echo_heard_ms) = (batch.sent_ms, now);
        }
        let to_me = batch.to_life == Some(my_life);
        if to_me && batch.echo_ms > 0 {
            peer.prove(batch.echo_ms.min(now));
        }
        if new_life {
            self.life_began(&from);
        }
        // Mostly it is known: that is the cheapest to find out.
        if self.asks_to_join() && to_me && batch.version == self.version() {
            self.known_by(&from);
        }
        let member = self.topology.is_some();
        for message in batch.messages {
            let heard = match message {
                Message::Superseded { .. } | Message::Stranger => true,
                // It is to what this life has asked, whatever both go by since.
                Message::Answered { .. } => to_me,
                // What was agreed is true whoever says it to whom; but who has no cluster must not be told by the dead.
                Message::Topology(_) => to_me || member,
                Message::Seek { .. } | Message::Raft { .. } | Message::Propose { .. } => to_me,
                // Everything else holds under the sender's topology only, and concerns data that is not being dropped.
                Message::Beat { .. } => to_me && batch.version <= self.version(),
                _ => to_me && batch.version <= self.version() && self.dropping.is_none(),
            };
            if heard {
                self.message(&from, message)?;
            }
        }
        Ok(())
    }

    /// A batch from an address that the topology does not list.
    fn hear_stranger(&mut self, batch: Batch) -> Result<()> {
        for message in batch.messages {
            match message {
                Message::Seek { birth, .. } => self.newcomer(&batch.from, birth),
                Message::Topology(topology) if self.topology.is_some() => self.topology_offered(*topology)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The topology that this node goes by.
    fn version(&self) -> TopologyVersion {
        self.topology.as_ref().map(|topology| topology.version).unwrap_or_default()
    }

    /// Why a batch is not for this node, if it is not.
    fn refusal(&self, batch: &Batch) -> Option<String> {
        let mine = self.topology.as_ref().map(|topology| topology.cluster);
        match (mine, batch.cluster) {
            (Some(mine), Some(theirs)) if mine != theirs => Some("it belongs to another cluster".into()),
            _ if batch.sent_ms > CLOCK_MS_MAX => Some("its clock reads more than any clock can".into()),
            _ if batch.from == self.settings.me => Some("it claims this node's own address".into()),
            _ if !batch.life.is_possible() => Some("no node can have lived so often".into()),
            _ => None,
        }
    }

    fn life_began(&mut self, addr: &Addr) {
        self.forwards_lost_to(addr);
        if self.repair.as_ref().is_some_and(|repair| repair.peer == *addr) {
            self.abandon_repair();
        }
        // It may be without the data that the earlier life began to give.
        if self.transfer.as_ref().is_some_and(|transfer| transfer.peer == *addr)
            && !self.settings.broken(Mutant::TransferOutlivesGiver)
        {
            self.transfer = None;
        }
        self.beat(addr);
    }

    fn message(&mut self, from: &Addr, message: Message) -> Result<()> {
        match message {
            Message::Seek { view, shard_count, birth } => self.seek(from, Seeks { view, shard_count, birth }),
            Message::Topology(topology) => self.topology_offered(*topology)?,
            Message::Raft { generation, bytes } => self.raft_message(from, generation, &bytes),
            Message::Propose { request, proposal } => self.proposed(from, request, proposal),
            Message::Stranger => self.told_stranger(from),
            Message::Superseded { known } => self.superseded(known),
            Message::Beat { wall_ms, epoch, birth, progress, stage, stable } => {
                if let Some((shard, stable)) = stable {
                    self.learn_stable(shard, &stable);
                }
                self.beaten(from, wall_ms, Beaten { epoch, birth, progress, stage })?;
            }
            Message::Report(report) if self.is_mate(from) => self.reported(from, report),
            Message::Forward { id, shard, op, context, until_ms } => {
                self.forwarded(from, id, shard, op, context, until_ms)?;
            }
            Message::Answered { id, answer } => self.answered(from, id, answer)?,
            Message::RepairStart { id, scope, runs } => self.repair_started(from, id, scope, &runs),
            Message::RepairBegin { id, whole, keys, target, floors, clock, digests } => {
                let began = Began { whole, keys, target, floors, clock, digests };
                self.repair_began(from, id, began)?;
            }
            Message::RepairAsk { id, scope, round, slots } => self.repair_asked(from, id, scope, round, &slots)?,
            Message::RepairData { id, round, entries, dropped, rest } => {
                self.repair_data(from, (id, round), entries, dropped, rest)?;
            }
            // Everything below concerns the data of a shard and comes from its replicas only.
            message if self.is_mate(from) => self.mate_message(from, message)?,
            // What clients still wait for that wrote it under the layout before.
            message @ (Message::Writes { .. } | Message::Held { .. }) if self.was_mate(from) => {
                self.mate_message(from, message)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn mate_message(&mut self, from: &Addr, message: Message) -> Result<()> {
        match message {
            Message::Writes { writes, pulled } => self.writes(from, writes, pulled)?,
            Message::Held { origin, seq, beyond } => self.held(from, origin, seq, Some(beyond)),
            Message::Pull { have, floors } => self.pull_asked(from, &have, &floors),
            Message::Behind => self.told_behind(from),
            Message::Compared { id } => self.compared_by(from, id),
            _ => {}
        }
        Ok(())
    }

    /// Somebody knows a later life of this address: this one goes on under a still later number.
    pub(super) fn superseded(&mut self, known: Incarnation) {
        if known <= self.life || !known.may_be_followed() {
            return;
        }
        self.life = known.next();
        self.store.set_fact(super::FACT_LIFE, super::encode_fact(&self.life));
        self.urgent = true;
        if let Some(replica) = self.replica.as_mut() {
            replica.origin.incarnation = self.life;
        }
        for peer in self.peers.values_mut() {
            (peer.cursor, peer.push) = (Cursor::default(), Push::Now);
        }
        self.say(Severity::Info, format!("a later life of this address was known; going on as {}", self.life.0));
    }

    pub(super) fn notice_lost_peers(&mut self) {
        let changes: Vec<(Addr, bool)> = self
            .peers
            .iter()
            .map(|(addr, peer)| (addr.clone(), self.is_in_view(peer), peer.was_in_view))
            .filter(|&(_, now, before)| now != before)
            .map(|(addr, now, _)| (addr, now))
            .collect();
        for (addr, in_view) in changes {
            if let Some(peer) = self.peers.get_mut(&addr) {
                peer.was_in_view = in_view;
            }
            let text = if in_view { "can be reached" } else { "can't be reached" };
            self.say(Severity::Info, format!("{addr} {text}"));
        }
    }

    pub(super) fn beat_step(&mut self) {
        let due: Vec<Addr> = self.peers.keys().filter(|&addr| self.beat_is_due(addr)).cloned().collect();
        for addr in due {
            self.beat(&addr);
        }
    }

    /// Of two nodes the one with the smaller address beats; the other does if it hears nothing.
    fn beat_is_due(&self, addr: &Addr) -> bool {
        let peer = &self.peers[addr];
        let interval = self.beat_interval_ms(addr);
        let interval = if self.settings.me < *addr { interval } else { interval + interval / 2 };
        peer.last_beat_ms.is_none_or(|last| self.now.mono_ms.saturating_sub(last) >= interval)
    }

    pub(super) fn beat_all(&mut self) {
        let all: Vec<Addr> = self.peers.keys().cloned().collect();
        all.iter().for_each(|addr| self.beat(addr));
    }

    /// Beats to those that have not just been: for what can happen as often as clients like.
    pub(super) fn beat_quiet(&mut self) {
        let now = self.now.mono_ms;
        let quiet = |peer: &Peer| peer.last_beat_ms.is_none_or(|last| now.saturating_sub(last) >= BEAT_AGAIN_MS);
        let due: Vec<Addr> = self.peers.iter().filter(|(_, peer)| quiet(peer)).map(|(addr, _)| addr.clone()).collect();
        due.iter().for_each(|addr| self.beat(addr));
    }

    /// Queues what this node has to say about itself.
    pub(super) fn beat(&mut self, addr: &Addr) {
        self.drop_waiting_of_ended();
        for message in self.beat_messages(addr) {
            self.send(addr, message);
        }
        let now = self.now.mono_ms;
        if let Some(peer) = self.peers.get_mut(addr) {
            peer.last_beat_ms = Some(now);
        }
    }

    fn beat_messages(&self, addr: &Addr) -> Vec<Message> {
        let Some(topology) = self.topology.as_ref().filter(|_| self.me.is_some()) else {
            let view = if self.lost.is_some() { Vec::new() } else { self.settings.view.clone() };
            let shard_count = self.settings.shard_count;
            let seek = Message::Seek { view, shard_count, birth: self.birth };
            return if self.topology.is_none() || self.asks_to_join() { vec![seek] } else { Vec::new() };
        };
        let member = self.replica.as_ref().filter(|replica| replica.shard.is_some());
        let beat = Message::Beat {
            wall_ms: self.now.wall_ms,
            epoch: topology.layout.epoch,
            birth: self.birth,
            progress: self.progress(),
            stage: member.and_then(|replica| self.told_stage(replica.stage)),
            stable: member.and_then(|replica| Some((replica.shard?, self.own_stable()))),
        };
        let mut messages = vec![beat];
        if self.is_mate(addr) {
            messages.push(Message::Report(self.report()));
        }
        messages
    }

    fn beaten(&mut self, from: &Addr, wall_ms: u64, told: Beaten) -> Result<()> {
        let now = self.now.mono_ms;
        let epoch = self.topology.as_ref().map(|topology| topology.layout.epoch);
        let is_replica = self.is_replica(from);
        let Some(peer) = self.peers.get_mut(from) else { return Ok(()) };
        let before = peer.stage;
        peer.has_lost = is_replica && epoch == Some(told.epoch) && told.stage.is_none();
        // What a node is under another layout says nothing under this one.
        peer.stage = told.stage.filter(|_| epoch == Some(told.epoch));
        peer.birth = Some(told.birth);
        (peer.progress, peer.progress_version) = (told.progress, peer.version);
        if let Some(progress) = &peer.progress {
            peer.moves.clone_from(&progress.moves);
        }
        peer.seeks = None;
        peer.wall_offset_ms = Some(wall_ms.min(CLOCK_MS_MAX) as i64 - now as i64);
        let news = peer.progress.is_some();
        let serves_now = before != peer.stage && peer.stage == Some(Stage::Serving);
        // The answer to a beat carries ours, so that one request serves both directions.
        let quiet_ms = peer.last_beat_ms.map_or(u64::MAX, |last| now.saturating_sub(last));
        if quiet_ms >= self.beat_interval_ms(from) / 2 {
            self.beat(from);
        }
        if news {
            self.handover_step();
        }
        if serves_now { self.forward_step() } else { Ok(()) }
    }

    /// The physical time for stamps: this node's wall clock, at most a minute past its peers' median.
    pub(super) fn physical_ms(&self) -> u64 {
        const AHEAD_MS_MAX: i64 = 60_000;
        if self.settings.broken(Mutant::WallClockWins) {
            return self.now.wall_ms;
        }
        let now = self.now.mono_ms as i64;
        let mut walls: Vec<i64> =
            self.peers.values().filter_map(|peer| peer.wall_offset_ms).map(|offset| now + offset).collect();
        walls.sort_unstable();
        let Some(&median) = walls.get(walls.len() / 2) else { return self.now.wall_ms };
        (self.now.wall_ms as i64).min(median + AHEAD_MS_MAX).max(0) as u64
    }

    /// Whether a batch to this peer would carry anything.
    pub fn wants(&self, addr: &Addr) -> bool {
        let Some(peer) = self.peers.get(addr) else { return false };
        !peer.queue.is_empty() || self.has_writes_for(addr, peer) || self.earlier_writes_for(addr).is_some()
    }

    /// The next batch to a peer; `None` if there is nothing to say. Call it only between turns.
    pub fn next_batch(&mut self, now: Now, addr: &Addr) -> Option<Batch> {
        self.now.mono_ms = self.now.mono_ms.max(now.mono_ms);
        if !self.wants(addr) {
            return None;
        }
        let (mut messages, weight) = self.take_messages(addr);
        self.attach_topology(addr, &mut messages);
        if weight < BATCH_WEIGHT_MAX {
            messages.extend(self.take_earlier_writes_for(addr, BATCH_WEIGHT_MAX - weight));
            messages.extend(self.take_writes_for(addr, BATCH_WEIGHT_MAX - weight));
        }
        self.owe(addr);
        Some(self.batch_of(addr, messages))
    }

    /// A peer is given a batch now, and owes an answer.
    fn owe(&mut self, addr: &Addr) {
        let now_ms = self.now.mono_ms;
        if let Some(peer) = self.peers.get_mut(addr) {
            peer.owes_since_ms.get_or_insert(now_ms);
        }
    }

    /// The peers to which [`Core::next_writes`] has something to give: clients wait for them to hold it.
    pub fn awaited_peers(&self) -> Vec<Addr> {
        self.peers.keys().filter(|addr| self.is_awaited(addr)).cloned().collect()
    }

    /// Whether this is one of them.
    pub fn is_awaited(&self, addr: &Addr) -> bool {
        self.peers.get(addr).is_some_and(|peer| peer.is_eager && self.has_writes_for(addr, peer))
    }

    /// A batch of nothing but this node's own writes. Alone of all batches it may leave before they are on stable media here: it tells
    /// nobody that they are, and who loses them does not go on under the origin that wrote them. So two disks work at a time.
    pub fn next_writes(&mut self, now: Now, addr: &Addr) -> Option<Batch> {
        self.now.mono_ms = self.now.mono_ms.max(now.mono_ms);
        let writes = self.take_writes_for(addr, BATCH_WEIGHT_MAX)?;
        self.owe(addr);
        Some(self.batch_of(addr, vec![writes]))
    }

    /// What to answer a batch with: whatever waits for its sender, even nothing. Never our own writes: a link carries one
    /// batch at a time and keeps them in order, and an answer would overtake it.
    pub fn answer_batch(&mut self, now: Now, addr: &Addr) -> Batch {
        self.now.mono_ms = self.now.mono_ms.max(now.mono_ms);
        let (mut messages, _) = self.take_messages(addr);
        self.attach_topology(addr, &mut messages);
        self.batch_of(addr, messages)
    }

    /// A peer that goes by an older topology is told ours before anything else.
    fn attach_topology(&mut self, addr: &Addr, messages: &mut Vec<Message>) {
        let (Some(topology), Some(peer)) = (&self.topology, self.peers.get_mut(addr)) else { return };
        if peer.life.is_some() && peer.version < topology.version && !peer.told_topology {
            peer.told_topology = true;
            messages.insert(0, Message::Topology(Box::new(topology.clone())));
        }
    }

    fn batch_of(&mut self, addr: &Addr, messages: Vec<Message>) -> Batch {
        let now_ms = self.now.mono_ms.max(1);
        let (mut to_life, mut echo_ms) = (None, 0);
        if let Some(peer) = self.peers.get_mut(addr) {
            (to_life, echo_ms) = (peer.life, peer.echo_ms);
        }
        Batch {
            cluster: self.topology.as_ref().map(|topology| topology.cluster),
            version: self.version(),
            from: self.settings.me.clone(),
            life: self.life,
            to_life,
            sent_ms: now_ms,
            echo_ms,
            messages,
        }
    }

    /// What is queued for a peer, up to a batch's limit, and its weight.
    fn take_messages(&mut self, addr: &Addr) -> (Vec<Message>, usize) {
        let Some(peer) = self.peers.get_mut(addr) else {
            let known = self.topology.iter().map(|topology| Message::Topology(Box::new(topology.clone())));
            return (known.chain([Message::Stranger]).collect(), 0);
        };
        let mut messages = Vec::new();
        let mut weight = 0;
        while weight < BATCH_WEIGHT_MAX
            && let Some(message) = peer.queue.pop_front()
        {
            peer.queue_weight -= message.weight();
            weight += message.weight();
            messages.push(message);
        }
        (messages, weight)
    }
}

/// What a beat tells of its sender.
struct Beaten {
    epoch: Epoch,
    birth: Incarnation,
    progress: Option<Box<Progress>>,
    stage: Option<Stage>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever is told of a life that its node would never follow goes on hearing the present one.
    #[test]
    fn a_life_that_nobody_could_follow_is_not_believed() {
        let mut peer = Peer::new();
        peer.begin_life(Incarnation(1_900_000_000_000));
        for lie in [Incarnation(u64::MAX), Incarnation((1 << Incarnation::BITS) - 1)] {
            peer.learn_life(lie);
            assert_eq!(peer.newest_life, peer.life, "{lie:?}");
        }
        peer.learn_life(Incarnation(1_900_000_000_001));
        assert!(peer.newest_life > peer.life);
    }
}
