//! Causal sessions: what the commands of a user have seen, kept from one to the next.
//!
//! A file holds the context, and on a second line the cluster that made it: contexts of another say nothing.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Code, Failure, Result};
use crate::state::{StateDir, io, open, remove, replace};

/// How long a command waits for another one of the same session, and how often it looks.
const WITHIN: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(5);
/// A node takes no longer context, and a name of a cluster is short.
const BYTES_MAX: u64 = 66_000;

/// A causal session, held by one command at a time.
pub struct SessionFile {
    name: String,
    path: PathBuf,
    /// What was seen last; nothing in a session that begins.
    pub metadata: Option<String>,
    /// The cluster that it was seen in, where that is known.
    pub cluster: Option<String>,
    _lock: File,
}

impl SessionFile {
    /// Opens a session and keeps it to this command until it is dropped.
    ///
    /// # Errors
    /// Usage, if what is kept of it can't be understood; also if another command has it for too long.
    pub fn open(state: &StateDir, name: &str, anew: bool) -> Result<Self> {
        if name.is_empty() || name.len() > 100 || name.contains(['/', '\0']) || name.starts_with('.') {
            return Err(Failure::usage(format!("'{name}' is no session name")));
        }
        let folder = state.make("sessions")?;
        let (path, lock_path) = (folder.join(format!("{name}.context")), folder.join(format!("{name}.lock")));
        let lock = open(&lock_path)?;
        wait_for(&lock, &lock_path, name)?;
        let mut session = Self { name: name.to_owned(), path, metadata: None, cluster: None, _lock: lock };
        if anew {
            remove(&session.path)?;
        } else if let Some(text) = session.read()? {
            let mut lines = text.lines().map(str::trim);
            session.metadata = lines.next().filter(|line| !line.is_empty()).map(str::to_owned);
            session.cluster = lines.next().filter(|line| !line.is_empty()).map(str::to_owned);
        }
        Ok(session)
    }

    /// What is kept of it.
    fn read(&self) -> Result<Option<String>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(&self.path, &error)),
        };
        let mut bytes = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| io(&self.path, &error))?;
        let is_long = bytes.len() as u64 > BYTES_MAX;
        let text = String::from_utf8(bytes).ok().filter(|text| !is_long && text.lines().all(is_plain));
        text.map(Some).ok_or_else(|| self.misfit("its file is damaged"))
    }

    /// A failure that names the session, what is the matter with it, and the ways out.
    pub fn misfit(&self, what: &str) -> Failure {
        Failure::usage(format!(
            "session '{}' ({}) can't go on: {what}; --no-session does without it, --reset-session begins it anew, without \
             what it has seen",
            self.name,
            self.path.display()
        ))
    }

    /// Begins anew: nothing is seen yet.
    pub fn renew(&mut self, cluster: String) {
        self.metadata = None;
        self.cluster = Some(cluster);
    }

    /// For people.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn save(&self, metadata: &str) -> Result<()> {
        let cluster = self.cluster.as_deref().unwrap_or_default();
        replace(&self.path, format!("{metadata}\n{cluster}\n").as_bytes())
    }
}

/// Whether a line can be a context: what goes into a header.
fn is_plain(line: &str) -> bool {
    line.trim().chars().all(|c| c.is_ascii_graphic())
}

fn wait_for(lock: &File, path: &Path, name: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if begun.elapsed() < WITHIN => std::thread::sleep(AGAIN),
            Err(TryLockError::WouldBlock) => {
                let text = format!(
                    "another kvctl has used session '{name}' for {WITHIN:?}; --session names another, --no-session does without"
                );
                return Err(Failure::new(Code::Conflict, text));
            }
            Err(TryLockError::Error(error)) => return Err(io(path, &error)),
        }
    }
}
