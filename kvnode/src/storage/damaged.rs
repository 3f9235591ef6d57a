//! Stores that were damaged: moved away from where they were, to `damaged-1` and so on, and never read again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use kvnode_core::store::{Result, StoreError};

use super::error::of_io;
use super::format;

/// A store that was damaged.
#[derive(Debug, PartialEq, Eq)]
pub struct SetAside {
    /// The folder in which it is now.
    pub place: PathBuf,
    pub why: String,
}

/// Renames what is in `dir` so that nothing reads it and nothing is lost.
pub fn set_aside(dir: &Path) -> Result<PathBuf> {
    let free = |n: &u32| !dir.join(format!("damaged-{n}")).exists();
    let number = (1..=u32::MAX).find(free).ok_or_else(|| StoreError::Io("no free name to set data aside".into()))?;
    let aside = dir.join(format!("damaged-{number}"));
    fs::create_dir(&aside).map_err(|error| of_io(&error))?;
    for name in ["fjall", "synced"] {
        match fs::rename(dir.join(name), aside.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(of_io(&error)),
            _ => {}
        }
    }
    format::copy(dir, &aside).map_err(|error| of_io(&error))?;
    Ok(aside)
}

/// Where the last damaged store of this directory is.
pub fn last_set_aside(dir: &Path) -> Option<PathBuf> {
    let numbers = (1..=u32::MAX).map(|number| dir.join(format!("damaged-{number}")));
    numbers.take_while(|place| place.exists()).last()
}
