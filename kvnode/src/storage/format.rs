//! Which format a data directory is in, and whether this release may read it.
//!
//! The file `FORMAT` says so, beside the engine's files. It is looked at before anything is opened: a release that opens what it does not
//! know takes it for damage, or changes it. Release 0.1.0 wrote none at first: files of the engine without one are of format 1.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::whole;

/// What this release writes, and the oldest that can read that. Raised with any change of how versions, facts or files are stored.
const FORMAT: u32 = 1;
const OLDEST_READER: u32 = 1;
const NAME: &str = "FORMAT";
/// The file in which the engine keeps its own format, and the only one that this release's engine reads.
const ENGINE: (&str, &[u8]) = ("fjall/version", b"FJL\x03");

/// What is in the file. Later releases may add fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Format {
    format: u32,
    /// The oldest format whose releases can read this.
    oldest_reader: u32,
    /// The release that wrote it.
    release: String,
}

impl Format {
    fn of_this_release() -> Self {
        Self { format: FORMAT, oldest_reader: OLDEST_READER, release: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// Looks whether this release may read what is in `dir`. Changes nothing.
///
/// # Errors
/// Why it may not, to follow the directory's name.
pub fn check(dir: &Path) -> Result<(), String> {
    let found = read(dir)?;
    if let Some(Format { format, release, .. }) = found.filter(|found| found.oldest_reader > FORMAT) {
        return Err(format!(
            "holds data in format {format}, written by release {release}; this is release {}, which reads format {FORMAT}: start \
             release {release} or a later one",
            env!("CARGO_PKG_VERSION")
        ));
    }
    let (name, known) = ENGINE;
    match fs::read(dir.join(name)) {
        Ok(bytes) if bytes == known => Ok(()),
        Ok(bytes) => Err(format!(
            "holds data of another storage engine: its file {name} says '{}' in the place of '{}'; start the release that wrote it",
            bytes.escape_ascii(),
            known.escape_ascii()
        )),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("can't be read: {name}: {error}")),
    }
}

/// Notes in `dir`, which was opened, what this release writes there.
///
/// # Errors
/// If it can't be written. Only where that makes a difference: what is there already may say the same, or nothing, which means format 1.
pub fn note(dir: &Path) -> Result<(), String> {
    let (found, ours) = (read(dir)?, Format::of_this_release());
    let format = found.as_ref().map_or(1, |found| found.format);
    if format > FORMAT || found.as_ref() == Some(&ours) {
        return Ok(());
    }
    let text = serde_json::to_string(&ours).map_err(|error| error.to_string())? + "\n";
    match whole::write(&dir.join(NAME), &text) {
        Err(error) if format < FORMAT => Err(format!("can't be written: {NAME}: {error}")),
        // A full disk, mostly: a node has to start on it, and answers reads.
        Err(error) => {
            tracing::warn!("{} can't be written: {error}; it would say format {FORMAT}", dir.join(NAME).display());
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Leaves word with what is moved to `aside` of what format it is.
pub fn copy(dir: &Path, aside: &Path) -> std::io::Result<()> {
    match fs::copy(dir.join(NAME), aside.join(NAME)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read(dir: &Path) -> Result<Option<Format>, String> {
    let text = match fs::read(dir.join(NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("can't be read: {NAME}: {error}")),
    };
    let read = serde_json::from_slice(&text).map(Some);
    read.map_err(|error| {
        let error: String = error.to_string().chars().filter(|c| !c.is_control()).collect();
        format!("has a file {NAME} that this release can't read ({error}); start the release that wrote it")
    })
}
