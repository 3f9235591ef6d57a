//! Who belongs to the cluster and who has which slot.
//!
//! Everything here is agreed: the topology is a state machine on a replicated log (see [`super::consensus`]), and all nodes
//! see a part of the same sequence of its states. Each state has a [`TopologyVersion`]; a newer one may be taken over from
//! anybody, whole, so that nodes which don't vote, or were away, need no log.
//!
//! One layout changes into the next in one way, whatever the reason:
//!
//! 1. *Copying*: the target layout is agreed. Nodes that are to get slots fetch them while the old owners serve. Nothing
//!    becomes stable meanwhile, so all that any context was ever relieved of is in every copy.
//! 2. The flip: one entry makes the target the layout. Every replica ends its origin and goes on under one of the new epoch.
//!    Nobody waits: what a new owner still lacks is guarded by the contexts that name it, as everywhere else.
//! 3. *Settling*: the new owners fetch what the old ones got last. When every member holds all that every old member has,
//!    one entry retires the old epoch: contexts that name it are satisfied, and old copies may go.
//!
//! At most two epochs are ever alive, so that neither contexts nor vectors grow with the number of changes.

mod bearings;
mod layout;
pub mod machine;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use kvnode_types::ident::{Addr, Epoch, Incarnation, NodeId, ShardId};

pub use bearings::Bearings;
pub use layout::{Layout, SlotRun, slots_in};
pub use machine::{NODES_MAX, Outcome, Proposal, Refusal, RequestId};

/// Random, made at formation: two clusters never have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

/// Which of two topologies is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TopologyVersion {
    /// Rises when an operator starts the log anew because its majority is lost for good. The upper half counts; the lower tells apart
    /// logs that were started without one having heard of the other.
    pub generation: u64,
    /// Place in the log.
    pub index: u64,
}

/// A change of the layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Counts changes.
    pub job: u32,
    pub kind: ChangeKind,
}

impl Change {
    pub fn removal(job: u32, node: NodeId) -> Self {
        Self { job, kind: ChangeKind::Remove(node) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    Reshard,
    AddMember(NodeId),
    Remove(NodeId),
}

/// How far the change from one layout to the next is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transition {
    /// One layout; all its members hold all that was written under earlier ones.
    Steady,
    Copying {
        change: Change,
        target: Layout,
    },
    Settling {
        change: Change,
        /// The layout before.
        from: Layout,
        /// Old members that are given up: nobody waits for what only they have.
        written_off: BTreeSet<NodeId>,
    },
}

impl Transition {
    /// The change that runs.
    pub fn change(&self) -> Option<&Change> {
        match self {
            Self::Steady => None,
            Self::Copying { change, .. } | Self::Settling { change, .. } => Some(change),
        }
    }

    /// The node that goes, once the layout without it is in force.
    pub fn leaving(&self) -> Option<NodeId> {
        match self {
            Self::Settling { change: Change { kind: ChangeKind::Remove(node), .. }, .. } => Some(*node),
            _ => None,
        }
    }
}

/// How the last change ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    Done,
    Aborted,
}

/// The cluster as agreed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    pub cluster: ClusterId,
    /// Signs contexts, so that another cluster's or a forged one is told from ours.
    pub context_key: [u8; 32],
    pub version: TopologyVersion,
    pub nodes: BTreeMap<NodeId, Addr>,
    /// Per node the life in which its present data began: who lost its data must vote under another name.
    pub births: BTreeMap<NodeId, Incarnation>,
    pub layout: Layout,
    pub transition: Transition,
    /// The last change that ended.
    pub last: Option<(Change, Ended)>,
    /// The old members that were given up when the last change had settled, and the epoch that it led to. One of them that was
    /// a member of that, too, may lack what all others have.
    pub given_up: (Epoch, BTreeSet<NodeId>),
    /// Members to be removed once the transition has settled.
    doomed: BTreeSet<NodeId>,
    /// Nodes in no shard that are to go, and the number of that change.
    leaving: BTreeMap<NodeId, u32>,
    jobs: u32,
    /// The epoch of the next layout. Those between the present one and this belong to layouts that nobody goes by: the voters
    /// that were given up may have made some (see [`Topology::recovered`]).
    next_epoch: Epoch,
    next_node: u32,
    next_shard: u32,
    /// The last requests and how they were decided, so that one that is repeated is not acted on twice.
    decided: VecDeque<(RequestId, Outcome)>,
}

