//! How often a node looks and speaks when nothing makes it.
//!
//! Beats serve three purposes: they show who is alive, they carry what replicas hold so that it becomes stable, and they bring
//! news of the topology. At rest only the first is left, and it may take its time: then a node is *quiet*. It beats once a
//! second, ticks four times, and the log of topologies hardly ticks at all (TiKV calls that hibernating).
//!
//! What fails without care: whom an answer waits for is decided by who can be reached, and between quiet nodes the last proof of
//! contact is old. So a peer is not judged by the age of that proof alone, but by its *silence*: how long it has owed an answer
//! to what it was sent. A quiet peer owes nothing.
//!
//! Rule: nothing that is safe only under a fresh proof may go by silence. What becomes stable, and how clusters and shards begin,
//! goes by [`Core::is_proven`]; waiting for copies and passing on go by [`Core::is_reachable`].

use kvnode_types::ident::{Addr, Origin};

use super::contact::Peer;
use super::replica::Replica;
use super::topology::Transition;
use super::{Core, TICK_MS};
use crate::messages::Stage;

/// A peer that proved within this time that it hears us may be relied on to hear us.
const PROVEN_MS: u64 = 500;
/// A peer that owes an answer for so long is not waited for.
const REACHABLE_SILENCE_MS: u64 = 500;
/// A peer that owes an answer for so long is given no more requests, and those that it has are given up.
const FORWARD_SILENCE_MS: u64 = 1_000;
/// A peer that owes an answer for so long, or proved nothing for so long, is gone from the view.
const VIEW_SILENCE_MS: u64 = 1_300;
const VIEW_MS: u64 = 2_400;
/// How often replicas of one shard hear from each other when there is nothing to say.
const BEAT_MATE_MS: u64 = 200;
/// The same for other nodes.
const BEAT_OTHER_MS: u64 = 450;
/// The same for all nodes while they are quiet.
const BEAT_QUIET_MS: u64 = 1_000;
/// How often a quiet node ticks.
const TICK_QUIET_MS: u64 = 250;
/// A node that has not ticked for so long stood still: its process was frozen, or its machine had better things to do.
const STOOD_STILL_MS: u64 = 1_000;
/// How long a node is at rest before it is quiet: long enough to tell everybody what has become of the last writes.
const REST_MS: u64 = 2_000;

/// When a node was last not at rest, and whether it is quiet; when it last ticked, and when it last took its steps.
#[derive(Debug, Default)]
pub(super) struct Pace {
    restless_ms: u64,
    quiet: bool,
    tick_ms: u64,
    step_ms: u64,
    /// When this node last went on after it had stood still.
    woke_ms: u64,
}

impl Core {
    /// Whether a peer has shown lately that it hears us.
    pub(super) fn is_proven(&self, peer: &Peer) -> bool {
        self.is_present(peer) && self.proof_age_ms(peer) < PROVEN_MS
    }

    /// Whether a peer may be expected to answer what it is sent now.
    pub(super) fn is_reachable(&self, peer: &Peer) -> bool {
        self.is_present(peer) && self.is_in_view(peer) && self.silence_ms(peer) < REACHABLE_SILENCE_MS
    }

    /// Whether a request may be given to a peer, or left with it.
    pub(super) fn answers_lately(&self, peer: &Peer) -> bool {
        self.is_in_view(peer) && self.silence_ms(peer) < FORWARD_SILENCE_MS
    }

    pub(super) fn is_in_view(&self, peer: &Peer) -> bool {
        self.proof_age_ms(peer) < VIEW_MS && self.silence_ms(peer) < VIEW_SILENCE_MS
    }

    /// Whether a peer was sent something and has not answered for so long that it is gone; not only that nothing is known of it,
    /// as of one that was met only now.
    pub(super) fn is_known_to_be_gone(&self, peer: &Peer) -> bool {
        // A node that stood still could not hear who has answered meanwhile.
        let stands = self.now.mono_ms.saturating_sub(self.pace.tick_ms) >= STOOD_STILL_MS;
        let awake_ms = self.now.mono_ms.saturating_sub(self.pace.woke_ms);
        !stands && self.silence_ms(peer).min(awake_ms) >= VIEW_SILENCE_MS
    }

