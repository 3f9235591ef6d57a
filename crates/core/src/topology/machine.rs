//! The topology as a state machine: proposals in the order of the log, each with its outcome.
//!
//! Nothing here looks at a clock or at who can be reached: what depends on that is decided by who proposes, and is part of
//! the proposal.

use std::collections::BTreeSet;

use kvnode_types::ident::{Addr, Epoch, Incarnation, NodeId, ShardId};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{Change, ChangeKind, Ended, Layout, Topology, Transition, plan};

/// Nodes of a cluster at most: a bound on what every node keeps per peer.
pub const NODES_MAX: usize = 1_024;
/// Decisions remembered, so that a repeated request is told what was decided.
const DECIDED_MAX: usize = 64;
/// Layouts that voters who are given up may have agreed on meanwhile, at most: as many numbers are never used.
const EPOCHS_SKIPPED: u32 = 1_000;
/// The same for changes.
const JOBS_SKIPPED: u32 = 1_000;

/// Names a request of one life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId {
    pub node: NodeId,
    pub life: Incarnation,
    pub number: u64,
}

/// What is asked of the topology.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proposal {
    /// A node is there, with data that began in `birth` (`None`: an operator says that it will be there).
    Join {
        addr: Addr,
        birth: Option<Incarnation>,
    },
    /// `dead`: it can't be reached; nobody waits for what only it has.
    Remove {
        addr: Addr,
        dead: bool,
    },
    AddMember {
        shard: ShardId,
        addr: Addr,
    },
    /// `epoch`: refuse unless the layout is still that one. `present`: nodes that can be reached; who is
    /// not among them gets no new place, were it only because it was listed a moment ago.
    Reshard {
        count: u32,
        epoch: Option<Epoch>,
        present: BTreeSet<NodeId>,
    },
    Abort,
    /// All copies of a job are there.
    Flip {
        job: u32,
    },
    /// Every member holds all of the epoch before this one.
    Settled {
        epoch: Epoch,
    },
    /// Don't wait for this old member any more.
    WriteOff {
        node: NodeId,
    },
    /// A node that is to go has no vote any more.
    Forget {
        node: NodeId,
    },
}

/// How a proposal was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done {
        warnings: Vec<String>,
    },
    /// It was so already.
    Already,
    /// A change of the layout has begun.
    Started {
        job: u32,
        warnings: Vec<String>,
    },
    Refused(Refusal),
}

/// Why a proposal changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    NoSuchShard,
    NoSuchReplica,
    /// No more nodes than [`NODES_MAX`].
    ViewFull,
    InAnotherShard(ShardId),
    NotEnoughNodes,
    LastReplica(ShardId),
    /// Another change runs. `settling`: it has only to be finished, which takes a moment.
    Busy {
        what: String,
        settling: bool,
    },
    EpochMoved(Epoch),
    /// Nothing runs that could be aborted.
    NothingToAbort,
    TooLateToAbort,
}

type Decision = Result<Outcome, Refusal>;

const DONE: Outcome = Outcome::Done { warnings: Vec::new() };

impl Topology {
    /// Applies what is next in the log. A request that was decided is not acted on again; what nobody asks about (nodes that
    /// join by themselves, the leader's own steps) is not remembered, and so can't push out what somebody does.
    pub fn apply(&mut self, request: Option<RequestId>, proposal: &Proposal) {
        if request.is_some_and(|request| self.outcome_of(request).is_some()) {
            return;
        }
        let outcome = self.decide(proposal).unwrap_or_else(Outcome::Refused);
        self.decided.extend(request.map(|request| (request, outcome)));
        if self.decided.len() > DECIDED_MAX {
            self.decided.pop_front();
        }
    }

    fn decide(&mut self, proposal: &Proposal) -> Decision {
        match proposal {
            Proposal::Join { addr, birth } => self.join(addr, *birth),
            Proposal::Remove { addr, dead } => self.remove(addr, *dead),
            Proposal::AddMember { shard, addr } => self.add_member(*shard, addr),
            Proposal::Reshard { count, epoch, present } => self.reshard(*count, *epoch, present),
            Proposal::Abort => self.abort(),
            Proposal::Flip { job } => self.flip(*job),
            Proposal::Settled { epoch } => self.settled(*epoch),
            Proposal::WriteOff { node } => self.write_off(*node),
            Proposal::Forget { node } => Ok(self.forget_leaving(*node)),
        }
    }

    fn join(&mut self, addr: &Addr, birth: Option<Incarnation>) -> Decision {
        let (node, known) = match self.node_at(addr) {
            Some(node) => (node, true),
            None if self.nodes.len() >= NODES_MAX => return Err(Refusal::ViewFull),
            None => {
                let node = NodeId(self.next_node);
                self.next_node += 1;
                self.nodes.insert(node, addr.clone());
                (node, false)
            }
        };
        let back = if birth.is_none() { self.leaving.remove(&node) } else { None };
        if let Some(job) = back {
            self.ended(job, node, Ended::Aborted);
        }
        if let Some(birth) = birth {
            self.births.insert(node, birth);
        }
        Ok(if known && back.is_none() { Outcome::Already } else { DONE })
    }