impl Topology {
    /// The formation record: `view` in order, numbered from 1.
    pub fn form(
        cluster: ClusterId,
        context_key: [u8; 32],
        view: &[(Addr, Option<Incarnation>)],
        shard_count: u32,
    ) -> Self {
        let nodes: BTreeMap<NodeId, Addr> = (1..).map(NodeId).zip(view.iter().map(|(addr, _)| addr.clone())).collect();
        let births = (1..).map(NodeId).zip(view).filter_map(|(id, &(_, birth))| Some((id, birth?))).collect();
        let ids: Vec<NodeId> = nodes.keys().copied().collect();
        Self {
            cluster,
            context_key,
            version: TopologyVersion { generation: 0, index: 1 },
            next_epoch: Epoch(2),
            next_node: ids.len() as u32 + 1,
            next_shard: shard_count + 1,
            nodes,
            births,
            layout: Layout::first(&ids, shard_count),
            transition: Transition::Steady,
            last: None,
            given_up: (Epoch(0), BTreeSet::new()),
            doomed: BTreeSet::new(),
            leaving: BTreeMap::new(),
            jobs: 0,
            decided: VecDeque::new(),
        }
    }

    /// The node at an address. Where an earlier release has listed two spellings of one address as two nodes, the one in a shard is
    /// meant, or the first.
    pub fn node_at(&self, addr: &Addr) -> Option<NodeId> {
        let at = self.nodes.iter().filter(|&(_, at)| at == addr).map(|(&node, _)| node);
        at.min_by_key(|&node| (self.layout.shard_of_node(node).is_none(), node))
    }

    /// For every address the node there, as [`Topology::node_at`] tells it.
    pub fn nodes_by_addr(&self) -> BTreeMap<&Addr, NodeId> {
        let mut by_addr = BTreeMap::new();
        for (&node, addr) in &self.nodes {
            let is_first =
                |first: NodeId| self.layout.shard_of_node(first).is_some() || self.layout.shard_of_node(node).is_none();
            by_addr.entry(addr).and_modify(|at| *at = if is_first(*at) { *at } else { node }).or_insert(node);
        }
        by_addr
    }

    /// Nodes that are only other spellings of another's address.
    pub fn ghosts(&self) -> Vec<NodeId> {
        let by_addr = self.nodes_by_addr();
        self.nodes.iter().filter(|(node, addr)| by_addr.get(addr) != Some(node)).map(|(&node, _)| node).collect()
    }

    /// The old members that nobody waits for any more, while a change is being finished.
    pub fn written_off(&self) -> Option<&BTreeSet<NodeId>> {
        match &self.transition {
            Transition::Settling { written_off, .. } => Some(written_off),
            Transition::Steady | Transition::Copying { .. } => None,
        }
    }

    pub fn members(&self, shard: ShardId) -> &[NodeId] {
        self.layout.members(shard)
    }

    /// The layout before this one, while not everything of it is everywhere.
    pub fn from(&self) -> Option<&Layout> {
        match &self.transition {
            Transition::Settling { from, .. } => Some(from),
            _ => None,
        }
    }

    /// Origins of earlier epochs are retired: all that still exists of them is everywhere.
    pub fn oldest_epoch(&self) -> Epoch {
        self.from().map_or(self.layout.epoch, |from| from.epoch)
    }

    /// No layout of this epoch or a later one is known here.
    pub fn next_epoch(&self) -> Epoch {
        self.next_epoch
    }

    /// For each shard of the layout before: the shards that have its slots now.
    pub fn heirs(&self) -> BTreeMap<ShardId, BTreeSet<ShardId>> {
        let Some(from) = self.from() else { return BTreeMap::new() };
        let heirs_of = |old: ShardId| {
            let has = |new: &ShardId| !from.passed_on(old, &self.layout, *new).is_empty();
            self.layout.shards.keys().copied().filter(has).collect()
        };
        from.shards.keys().map(|&old| (old, heirs_of(old))).collect()
    }

