//! How a cluster comes to be, and how a shard that lost everything starts again.
//!
//! Problem: a node that finds nothing can't know whether there is nothing, or whether it can't see it. Two clusters, or a
//! shard that starts empty beside one that has data, are never mended.
//!
//! Rule for clusters: only the node with the smallest address in VIEW founds one, and only when every other node of VIEW
//! has said, *to this life of the founder*, that it belongs to none and was started with the same nodes. Everybody else
//! takes over the topology of a member.
//!
//! Argument: let F be the founder's life and X any other node. X's statement was made after F began, so X knows F and
//! refuses what an earlier life of the founder sent, directly; what an earlier life told a third node Y, Y would have
//! learned before it made its own statement to F, and then it would not have made it. So at the moment F founds, nobody
//! has a topology.
//!
//! Rule for shards: only the replica with the smallest number starts its shard empty, and only when every other replica
//! has said, to this life of it, that it holds nothing complete. All origins of earlier lives are retired by that: what
//! they wrote is lost, and no context waits for it. The argument is the same.

use std::collections::BTreeSet;

use kvnode_types::ident::{Addr, Incarnation, NodeId, ShardId};

use super::contact::Peer;
use super::repair::Repair;
use super::replica::Replica;
use super::topology::{ClusterId, Topology, slots_in};
use super::{Core, Severity, encode_fact};
use crate::messages::{Floors, Message, Stage};
use crate::store::{Fact, Result};

/// Whether this node has taken part in the formation, and its replica has not been complete since.
pub(super) const FACT_FORMS: Fact = Fact("forms");
/// A refill asks all replicas that can be reached, and a formation does without nodes that can't be; this is how long both wait for them
/// to turn up.
const GRACE_MS: u64 = 1_000;

impl Core {
    /// A node without a cluster asks for one.
    pub(super) fn seek(&mut self, from: &Addr, seeks: Seeks) {
        if let Some(topology) = &self.topology {
            let offer = Message::Topology(Box::new(topology.clone()));
            return self.send(from, offer);
        }
        let Some(peer) = self.peers.get_mut(from) else { return };
        let first = peer.seeks.is_none();
        peer.seeks = Some(seeks);
        if first {
            self.beat(from);
        }
    }

    pub(super) fn told_stranger(&mut self, by: &Addr) {
        if self.topology.is_none()
            && let Some(peer) = self.peers.get_mut(by)
        {
            peer.told_stranger = true;
        }
    }

    /// Somebody tells the topology. Who has none takes over only one that lists it.
    pub(super) fn topology_offered(&mut self, topology: Topology) -> Result<()> {
        let listed = topology.node_at(&self.settings.me).is_some();
        let ours = match &self.topology {
            Some(mine) => mine.cluster == topology.cluster,
            None => listed && self.is_of_lost_cluster(&topology),
        };
        if ours { self.adopt(topology) } else { Ok(()) }
    }

    pub(super) fn formation_step(&mut self) -> Result<()> {
        if self.topology.is_some() {
            return Ok(());
        }
        match self.formation_obstacle() {
            Some(obstacle) => self.reason = obstacle,
            None => self.found()?,
        }
        Ok(())
    }

    /// What keeps the cluster from being formed.
    fn formation_obstacle(&self) -> Option<String> {
        let mine: BTreeSet<&Addr> = self.settings.view.iter().collect();
        let mut missing = Vec::new();
        // In its present life: an operator may have wiped it since.
        if let Some((by, _)) = self.peers.iter().find(|(_, peer)| peer.told_stranger && self.is_proven(peer)) {
            return Some(format!("waiting for the cluster that runs at {by} to list {}", self.settings.me));
        }
        if let Some(loss) = self.own_loss() {
            return Some(loss);
        }
        for (addr, peer) in self.peers_as_joined() {
            match &peer.seeks {
                Some(Seeks { view, .. }) if view.is_empty() => return Some(Self::loss_of(addr)),
                Some(Seeks { view, .. }) if view.iter().collect::<BTreeSet<_>>() != mine => {
                    return Some(format!("{addr} was started with another VIEW"));
                }
                Some(_) if self.is_proven(peer) => {}
                // It may be there all the same, and belong to a cluster.
                _ if self.is_left_out(addr, peer) => {}
                _ => missing.push(Self::waited_for(addr, peer)),
            }
        }
        if !missing.is_empty() {
            return Some(format!("waiting for {} to form the cluster", missing.join(", ")));
        }
        let counts = |addr: &&Addr| !self.settings.form_without.contains(addr);
        let founder = self.settings.view.iter().filter(counts).min().unwrap_or(&self.settings.me);
        (*founder != self.settings.me).then(|| format!("waiting for {founder} to form the cluster"))
    }

