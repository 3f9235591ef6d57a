//! What a core tells about itself: to `/view`, `/shard`, `/ready`, `/status` and `/metrics`. Nothing here changes anything.

mod change;

use kvnode_types::ident::{Addr, Dot, Key, ShardId, Slot};
use kvnode_types::stamp::Stamp;
use serde::Serialize;

use super::Core;
use super::topology::{SlotRun, slots_in};
use crate::messages::Stage;
use crate::store::{Result, Version};
pub use change::{ChangeStatus, PlanStatus};

/// The cluster as one node sees it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub node: Addr,
    /// `None`: not part of a cluster yet.
    pub node_id: Option<u32>,
    pub cluster: Option<String>,
    pub epoch: Option<u32>,
    pub shard: Option<String>,
    pub stage: &'static str,
    /// Why it does not serve; empty if it does.
    pub reason: String,
    /// This process's life, and under it the number of its newest write.
    pub life: u64,
    pub writes: u64,
    pub keys: u64,
    /// Room to store data: `enough`, `low` (puts are refused) or `none` (no writes are taken).
    pub room: &'static str,
    /// Equal at all replicas of a shard that have the same keys, versions and tombstones.
    pub digest: String,
    pub log_bytes: usize,
    pub waiting: usize,
    pub parked: usize,
    pub forwarded: usize,
    /// Entries of this replica's version vector.
    pub vector_entries: usize,
    /// The member that keeps contexts from shrinking, where one does.
    pub stable_held_back_by: Option<Addr>,
    /// Writers of whose last writes some are lost.
    pub losses: Vec<String>,
    /// The change of the layout that runs, or the last one.
    pub change: Option<ChangeStatus>,
    /// The nodes that decide about the topology, as far as this node knows, and which of them leads.
    pub voters: Vec<Addr>,
    pub leader: Option<Addr>,
    /// Messages of the topology's log that were refused because no voter sends such.
    pub refused_log_messages: u64,
    pub shards: Vec<ShardStatus>,
    pub peers: Vec<PeerStatus>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ShardStatus {
    pub id: String,
    pub members: Vec<Addr>,
    pub slots: usize,
    /// First and last slot of each run, for clients that send a request to where its key is.
    pub slot_runs: Vec<SlotRun>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    pub node: Addr,
    pub reachable: bool,
    pub stage: Option<&'static str>,
    /// Writes of this node that the peer has not acknowledged; for replicas of this shard.
    pub lag: Option<u64>,
    /// The peer's wall clock minus this node's, in ms, as last heard.
    pub clock_skew_ms: Option<i64>,
    pub queued_bytes: usize,
    /// Why the peer refuses this node, if it does: `another-secret`.
    pub refused: Option<&'static str>,
}

fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Filling => "filling",
        Stage::Serving => "serving",
        Stage::Leaving => "leaving",
    }
}

impl Core {
    pub fn me(&self) -> &Addr {
        &self.settings.me
    }

    /// This life's number.
    pub fn life(&self) -> u64 {
        self.life.0
    }

    /// The topology that this node goes by.
    pub fn topology(&self) -> Option<&super::topology::Topology> {
        self.topology.as_ref()
    }

    /// The members that this node can reach now, itself included, in the topology's order.
    pub fn view(&self) -> Vec<Addr> {
        let all: Vec<Addr> = match &self.topology {
            Some(topology) => topology.addrs_as_joined(topology.nodes.keys().copied()),
            None => self.settings.view.clone(),
        };
        let here =
            |addr: &Addr| *addr == self.settings.me || self.peers.get(addr).is_some_and(|peer| self.is_in_view(peer));
        all.into_iter().filter(here).collect()
    }

    /// Whether this is another node that this one knows.
    pub fn is_peer(&self, addr: &Addr) -> bool {
        *addr != self.settings.me && (self.lists(addr) || self.settings.view.contains(addr))
    }

    /// The nodes that this one knows, itself not included, reachable or not.
    pub fn peers(&self) -> Vec<Addr> {
        let of_topology = self.topology.iter().flat_map(|topology| topology.nodes.values());
        let all: std::collections::BTreeSet<&Addr> = of_topology.chain(&self.settings.view).collect();
        all.into_iter().filter(|addr| **addr != self.settings.me).cloned().collect()
    }

    /// Why this node knows no shards.
    fn not_formed(&self) -> String {
        self.reason.clone()
    }

    /// # Errors
    /// The reason, while there is no cluster.
    pub fn shard_ids(&self) -> std::result::Result<Vec<ShardId>, String> {
        let topology = self.topology.as_ref().ok_or_else(|| self.not_formed())?;
        Ok(topology.layout.shards.keys().copied().collect())
    }

    /// # Errors
    /// The reason, while there is no cluster.
    pub fn own_shard(&self) -> std::result::Result<Option<ShardId>, String> {
        self.topology.as_ref().ok_or_else(|| self.not_formed())?;
        Ok(self.replica.as_ref().and_then(|replica| replica.shard))
    }

    /// # Errors
    /// The reason, while there is no cluster.
    pub fn shard_members(&self, shard: ShardId) -> std::result::Result<Option<Vec<Addr>>, String> {
        let topology = self.topology.as_ref().ok_or_else(|| self.not_formed())?;
        let members = topology.layout.shards.get(&shard);
        Ok(members.map(|nodes| topology.addrs_as_joined(nodes.iter().copied())))
    }

    /// # Errors
    /// The reason why this node does not serve.
    pub fn ready(&self) -> std::result::Result<(), String> {
        if self.draining {
            return Err("shutting down".into());
        }
        if self.dropping.is_some() {
            return Err(self.reason.clone());
        }
        let outside = self.replica.as_ref().is_none_or(|replica| replica.shard.is_none());
        if self.is_serving() || (self.me.is_some() && outside) {
            return Ok(());
        }
        Err(self.reason.clone())
    }