    /// Old shards, and the slots of each, that `node` has to fetch for `to`: those of shards it was not in.
    pub fn gains(&self, node: NodeId, from: &Layout, to: &Layout) -> Vec<(ShardId, Vec<SlotRun>)> {
        let Some(new) = to.shard_of_node(node) else { return Vec::new() };
        let old = from.shard_of_node(node);
        let others = from.shards.keys().copied().filter(|&shard| Some(shard) != old);
        let runs = others.map(|shard| (shard, from.passed_on(shard, to, new)));
        runs.filter(|(_, runs)| !runs.is_empty()).collect()
    }

    /// The addresses of some nodes in the order in which they joined, VIEW's order first: that of every list that is told. (A layout
    /// lists members in an order of its own, which plans and the choice of a replica go by.)
    pub fn addrs_as_joined(&self, nodes: impl IntoIterator<Item = NodeId>) -> Vec<Addr> {
        let nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
        let mut told = BTreeSet::new();
        let addrs = nodes.iter().filter_map(|node| self.nodes.get(node));
        addrs.filter(|&addr| told.insert(addr)).cloned().collect()
    }

    /// How a request was decided, if it was.
    pub fn outcome_of(&self, request: RequestId) -> Option<&Outcome> {
        self.decided.iter().find(|(id, _)| *id == request).map(|(_, outcome)| outcome)
    }

    /// Who asked for a change, as far as that is remembered.
    pub fn asked_for(&self, job: u32) -> Option<RequestId> {
        let began = |outcome: &Outcome| matches!(outcome, Outcome::Started { job: begun, .. } if *begun == job);
        self.decided.iter().find(|(_, outcome)| began(outcome)).map(|(request, _)| *request)
    }

    /// Whether the nodes that a change is about are listed.
    pub fn knows_all_of(&self, change: &Change) -> bool {
        match &change.kind {
            ChangeKind::Reshard => true,
            ChangeKind::AddMember(node) | ChangeKind::Remove(node) => self.nodes.contains_key(node),
        }
    }

    /// Whether a change of this number was ever begun, as far as is known here.
    pub fn has_begun(&self, job: u32) -> bool {
        job <= self.jobs
    }

    /// Nodes in no shard that stay.
    pub fn spare(&self) -> Vec<NodeId> {
        let is_spare = |node: &NodeId| self.layout.shard_of_node(*node).is_none() && !self.leaving.contains_key(node);
        self.nodes.keys().copied().filter(is_spare).collect()
    }

    /// Nodes in no shard that are to go, and the number of that change.
    pub fn leaving(&self) -> &BTreeMap<NodeId, u32> {
        &self.leaving
    }

    /// Whether nothing has been decided since the formation.
    pub fn is_new(&self) -> bool {
        self.version.generation == 0 && self.version.index == 1
    }

