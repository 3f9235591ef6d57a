//! What operators are told in the log: in words, or as notices with fields where a program may look for them.
//!
//! The core only gives them, as effects of a turn; the driver writes them down.

use std::collections::BTreeMap;
use std::fmt;

use kvnode_types::ident::{Addr, Epoch, NodeId, ShardId};

use super::admin::{AdminAnswer, AdminOp};
use super::contact::Peer;
use super::topology::{Change, Ended, Outcome, Refusal, Topology, Transition};
use super::{Core, Effect};

/// As long as a node refuses this one, that is said so often.
const REFUSAL_AGAIN_MS: u64 = 60_000;
/// Between two looks at who is there.
const LOOK_EVERY_MS: u64 = 500;
/// A majority that is away for so long is said to be lost: longer than it takes to meet everybody after a start.
const LOST_AFTER_MS: u64 = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Info,
    Warn,
}

/// Something that happened to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A request that this node took from an operator has its answer.
    Answered {
        asked: String,
        answer: String,
    },
    /// A change of the layout has begun, that the node at `asked_at` was asked for; `None`: the cluster does it by itself, or too
    /// much was decided since.
    Begun {
        job: u32,
        change: String,
        asked_at: Option<Addr>,
    },
    /// Its layout is in force.
    InForce {
        job: u32,
        change: String,
        epoch: u32,
    },
    Ended {
        job: u32,
        change: String,
        how: Ended,
    },
    /// A node is in the view from now on, or is not any more.
    Listed(Addr),
    Unlisted(Addr),
    /// A node refuses this one, because one of both was started with another secret.
    AnotherSecret(Addr),
    /// Too few of those that count can be reached.
    MajorityLost {
        of: Body,
        reached: usize,
        members: usize,
        away: Vec<Addr>,
    },
    MajorityBack {
        of: Body,
        reached: usize,
        members: usize,
    },
}

/// Nodes of whom a majority matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Body {
    Shard(ShardId),
    /// Those who decide about the topology.
    Voters,
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shard(shard) => write!(f, "shard {shard}"),
            Self::Voters => f.write_str("the nodes that decide"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchShard => f.write_str("there is no such shard"),
            Self::NoSuchReplica => f.write_str("the view has no such node"),
            Self::ViewFull => f.write_str("the view is full"),
            Self::InAnotherShard(shard) => write!(f, "the node is in shard {shard}"),
            Self::NotEnoughNodes => f.write_str("there are not enough nodes"),
            Self::LastReplica(shard) => write!(f, "it is the last replica of shard {shard}"),
            Self::Busy { what, .. } => f.write_str(what),
            Self::EpochMoved(Epoch(epoch)) => write!(f, "the epoch is {epoch} now"),
            Self::NothingToAbort => f.write_str("no change runs"),
            Self::TooLateToAbort => f.write_str("the new layout is in force"),
        }
    }
}

/// Bodies without a majority: since when, and whether that was said.
#[derive(Debug, Default)]
pub(super) struct Minorities {
    since: BTreeMap<Body, (u64, bool)>,
    looked_ms: u64,
}

impl Core {
    pub(super) fn say(&mut self, severity: Severity, text: impl Into<String>) {
        self.effects.push(Effect::Say(severity, text.into()));
    }

    fn note(&mut self, notice: Notice) {
        self.effects.push(Effect::Note(notice));
    }

    pub(super) fn note_answer(&mut self, op: &AdminOp, answer: &AdminAnswer) {
        let answer = match answer {
            AdminAnswer::Decided(Outcome::Started { job, .. }) => format!("job {job}"),
            AdminAnswer::Decided(Outcome::Done { .. }) => "done".into(),
            AdminAnswer::Decided(Outcome::Already) => "it is so already".into(),
            AdminAnswer::Decided(Outcome::Refused(refusal)) => format!("refused: {refusal}"),
            AdminAnswer::Unreachable(addr) => format!("refused: {addr} can't be reached"),
            AdminAnswer::Undecided(why) => format!("not decided: {why}"),
            AdminAnswer::NotReady(why) => format!("this node is in no cluster: {why}"),
        };
        self.note(Notice::Answered { asked: op.to_string(), answer });
    }

    /// Tells what a topology that is about to be taken over changes.
    pub(super) fn note_changes(&mut self, next: &Topology) {
        if let Some(before) = &self.topology {
            let notices = changes(before, next);
            notices.into_iter().for_each(|notice| self.note(notice));
        }
    }

    /// A peer could not be reached, because of another secret or for want of anybody who listens. The former is said now and then.
    pub(super) fn note_secret(&mut self, addr: &Addr, another: bool) {
        let now = self.now.mono_ms;
        let Some(peer) = self.peers.get_mut(addr) else { return };
        peer.refuses = another;
        if another && peer.refusal_said_ms.is_none_or(|said| now.saturating_sub(said) >= REFUSAL_AGAIN_MS) {
            peer.refusal_said_ms = Some(now);
            self.note(Notice::AnotherSecret(addr.clone()));
        }
    }

    /// A peer that is waited for, with the reason why in vain if that is known.
    pub(super) fn waited_for(addr: &Addr, peer: &Peer) -> String {
        if peer.refuses { format!("{addr}, which has another CLUSTER_SECRET,") } else { addr.to_string() }
    }