    /// What keeps a change of the layout from beginning.
    fn free(&self) -> Result<(), Refusal> {
        let (what, settling) = match &self.transition {
            Transition::Steady => return Ok(()),
            Transition::Copying { change, .. } => (format!("{} runs", self.name_of(change)), false),
            Transition::Settling { change, .. } => (format!("{} is being finished", self.name_of(change)), true),
        };
        Err(Refusal::Busy { what, settling })
    }

    /// A change, for people.
    pub fn name_of(&self, change: &Change) -> String {
        let addr = |node: &NodeId| self.nodes.get(node).map_or_else(|| format!("node {}", node.0), ToString::to_string);
        match &change.kind {
            ChangeKind::Reshard => format!("job {} (reshard)", change.job),
            ChangeKind::AddMember(node) => format!("job {} (add {})", change.job, addr(node)),
            ChangeKind::Remove(node) => format!("job {} (remove {})", change.job, addr(node)),
        }
    }

    fn begin(&mut self, kind: ChangeKind, mut target: Layout) -> Outcome {
        self.jobs += 1;
        target.epoch = self.next_epoch;
        let warnings = plan::warnings(&self.layout, &target);
        let next = target.shards.keys().next_back().map_or(0, |shard| shard.0 + 1);
        self.next_shard = self.next_shard.max(next);
        self.transition = Transition::Copying { change: Change { job: self.jobs, kind }, target };
        Outcome::Started { job: self.jobs, warnings }
    }

    fn remove(&mut self, addr: &Addr, dead: bool) -> Decision {
        // Another spelling of the address goes before the node itself.
        let ghost = self.ghosts().into_iter().find(|node| self.nodes.get(node) == Some(addr));
        let node = ghost.or_else(|| self.node_at(addr)).ok_or(Refusal::NoSuchReplica)?;
        if let Transition::Settling { change, written_off, .. } = &mut self.transition
            && dead
            && let Some(shard) = self.layout.shard_of_node(node)
        {
            let goes = |member: &NodeId| *member == node || self.doomed.contains(member);
            if self.layout.members(shard).iter().all(goes) {
                return Err(Refusal::LastReplica(shard));
            }
            // The change can't end without it, and it can't go before the change has ended: first the one, then the other.
            let job = change.job;
            written_off.insert(node);
            self.doomed.insert(node);
            let without = |layout: Layout, node: &NodeId| plan::remove(&layout, *node).unwrap_or(layout);
            let target = self.doomed.iter().fold(self.layout.clone(), without);
            return Ok(Outcome::Started { job, warnings: plan::warnings(&self.layout, &target) });
        }
        if let Some(running) = self.removal_of(node) {
            return Ok(running);
        }
        if !self.has_part(node) {
            return Ok(self.dismiss(node));
        }
        self.free()?;
        self.begin_removal(node)
    }

    /// The removal of a node that runs already: whoever asks again is told of that one.
    fn removal_of(&self, node: NodeId) -> Option<Outcome> {
        let (change, before, after) = match &self.transition {
            Transition::Copying { change, target } => (change, &self.layout, target),
            Transition::Settling { change, from, .. } => (change, from, &self.layout),
            Transition::Steady => return None,
        };
        let started = || Outcome::Started { job: change.job, warnings: plan::warnings(before, after) };
        (change.kind == ChangeKind::Remove(node)).then(started)
    }

    /// Whether a node is in the layout, or in the one before or after it.
    fn has_part(&self, node: NodeId) -> bool {
        let other = match &self.transition {
            Transition::Steady => None,
            Transition::Copying { target, .. } => Some(target),
            Transition::Settling { from, .. } => Some(from),
        };
        [Some(&self.layout), other].into_iter().flatten().any(|layout| layout.shard_of_node(node).is_some())
    }

    fn begin_removal(&mut self, node: NodeId) -> Decision {
        let Some(shard) = self.layout.shard_of_node(node) else { return Ok(self.dismiss(node)) };
        let target = plan::remove(&self.layout, node).ok_or(Refusal::LastReplica(shard))?;
        Ok(self.begin(ChangeKind::Remove(node), target))
    }

    /// A node in no shard goes. If it may have a vote, that has to be taken away first: a seat that nobody can speak for would count
    /// against every majority.
    fn dismiss(&mut self, node: NodeId) -> Outcome {
        if !self.births.contains_key(&node) {
            self.forget(node);
            return DONE;
        }
        let jobs = &mut self.jobs;
        let job = *self.leaving.entry(node).or_insert_with(|| {
            *jobs += 1;
            *jobs
        });
        Outcome::Started { job, warnings: Vec::new() }
    }

    fn forget_leaving(&mut self, node: NodeId) -> Outcome {
        let Some(job) = self.leaving.remove(&node) else { return Outcome::Already };
        self.forget(node);
        self.ended(job, node, Ended::Done);
        DONE
    }

