//! Small files that are there as a whole or not at all, also after a loss of power.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Writes a file in the place of whatever has its name.
///
/// # Errors
/// If it can't be written; then what was there before still is.
pub fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)?;
    // The name is in the folder, which is synced apart from the file.
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