    /// Tells which majorities were lost, or are back.
    pub(super) fn majorities_step(&mut self) {
        let now = self.now.mono_ms;
        if now.saturating_sub(self.minorities.looked_ms) < LOOK_EVERY_MS {
            return;
        }
        self.minorities.looked_ms = now;
        let mut before = std::mem::take(&mut self.minorities.since);
        for (of, nodes) in self.bodies() {
            let here =
                |node: &&NodeId| Some(**node) == self.me || self.peer_of(**node).is_some_and(|p| self.is_in_view(p));
            let (members, reached) = (nodes.len(), nodes.iter().filter(here).count());
            let (since, said) = before.remove(&of).unwrap_or((now, false));
            if 2 * reached > members {
                if said {
                    self.note(Notice::MajorityBack { of, reached, members });
                }
                continue;
            }
            let lost = said || now.saturating_sub(since) >= LOST_AFTER_MS;
            if lost && !said {
                let away = nodes.iter().copied().filter(|node| !here(&node));
                let away = self.topology.as_ref().map(|topology| topology.addrs_as_joined(away)).unwrap_or_default();
                self.note(Notice::MajorityLost { of, reached, members, away });
            }
            self.minorities.since.insert(of, (since, lost));
        }
    }

    fn bodies(&self) -> Vec<(Body, Vec<NodeId>)> {
        let Some(topology) = self.topology.as_ref().filter(|_| self.me.is_some()) else { return Vec::new() };
        let shards = topology.layout.shards.iter().map(|(&shard, members)| (Body::Shard(shard), members.clone()));
        let voters = self.consensus.as_ref().map(|consensus| consensus.voters().into_iter().collect::<Vec<NodeId>>());
        let voters = voters.filter(|voters| !voters.is_empty()).map(|voters| (Body::Voters, voters));
        shards.chain(voters).collect()
    }
}

/// What has happened between two topologies, as far as the later one tells.
fn changes(before: &Topology, next: &Topology) -> Vec<Notice> {
    // The later one may have forgotten a node that a change is about.
    let name = |change: &Change| if next.knows_all_of(change) { next.name_of(change) } else { before.name_of(change) };
    let mut notices = Vec::new();
    if let Some((change, how)) = next.last.as_ref().filter(|_| next.last != before.last) {
        notices.push(Notice::Ended { job: change.job, change: name(change), how: *how });
    }
    let removals = next.leaving().iter().filter(|(node, _)| !before.leaving().contains_key(node));
    let removals = removals.map(|(&node, &job)| Change::removal(job, node));
    let ran = before.transition.change();
    let runs = next.transition.change().filter(|change| ran.is_none_or(|ran| ran.job != change.job)).cloned();
    for change in runs.into_iter().chain(removals) {
        let asked_at = next.asked_for(change.job).and_then(|request| next.nodes.get(&request.node)).cloned();
        notices.push(Notice::Begun { job: change.job, change: name(&change), asked_at });
    }
    if let Transition::Settling { change, .. } = &next.transition
        && next.layout.epoch != before.layout.epoch
    {
        notices.push(Notice::InForce { job: change.job, change: name(change), epoch: next.layout.epoch.0 });
    }
    let not_in = |other: &Topology, addr: &&Addr| other.node_at(addr).is_none();
    let listed = next.nodes.values().filter(|addr| not_in(before, addr)).cloned().map(Notice::Listed);
    let unlisted = before.nodes.values().filter(|addr| not_in(next, addr)).cloned().map(Notice::Unlisted);
    notices.extend(listed.chain(unlisted));
    notices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{ClusterId, Proposal, RequestId};
    use kvnode_types::ident::Incarnation;

    fn addr(number: u16) -> Addr {
        format!("10.10.0.{number}:8090").parse().expect("an address")
    }

    fn request(number: u64) -> Option<RequestId> {
        Some(RequestId { node: NodeId(2), life: Incarnation(1), number })
    }

    #[test]
    fn a_change_is_told_from_its_beginning_to_its_end() {
        let view: Vec<_> = (2..8).map(|number| (addr(number), Some(Incarnation(1)))).collect();
        let mut topology = Topology::form(ClusterId(7), [0; 32], &view, 2);
        let mut step = |request, proposal: Proposal| {
            let before = topology.clone();
            topology.apply(request, &proposal);
            changes(&before, &topology)
        };
        let change = || "job 1 (remove 10.10.0.7:8090)".to_owned();
        let begun = Notice::Begun { job: 1, change: change(), asked_at: Some(addr(3)) };
        assert_eq!(step(request(1), Proposal::Remove { addr: addr(7), dead: false }), [begun]);
        assert_eq!(step(request(2), Proposal::Remove { addr: addr(7), dead: false }), [], "it runs already");
        assert_eq!(step(None, Proposal::Flip { job: 1 }), [Notice::InForce { job: 1, change: change(), epoch: 2 }]);
        let ended = Notice::Ended { job: 1, change: change(), how: Ended::Done };
        let settled = step(None, Proposal::Settled { epoch: Epoch(2) });
        assert_eq!(settled, [ended, Notice::Unlisted(addr(7))]);

        assert_eq!(step(None, Proposal::Join { addr: addr(9), birth: None }), [Notice::Listed(addr(9))]);
        step(None, Proposal::Join { addr: addr(9), birth: Some(Incarnation(1)) });
        let begun = Notice::Begun { job: 2, change: "job 2 (remove 10.10.0.9:8090)".into(), asked_at: Some(addr(3)) };
        assert_eq!(step(request(3), Proposal::Remove { addr: addr(9), dead: false }), [begun]);
        let shard = ShardId(1);
        step(None, Proposal::Join { addr: addr(9), birth: None });
        let begun = step(None, Proposal::AddMember { shard, addr: addr(9) });
        let change = "job 3 (add 10.10.0.9:8090)".to_owned();
        assert_eq!(begun, [Notice::Begun { job: 3, change: change.clone(), asked_at: None }]);
        assert_eq!(step(request(4), Proposal::Abort), [Notice::Ended { job: 3, change, how: Ended::Aborted }]);
    }
}
