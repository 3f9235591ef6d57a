//! What a context asks of this replica, and whether it has it.
//!
//! Causality is enforced where it is observed: a request checks only the own-shard part of its context. An entry is
//! satisfied if
//! - the replica has applied it; or
//! - its origin is retired: all that still exists of it is everywhere; or
//! - its origin has ended (a later life of the node is known), every replica of the shard is serving, knows of that and has
//!   told what it holds of the origin, and none holds more than this one. What the entry names beyond that is lost, and
//!   waiting would never end. The loss is said once.

use kvnode_types::causal::{Context, Vector};
use kvnode_types::ident::{Addr, Incarnation, Origin};

use super::replica::Replica;
use super::request::Missing;
use super::settings::Mutant;
use super::{Core, Severity};
use crate::messages::{Report, Stage};

/// How a context looks to this replica.
pub(super) enum Check {
    Satisfied {
        /// The own-shard part, as far as it exists here.
        own: Vector,
        /// The rest, less what is stable.
        foreign: Vector,
        /// Origins of which the context names more than exists.
        lost: Vec<Origin>,
    },
    Missing(Vector),
    /// The client has seen a later layout than this node knows.
    Behind,
}

impl Core {
    /// Splits a context into what concerns this shard and what does not, and checks the former.
    pub(super) fn check(&self, replica: &Replica, context: &Context) -> Check {
        let behind = context.epoch >= self.bearings.next && !self.settings.broken(Mutant::EpochIgnored);
        if behind {
            return Check::Behind;
        }
        let (mut own, mut foreign, mut missing, mut lost) = (Vector::new(), Vector::new(), Vector::new(), Vec::new());
        for (origin, seq) in context.seen.iter() {
            // The slots of one shard before may be several shards' now. What a client has seen of it concerns each of them,
            // and no one's dot stands for it at the others: it is checked here and carried on.
            let shards = self.bearings.shards_of(origin);
            let (here, elsewhere) =
                (self.concerns(replica, origin), shards.iter().any(|&of| Some(of) != replica.shard));
            let forgotten = here && self.settings.broken(Mutant::HeirsForgotten);
            if elsewhere && !forgotten && !self.is_stable(origin, seq) {
                foreign.raise(origin, seq);
            }
            if elsewhere && !here {
                // Another shard's.
            } else if replica.applied.get(origin) >= seq {
                own.raise(origin, seq);
            } else if self.is_retired(replica, origin) {
                // Everywhere, or gone for good: nothing to hold on to.
            } else if self.is_exhausted(replica, origin) {
                own.raise(origin, replica.applied.get(origin));
                lost.push(origin);
            } else if !self.unknown_counts_as_retired(origin) {
                missing.raise(origin, seq);
            }
        }
        if missing.is_empty() { Check::Satisfied { own, foreign, lost } } else { Check::Missing(missing) }
    }

    fn unknown_counts_as_retired(&self, origin: Origin) -> bool {
        let known = self.replica.as_ref().is_some_and(|replica| replica.applied.get(origin) > 0);
        self.settings.broken(Mutant::UnknownIsRetired) && !known
    }

    /// Whether all that still exists of an origin is everywhere.
    pub(super) fn is_retired(&self, replica: &Replica, origin: Origin) -> bool {
        self.bearings.is_retired(origin.epoch) || replica.is_retired(origin)
    }

    /// Whether an origin may have written to slots that this replica's shard has.
    pub(super) fn concerns(&self, replica: &Replica, origin: Origin) -> bool {
        replica.shard.is_some_and(|shard| self.bearings.shards_of(origin).contains(&shard))
    }

    /// Whether a write's own-shard dependencies are here.
    pub(super) fn dependencies_are_here(&self, replica: &Replica, own_deps: &Vector) -> bool {
        own_deps.iter().all(|(origin, seq)| {
            replica.applied.get(origin) >= seq
                || self.is_retired(replica, origin)
                || !self.concerns(replica, origin)
                || self.is_exhausted(replica, origin)
        })
    }

    /// The newest life that this node knows of another.
    pub(super) fn newest_life(&self, node: kvnode_types::ident::NodeId) -> Option<Incarnation> {
        if self.me == Some(node) {
            return Some(self.life);
        }
        self.peer_of(node)?.newest_life
    }

