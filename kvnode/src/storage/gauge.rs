//! How much room a store has.
//!
//! An engine whose disk fills up in the middle of a batch can't go on, and neither can one that finds no room to rewrite what
//! it has (a log-structured one does that all the time). So the room is measured before a batch is staged, and the last part
//! of it is kept for the engine.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Result;
use crate::core::room::Room;

const MIB: u64 = 1 << 20;
/// What small facts may take when nothing else is taken any more.
const FACTS_BYTES: u64 = 2 * MIB;
/// What is left for writes that others have accepted, and for deletions, when puts are refused; and a quarter of what the
/// engine needs, which grows with what it gets.
const LOW_BYTES: u64 = 6 * MIB;
/// A file that holds room for small facts even if somebody else fills the disk, and the room below which it is given up.
const BALLAST_BYTES: usize = MIB as usize;
const BALLAST_NEEDED_BYTES: u64 = MIB / 2;

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

/// A file in the data directory whose only use is to be removed.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    there: AtomicBool,
}

impl Ballast {
    /// Gives it up at once if the disk is full, so that a store can be opened.
    pub fn open(dir: &Path) -> Self {
        let path = dir.join("ballast");
        let ballast = Self { there: AtomicBool::new(path.exists()), path };
        if free_bytes(dir).is_some_and(|free| free < BALLAST_NEEDED_BYTES) {
            ballast.give_up();
        }
        ballast
    }

    /// Gives it up where its room is needed, and takes it again where there is enough.
    pub fn adjust(&self, room: Room, free: u64) {
        match (room, self.there.load(Ordering::Relaxed)) {
            (Room::None, true) if free < BALLAST_NEEDED_BYTES => self.give_up(),
            (Room::Enough, false) => self.take(),
            _ => {}
        }
    }

    fn give_up(&self) {
        self.there.store(false, Ordering::Relaxed);
        // If it can't be removed there is nothing else to try.
        let _ = fs::remove_file(&self.path);
    }

    fn take(&self) {
        let taken = File::create(&self.path).and_then(|mut file| file.write_all(&vec![0; BALLAST_BYTES]));
        match taken {
            Ok(()) => self.there.store(true, Ordering::Relaxed),
            Err(_) => self.give_up(),
        }
    }
}

/// Bytes that this process may still write to the file system of `path`; `None` if the system doesn't say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let told = rustix::fs::statvfs(path).ok()?;
    // Some file systems have no blocks to count.
    (told.f_blocks > 0).then(|| told.f_bavail.saturating_mul(told.f_frsize))
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

    #[test]
    fn ballast_is_there_until_it_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let ballast = Ballast::open(folder.path());
        let size = || fs::metadata(folder.path().join("ballast")).map(|file| file.len()).ok();
        ballast.adjust(Room::Low, 0);
        assert_eq!(size(), None);
        ballast.adjust(Room::Enough, 1 << 30);
        assert_eq!(size(), Some(MIB));
        ballast.adjust(Room::None, MIB);
        assert_eq!(size(), Some(MIB));
        ballast.adjust(Room::None, 0);
        assert_eq!(size(), None);
    }
}
