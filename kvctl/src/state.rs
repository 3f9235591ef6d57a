//! What kvctl remembers of a cluster between two commands: one folder per cluster under the user's state folder.
//!
//! `cluster.json` says what the cluster is meant to be; `layout.json` which shards it was last seen to have; `lock` keeps two commands from changing it at once; `sessions/` holds
//! causal contexts; `data/`, `logs/` and `pids/` belong to nodes that run as local processes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use crate::cluster::Spec;
use crate::error::{Failure, Result};

/// Where a cluster's nodes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeKind {
    Docker,
    Local,
}

/// What a cluster is meant to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub runtime: RuntimeKind,
    pub spec: Spec,
    /// What its nodes prove to each other.
    pub secret: String,
    /// The kvnode binary that was named with --kvnode, as a full path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kvnode: Option<PathBuf>,
}

/// One cluster's folder.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

/// What [`is_name`] asks of a name, for people.
pub const NAME_RULE: &str = "up to 40 letters, digits, - and _, such as 'blue'";

/// Whether this can be the name of a cluster or a node: also of a file, and part of a container's name.
pub fn is_name(name: &str) -> bool {
    name.len() <= 40
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

pub fn io(what: &Path, error: &std::io::Error) -> Failure {
    Failure::environment(format!("{}: {error}", what.display()))
}

impl StateDir {
    /// The folder of the cluster `name`; it is made when something is first kept in it.
    pub fn of(name: &str) -> Result<Self> {
        if !is_name(name) {
            return Err(Failure::usage(format!("'{name}' is no cluster name: {NAME_RULE}")));
        }
        let base = etcetera::choose_base_strategy().map_err(|error| Failure::environment(error.to_string()))?;
        let state = base.state_dir().unwrap_or_else(|| base.data_dir());
        Ok(Self(state.join("kvctl").join(name)))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn make(&self, below: &str) -> Result<PathBuf> {
        let path = self.0.join(below);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| io(&path, &error))?;
        Ok(path)
    }

    pub fn record_path(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// The cluster as it is meant to be; `None` if there is none.
    pub fn load(&self) -> Result<Option<Record>> {
        let path = self.record_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(&path, &error)),
        };
        self.understand(&text).map(Some).map_err(|why| {
            Failure::environment(format!(
                "{0} can't be used: {why}; put a good copy of it in its place, or move it away (`mv {0} {0}.damaged`): then \
                 `kvctl cluster up`, with the options that the cluster was made with, takes over what is there of it",
                path.display()
            ))
        })
    }

    /// A record that can be gone by: it may have been copied from elsewhere, or changed by hand.
    fn understand(&self, text: &str) -> std::result::Result<Record, String> {
        let record: Record = serde_json::from_str(text).map_err(|error| error.to_string())?;
        record.spec.check().map_err(|failure| failure.message)?;
        let own = self.0.file_name().and_then(|name| name.to_str());
        if own == Some(&record.spec.name) {
            Ok(record)
        } else {
            Err(format!("it is of cluster '{}'", record.spec.name))
        }
    }

    pub fn save(&self, record: &Record) -> Result<()> {
        self.make("")?;
        let text = serde_json::to_string_pretty(record).expect("records are plain data");
        replace(&self.record_path(), text.as_bytes())
    }

    /// Whether there is a record, readable or not.
    pub fn has_record(&self) -> bool {
        self.record_path().exists()
    }

    /// Whether there is data here of nodes that ran as local processes.
    pub fn has_data(&self) -> bool {
        fs::read_dir(self.0.join("data")).is_ok_and(|mut entries| entries.next().is_some())
    }

    fn layout_path(&self) -> PathBuf {
        self.0.join("layout.json")
    }

    /// Keeps which shards there are and where their members are, as nodes that serve told; nothing is no news.
    pub fn keep_layout(&self, layout: &BTreeMap<String, Vec<String>>) -> Result<()> {
        if layout.is_empty() {
            return Ok(());
        }
        replace(&self.layout_path(), serde_json::to_string_pretty(layout).expect("a layout is plain data").as_bytes())
    }

    /// What was kept last; empty if the cluster was never seen to serve.
    pub fn layout(&self) -> Result<BTreeMap<String, Vec<String>>> {
        let path = self.layout_path();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(io(&path, &error)),
        };
        serde_json::from_str(&text).map_err(|error| {
            let text = format!(
                "{} can't be used: {error}; it tells which shards the cluster had, to notice lost data: remove it if all \
                 data is there, and give the command again",
                path.display()
            );
            Failure::environment(text)
        })
    }

    /// Forgets what was seen of an earlier cluster of this name: the one that is made now has seen none of it.
    pub fn forget_seen(&self) -> Result<()> {
        self.forget_layout()?;
        remove(&self.0.join("sessions"))
    }

    pub fn forget_layout(&self) -> Result<()> {
        remove(&self.layout_path())
    }

    /// Forgets what the cluster is meant to be, and nothing else.
    pub fn forget_record(&self) -> Result<()> {
        remove(&self.record_path())
    }

    /// Forgets the cluster, and with `data` everything its nodes kept. The caller holds the lock and gives it up with this.
    pub fn forget(&self, data: bool) -> Result<()> {
        // The record goes after what it tells of: a command that is cut short can be given again.
        let all: &[&str] = &["sessions", "data", "logs", "pids", "layout.json", "cluster.json", "lock"];
        for name in if data { all } else { &["pids"] } {
            remove(&self.0.join(name))?;
        }
        if data {
            // It stays if another command has begun to use it meanwhile.
            let _ = fs::remove_dir(&self.0);
        }
        Ok(())
    }

    /// Keeps other commands from changing the cluster until the lock is dropped.
    pub fn lock(&self) -> Result<File> {
        let path = self.0.join("lock");
        loop {
            self.make("")?;
            let mut file = match open(&path) {
                Ok(file) => file,
                // The folder was taken away between the two steps.
                Err(_) if !self.0.exists() => continue,
                Err(failure) => return Err(failure),
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(held(&mut file)),
                Err(TryLockError::Error(error)) => return Err(io(&path, &error)),
            }
            // A holder that forgot the cluster took the file away: a lock on that one keeps nobody out.
            let current = fs::metadata(&path).map(|meta| meta.ino()).ok();
            if current != file.metadata().map(|meta| meta.ino()).ok() {
                continue;
            }
            let written = file.set_len(0).and_then(|()| file.rewind());
            let written = written.and_then(|()| write!(file, "process {}", std::process::id()));
            return written.map(|()| file).map_err(|error| io(&path, &error));
        }
    }
}

/// Removes a file or a folder, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io(path, &error)),
        _ => Ok(()),
    }
}

/// Who holds the lock.
fn held(file: &mut File) -> Failure {
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    let holder = if holder.is_empty() { "just begun" } else { holder.trim() };
    let text = format!("another kvctl ({holder}) is changing this cluster; try again when it is done");
    Failure::new(crate::error::Code::Conflict, text)
}

pub fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(|error| io(path, &error))
}

/// Writes a file so that a reader sees the old or the new content, never a part; also after a crash of the host.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    // Appended, not put in place of an extension: `a.b` and `a.c` are two sessions.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
    let file = file.as_mut().map_err(|error| io(&new, error))?;
    let written = file.write_all(content).and_then(|()| file.sync_data());
    written.and_then(|()| fs::rename(&new, path)).map_err(|error| io(path, &error))
}
