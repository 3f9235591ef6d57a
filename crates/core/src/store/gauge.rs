//! How much room a store has.
//!
//! An engine whose disk fills up in the middle of a batch can't go on, and neither can one that finds no room to rewrite what
//! it has (a log-structured one does that all the time). So the room is measured before a batch is staged, and the last part
//! of it is kept for the engine.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Result;
use crate::room::Room;

const MIB: u64 = 1 << 20;
/// What small facts may take when nothing else is taken any more.
const FACTS_BYTES: u64 = 2 * MIB;
/// What is left for writes that others have accepted, and for deletions, when puts are refused; and a quarter of what the
/// engine needs, which grows with what it gets.
const LOW_BYTES: u64 = 6 * MIB;
/// What a store takes and may still take. In bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub used: u64,
    /// On its disk; `None` where there is no disk.
    pub free: Option<u64>,
    /// What the engine may need to rewrite what it holds.
    pub engine_needs: u64,
}

/// Measures a store; from any thread, while it is in use.
pub trait Gauge: Send + Sync {
    /// # Errors
    /// If the operating system can't say.
    fn measure(&self) -> Result<Usage>;

    /// Told after each measurement how much room there is held to be.
    fn judged(&self, _room: Room) {}
}

impl Usage {
    /// How much room there is, with `more` bytes to be stored, under a limit on the bytes used.
    pub fn room(&self, more: u64, bytes_max: u64) -> Room {
        let room_on_disk = self.free.map_or(Room::Enough, |free| {
            let none = self.engine_needs + FACTS_BYTES;
            below(free.saturating_sub(more), none + self.engine_needs / 4 + LOW_BYTES, none)
        });
        // Past the limit there is an eighth more for what must not be refused.
        let left = bytes_max.saturating_add(bytes_max / 8).saturating_sub(self.used.saturating_add(more));
        let room_in_limit = if bytes_max == u64::MAX { Room::Enough } else { below(left, bytes_max / 8 + 1, 1) };
        room_on_disk.max(room_in_limit)
    }
}

fn below(left: u64, low: u64, none: u64) -> Room {
    match left {
        _ if left < none => Room::None,
        _ if left < low => Room::Low,
        _ => Room::Enough,
    }
}

/// Counts what an engine in memory holds.
#[derive(Debug, Default)]
pub struct Counter(pub AtomicU64);

impl Gauge for Counter {
    fn measure(&self) -> Result<Usage> {
        Ok(Usage { used: self.0.load(Ordering::Relaxed), ..Usage::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_a_disk_is_the_engines() {
        let usage = |free, engine_needs| Usage { used: 0, free: Some(free), engine_needs };
        assert_eq!(usage(8 * MIB, 0).room(0, u64::MAX), Room::Enough);
        assert_eq!(usage(8 * MIB, 0).room(1, u64::MAX), Room::Low);
        assert_eq!(usage(2 * MIB, 0).room(0, u64::MAX), Room::Low);
        assert_eq!(usage(2 * MIB, 0).room(1, u64::MAX), Room::None);
        assert_eq!(usage(0, 0).room(u64::MAX, u64::MAX), Room::None);
        assert_eq!(usage(20 * MIB, 8 * MIB).room(0, u64::MAX), Room::Enough);
        assert_eq!(usage(20 * MIB, 16 * MIB).room(0, u64::MAX), Room::Low);
        assert_eq!(usage(20 * MIB, 20 * MIB).room(0, u64::MAX), Room::None);
    }

    #[test]
    fn a_limit_counts_what_is_used() {
        let used = |used| Usage { used, free: None, engine_needs: 0 };
        assert_eq!(used(1 << 60).room(1 << 60, u64::MAX), Room::Enough, "no limit");
        assert_eq!(used(799).room(0, 800), Room::Enough);
        assert_eq!(used(799).room(1, 800), Room::Low);
        assert_eq!(used(899).room(0, 800), Room::Low);
        assert_eq!(used(900).room(0, 800), Room::None);
        assert_eq!(used(10).room(0, 0), Room::None, "a drill");
    }
}
