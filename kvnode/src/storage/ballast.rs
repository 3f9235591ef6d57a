//! Room on the disk that is kept for what must not be refused.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use kvnode_core::room::Room;

const MIB: u64 = 1 << 20;
/// A file that holds room for small facts even if somebody else fills the disk, and the room below which it is given up.
const BALLAST_BYTES: usize = MIB as usize;
const BALLAST_NEEDED_BYTES: u64 = MIB / 2;

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

#[cfg(test)]
mod tests {
    use super::*;

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
