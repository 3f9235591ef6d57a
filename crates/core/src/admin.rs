//! What operators ask of the topology, and what they are told.

use std::collections::BTreeSet;
use std::fmt;

use kvnode_types::ident::{Addr, Epoch, NodeId, ShardId};

use super::topology::{Layout, Outcome, Proposal, Refusal, RequestId};
use super::{Core, Effect};
use crate::store::Result;

/// How long an undecided request is repeated before its sender is told so.
const DECISION_MS: u64 = 8_000;
/// How long a request waits for an earlier change to be finished.
const TURN_MS: u64 = 8_000;
/// A request that was not decided for so long is sent again.
const AGAIN_MS: u64 = 300;
/// How long a node that was just listed may take to be reached before it can't be given data.
const PRESENT_MS: u64 = 2_000;
/// How long the news that a node was listed may take to get here.
const LISTED_MS: u64 = 300;
/// Requests of operators at one node at a time.
const OPEN_MAX: usize = 64;

/// A request of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminOp {
    AddNode(Addr),
    RemoveNode(Addr),
    AddMember {
        shard: ShardId,
        addr: Addr,
    },
    /// `epoch`: only if the layout is still that one. `at_once`: where another change has to be finished first, to be told so.
    Reshard {
        count: u32,
        epoch: Option<Epoch>,
        at_once: bool,
    },
    Abort,
    /// The majority of the voters is lost for good: this node goes on alone and decides.
    Recover,
}

impl fmt::Display for AdminOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddNode(addr) => write!(f, "add {addr} to the view"),
            Self::RemoveNode(addr) => write!(f, "remove {addr} from the view"),
            Self::AddMember { shard, addr } => write!(f, "add {addr} to shard {shard}"),
            Self::Reshard { count, .. } => write!(f, "reshard to {count}"),
            Self::Abort => f.write_str("abort the change that runs"),
            Self::Recover => f.write_str("go on without the majority"),
        }
    }
}

/// How a request of an operator ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAnswer {
    Decided(Outcome),
    /// The node that it is about is in the view, and can't be reached.
    Unreachable(Addr),
    /// Nobody decided in time; it may yet be decided. The text says why.
    Undecided(String),
    /// This node is in no cluster.
    NotReady(String),
}

/// Requests that are not decided yet.
#[derive(Debug)]
pub(super) struct Asked {
    id: u64,
    op: AdminOp,
    request: RequestId,
    proposal: Proposal,
    began_ms: u64,
    /// `None`: not sent yet, because the node that it is about can't be reached.
    sent_ms: Option<u64>,
}

/// Where a change of the layout stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    Copying,
    /// The new layout is in force; `serving`: every member of it that can be reached serves.
    Flipped {
        serving: bool,
    },
    Done,
    Aborted,
    /// This node has not heard of it.
    Unknown,
}

impl Core {
    pub(super) fn admin(&mut self, id: u64, op: AdminOp) -> Result<()> {
        if self.topology.is_none() || self.me.is_none() {
            self.decided(id, &op, AdminAnswer::NotReady(self.reason.clone()));
            return Ok(());
        }
        if op == AdminOp::Recover {
            self.recover_log()?;
            self.decided(id, &op, AdminAnswer::Decided(Outcome::Done { warnings: Vec::new() }));
            return Ok(());
        }
        if self.office.asked.len() >= OPEN_MAX {
            self.decided(id, &op, AdminAnswer::Undecided("too many requests wait".into()));
            return Ok(());
        }
        let proposal = self.proposal_of(&op);
        let request = self.next_request();
        let began_ms = self.now.mono_ms;
        self.office.asked.push(Asked { id, op, request, proposal, began_ms, sent_ms: None });
        self.admin_step();
        Ok(())
    }

    /// How long a request waits for the node that is to get data; `None`: it is there. Asking the log for a node that can't
    /// be reached would begin a change that can't end.
    fn awaits(&self, op: &AdminOp) -> Option<u64> {
        let AdminOp::AddMember { addr, .. } = op else { return None };
        let listed = self.topology.as_ref().is_some_and(|topology| topology.node_at(addr).is_some());
        let there = *addr == self.settings.me || self.peers.get(addr).is_some_and(|peer| self.is_in_view(peer));
        match (listed, there) {
            (true, true) => None,
            (true, false) => Some(PRESENT_MS),
            // It may have been listed a moment ago, at another node.
            (false, _) => Some(LISTED_MS),
        }
    }

    fn decided(&mut self, id: u64, op: &AdminOp, answer: AdminAnswer) {
        self.note_answer(op, &answer);
        self.effects.push(Effect::Decided { id, answer });
    }

    fn proposal_of(&self, op: &AdminOp) -> Proposal {
        match op {
            AdminOp::AddNode(addr) => Proposal::Join { addr: addr.clone(), birth: None },
            AdminOp::RemoveNode(addr) => {
                let dead = self.peers.get(addr).is_some_and(|peer| !self.is_in_view(peer));
                Proposal::Remove { addr: addr.clone(), dead }
            }
            AdminOp::AddMember { shard, addr } => Proposal::AddMember { shard: *shard, addr: addr.clone() },
            AdminOp::Reshard { count, epoch, .. } => {
                Proposal::Reshard { count: *count, epoch: *epoch, present: self.present() }
            }
            AdminOp::Abort | AdminOp::Recover => Proposal::Abort,
        }
    }