    /// The nodes that should vote: at most seven, taken from the shards in turn, the lowest numbers first. One that is being
    /// removed, or can't be reached and is to be, stops voting before it is forgotten: a seat that nobody can speak for would count
    /// against every majority.
    pub fn electors(&self) -> BTreeSet<NodeId> {
        const VOTERS_MAX: usize = 7;
        let mut electors = BTreeSet::new();
        let goes = |node: &NodeId| self.transition.leaving() == Some(*node) || self.doomed.contains(node);
        // Nobody speaks for another spelling of an address.
        let ghosts = self.ghosts();
        let is_listed = |node: &NodeId| self.nodes.contains_key(node) && !ghosts.contains(node);
        let known = |node: &NodeId| self.births.contains_key(node) && is_listed(node) && !goes(node);
        for place in 0..self.nodes.len() {
            let row = self.layout.shards.values().filter_map(|members| members.get(place)).copied();
            electors.extend(row.filter(known).take(VOTERS_MAX - electors.len()));
        }
        let spare = self.spare().into_iter().filter(known);
        electors.extend(spare.take(VOTERS_MAX - electors.len()));
        electors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(nodes: u16, shards: u32) -> Topology {
        let addr = |n: u16| format!("10.10.0.{}:8090", n + 2).parse().unwrap();
        let view: Vec<_> = (0..nodes).map(|n| (addr(n), Some(Incarnation(u64::from(n))))).collect();
        Topology::form(ClusterId(7), [0; 32], &view, shards)
    }

    #[test]
    fn six_nodes_and_two_shards_are_the_first_three_and_the_last_three() {
        let topology = form(6, 2);
        assert_eq!(topology.members(ShardId(1)), [NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(topology.members(ShardId(2)), [NodeId(4), NodeId(5), NodeId(6)]);
    }

    #[test]
    fn uneven_numbers_are_as_even_as_they_go() {
        let sizes: Vec<usize> = form(7, 3).layout.shards.values().map(Vec::len).collect();
        assert_eq!(sizes, [3, 2, 2]);
        let layout = form(7, 3).layout;
        for id in 1..=3 {
            let slots = layout.slot_count(ShardId(id));
            assert!((5461..=5462).contains(&slots), "{slots}");
        }
    }

    fn settling() -> Topology {
        let mut topology = form(6, 2);
        let addr: Addr = "10.10.0.9:8090".parse().unwrap();
        topology.apply(None, &Proposal::Join { addr: addr.clone(), birth: Some(Incarnation(9)) });
        topology.apply(None, &Proposal::AddMember { shard: ShardId(1), addr });
        topology.apply(None, &Proposal::Flip { job: 1 });
        assert!(topology.from().is_some());
        topology
    }

    fn remove_dead(topology: &mut Topology, number: u64) -> Outcome {
        let request = RequestId { node: NodeId(1), life: Incarnation(1), number };
        let addr = topology.nodes[&NodeId(number as u32)].clone();
        topology.apply(Some(request), &Proposal::Remove { addr, dead: true });
        topology.outcome_of(request).unwrap().clone()
    }

    /// It would drop what it has when it comes back, and nobody else has it.
    #[test]
    fn the_last_replica_of_a_shard_is_not_given_up_while_a_change_settles() {
        let mut topology = settling();
        for number in [4, 5] {
            assert!(matches!(remove_dead(&mut topology, number), Outcome::Started { .. }));
        }
        assert_eq!(remove_dead(&mut topology, 6), Outcome::Refused(Refusal::LastReplica(ShardId(2))));
        assert!(!topology.written_off().unwrap().contains(&NodeId(6)));
    }

    /// Its removal begins only after the change, when nobody is there any more to be warned.
    #[test]
    fn who_gives_up_a_replica_while_a_change_settles_is_warned() {
        let mut topology = settling();
        let said = |outcome: Outcome| match outcome {
            Outcome::Started { warnings, .. } => warnings.join("; "),
            other => panic!("{other:?}"),
        };
        assert!(said(remove_dead(&mut topology, 4)).contains("shard s2 has 2 replicas"));
        assert!(said(remove_dead(&mut topology, 5)).contains("shard s2 has one replica"));
    }

    #[test]
    fn whoever_asks_again_for_a_removal_is_told_of_the_one_that_runs() {
        let mut topology = form(6, 2);
        let first = remove_dead(&mut topology, 3);
        let Outcome::Started { job, warnings } = &first else { panic!("{first:?}") };
        assert!(!warnings.is_empty());
        assert_eq!(remove_dead(&mut topology, 3), first, "while it copies");
        topology.apply(None, &Proposal::Flip { job: *job });
        assert_eq!(remove_dead(&mut topology, 3), first, "while it settles");
    }

    /// A removal of a live node waits for its vote to be gone, and that for those of the dead: they must not wait for the removal.
    #[test]
    fn who_is_to_be_removed_does_not_vote() {
        let mut topology = settling();
        remove_dead(&mut topology, 5);
        assert!(!topology.electors().contains(&NodeId(5)) && topology.electors().len() == 6);
    }

    #[test]
    fn a_spare_is_forgotten_when_it_has_no_vote_and_may_stay_after_all() {
        let mut topology = form(3, 1);
        let addr: Addr = "10.10.0.9:8090".parse().unwrap();
        let (join, node) = (Proposal::Join { addr: addr.clone(), birth: None }, NodeId(4));
        topology.apply(None, &Proposal::Join { addr: addr.clone(), birth: Some(Incarnation(9)) });
        topology.apply(None, &Proposal::Remove { addr: addr.clone(), dead: false });
        assert!(topology.nodes.contains_key(&node) && !topology.electors().contains(&node));
        assert_eq!(topology.spare(), []);
        topology.apply(None, &join);
        assert_eq!(topology.spare(), [node]);
        assert!(matches!(topology.last, Some((_, Ended::Aborted))), "whoever waits for the removal is told");
        topology.apply(None, &Proposal::Forget { node });
        assert!(topology.nodes.contains_key(&node), "it stays");
        topology.apply(None, &Proposal::Remove { addr: addr.clone(), dead: false });
        topology.apply(None, &Proposal::Forget { node });
        assert!(!topology.nodes.contains_key(&node));
        // One that never came has no vote to lose.
        topology.apply(None, &join);
        topology.apply(None, &Proposal::Remove { addr, dead: true });
        assert_eq!(topology.nodes.len(), 3);
    }

    /// A change that is being finished may wait for the vote of a spare that is lost.
    #[test]
    fn a_spare_may_go_while_a_change_settles() {
        let mut topology = settling();
        let spare: Addr = "10.10.0.10:8090".parse().unwrap();
        topology.apply(None, &Proposal::Join { addr: spare.clone(), birth: Some(Incarnation(10)) });
        let request = RequestId { node: NodeId(1), life: Incarnation(1), number: 1 };
        topology.apply(Some(request), &Proposal::Remove { addr: spare, dead: true });
        assert!(matches!(topology.outcome_of(request), Some(Outcome::Started { .. })));
        assert!(topology.from().is_some() && !topology.leaving().is_empty());
    }

    #[test]
    fn two_that_start_the_log_anew_have_different_ones() {
        let topology = form(4, 2);
        let at = |node, life| topology.recovered(NodeId(node), Incarnation(life)).version;
        assert_ne!(at(1, 7), at(2, 7));
        assert_ne!(at(1, 7), at(1, 8));
        let next = topology.recovered(NodeId(1), Incarnation(7)).recovered(NodeId(2), Incarnation(3)).version;
        assert!(next > at(1, 7) && next > at(2, 7) && at(1, 7) > topology.version);
    }

    /// As an earlier release may have stored it: two spellings of one address were two nodes, and are equal when they are read.
    #[test]
    fn two_spellings_of_one_node_are_one_and_the_ghost_goes_first() {
        let mut topology = form(3, 1);
        let (first, ghost) = (topology.nodes[&NodeId(1)].clone(), NodeId(4));
        topology.nodes.insert(ghost, first.clone());
        assert_eq!(topology.ghosts(), [ghost]);
        assert_eq!((topology.node_at(&first), topology.nodes_by_addr()[&first]), (Some(NodeId(1)), NodeId(1)));
        assert_eq!(topology.addrs_as_joined(topology.nodes.keys().copied()).len(), 3);
        topology.apply(None, &Proposal::Remove { addr: first.clone(), dead: false });
        assert!(topology.ghosts().is_empty() && topology.layout.members(ShardId(1)).len() == 3);
        // The member is the node, even if it came later.
        topology.nodes.insert(NodeId(0), first.clone());
        assert_eq!((topology.node_at(&first), topology.ghosts()), (Some(NodeId(1)), vec![NodeId(0)]));
        assert_eq!(topology.nodes_by_addr()[&first], NodeId(1));
    }

    #[test]
    fn at_most_seven_vote_and_all_shards_are_among_them() {
        let electors = form(30, 5).electors();
        assert_eq!(electors.len(), 7);
        for members in form(30, 5).layout.shards.values() {
            assert!(members.iter().any(|member| electors.contains(member)));
        }
        assert_eq!(form(6, 2).electors().len(), 6);
    }
}