    /// Remembers how the removal of a node in no shard ended, unless a later change has ended already.
    fn ended(&mut self, job: u32, node: NodeId, how: Ended) {
        if self.last.as_ref().is_none_or(|(last, _)| last.job < job) {
            self.last = Some((Change { job, kind: ChangeKind::Remove(node) }, how));
        }
    }

    fn forget(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.births.remove(&node);
    }

    fn add_member(&mut self, shard: ShardId, addr: &Addr) -> Decision {
        if !self.layout.shards.contains_key(&shard) {
            return Err(Refusal::NoSuchShard);
        }
        let there = self.node_at(addr).filter(|node| !self.leaving.contains_key(node));
        let node = there.ok_or(Refusal::NoSuchReplica)?;
        match self.layout.shard_of_node(node) {
            Some(other) if other == shard => return Ok(Outcome::Already),
            Some(other) => return Err(Refusal::InAnotherShard(other)),
            None => self.free()?,
        }
        Ok(self.begin(ChangeKind::AddMember(node), plan::add_member(&self.layout, shard, node)))
    }

    /// The layout that a reshard would lead to.
    ///
    /// # Errors
    /// Why there is none.
    pub fn plan_reshard(&self, count: u32, present: &BTreeSet<NodeId>) -> Result<Layout, Refusal> {
        let absent = self.nodes.keys().copied().filter(|node| !present.contains(node)).collect();
        plan::reshard(&self.layout, &self.spare(), &absent, count, self.next_shard).ok_or(Refusal::NotEnoughNodes)
    }

    fn reshard(&mut self, count: u32, epoch: Option<Epoch>, present: &BTreeSet<NodeId>) -> Decision {
        let target = self.plan_reshard(count, present)?;
        self.free()?;
        if epoch.is_some_and(|epoch| epoch != self.layout.epoch) {
            return Err(Refusal::EpochMoved(self.layout.epoch));
        }
        let same = target.shards == self.layout.shards && self.layout.slots_moved(&target) == 0;
        Ok(if same { Outcome::Already } else { self.begin(ChangeKind::Reshard, target) })
    }

    fn abort(&mut self) -> Decision {
        match &self.transition {
            Transition::Steady => Err(Refusal::NothingToAbort),
            Transition::Settling { .. } => Err(Refusal::TooLateToAbort),
            Transition::Copying { change, .. } => {
                self.last = Some((change.clone(), Ended::Aborted));
                self.transition = Transition::Steady;
                Ok(DONE)
            }
        }
    }

    fn flip(&mut self, job: u32) -> Decision {
        let Transition::Copying { change, target } = &self.transition else { return Ok(Outcome::Already) };
        if change.job != job {
            return Ok(Outcome::Already);
        }
        let (change, target) = (change.clone(), target.clone());
        self.next_epoch = target.epoch.next();
        let from = std::mem::replace(&mut self.layout, target);
        // Who waits to be removed is not waited for.
        self.transition = Transition::Settling { change, from, written_off: self.doomed.clone() };
        Ok(DONE)
    }

    fn settled(&mut self, epoch: Epoch) -> Decision {
        let Transition::Settling { change, written_off, .. } = &self.transition else { return Ok(Outcome::Already) };
        if self.layout.epoch != epoch {
            return Ok(Outcome::Already);
        }
        let change = change.clone();
        self.given_up = (epoch, written_off.clone());
        if let ChangeKind::Remove(node) = change.kind {
            self.forget(node);
        }
        self.last = Some((change, Ended::Done));
        self.transition = Transition::Steady;
        if let Some(node) = self.doomed.pop_first() {
            // A shard's last replica can't go; then it must come back or the shard stays as it is.
            return self.begin_removal(node);
        }
        Ok(DONE)
    }

    fn write_off(&mut self, node: NodeId) -> Decision {
        if let Transition::Settling { written_off, .. } = &mut self.transition {
            written_off.insert(node);
        }
        Ok(DONE)
    }

    /// Starts the log anew with this node as its only voter: the majority is lost for good. What that agreed on and nobody here
    /// has heard of is void: its epochs are skipped, so that contexts which name them are told from those of later layouts,
    /// and nobody waits for what they name; so are the numbers of its changes, of which copies may be here and there.
    pub fn recovered(&self, by: NodeId, life: Incarnation) -> Self {
        let mut next = self.clone();
        next.next_epoch = Epoch(self.next_epoch.0.saturating_add(EPOCHS_SKIPPED));
        if let Transition::Copying { target, .. } = &mut next.transition {
            target.epoch = next.next_epoch;
        }
        next.jobs = self.jobs.saturating_add(JOBS_SKIPPED);
        let count = (self.version.generation >> 32) + 1;
        let who = xxh3_64(&[u64::from(by.0).to_le_bytes(), life.0.to_le_bytes()].concat());
        next.version = super::TopologyVersion { generation: (count << 32) | u64::from(who as u32), index: 1 };
        next
    }
}