    fn found(&mut self) -> Result<()> {
        for (addr, peer) in &self.peers {
            let Some(Seeks { view, shard_count, .. }) = &peer.seeks else { continue };
            let (same_order, same_count) = (*view == self.settings.view, *shard_count == self.settings.shard_count);
            if !same_order || !same_count {
                let what = if same_order { "SHARD_COUNT" } else { "VIEW order" };
                let text = format!("{addr} was started with another {what}; that of {} counts", self.settings.me);
                self.effects.push(super::Effect::Say(Severity::Warn, text));
            }
        }
        let (id, key) = self.settings.entropy.split_at(16);
        let cluster = ClusterId(u128::from_le_bytes(id.try_into().expect("16 of 48 bytes")));
        let key = key.try_into().expect("32 of 48 bytes");
        let birth = |addr: &Addr| match self.peers.get(addr) {
            _ if *addr == self.settings.me => Some(self.birth),
            peer => peer?.seeks.as_ref().map(|seeks| seeks.birth),
        };
        let view: Vec<_> = self.settings.view.iter().map(|addr| (addr.clone(), birth(addr))).collect();
        let topology = Topology::form(cluster, key, &view, self.settings.shard_count);
        let others: Vec<Addr> = self.peers.keys().cloned().collect();
        self.adopt(topology.clone())?;
        self.office.founded = true;
        for addr in &others {
            self.send(addr, Message::Topology(Box::new(topology.clone())));
        }
        Ok(())
    }

    /// Brings a replica that holds nothing complete towards serving.
    pub(super) fn fill_step(&mut self) -> Result<()> {
        let Some(replica) = &self.replica else { return Ok(()) };
        let is_busy = self.repair.is_some() || self.transfer.is_some() || self.dropping.is_some();
        if replica.stage != Stage::Filling || is_busy {
            return Ok(());
        }
        if !self.takes_writes() {
            self.reason = "no room left to store the shard's data".into();
            return Ok(());
        }
        match self.fill_plan(replica) {
            FillPlan::From(addr) => self.begin_repair(&addr),
            FillPlan::Handover { old, addr, shard } => self.fill_by_handover(old, &addr, shard),
            FillPlan::Serve => self.serve_from_now("filled"),
            FillPlan::StartEmpty => self.start_empty(),
            FillPlan::Wait(reason) => self.reason = reason,
        }
        Ok(())
    }

    fn fill_plan(&self, replica: &Replica) -> FillPlan {
        let grace = self.is_within_grace();
        let (mut filled, mut empty, mut away, mut lost) = (0, 0, Vec::new(), None);
        let has_data = |&node: &NodeId| {
            let stage = self.peer_of(node).and_then(|peer| peer.stage);
            matches!(stage, Some(Stage::Serving | Stage::Leaving)) && !self.is_cut_off(node)
        };
        let others_have_data = replica.others.iter().any(has_data);
        for &node in &replica.others {
            let (Some(addr), Some(peer)) = (self.addr_of(node), self.peer_of(node)) else { continue };
            match peer.stage {
                _ if self.is_taken_for_empty(addr, peer) => empty += 1,
                _ if !self.is_proven(peer) => away.push(node),
                _ if others_have_data && self.is_cut_off(node) => away.push(node),
                Some(Stage::Serving | Stage::Leaving) if peer.filled_us => filled += 1,
                Some(Stage::Serving | Stage::Leaving) => return FillPlan::From(addr.clone()),
                Some(Stage::Filling) => empty += 1,
                None if peer.has_lost => lost = Some(addr),
                None => away.push(node),
            }
        }
        if filled > 0 && (away.is_empty() || !grace) {
            return FillPlan::Serve;
        }
        // In the order in which they joined.
        away.sort_unstable();
        let named = away.iter().filter_map(|&node| Some(Self::waited_for(self.addr_of(node)?, self.peer_of(node)?)));
        let names = named.collect::<Vec<String>>().join(", ");
        let loss = self.own_loss().or_else(|| lost.map(Self::loss_of));
        if let Some(loss) = loss {
            let hope = if away.is_empty() { "" } else { "; waiting for others that may have its shard's data: " };
            return FillPlan::Wait(format!("{loss}{hope}{names}"));
        }
        if empty == replica.others.len() {
            let absent = |node| self.addr_of(node).is_some_and(|addr| self.settings.form_without.contains(addr));
            let first = replica.others.iter().all(|&node| replica.origin.node < node || absent(node));
            return if first {
                self.fill_without_mates(replica)
            } else {
                FillPlan::Wait("waiting for its shard to start".into())
            };
        }
        FillPlan::Wait(format!("waiting for {names} to fill this replica"))
    }

