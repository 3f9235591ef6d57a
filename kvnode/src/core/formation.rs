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

use super::repair::Repair;
use super::replica::Replica;
use super::settings::Mutant;
use super::topology::{ClusterId, Topology};
use super::{Core, FACT_TOPOLOGY, Severity, encode_fact};
use crate::storage::Result;
use crate::wire::ident::{Addr, Incarnation, NodeId};
use crate::wire::peer::{Message, Stage};

/// A refill asks all replicas that can be reached; this is how long it waits for them to turn up.
const FILL_GRACE_MS: u64 = 1_000;

impl Core {
    /// A node without a cluster asks for one.
    pub(super) fn seek(&mut self, from: &Addr, view: Vec<Addr>, shard_count: u32) {
        if let Some(topology) = &self.topology {
            let listed = topology.node_at(from).is_some();
            let answer = if listed { Message::Topology(topology.clone()) } else { Message::Stranger };
            return self.send(from, answer);
        }
        let Some(peer) = self.peers.get_mut(from) else { return };
        let first = peer.seeks.is_none();
        peer.seeks = Some((view, shard_count));
        if first {
            self.beat(from);
        }
    }

    pub(super) fn told_stranger(&mut self, by: &Addr) {
        if self.topology.is_none() {
            self.stranger = true;
            self.reason = format!("a cluster runs at {by}, but it does not list {}", self.settings.me);
        }
    }

    /// A member tells the topology.
    pub(super) fn topology_offered(&mut self, topology: Topology) -> Result<()> {
        if self.topology.is_none() && topology.node_at(&self.settings.me).is_some() {
            self.adopt(topology);
        }
        Ok(())
    }

    fn adopt(&mut self, topology: Topology) {
        self.store.set_fact(FACT_TOPOLOGY, encode_fact(&topology));
        self.urgent = true;
        self.stranger = false;
        self.say(Severity::Info, format!("in the cluster of {} nodes", topology.nodes.len()));
        self.take_place(topology);
        self.reason = "waiting for the other replicas of its shard".into();
        if self.settings.broken(Mutant::ServeUnfilled)
            && let Some(replica) = self.replica.as_mut()
        {
            replica.stage = Stage::Serving;
        }
        self.beat_all();
    }

    pub(super) fn formation_step(&mut self) -> Result<()> {
        if self.topology.is_some() || self.stranger {
            return Ok(());
        }
        match self.formation_obstacle() {
            Some(obstacle) => self.reason = obstacle,
            None => self.found(),
        }
        Ok(())
    }

    /// What keeps the cluster from being formed.
    fn formation_obstacle(&self) -> Option<String> {
        let mine: BTreeSet<&Addr> = self.settings.view.iter().collect();
        let mut missing = Vec::new();
        for (addr, peer) in &self.peers {
            match &peer.seeks {
                Some((view, _)) if view.iter().collect::<BTreeSet<_>>() != mine => {
                    return Some(format!("{addr} was started with another VIEW"));
                }
                Some(_) if self.is_reachable(peer) => {}
                _ if self.settings.form_without.contains(addr) => {}
                _ => missing.push(addr.as_str()),
            }
        }
        if !missing.is_empty() {
            return Some(format!("waiting for {} to form the cluster", missing.join(", ")));
        }
        let counts = |addr: &&Addr| !self.settings.form_without.contains(addr);
        let founder = self.settings.view.iter().filter(counts).min().unwrap_or(&self.settings.me);
        (*founder != self.settings.me).then(|| format!("waiting for {founder} to form the cluster"))
    }

    fn found(&mut self) {
        for (addr, peer) in &self.peers {
            let Some((view, shard_count)) = &peer.seeks else { continue };
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
        let topology = Topology::form(cluster, key, &self.settings.view, self.settings.shard_count);
        let others: Vec<Addr> = self.peers.keys().cloned().collect();
        self.adopt(topology.clone());
        for addr in &others {
            self.send(addr, Message::Topology(topology.clone()));
        }
    }

    /// Brings a replica that holds nothing complete towards serving.
    pub(super) fn fill_step(&mut self) -> Result<()> {
        let Some(replica) = &self.replica else { return Ok(()) };
        if replica.stage != Stage::Filling || self.repair.is_some() {
            return Ok(());
        }
        match self.fill_plan(replica) {
            FillPlan::From(addr) => self.begin_repair(&addr),
            FillPlan::Serve => self.serve_from_now("filled"),
            FillPlan::StartEmpty => self.start_empty(),
            FillPlan::Wait(reason) => self.reason = reason,
        }
        Ok(())
    }

    fn fill_plan(&self, replica: &Replica) -> FillPlan {
        let grace = self.now.mono_ms.saturating_sub(self.started_ms) < FILL_GRACE_MS;
        let (mut filled, mut empty, mut away) = (0, 0, Vec::new());
        for &node in &replica.others {
            let (Some(addr), Some(peer)) = (self.addr_of(node), self.peer_of(node)) else { continue };
            match peer.stage {
                _ if !self.is_reachable(peer) && self.settings.form_without.contains(addr) => empty += 1,
                _ if !self.is_reachable(peer) => away.push(addr.as_str()),
                Some(Stage::Serving | Stage::Leaving) if peer.filled_us => filled += 1,
                Some(Stage::Serving | Stage::Leaving) => return FillPlan::From(addr.clone()),
                Some(Stage::Filling) => empty += 1,
                None => away.push(addr.as_str()),
            }
        }
        if filled > 0 && (away.is_empty() || !grace) {
            return FillPlan::Serve;
        }
        if empty == replica.others.len() {
            let absent = |node| self.addr_of(node).is_some_and(|addr| self.settings.form_without.contains(addr));
            let first = replica.others.iter().all(|&node| replica.origin.node < node || absent(node));
            return if first { FillPlan::StartEmpty } else { FillPlan::Wait("waiting for its shard to start".into()) };
        }
        FillPlan::Wait(format!("waiting for {} to fill this replica", away.join(", ")))
    }

    pub(super) fn serve_from_now(&mut self, how: &str) {
        let Some(replica) = self.replica.as_mut() else { return };
        replica.stage = if self.draining { Stage::Leaving } else { Stage::Serving };
        (self.replica_changed, self.urgent) = (true, true);
        let text = format!("{how}: serving shard {} with {} keys", replica.shard, replica.live);
        self.reason.clear();
        self.say(Severity::Info, text);
        self.beat_all();
    }

    /// Every replica of the shard is here and none has anything: begin anew.
    fn start_empty(&mut self) {
        let Some(replica) = &self.replica else { return };
        let life = |node: NodeId| -> Option<(NodeId, Incarnation)> { Some((node, self.peer_of(node)?.life?)) };
        let mut floors: Vec<(NodeId, Incarnation)> = replica.others.iter().filter_map(|&node| life(node)).collect();
        floors.push((replica.origin.node, self.life));
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

enum FillPlan {
    From(Addr),
    Serve,
    StartEmpty,
    Wait(String),
}
