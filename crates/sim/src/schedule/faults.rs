//! What goes wrong in a run, and what an operator does meanwhile.

use std::collections::BTreeSet;

use kvnode_core::admin::AdminOp;
use kvnode_core::room::Room;
use kvnode_types::ident::ShardId;

use super::{FOUNDERS, NODES, Run};
use crate::world::{JOINERS, Weather};

/// What goes wrong in a run; derived from the seed.
#[derive(Debug)]
pub struct Faults {
    pub kills: bool,
    pub network: bool,
    pub power: bool,
    pub wipes: bool,
    pub small_log: bool,
    pub deletes: bool,
    /// The topology changes.
    pub changes: bool,
    /// Disks fill up, and have room again.
    pub disks: bool,
}

impl Faults {
    pub fn of(seed: u64) -> Self {
        let kind = seed % 5;
        Self {
            kills: kind >= 1,
            // Without a network that fails, too, more becomes stable, and what is stable is what must not be lost.
            network: kind == 2 || (kind >= 3 && (seed / 10).is_multiple_of(2)),
            power: kind >= 3,
            wipes: kind == 4,
            small_log: seed / 5 % 2 == 1,
            deletes: (seed / 20).is_multiple_of(2),
            changes: !seed.is_multiple_of(3),
            disks: seed % 7 == 3,
        }
    }
}

impl Run {
    pub(super) fn fail_something(&mut self) {
        let now = self.world.now_ms;
        let back: Vec<usize> = self.down_until.iter().filter(|&(_, &at)| at <= now).map(|(&node, _)| node).collect();
        for node in back {
            self.down_until.remove(&node);
            self.world.start(node);
        }
        if self.isolated_until_ms.is_some_and(|until| now >= until) {
            self.isolated_until_ms = None;
            self.world.weather.clear();
        }
        if now < self.next_fault_ms {
            return;
        }
        self.next_fault_ms = now + self.rng().between(20, 400);
        if self.faults.disks {
            let node = self.some_node();
            let room = [Room::Enough, Room::Enough, Room::Low, Room::None][self.rng().below(4) as usize];
            self.world.set_room(node, room);
        }
        if self.faults.network && self.rng().percent(60) {
            self.change_weather();
        } else if self.faults.kills && self.rng().percent(30) {
            self.take_down();
        }
    }

    /// Any node that was ever started.
    pub(super) fn some_node(&mut self) -> usize {
        let started = (0..NODES).filter(|&node| self.world.is_started(node)).count() as u64;
        let nth = self.rng().below(started) as usize;
        (0..NODES).filter(|&node| self.world.is_started(node)).nth(nth).expect("counted")
    }

    /// What an operator might do at any time.
    pub(super) fn change_something(&mut self) {
        let now = self.world.now_ms;
        if !self.faults.changes || now < self.next_change_ms {
            return;
        }
        self.next_change_ms = now + self.rng().between(100, 2_000);
        self.changes_asked += 1;
        let joiner = FOUNDERS + self.rng().below(JOINERS as u64) as usize;
        let op = match self.rng().below(10) {
            0..3 if !self.world.is_started(joiner) => {
                self.world.start(joiner);
                return;
            }
            0..5 => AdminOp::Reshard { count: self.rng().between(1, 3) as u32, epoch: None, at_once: false },
            5..7 => {
                let shard = ShardId(self.rng().between(1, 4) as u32);
                AdminOp::AddMember { shard, addr: self.world.nodes[joiner].addr.clone() }
            }
            7 => AdminOp::AddNode(self.world.nodes[joiner].addr.clone()),
            8 => AdminOp::Abort,
            _ => {
                let Some(node) = self.removable() else { return };
                let quiet = !self.faults.network && self.world.all_ready();
                if !quiet {
                    self.world.losses.risky.insert(node);
                }
                AdminOp::RemoveNode(self.world.nodes[node].addr.clone())
            }
        };
        let node = self.some_node();
        if self.world.is_up(node) {
            self.world.admin(node, self.changes_asked, op);
        }
    }

