//! The end of a run: everything works again, replicas become equal, and the history is judged.

use std::collections::BTreeMap;

use kvnode_checker::judge;
use kvnode_core::request::{Answer, Op};
use kvnode_core::room::Room;
use kvnode_types::ident::Dot;

use super::{NODES, Outcome, Run};
use crate::naive;
use crate::world::World;

/// Histories up to this length are also judged by the naive form of the rules.
const NAIVE_MAX: usize = 5_000;
/// The longest until no change of the topology is under way and every operator has an answer: a leader has to be elected first,
/// a node to be given up, and an operator's request to a node that was removed runs into its limit.
const SETTLED_MS: u64 = 15_000;

/// The longest until those vote that should. One vote changes at a time, and at rest the leader takes its steps rarely.
const VOTES_MS: u64 = 60_000;

/// How long it took once everything worked again, in virtual time.
#[derive(Clone, Copy, Debug)]
pub struct Converged {
    /// Until all members served, and the replicas of every shard had the same values.
    pub equal_ms: u64,
    /// Until, besides, they remembered the same deletions, no change was under way and no operator waited.
    pub settled_ms: u64,
}

impl Run {
    /// Everything works again: everybody must serve, and replicas must become equal.
    pub(super) fn heal(&mut self) -> Result<Converged, String> {
        self.world.weather.clear();
        (0..NODES).for_each(|node| self.world.set_room(node, Room::Enough));
        for node in 0..NODES {
            if self.world.is_started(node) && !self.world.is_up(node) {
                self.world.start(node);
            }
        }
        let healed_ms = self.world.now_ms;
        let served = |world: &World| world.members().iter().all(|&node| world.is_ready(node));
        let equal = |world: &World| served(world) && unequal(world, Compared::Values).is_none();
        let settled =
            |world: &World| world.all_ready() && !world.decisions_are_due() && unequal(world, Compared::All).is_none();
        self.world.run_until(SETTLED_MS, equal);
        let equal_ms = self.world.now_ms - healed_ms;
        let is_settled = self.world.run_until(SETTLED_MS - equal_ms, settled);
        for node in std::mem::take(&mut self.world.losses.risky) {
            self.world.given_up(node);
        }
        if is_settled {
            return Ok(Converged { equal_ms, settled_ms: self.world.now_ms - healed_ms });
        }
        let waits: Vec<String> = (0..NODES)
            .filter_map(|node| self.world.core(node)?.ready().err().map(|why| format!("{node}: {why}")))
            .collect();
        let change = self.world.topology().map(|topology| format!("{:?}", topology.transition));
        let waits_for: Vec<_> =
            (0..NODES).filter_map(|node| self.world.core(node)?.change().ok()).map(|c| c.waiting_for).collect();
        Err(format!(
            "not settled {SETTLED_MS} ms after all faults ended: {waits:?} {:?} {change:?} {waits_for:?}",
            unequal(&self.world, Compared::All)
        ))
    }

    pub(super) fn verdict(&mut self) -> Result<Outcome, String> {
        if let Some(dot) = self.world.losses.used_twice {
            return Err(format!("{dot} names two writes"));
        }
        let deletions = self.name_deletions()?;
        let last = self.final_state(&deletions)?;
        let verdict = judge(&self.history, &self.world.losses.lost, &last);
        if self.history.len() <= NAIVE_MAX {
            let naive = naive::judge(&self.history, &self.world.losses.lost, &last);
            assert_eq!(verdict.is_ok(), naive.is_ok(), "the checkers disagree: {verdict:?}, {naive:?}");
        }
        verdict?;
        // Without changes, any number of nodes may lose their data, and their votes with it.
        let votes_last = self.faults.changes || !self.faults.wipes;
        if votes_last && !self.world.run_until(VOTES_MS, World::votes_are_as_planned) {
            return Err(format!("others vote than should, {VOTES_MS} ms after all was well"));
        }
        self.quiet_contexts_are_nearly_empty()?;
        Ok(Outcome {
            answered: self.answered,
            refused: self.refused,
            lost: self.world.losses.lost.len(),
            absences: self.absences.iter().filter(|(_, dot)| deletions.contains_key(dot)).count() as u64,
            layouts: self.world.topology().map_or(0, |topology| topology.layout.epoch.0),
        })
    }

    /// What every key holds at the replicas of its shard: the write of a value, or the deletion that left its tombstone.
    fn final_state(&self, deletions: &BTreeMap<Dot, u64>) -> Result<BTreeMap<usize, Option<u64>>, String> {
        let mut last: BTreeMap<usize, Option<u64>> = (0..self.load.keys).map(|key| (key, None)).collect();
        for shard in self.world.shards() {
            let node = shard[0];
            let contents = self.world.core(node).expect("all run").contents().map_err(|error| error.to_string())?;
            for (key, version) in contents {
                let index = self.keys.iter().position(|known| **known == *key).ok_or("a key that nobody wrote")?;
                let write = match &version.value {
                    Some(value) => std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
                    None => deletions.get(&version.dot).copied(),
                };
                last.insert(index, write);
            }
        }
        Ok(last)
    }

    /// P8: once all is quiet, a context that goes round comes back with nothing in it.
    fn quiet_contexts_are_nearly_empty(&mut self) -> Result<(), String> {
        self.world.run_until(3_000, |_| false);
        let mut token = self.sessions.iter().find_map(|session| session.token.clone());
        let keys = self.keys.clone();
        for (round, key) in keys.iter().enumerate() {
            let id = 10_000_000 + round as u64;
            let members = self.world.members();
            let node = members[round % members.len()];
            self.world.request(node, id, Op::Get { key: key.as_str().into() }, token.iter().cloned().collect());
            self.world.run_until(3_000, |world| world.answers.iter().any(|(answered, _)| *answered == id));
            token = match self.world.answers.pop() {
                Some((_, Some(Answer::Found { context, .. } | Answer::NotFound { context, .. }))) => Some(context),
                other => return Err(format!("a healed cluster answers {other:?} with an old context")),
            };
        }
        let length = token.map_or(0, |token| token.len());
        if length > 24 {
            let held_back: Vec<_> = (0..NODES)
                .filter_map(|node| {
                    let status = self.world.core(node)?.status();
                    Some((node, status.shard, status.stable_held_back_by, status.vector_entries, status.life))
                })
                .collect();
            return Err(format!("a context is {length} characters long in a quiet cluster: {held_back:?}"));
        }
        Ok(())
    }
}

/// What of the replicas of a shard must be the same.
#[derive(Clone, Copy, PartialEq)]
enum Compared {
    /// Keys that have a value, and their versions. One replica may have forgotten an old deletion before the others do.
    Values,
    All,
}

/// The first two replicas of one shard that differ.
fn unequal(world: &World, what: Compared) -> Option<String> {
    for shard in world.shards() {
        let contents = |&node: &usize| {
            let mut all = world.core(node).and_then(|core| core.contents().ok())?;
            all.retain(|(_, version)| what == Compared::All || version.value.is_some());
            Some(all)
        };
        let contents: Vec<_> = shard.iter().map(contents).collect();
        for pair in contents.windows(2) {
            if pair[0] != pair[1] {
                return Some(format!("{:?} differs from {:?}", pair[0], pair[1]));
            }
        }
    }
    None
}