    pub fn status(&self) -> Status {
        let replica = self.replica.as_ref();
        let digest =
            slots_in(&self.bearings.own_runs).fold(0, |sum: u64, slot| sum.wrapping_add(self.inventory.digest(slot)));
        Status {
            node: self.settings.me.clone(),
            node_id: self.me.map(|me| me.0),
            cluster: self.topology.as_ref().map(|topology| format!("{:032x}", topology.cluster.0)),
            epoch: self.topology.as_ref().map(|topology| topology.layout.epoch.0),
            shard: replica.and_then(|replica| Some(replica.shard?.to_string())),
            stage: replica.map_or("outside", |replica| stage_name(replica.stage)),
            reason: if self.ready().is_ok() { String::new() } else { self.reason.clone() },
            life: self.life.0,
            writes: replica.map_or(0, super::replica::Replica::seq),
            keys: self.inventory.live_in(slots_in(&self.bearings.own_runs)),
            room: self.room.name(),
            digest: format!("{digest:016x}"),
            log_bytes: replica.map_or(0, |replica| replica.log.weight()),
            waiting: self.waiting.len(),
            parked: self.waiting.parked(),
            forwarded: self.forwards.len(),
            vector_entries: replica.map_or(0, |replica| replica.applied.len()),
            stable_held_back_by: self.held_back_by(),
            losses: self.losses_said.iter().map(ToString::to_string).collect(),
            change: self.change().ok(),
            voters: self.voters(),
            leader: self.consensus.as_ref().and_then(|c| c.leader()).and_then(|node| self.addr_of(node)).cloned(),
            refused_log_messages: self.refused_log_messages(),
            shards: self.shard_statuses(),
            peers: self.peers_as_joined().into_iter().map(|(addr, peer)| self.peer_status(addr, peer)).collect(),
        }
    }

    fn voters(&self) -> Vec<Addr> {
        let voters = self.consensus.iter().flat_map(|consensus| consensus.voters());
        self.topology.as_ref().map(|topology| topology.addrs_as_joined(voters)).unwrap_or_default()
    }

    /// The other nodes in the order in which they joined; those that the topology does not list come last.
    pub(super) fn peers_as_joined(&self) -> Vec<(&Addr, &super::contact::Peer)> {
        let mut peers: Vec<_> = self.peers.iter().collect();
        let in_view = |addr: &Addr| self.settings.view.iter().position(|one| one == addr);
        peers.sort_by_key(|&(addr, _)| {
            let node = self.node_of(addr);
            (node.is_none(), node, in_view(addr).is_none(), in_view(addr))
        });
        peers
    }

    /// The first replica of the shard without which nothing becomes stable.
    fn held_back_by(&self) -> Option<Addr> {
        let replica = self.replica.as_ref()?;
        let holds = |node: &&kvnode_types::ident::NodeId| {
            let peer = self.peer_of(**node);
            let serving = peer.is_some_and(|peer| peer.stage == Some(Stage::Serving) && self.is_reachable(peer));
            !serving || self.valid_report(**node).is_none()
        };
        replica.others.iter().find(holds).and_then(|&node| self.addr_of(node).cloned())
    }

    fn shard_statuses(&self) -> Vec<ShardStatus> {
        let Some(topology) = &self.topology else { return Vec::new() };
        let one = |(&id, nodes): (&ShardId, &Vec<kvnode_types::ident::NodeId>)| ShardStatus {
            id: id.to_string(),
            members: topology.addrs_as_joined(nodes.iter().copied()),
            slots: topology.layout.slot_count(id),
            slot_runs: topology.layout.runs_of(id),
        };
        topology.layout.shards.iter().map(one).collect()
    }

    fn peer_status(&self, addr: &Addr, peer: &super::contact::Peer) -> PeerStatus {
        let seq = self.replica.as_ref().filter(|_| self.is_mate(addr)).map(super::replica::Replica::seq);
        let own_offset = self.now.wall_ms as i64 - self.now.mono_ms as i64;
        PeerStatus {
            node: addr.clone(),
            reachable: self.is_in_view(peer),
            stage: peer.stage.or(peer.has_lost.then_some(Stage::Filling)).map(stage_name),
            lag: seq.map(|seq| seq.saturating_sub(peer.cursor.held())),
            clock_skew_ms: peer.wall_offset_ms.map(|offset| offset - own_offset),
            queued_bytes: peer.queue_weight(),
            refused: peer.refuses.then_some("another-secret"),
        }
    }

    /// Whether a write of this shard has met the winner rule here, as far as the vector tells: for tests.
    pub fn has_met(&self, dot: Dot) -> bool {
        self.replica.as_ref().is_some_and(|replica| replica.applied.covers(dot) || self.is_retired(replica, dot.origin))
    }

    /// Everything this replica stores, in key order: for tests that compare replicas.
    ///
    /// # Errors
    /// If the store can't be read.
    pub fn contents(&self) -> Result<Vec<(Key, Version)>> {
        let mut versions = self.store.keys("", None, usize::MAX)?;
        versions.retain(|(key, _)| self.bearings.owns(Slot::of(key)));
        Ok(versions)
    }

    /// The writes logged at `position` (counted from the start of the process) or later, and the next position: for tests
    /// that follow what a replica applies.
    pub fn log_from(&self, position: u64) -> (u64, Vec<&crate::messages::Write>) {
        self.replica.as_ref().map_or((position, Vec::new()), |replica| replica.log.from(position))
    }

    /// The clock's last reading.
    pub fn clock(&self) -> Stamp {
        self.inventory.clock.last()
    }
}