    /// Whether an origin has ended and nobody has more of it than this replica, neither by its vector nor beside it.
    fn is_exhausted(&self, replica: &Replica, origin: Origin) -> bool {
        self.none_has_more(replica, origin) && !self.is_uncovered_anywhere(replica, origin)
    }

    /// Whether an origin has ended and no vector of the shard has more of it than this replica's.
    pub(super) fn none_has_more(&self, replica: &Replica, origin: Origin) -> bool {
        let ended = self.has_ended(origin);
        let have = replica.applied.get(origin);
        // Of the layout before, the members before decide: it is retired once they have handed over.
        ended
            && origin.epoch == replica.origin.epoch
            && replica.stage != Stage::Filling
            && (self.settings.broken(Mutant::ExhaustedAlone)
                || replica.others.iter().all(|&node| {
                    let Some(report) = self.valid_report(node) else { return false };
                    let serves = self.peer_of(node).is_some_and(|peer| peer.stage.is_some_and(|s| s != Stage::Filling));
                    serves
                        && knows_end(report, origin)
                        && (retired_in(report, origin) || report.applied.get(origin) <= have)
                }))
    }

    /// The last report of a replica, unless a later life of it is known to anybody.
    pub(super) fn valid_report(&self, node: kvnode_types::ident::NodeId) -> Option<&Report> {
        let peer = self.peer_of(node)?;
        let epoch = self.topology.as_ref()?.layout.epoch;
        let report = peer.report.as_ref().filter(|report| report.epoch == epoch);
        if peer.life == peer.newest_life { report } else { None }
    }

    /// Drops from a context what all serving replicas have anyway.
    pub(super) fn prune(&self, seen: &mut Vector) {
        seen.retain(|origin, seq| !self.is_stable(origin, seq));
    }

    /// Says once per origin that something was lost.
    pub(super) fn say_losses(&mut self, lost: &[Origin]) {
        const LOSSES_SAID_MAX: usize = 1_000;
        for &origin in lost {
            if self.losses_said.len() < LOSSES_SAID_MAX && self.losses_said.insert(origin) {
                let have = self.replica.as_ref().map_or(0, |replica| replica.applied.get(origin));
                let writer = self.writer_name(origin);
                let text = format!("writes of {writer} after number {have} are lost: no replica of the shard has them");
                self.say(Severity::Warn, text);
            }
        }
    }

    fn writer_name(&self, origin: Origin) -> String {
        self.addr_of(origin.node).map_or_else(|| format!("unknown node {}", origin.node.0), |addr| addr.to_string())
    }

    /// What is missing, for people.
    pub(super) fn explain(&self, missing: &Vector) -> Vec<Missing> {
        let have = |origin| self.replica.as_ref().map_or(0, |replica| replica.applied.get(origin));
        let explain_one = |(origin, to)| Missing {
            writer: self.writer_name(origin),
            from: have(origin) + 1,
            to,
            held_by: self.holders(origin, to),
        };
        missing.iter().map(explain_one).collect()
    }

    /// Replicas of this shard that are known to have a write, in the order in which they joined.
    fn holders(&self, origin: Origin, seq: u64) -> Vec<Addr> {
        let (Some(replica), Some(topology)) = (&self.replica, &self.topology) else { return Vec::new() };
        let has = |node| {
            let writes_it = node == origin.node && self.newest_life(node) == Some(origin.incarnation);
            writes_it || self.valid_report(node).is_some_and(|report| report.applied.get(origin) >= seq)
        };
        topology.addrs_as_joined(replica.others.iter().copied().filter(|&node| has(node)))
    }
}

/// Whether the reporter knew that the origin has ended when it reported.
pub(super) fn knows_end(report: &Report, origin: Origin) -> bool {
    report.lives.iter().any(|&(node, life)| node == origin.node && life > origin.incarnation)
}

/// Whether the reporter has retired the origin.
pub(super) fn retired_in(report: &Report, origin: Origin) -> bool {
    let above =
        |&(node, epoch, floor): &(_, _, _)| (node, epoch) == (origin.node, origin.epoch) && floor > origin.incarnation;
    report.floors.iter().any(above)
}