    /// This node and those that it can reach.
    fn present(&self) -> BTreeSet<NodeId> {
        let here = self.peers.iter().filter(|(_, peer)| self.is_in_view(peer));
        here.filter_map(|(addr, _)| self.node_of(addr)).chain(self.me).collect()
    }

    /// Answers what was decided, repeats what was not, and gives up on what takes too long.
    pub(super) fn admin_step(&mut self) {
        let now = self.now.mono_ms;
        for mut asked in std::mem::take(&mut self.office.asked) {
            let outcome = self.topology.as_ref().and_then(|topology| topology.outcome_of(asked.request)).cloned();
            let waited = now.saturating_sub(asked.began_ms);
            if asked.sent_ms.is_none()
                && let Some(limit) = self.awaits(&asked.op)
            {
                if waited < limit {
                    self.office.asked.push(asked);
                } else {
                    let answer = self.not_there(&asked.op);
                    self.decided(asked.id, &asked.op, answer);
                }
                continue;
            }
            let since_sent = asked.sent_ms.map_or(u64::MAX, |sent| now.saturating_sub(sent));
            match outcome {
                Some(Outcome::Refused(refusal))
                    if refusal.passes_soon() && asked.op.takes_its_turn() && waited < TURN_MS =>
                {
                    // An earlier change is being finished: this one's turn comes then.
                    if since_sent >= AGAIN_MS / 3 {
                        asked.request = self.next_request();
                        asked.proposal = self.proposal_of(&asked.op);
                        asked.sent_ms = Some(now);
                        self.submit(Some(asked.request), asked.proposal.clone());
                    }
                    self.office.asked.push(asked);
                }
                Some(outcome) => self.decided(asked.id, &asked.op, AdminAnswer::Decided(outcome)),
                None if waited >= DECISION_MS => {
                    self.decided(asked.id, &asked.op, AdminAnswer::Undecided(self.why_undecided()));
                }
                None => {
                    if since_sent >= AGAIN_MS {
                        asked.sent_ms = Some(now);
                        self.submit(Some(asked.request), asked.proposal.clone());
                    }
                    self.office.asked.push(asked);
                }
            }
        }
    }

    /// What whoever wants to add a member is told that nobody can reach.
    fn not_there(&self, op: &AdminOp) -> AdminAnswer {
        match op {
            AdminOp::AddMember { addr, .. } if self.lists(addr) => AdminAnswer::Unreachable(addr.clone()),
            _ => AdminAnswer::Decided(Outcome::Refused(Refusal::NoSuchReplica)),
        }
    }

    fn why_undecided(&self) -> String {
        let Some(topology) = &self.topology else { return self.reason.clone() };
        let voters = topology.electors();
        let here =
            |node: &NodeId| Some(*node) == self.me || self.peer_of(*node).is_some_and(|peer| self.is_in_view(peer));
        let away: Vec<String> = voters
            .iter()
            .filter(|node| !here(node))
            .filter_map(|&node| Some(self.addr_of(node)?.to_string()))
            .collect();
        if away.is_empty() {
            "the nodes that decide have no leader yet; try again".into()
        } else {
            format!("a majority of the nodes that decide can't be reached; away: {}", away.join(", "))
        }
    }

    /// The layout that a reshard would lead to now, with the present one, and what a person should know about it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn plan_reshard(&self, count: u32) -> std::result::Result<(Layout, Layout, Vec<String>), AdminAnswer> {
        let Some(topology) = &self.topology else { return Err(AdminAnswer::NotReady(self.reason.clone())) };
        let target = topology
            .plan_reshard(count, &self.present())
            .map_err(|refusal| AdminAnswer::Decided(Outcome::Refused(refusal)))?;
        let mut warnings = super::topology::plan::warnings(&topology.layout, &target);
        warnings.extend(self.gone_shards().into_iter().map(|shard| {
            format!("no replica of shard {shard} can be reached: its keys can't be copied, and the change waits, until one is back")
        }));
        Ok((topology.layout.clone(), target, warnings))
    }
}

impl Core {
    /// Shards none of whose replicas can be reached.
    fn gone_shards(&self) -> Vec<ShardId> {
        let present = self.present();
        let shards = self.topology.iter().flat_map(|topology| &topology.layout.shards);
        let gone = shards.filter(|(_, members)| members.iter().all(|member| !present.contains(member)));
        gone.map(|(&shard, _)| shard).collect()
    }
}

impl AdminOp {
    /// Whether it waits for an earlier change to be finished.
    fn takes_its_turn(&self) -> bool {
        !matches!(self, Self::Reshard { at_once: true, .. })
    }
}

impl Refusal {
    /// Whether the same request will be accepted in a moment.
    fn passes_soon(&self) -> bool {
        matches!(self, Self::Busy { settling: true, .. })
    }
}
