//! The replication log: recent writes of all origins, in the order in which this replica applied them.
//!
//! A replica that lags gets what it lacks from here; the order of application is an order in which it can apply them too.
//! The log is bounded by bytes and forgets from the front. Who needs more is repaired from the store.

use std::collections::{BTreeMap, VecDeque};

use kvnode_types::causal::Vector;
use kvnode_types::ident::Origin;

use crate::messages::Write;

/// Invariant: per origin the log holds one gapless run of numbers, the newest applied ones.
#[derive(Debug)]
pub struct Log {
    entries: VecDeque<Write>,
    /// Position of `entries[0]`, counted from the start of the process.
    base: u64,
    /// Per origin the positions of its run; the first element belongs to the run's first number.
    runs: BTreeMap<Origin, Run>,
    weight: usize,
    weight_max: usize,
}

#[derive(Debug)]
struct Run {
    first_seq: u64,
    positions: VecDeque<u64>,
}

impl Log {
    /// A log that holds at most about `weight_max` bytes.
    pub fn new(weight_max: usize) -> Self {
        Self { entries: VecDeque::new(), base: 0, runs: BTreeMap::new(), weight: 0, weight_max }
    }

    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Appends a write that was just applied.
    pub fn push(&mut self, write: Write) {
        let dot = write.version.dot;
        let position = self.base + self.entries.len() as u64;
        let run = self.runs.entry(dot.origin).or_insert_with(|| Run { first_seq: dot.seq, positions: VecDeque::new() });
        if dot.seq != run.first_seq + run.positions.len() as u64 {
            // The vector jumped over writes that came by repair: what is older than the jump serves nobody any more.
            *run = Run { first_seq: dot.seq, positions: VecDeque::new() };
        }
        run.positions.push_back(position);
        self.weight += write.weight();
        self.entries.push_back(write);
        while self.weight > self.weight_max && self.entries.len() > 1 {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some(write) = self.entries.pop_front() else { return };
        self.weight -= write.weight();
        let origin = write.version.dot.origin;
        if let Some(run) = self.runs.get_mut(&origin)
            && run.positions.front() == Some(&self.base)
        {
            run.positions.pop_front();
            run.first_seq += 1;
            if run.positions.is_empty() {
                self.runs.remove(&origin);
            }
        }
        self.base += 1;
    }

    /// The position from which the log holds `origin`'s writes after `seq`; `None` if it does not reach back that far.
    fn position_after(&self, origin: Origin, seq: u64) -> Option<u64> {
        let run = self.runs.get(&origin)?;
        let index = seq.checked_add(1)?.checked_sub(run.first_seq)?;
        run.positions.get(usize::try_from(index).ok()?).copied()
    }

    /// `origin`'s writes after `seq`, up to `weight_max` bytes but at least one; `None` if the log does not reach back.
    pub fn of_origin(&self, origin: Origin, seq: u64, weight_max: usize) -> Option<Vec<Write>> {
        let run = self.runs.get(&origin)?;
        let index = usize::try_from(seq.checked_add(1)?.checked_sub(run.first_seq)?).ok()?;
        let mut weight = 0;
        let fits = |write: &&Write| {
            let first = weight == 0;
            weight += write.weight();
            first || weight <= weight_max
        };
        let positions = run.positions.iter().skip(index);
        Some(positions.map(|position| self.at(*position)).take_while(fits).cloned().collect())
    }

    /// The writes at `position` or later, and the position after the last.
    pub fn from(&self, position: u64) -> (u64, Vec<&Write>) {
        let start = position.saturating_sub(self.base) as usize;
        let writes = self.entries.range(start.min(self.entries.len())..).collect();
        (self.base + self.entries.len() as u64, writes)
    }

    fn at(&self, position: u64) -> &Write {
        &self.entries[(position - self.base) as usize]
    }

    /// The writes in `applied` that `have` lacks, in the order of application, up to `weight_max` bytes but at least one;
    /// `None` if the log lacks one of them.
    pub fn since(&self, have: &Vector, applied: &Vector, weight_max: usize) -> Option<Vec<Write>> {
        let mut start = u64::MAX;
        for (origin, seq) in applied.iter().filter(|&(origin, seq)| have.get(origin) < seq) {
            debug_assert!(seq > 0);
            start = start.min(self.position_after(origin, have.get(origin))?);
        }
        if start == u64::MAX {
            return Some(Vec::new());
        }
        let mut writes: Vec<Write> = Vec::new();
        let mut weight = 0;
        for write in self.entries.range((start - self.base) as usize..) {
            if have.covers(write.version.dot) {
                continue;
            }
            weight += write.weight();
            if !writes.is_empty() && weight > weight_max {
                break;
            }
            writes.push(write.clone());
        }
        Some(writes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Version;
    use kvnode_types::ident::{Dot, Epoch, Incarnation, NodeId};
    use kvnode_types::stamp::Stamp;

    fn origin(node: u32) -> Origin {
        Origin { node: NodeId(node), epoch: Epoch(1), incarnation: Incarnation(1) }
    }

    fn write(node: u32, seq: u64) -> Write {
        let dot = Dot { origin: origin(node), seq };
        let version = Version { stamp: Stamp(seq), dot, value: None, deps: Vector::new() };
        Write { key: "k".into(), version, own_deps: Vector::new() }
    }

    fn dots(writes: &[Write]) -> Vec<(u32, u64)> {
        writes.iter().map(|w| (w.version.dot.origin.node.0, w.version.dot.seq)).collect()
    }

    fn vector(entries: &[(u32, u64)]) -> Vector {
        entries.iter().map(|&(node, seq)| (origin(node), seq)).collect()
    }

    #[test]
    fn gives_what_is_lacking_in_the_order_of_application() {
        let mut log = Log::new(1 << 20);
        for (node, seq) in [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)] {
            log.push(write(node, seq));
        }
        let all = vector(&[(1, 3), (2, 2)]);
        assert_eq!(dots(&log.since(&vector(&[(1, 1)]), &all, 1 << 20).unwrap()), [(2, 1), (1, 2), (2, 2), (1, 3)]);
        assert_eq!(dots(&log.since(&all, &all, 1 << 20).unwrap()), []);
        assert_eq!(dots(&log.of_origin(origin(1), 1, 1 << 20).unwrap()), [(1, 2), (1, 3)]);
        assert_eq!(dots(&log.of_origin(origin(1), 1, 1).unwrap()), [(1, 2)]);
    }

    #[test]
    fn says_so_when_it_does_not_reach_back() {
        let mut log = Log::new(3 * write(1, 1).weight());
        for seq in 1..=5 {
            log.push(write(1, seq));
        }
        assert!(log.of_origin(origin(1), 1, 1 << 20).is_none());
        assert_eq!(dots(&log.of_origin(origin(1), 2, 1 << 20).unwrap()), [(1, 3), (1, 4), (1, 5)]);
        assert!(log.since(&vector(&[(1, 1)]), &vector(&[(1, 5)]), 1 << 20).is_none());
        assert!(log.since(&vector(&[]), &vector(&[(2, 1)]), 1 << 20).is_none(), "applied by repair, never logged");
    }

    #[test]
    fn a_jump_of_the_vector_starts_a_new_run() {
        let mut log = Log::new(1 << 20);
        log.push(write(1, 1));
        log.push(write(1, 9));
        assert!(log.of_origin(origin(1), 0, 1 << 20).is_none());
        assert_eq!(dots(&log.of_origin(origin(1), 8, 1 << 20).unwrap()), [(1, 9)]);
    }
}
