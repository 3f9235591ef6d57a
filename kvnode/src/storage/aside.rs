//! Writes that a node gives up although they may be nowhere else, kept for a person: a file of JSON lines in the data directory.
//!
//! MongoDB does the same with what it rolls back. A line has the key, the value (or `"deleted":true`), and when it was written,
//! in ms since 1970; `curl -X PUT` brings it back as a new write.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::value::RawValue;

use kvnode_core::store::Version;

/// The file, and lines that are not in it yet.
#[derive(Debug)]
pub struct Aside {
    path: PathBuf,
    staged: Vec<u8>,
    failed: Option<std::io::Error>,
    unsynced: bool,
}

/// What is put aside goes to the file in parts of this size: it may be all that a node has.
const PART: usize = 1 << 20;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Line<'a> {
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
    written_ms: u64,
}

impl Aside {
    pub fn new(path: PathBuf) -> Self {
        Self { path, staged: Vec::new(), failed: None, unsynced: false }
    }

    /// Adds a line; [`Aside::write`] puts it on the disk.
    pub fn push(&mut self, key: &str, version: &Version) {
        let value = version.value.as_deref().and_then(|text| serde_json::from_slice(text).ok());
        let line = Line { key, value, deleted: version.value.is_none(), written_ms: version.stamp.millis() };
        serde_json::to_writer(&mut self.staged, &line).expect("a line holds nothing that JSON refuses");
        self.staged.push(b'\n');
        if self.staged.len() >= PART && self.failed.is_none() {
            self.failed = self.append().err();
        }
    }

    fn append(&mut self) -> std::io::Result<()> {
        let mut file = File::options().create(true).append(true).open(&self.path)?;
        file.write_all(&self.staged)?;
        self.staged.clear();
        self.unsynced = true;
        Ok(())
    }

    /// Appends what was added, down to the disk. After a crash in the middle it may be there twice.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write(&mut self) -> std::io::Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if !self.staged.is_empty() {
            self.append()?;
        }
        if std::mem::take(&mut self.unsynced) {
            File::options().append(true).open(&self.path)?.sync_all()?;
        }
        Ok(())
    }
}
