//! Taking over a newer topology: what a node keeps, gives up and begins when its place changes.
//!
//! Rule: a node moves from one layout to the next only by way of the state in which the new one *settles*. One that missed
//! that state was given up while it was away (nobody retires an epoch before every old member that counts has handed over):
//! what it holds may be older than anything, and it begins anew.
//!
//! At the flip a replica's origin ends and the next begins under the new epoch. What it had applied of its old shard is
//! remembered apart, as *handed*: it holds for all slots of the old shard, while the vector from now on speaks of the new
//! shard's slots only.

use kvnode_types::causal::Vector;
use kvnode_types::ident::{Addr, Epoch, NodeId, Origin, ShardId, Slot};

use super::cursor::Cursor;
use super::replica::{Handed, Replica};
use super::settings::Mutant;
use super::topology::{Bearings, Layout, Topology, Transition};
use super::{Core, FACT_TOPOLOGY, Settling, Severity, contact::Peer, encode_fact};
use crate::messages::Stage;
use crate::store::Result;

/// How a node gets from one topology to the next.
enum Step {
    /// Its place stays; at most a change begins or ends.
    Stay,
    /// The layout flips.
    Flip { before: Layout },
    /// Nothing of what it has counts any more.
    Anew,
}

impl Core {
    /// Takes over a topology if it is newer.
    pub(super) fn adopt(&mut self, topology: Topology) -> Result<()> {
        if self.topology.as_ref().is_some_and(|mine| mine.version >= topology.version) {
            return Ok(());
        }
        if let Some(dropping) = self.dropping.as_mut() {
            if dropping.topology.version < topology.version {
                dropping.topology = topology;
            }
            return Ok(());
        }
        self.note_changes(&topology);
        let Some(before) = self.topology.clone() else {
            self.keep_topology(&topology);
            self.say(Severity::Info, format!("in the cluster of {} nodes", topology.nodes.len()));
            let me = topology.node_at(&self.settings.me);
            // One that has lost its data is listed with an earlier birth, until it is listed anew.
            self.forms = me.is_some_and(|me| topology.births.get(&me) == Some(&self.birth));
            self.store.set_fact(super::formation::FACT_FORMS, encode_fact(&self.forms));
            self.say_what_is_missing(&topology);
            self.begin_anew(topology);
            self.join_consensus();
            return self.adopted();
        };
        let (was, is) = (self.me, topology.node_at(&self.settings.me));
        let step = if was == is { step_between(was, before, &topology) } else { Step::Anew };
        let new_generation = self.has_new_generation(&topology);
        match step {
            Step::Stay => {
                self.keep_topology(&topology);
                self.stay(topology);
            }
            Step::Flip { before } => {
                self.keep_topology(&topology);
                self.flip(&before, topology);
            }
            Step::Anew => {
                if was.is_some() && is.is_none() {
                    let text = if self.asks_to_join() {
                        "this node was removed from the cluster while it was away; it asks to be in the view again, with no shard"
                    } else {
                        "this node was removed from the cluster; started again it joins the view, with no shard"
                    };
                    self.say(Severity::Warn, text);
                }
                return self.drop_for(topology);
            }
        }
        if new_generation {
            self.join_consensus();
        }
        self.adopted()
    }

    fn keep_topology(&mut self, topology: &Topology) {
        self.store.set_fact(FACT_TOPOLOGY, encode_fact(topology));
        self.urgent = true;
    }

    fn has_new_generation(&self, topology: &Topology) -> bool {
        self.consensus.as_ref().is_some_and(|consensus| consensus.generation() < topology.version.generation)
    }

    /// Takes over a topology under which nothing of what was here counts, now that it is dropped.
    pub(super) fn adopt_with_nothing(&mut self, topology: Topology, wrote_under: Option<Epoch>) -> Result<()> {
        let (was, is) = (self.me, topology.node_at(&self.settings.me));
        let new_generation = self.has_new_generation(&topology);
        self.keep_topology(&topology);
        self.forms_no_more();
        self.begin_another_life(wrote_under, topology.layout.epoch);
        self.begin_anew(topology);
        if was != is || new_generation {
            self.join_consensus();
        }
        self.adopted()
    }

    /// What follows from any new topology.
    fn adopted(&mut self) -> Result<()> {
        if self.replica.as_ref().is_none_or(|replica| replica.shard.is_none()) && self.me.is_some() {
            self.is_whole_again();
        }
        let Some(topology) = &self.topology else { return Ok(()) };
        let oldest = topology.oldest_epoch();
        let job = match &topology.transition {
            Transition::Copying { change, .. } => Some(change.job),
            _ => None,
        };
        self.drop_covered();
        let Some(topology) = &self.topology else { return Ok(()) };
        let forget = !self.settings.broken(Mutant::OldCopyDeletedEarly);
        let oldest = if forget { oldest } else { topology.layout.epoch };
        if let Some(replica) = self.replica.as_mut() {
            replica.retire_epochs(oldest);
            self.replica_changed = true;
        }
        for stable in self.stables.values_mut() {
            stable.vector.retain(|origin, _| origin.epoch >= oldest);
            stable.floors.retain(|&(_, epoch, _)| epoch >= oldest);
        }
        self.transfer = None;
        self.office.purged = false;
        let heard = topology.transition.change().map(|change| change.job);
        if let Some(job) = heard.filter(|&job| self.office.change_heard.is_none_or(|(last, _)| last != job)) {
            self.office.change_heard = Some((job, self.now.mono_ms));
        }
        if self.copies.job != job {
            self.copies = std::mem::take(&mut self.copies).for_job(job);
            if job.is_some() {
                self.peers.values_mut().for_each(|peer| peer.moves.clear());
            }
            self.copies_changed();
        }
        self.beat_all();
        self.reroute()
    }