    /// A node without which every shard keeps two replicas, or that is in none.
    fn removable(&mut self) -> Option<usize> {
        let shards = self.world.shards();
        let of_large = |shard: &Vec<usize>| shard.len() > 2;
        let mut all: Vec<usize> = shards.iter().filter(|shard| of_large(shard)).flatten().copied().collect();
        let spares = self
            .world
            .topology()
            .into_iter()
            .flat_map(|topology| topology.spare().into_iter().map(|id| &topology.nodes[&id]));
        all.extend(spares.map(|addr| self.world.index_of(addr)));
        let nth = self.rng().below(all.len().max(1) as u64) as usize;
        all.get(nth).copied()
    }

    fn change_weather(&mut self) {
        match self.rng().below(6) {
            0 | 1 => self.world.weather.clear(),
            2 => self.cut_off_some(),
            3 => {
                let (from, to) = (self.rng().below(NODES as u64) as usize, self.rng().below(NODES as u64) as usize);
                self.world.weather.insert((from, to), Weather { cut: true, ..Weather::FAIR });
            }
            _ => {
                for _ in 0..4 {
                    let (from, to) = (self.rng().below(NODES as u64) as usize, self.rng().below(NODES as u64) as usize);
                    let slow = self.rng().between(20, 300);
                    let storm = Weather { delay_ms: (1, slow), loss_percent: 10, double_percent: 20, cut: false };
                    self.world.weather.insert((from, to), storm);
                }
            }
        }
    }

    /// Splits the nodes in two groups that don't hear each other.
    fn cut_off_some(&mut self) {
        let group: BTreeSet<usize> = (0..NODES).filter(|_| self.world.rng.percent(35)).collect();
        for from in 0..NODES {
            for to in 0..NODES {
                if group.contains(&from) != group.contains(&to) {
                    self.world.weather.insert((from, to), Weather { cut: true, ..Weather::FAIR });
                }
            }
        }
    }

    /// Cuts a node off from all others.
    fn isolate(&mut self, node: usize) {
        let cut = Weather { cut: true, ..Weather::FAIR };
        self.isolated_until_ms = Some(self.world.now_ms + self.world.rng.between(500, 2_500));
        for other in (0..NODES).filter(|&other| other != node) {
            self.world.weather.insert((node, other), cut);
            self.world.weather.insert((other, node), cut);
        }
    }

    fn take_down(&mut self) {
        let node = self.some_node();
        if !self.world.is_up(node) {
            return;
        }
        let how = self.rng().below(3);
        if self.faults.changes && self.faults.wipes && how == 0 {
            // Where shards have two replicas, and data is under way, one at a time is all that must be survived; and a node that lost
            // its data has lost its vote until the others have given it another.
            if !self.world.all_ready() || !self.world.votes_are_as_planned() {
                return;
            }
            self.world.wipe(node);
        } else if self.faults.wipes && how == 0 && self.cluster_is_known_beyond(node) {
            self.world.wipe(node);
            // Now and then a whole shard loses everything together.
            if self.rng().percent(15) {
                let shard = node / 3 * 3;
                for other in (shard..shard + 3).filter(|&other| other != node) {
                    self.world.wipe(other);
                    self.down_for_a_while(other);
                }
            }
        } else if self.faults.power && how == 1 {
            self.world.lose_power(node);
            // What it lost matters most to clients that reach it before its peers do.
            if self.rng().percent(50) {
                self.isolate(node);
                let back = self.world.now_ms + self.rng().between(1, 60);
                self.down_until.insert(node, back);
                return;
            }
        } else {
            self.world.kill(node);
        }
        self.down_for_a_while(node);
    }

    /// Whether a node of the other shard runs and knows the cluster. If all nodes lost everything, a new one would form, by
    /// right.
    fn cluster_is_known_beyond(&self, node: usize) -> bool {
        let knows = |other: &usize| self.world.core(*other).is_some_and(|core| core.shard_ids().is_ok());
        (0..NODES).filter(|other| other / 3 != node / 3).any(|other| knows(&other))
    }

    fn down_for_a_while(&mut self, node: usize) {
        let until = self.world.now_ms + self.rng().between(1, 1_500);
        self.down_until.insert(node, until);
    }
}
