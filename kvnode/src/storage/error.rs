//! What the engine and the operating system report, as the core's errors.

use std::io::ErrorKind;

use kvnode_core::store::StoreError;

pub fn of_io(error: &std::io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full(error.to_string()),
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => StoreError::Unreadable(error.to_string()),
        _ => StoreError::Io(error.to_string()),
    }
}

/// Damage is what a checksum proves, and nothing else: all that is damaged is set aside. What makes no sense otherwise may be the work of
/// another release, and what the operating system refuses may be there again tomorrow.
pub fn of_engine(error: fjall::Error) -> StoreError {
    use fjall::{Error, JournalRecoveryError, LsmError};
    match &error {
        Error::Io(io) | Error::Storage(LsmError::Io(io)) => of_io(io),
        Error::Poisoned | Error::Locked | Error::KeyspaceDeleted => StoreError::Io(error.to_string()),
        Error::Storage(LsmError::ChecksumMismatch { .. })
        | Error::JournalRecovery(JournalRecoveryError::ChecksumMismatch) => StoreError::Damaged(error.to_string()),
        _ => StoreError::Unreadable(error.to_string()),
    }
}
