//! How far a store was synced, in a file of its own.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Up to which batch everything was synced. It need not survive a loss of power: an older number, or none, only
/// notices less. So it is written in place: the file is never another one whose contents have not reached the disk.
pub struct SyncMark {
    file: fs::File,
    pub number: u64,
}

impl SyncMark {
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = [0; 8];
        let number = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => u64::from_be_bytes(bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { file, number })
    }

    pub fn raise(&mut self, number: u64) -> std::io::Result<()> {
        if self.number < number {
            self.file.write_all_at(&number.to_be_bytes(), 0)?;
            self.number = number;
        }
        Ok(())
    }
}