    /// From now on nobody is taken for empty because an operator said so.
    pub(super) fn forms_no_more(&mut self) {
        if std::mem::take(&mut self.forms) {
            self.store.set_fact(FACT_FORMS, encode_fact(&false));
        }
    }

    /// An operator says that a node has nothing and is not waited for. That is about the formation, and the shards of the cluster that is
    /// formed then: later, the node may have come and have all there is. One that was heard, then or since, speaks for itself.
    fn is_taken_for_empty(&self, addr: &Addr, peer: &Peer) -> bool {
        self.forms && !self.is_within_grace() && peer.newest_life.is_none() && self.settings.form_without.contains(addr)
    }

    /// Whether an operator says that the cluster is formed without a node, and it is not here, nor has told of a cluster.
    fn is_left_out(&self, addr: &Addr, peer: &Peer) -> bool {
        let is_here = self.is_proven(peer) || peer.told_stranger || self.is_within_grace();
        !is_here && self.settings.form_without.contains(addr)
    }

    /// Whether those who are there may not have turned up yet.
    fn is_within_grace(&self) -> bool {
        self.now.mono_ms.saturating_sub(self.started_ms) < GRACE_MS
    }

    /// No replica of the shard has anything: what there is, the members of the layout before have.
    fn fill_without_mates(&self, replica: &Replica) -> FillPlan {
        let Some(shard) = replica.shard else { return FillPlan::Wait("in no shard".into()) };
        match self.next_handover(shard, &self.office.filled_from) {
            Ok(Some((old, addr))) => FillPlan::Handover { old, addr, shard },
            Ok(None) if self.office.filled_from.is_empty() => FillPlan::StartEmpty,
            Ok(None) => FillPlan::Serve,
            Err(reason) => FillPlan::Wait(reason),
        }
    }

    pub(super) fn serve_from_now(&mut self, how: &str) {
        let Some(replica) = self.replica.as_mut() else { return };
        replica.stage = if self.draining { Stage::Leaving } else { Stage::Serving };
        (self.replica_changed, self.urgent) = (true, true);
        let keys = self.inventory.live_in(slots_in(&self.bearings.own_runs));
        let shard = replica.shard.map_or_else(|| "-".to_owned(), |shard| shard.to_string());
        let text = format!("{how}: serving shard {shard} with {keys} keys");
        self.office.filled_from.clear();
        self.reason.clear();
        self.forms_no_more();
        self.is_whole_again();
        self.say(Severity::Info, text);
        self.beat_all();
    }

    /// Every replica of the shard is here and none has anything: begin anew.
    fn start_empty(&mut self) {
        let Some(replica) = &self.replica else { return };
        let epoch = replica.origin.epoch;
        let life = |node: NodeId| Some((node, epoch, self.peer_of(node)?.life?));
        let mut floors: Floors = replica.others.iter().filter_map(|&node| life(node)).collect();
        floors.push((replica.origin.node, epoch, self.life));
        if let Some(replica) = self.replica.as_mut() {
            replica.raise_floors(&floors);
        }
        self.serve_from_now("all replicas of the shard are empty");
    }

    /// A repair that fills this replica has ended.
    pub(super) fn filled_by(&mut self, repair: &Repair) {
        if let Some(peer) = self.peers.get_mut(&repair.peer) {
            peer.filled_us = true;
        }
    }
}

/// What a node that belongs to no cluster was started with.
#[derive(Clone, Debug)]
pub(super) struct Seeks {
    pub view: Vec<Addr>,
    pub shard_count: u32,
    pub birth: Incarnation,
}

enum FillPlan {
    From(Addr),
    Handover { old: ShardId, addr: Addr, shard: ShardId },
    Serve,
    StartEmpty,
    Wait(String),
}