    /// Peers are all other nodes of the topology; what is known of them stays.
    fn know_peers(&mut self, topology: &Topology) {
        let mut peers = std::mem::take(&mut self.peers);
        for addr in topology.nodes.values().filter(|&addr| *addr != self.settings.me) {
            self.peers.insert(addr.clone(), peers.remove(addr).unwrap_or_default());
        }
        let gone: Vec<_> = peers.into_keys().collect();
        gone.iter().for_each(|addr| self.forwards_lost_to(addr));
    }

    fn install_topology(&mut self, topology: Topology) {
        self.know_peers(&topology);
        self.me = topology.node_at(&self.settings.me);
        self.bearings = Bearings::of(&topology, self.me);
        if self.topology.as_ref().map(|before| before.layout.epoch) != Some(topology.layout.epoch) {
            self.flipped_ms = self.now.mono_ms;
        }
        let wanted = |topology: &Topology| (topology.layout.epoch, topology.written_off().cloned());
        if self.topology.as_ref().map(wanted) != Some(wanted(&topology)) {
            self.wanted_since = topology.version;
        }
        self.topology = Some(topology);
        let cut_off = |addr: &Addr| self.node_of(addr).is_some_and(|node| self.is_cut_off(node));
        if self.repair.as_ref().is_some_and(|repair| cut_off(&repair.peer)) {
            self.abandon_repair();
        }
    }

    fn stay(&mut self, topology: Topology) {
        let settled = self.topology.as_ref().is_some_and(|before| before.from().is_some()) && topology.from().is_none();
        self.install_topology(topology);
        if settled {
            self.settling.begin_anew();
        }
    }

    /// Takes the place that a topology gives this node, with nothing in hand: its data has to be recovered or fetched.
    pub(super) fn take_place(&mut self, topology: Topology) {
        self.install_topology(topology);
        let Some(topology) = &self.topology else { return };
        self.replica = self.me.and_then(|me| {
            let origin = Origin { node: me, epoch: topology.layout.epoch, incarnation: self.life };
            let old = topology.from().and_then(|from| Some((from, from.shard_of_node(me)?)));
            let handed = old.map(|(from, shard)| handed(from, shard, Vector::new(), false));
            let mut replica = match topology.layout.shard_of_node(me) {
                Some(shard) => {
                    let others = others(topology.members(shard), me);
                    Replica::new(shard, others, origin, self.settings.log_weight_max)
                }
                None => {
                    let shard = handed.as_ref()?.shard;
                    let mut giver = Replica::new(shard, Vec::new(), origin, self.settings.log_weight_max);
                    (giver.shard, giver.stage) = (None, Stage::Leaving);
                    giver
                }
            };
            replica.handed = handed;
            Some(replica)
        });
        self.repair = None;
        self.office.filled_from.clear();
        self.reason = match (self.me, &self.replica) {
            (None, _) => "this node is not in the cluster's view".into(),
            _ => "waiting for the other replicas of its shard".into(),
        };
        self.replica_changed = true;
    }

    /// What is written from here on must not be named as what was written before is: the layout may be the one that this node has
    /// written under already, and with its data it forgets how far it has counted. (Found by seed 6419 of 10,000 operations: two
    /// deletions had one name.)
    fn begin_another_life(&mut self, wrote_under: Option<Epoch>, epoch: Epoch) {
        // The layout may also be one before the present one: an operator has recovered the cluster from there.
        if wrote_under.is_none_or(|before| before < epoch) || self.settings.broken(Mutant::LifeKept) {
            return;
        }
        self.life = self.life.next();
        self.store.set_fact(super::FACT_LIFE, encode_fact(&self.life));
        self.urgent = true;
    }

    /// Takes a new place. There is nothing in the store.
    fn begin_anew(&mut self, topology: Topology) {
        self.nothing_is_uncovered();
        self.settling = Settling::default();
        self.take_place(topology);
        self.reset_pushes();
        if self.settings.broken(Mutant::ServeUnfilled)
            && let Some(replica) = self.replica.as_mut()
        {
            replica.stage = Stage::Serving;
        }
    }

    fn reset_pushes(&mut self) {
        for peer in self.peers.values_mut() {
            peer.begin_epoch();
        }
    }

