//! Processes of this host, as /proc tells of them.
//!
//! A process is known by its number and its start time, so that a number that was used again is never taken for a node.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A process, and what it was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// In clock ticks since boot.
    pub started: String,
    /// What it does: `R`, `S`, `T` for stopped, `Z` for ended and not yet waited for, …
    pub letter: char,
    pub variables: BTreeMap<String, String>,
}

impl Process {
    /// The process of this number, if there is one, also one that has ended.
    pub fn look(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the fields after it don't.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let letter = fields.first()?.chars().next()?;
        let (parent, started) = (fields.get(1)?.parse().ok()?, (*fields.get(19)?).to_owned());
        Some(Self { pid, parent, started, letter, variables: variables(pid) })
    }

    /// The process of this number and start time, if it lives.
    pub fn living(pid: i32, started: &str) -> Option<Self> {
        Self::look(pid).filter(|process| process.started == started && process.letter != 'Z')
    }

    /// Whether this very process still lives.
    pub fn lives(&self) -> bool {
        Self::living(self.pid, &self.started).is_some()
    }

    /// The data directory, if it is a node: no other program is started with an address like that.
    pub fn data(&self) -> Option<PathBuf> {
        self.variables.get("SOCKET_ADDRESS").and_then(|_| self.variables.get("DATA_DIR")).map(PathBuf::from)
    }
}

/// The environment that a process was started with; nothing where that is none of our business.
fn variables(pid: i32) -> BTreeMap<String, String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split('\0').filter_map(|one| one.split_once('=')).map(|(name, value)| (name.into(), value.into())).collect()
}

/// The nodes that have their data in a folder of `folder`, by that folder's name. A node tries a store in a child of its
/// own, which has its environment: where both are there, the node is meant.
pub fn with_data_in(folder: &Path) -> BTreeMap<String, Process> {
    let home = fs::canonicalize(folder).ok();
    let is_here = |parent: &Path| parent == folder || (home.is_some() && fs::canonicalize(parent).ok() == home);
    let numbers = fs::read_dir("/proc").into_iter().flatten();
    let numbers = numbers.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut found: BTreeMap<String, Process> = BTreeMap::new();
    for process in numbers.filter_map(Process::look) {
        let Some(data) = process.data().filter(|data| data.parent().is_some_and(is_here)) else { continue };
        let Some(name) = data.file_name().and_then(|name| name.to_str()) else { continue };
        if found.get(name).is_none_or(|other| other.parent == process.pid) {
            found.insert(name.to_owned(), process);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_found_by_its_data_and_is_not_its_child() {
        let folder = tempfile::tempdir().unwrap();
        let (here, elsewhere) = (folder.path().join("data"), folder.path().join("other"));
        fs::create_dir_all(&here).unwrap();
        let start = |data: PathBuf| {
            // Says a word once its own child is there.
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "/bin/sleep 100 & echo there; wait"]).stdout(Stdio::piped());
            command.env("DATA_DIR", data).env("SOCKET_ADDRESS", "127.10.0.2:8090");
            let mut child = std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn().unwrap();
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
            child
        };
        let mut all = [start(here.join("alice")), start(elsewhere.join("bob"))];
        let found = with_data_in(&here);
        let by_link = folder.path().join("link");
        std::os::unix::fs::symlink(&here, &by_link).unwrap();
        let alike = with_data_in(&by_link);
        for child in &mut all {
            let group = rustix::process::Pid::from_child(child);
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
            child.wait().unwrap();
        }
        let pids = |found: &BTreeMap<String, Process>| -> Vec<(String, i32)> {
            found.iter().map(|(name, process)| (name.clone(), process.pid)).collect()
        };
        let expected = [("alice".to_owned(), i32::try_from(all[0].id()).unwrap())];
        assert_eq!((pids(&found), pids(&alike)), (expected.to_vec(), expected.to_vec()));
        assert!(!found["alice"].lives());
    }
}