    /// Whether contact is with the newest life of the node.
    fn is_present(&self, peer: &Peer) -> bool {
        peer.life.is_some() && peer.life == peer.newest_life
    }

    fn proof_age_ms(&self, peer: &Peer) -> u64 {
        peer.proven_ms.map_or(u64::MAX, |proven| self.now.mono_ms.saturating_sub(proven))
    }

    fn silence_ms(&self, peer: &Peer) -> u64 {
        peer.owes_since_ms.map_or(0, |since| self.now.mono_ms.saturating_sub(since))
    }

    /// How often this node beats to a peer. Of two nodes the one with the smaller address does; the other only if it
    /// hears nothing.
    pub(super) fn beat_interval_ms(&self, addr: &Addr) -> u64 {
        match self.topology {
            _ if self.pace.quiet => BEAT_QUIET_MS,
            Some(_) if !self.is_mate(addr) => BEAT_OTHER_MS,
            _ => BEAT_MATE_MS,
        }
    }

    /// How long after the last tick the driver should tick again, in ms. It may grow less with every event.
    pub fn tick_interval_ms(&self) -> u64 {
        let due_ms = self.pace.step_ms + self.step_interval_ms();
        let next_ms = self.linger_until_ms().into_iter().chain(self.transfer_rests_until_ms()).fold(due_ms, u64::min);
        next_ms.saturating_sub(self.pace.tick_ms)
    }

    fn step_interval_ms(&self) -> u64 {
        if self.pace.quiet && self.nobody_waits() { TICK_QUIET_MS } else { TICK_MS }
    }

    /// Notes a tick. Whether the steps are due.
    pub(super) fn pace_tick(&mut self) -> bool {
        let now = self.now.mono_ms;
        if now.saturating_sub(self.pace.tick_ms) >= STOOD_STILL_MS {
            self.pace.woke_ms = now;
        }
        self.pace.tick_ms = now;
        let due = now >= self.pace.step_ms + self.step_interval_ms();
        if due {
            self.pace.step_ms = now;
        }
        due
    }

    /// The same for the log of topologies. A voter ticks slowly as long as it hears from a leader that leads in its present life.
    pub(super) fn consensus_interval_ms(&self) -> u64 {
        const ACTIVE_MS: u64 = super::consensus::CONSENSUS_TICK_MS;
        let Some(consensus) = &self.consensus else { return ACTIVE_MS };
        let led = consensus.is_leader()
            || self.office.led_by.is_some_and(|(node, life)| {
                let is_there = |peer: &Peer| peer.life == Some(life) && self.is_in_view(peer);
                consensus.leader() == Some(node) && self.peer_of(node).is_some_and(is_there)
            });
        let steady = self.topology.as_ref().is_some_and(|topology| topology.transition == Transition::Steady);
        if led && steady && consensus.is_idle() && self.office.asked.is_empty() { 8 * ACTIVE_MS } else { ACTIVE_MS }
    }

    pub(super) fn pace_step(&mut self) {
        let now = self.now.mono_ms;
        if !self.is_at_rest() {
            self.pace.restless_ms = now;
        }
        self.pace.quiet = now.saturating_sub(self.pace.restless_ms) >= REST_MS;
    }

    fn nobody_waits(&self) -> bool {
        self.waiting.is_empty()
            && self.forwards.is_empty()
            && self.office.asked.is_empty()
            && self.repair.is_none()
            && self.transfer.is_none()
    }

    /// Whether there is nothing to do, and nothing to tell others that they would not know from earlier.
    fn is_at_rest(&self) -> bool {
        let Some(topology) = &self.topology else { return false };
        let at_rest = |replica: &Replica| {
            let settled = |(origin, seq): (Origin, u64)| {
                let lives = self.newest_life(origin.node).is_none_or(|life| life <= origin.incarnation);
                lives && self.is_stable(origin, seq)
            };
            replica.stage == Stage::Serving && replica.applied.iter().all(settled)
        };
        topology.transition == Transition::Steady
            && self.me.is_some()
            && self.office.purged
            && self.nobody_waits()
            && self.inventory.dirty.is_empty()
            && self.replica.as_ref().is_none_or(at_rest)
    }
}