    /// The target layout has become the layout.
    fn flip(&mut self, before: &Layout, topology: Topology) {
        let old_shard = self.me.and_then(|me| before.shard_of_node(me));
        self.install_topology(topology);
        let (Some(me), Some(topology)) = (self.me, &self.topology) else { return };
        let layout = &topology.layout;
        let new_shard = layout.shard_of_node(me);
        let gains = topology.gains(me, before, layout);
        let origin = Origin { node: me, epoch: layout.epoch, incarnation: self.life };
        let mut replica = match (self.replica.take(), new_shard) {
            (Some(replica), _) => replica,
            (None, None) => return,
            (None, Some(shard)) => {
                let mut replica = Replica::new(shard, Vec::new(), origin, self.settings.log_weight_max);
                replica.stage = Stage::Serving;
                replica
            }
        };
        let whole = replica.stage != Stage::Filling;
        replica.handed = old_shard.map(|shard| handed(before, shard, replica.applied.clone(), whole));
        let concerned = |origin| new_shard.is_some_and(|new| self.bearings.shards_of(origin).contains(&new));
        replica.applied.retain(|origin, _| concerned(origin));
        replica.durable.retain(|origin, _| concerned(origin));
        for (shard, _) in gains {
            match self.copies.done.get(&shard) {
                Some(copy) => {
                    replica.applied.merge(&copy.vector);
                    replica.raise_floors(&copy.floors);
                }
                None if self.settings.broken(Mutant::ServeUncopied) => {}
                None => replica.stage = Stage::Filling,
            }
        }
        replica.shard = new_shard;
        replica.others = new_shard.map(|shard| others(layout.members(shard), me)).unwrap_or_default();
        replica.stage = match replica.stage {
            Stage::Filling if new_shard.is_some() => Stage::Filling,
            _ if self.draining || new_shard.is_none() => Stage::Leaving,
            _ => Stage::Serving,
        };
        if !self.settings.broken(Mutant::OriginKept) {
            replica.before = old_shard.map(|_| replica.origin);
            replica.origin = origin;
        }
        let text = format!(
            "layout {}: in shard {} with {} others",
            layout.epoch.0,
            new_shard.map_or_else(|| "-".to_owned(), |shard| shard.to_string()),
            replica.others.len()
        );
        if replica.stage == Stage::Filling {
            self.reason = "waiting for what the layout gave it".into();
        }
        self.replica = Some(replica);
        self.replica_changed = true;
        self.settling.begin_anew();
        self.abandon_repair();
        self.uncovered_at_flip();
        if self.is_serving() {
            self.forms_no_more();
        }
        self.reset_pushes();
        self.say(Severity::Info, text);
    }

    /// Removes what this node stores of slots that are not its own, once everybody who should has it.
    pub(super) fn purge_step(&mut self) -> Result<()> {
        /// Versions removed per tick.
        const VERSIONS_PER_TICK: usize = 2_000;
        let Some(topology) = &self.topology else { return Ok(()) };
        let early = self.settings.broken(Mutant::OldCopyDeletedEarly);
        if self.office.purged || (topology.transition != Transition::Steady && !early) {
            return Ok(());
        }
        let mut left = VERSIONS_PER_TICK;
        let slots = (0..kvnode_types::ident::SLOT_COUNT).map(Slot);
        for slot in
            slots.filter(|&slot| !self.inventory.is_empty(slot) && !self.bearings.owns(slot)).collect::<Vec<_>>()
        {
            let versions = self.store.slot(slot, None, left)?;
            left -= versions.len().min(left);
            for (key, version) in versions {
                self.inventory.discard(&mut *self.store, &key, version.dot, version.value.is_some());
            }
            if left == 0 {
                return Ok(());
            }
        }
        self.office.purged = true;
        Ok(())
    }
}

impl Peer {
    /// The layout has changed: what was said of writes and reports under the one before does not count.
    fn begin_epoch(&mut self) {
        (self.held_before, self.sent_before) = (self.cursor.held(), self.cursor.held());
        self.cursor = Cursor::default();
        self.report = None;
        (self.stage, self.has_lost) = (None, false);
        self.progress = None;
        self.filled_us = false;
        self.lag = None;
        self.pulled_ms = None;
    }
}

fn step_between(me: Option<NodeId>, before: Topology, after: &Topology) -> Step {
    let (epoch, given_up) = &after.given_up;
    if before.from().is_some() && *epoch == before.layout.epoch && me.is_some_and(|me| given_up.contains(&me)) {
        return Step::Anew;
    }
    if before.layout.epoch == after.layout.epoch {
        return Step::Stay;
    }
    if after.from().is_some_and(|from| from.epoch == before.layout.epoch) {
        return Step::Flip { before: before.layout };
    }
    Step::Anew
}

fn others(members: &[NodeId], me: NodeId) -> Vec<NodeId> {
    members.iter().copied().filter(|&node| node != me).collect()
}

fn handed(from: &Layout, shard: ShardId, mut vector: Vector, whole: bool) -> Handed {
    let members = from.members(shard).to_vec();
    vector.retain(|origin, _| origin.epoch == from.epoch && members.contains(&origin.node));
    Handed { epoch: from.epoch, shard, members, vector, whole }
}
