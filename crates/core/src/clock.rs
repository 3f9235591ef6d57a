//! The hybrid logical clock (Kulkarni et al., 2014) whose readings decide between concurrent writes.
//!
//! A reading is larger than every stamp that this replica has applied or given out. Together with the rule that a replica
//! accepts a write only when it holds the writer's own-shard dependencies, that puts a write's stamp past all its causal
//! predecessors on the same key. The physical part is only there to make "last" mean what people expect.

use kvnode_types::stamp::Stamp;

/// The largest stamp applied or given out so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Stamp,
}

impl Clock {
    pub fn last(&self) -> Stamp {
        self.last
    }

    /// Takes note of a stamp that was applied here.
    pub fn observe(&mut self, stamp: Stamp) {
        self.last = self.last.max(stamp);
    }

    /// A new stamp, larger than all before, at least the physical time `now_ms`.
    pub fn next(&mut self, now_ms: u64) -> Stamp {
        // 2^48 ms are 8,900 years. A stamp from outside may be there already; then the origins decide.
        let counted = self.last.0.saturating_add(1);
        self.last = Stamp(counted).max(Stamp::from_millis(now_ms));
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_passes_everything_seen_even_when_time_stands_still_or_goes_back() {
        let mut clock = Clock::default();
        let first = clock.next(1_000);
        assert_eq!(first.millis(), 1_000);
        assert!(clock.next(1_000) > first);
        clock.observe(Stamp::from_millis(5_000));
        let after = clock.next(10);
        assert!(after > Stamp::from_millis(5_000));
        assert_eq!(after.millis(), 5_000);
    }
}
