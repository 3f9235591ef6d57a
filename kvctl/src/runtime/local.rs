//! Nodes as processes of this host, each on a loopback address of its own.
//!
//! Their numbers are noted in files. Where such a file is lost, a node is known by the data directory that it has.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::processes::{self, Process};
use super::trace::Trace;
use super::{Gone, NodeAction, NodeState, local_ip, ports};
use crate::cluster::{NODE_PORT, NodeSpec};
use crate::error::{Code, Failure, Result};
use crate::plan::{Act, Found, Place, plan};
use crate::render::Progress;
use crate::state::{Record, StateDir};

/// A node that was asked to leave is gone within this.
const STOP_MAX: Duration = Duration::from_secs(12);

pub struct Cluster {
    record: Record,
    state: StateDir,
    /// Nodes that this command started.
    started: RefCell<Vec<NodeSpec>>,
    /// Those of them that had no data before.
    new: RefCell<Vec<NodeSpec>>,
}

fn fail(what: &Path, error: &std::io::Error) -> Failure {
    Failure::environment(format!("{}: {error}", what.display()))
}

/// The nodes that run, whatever is remembered of their cluster.
pub fn traces(state: &StateDir) -> Vec<Trace> {
    let trace = |(node, process): (String, Process)| Trace {
        node,
        handle: process.pid.to_string(),
        variables: process.variables,
    };
    running(state).into_iter().map(trace).collect()
}

/// The processes of all nodes that run, by the nodes' names: those that are noted, and those that have their data here.
fn running(state: &StateDir) -> BTreeMap<String, Process> {
    let mut all = processes::with_data_in(&state.path().join("data"));
    let noted = fs::read_dir(state.path().join("pids")).into_iter().flatten();
    let noted = noted.filter_map(|entry| {
        let entry = entry.ok()?;
        Some((entry.file_name().into_string().ok()?, noted_in(&entry.path())?))
    });
    all.extend(noted);
    all
}

/// The process that a file names, if it still lives.
fn noted_in(path: &Path) -> Option<Process> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    Process::living(pid.parse().ok()?, started)
}

/// An error that names who holds the address which a node is to have.
fn check_address(node: &NodeSpec) -> Result<()> {
    let address = SocketAddr::from((local_ip(node), NODE_PORT));
    let Some(holder) = ports::holder(address) else { return Ok(()) };
    let process = ports::listener(address).and_then(|pid| Process::look(i32::try_from(pid).ok()?));
    let whose =
        process.and_then(|process| Some(format!("; it is a node with its data in {}", process.data()?.display())));
    let text = format!(
        "{address}, which {} needs, is held by {holder}{}; end that, or choose other addresses with --subnet",
        node.name,
        whose.unwrap_or_default()
    );
    Err(Failure::environment(text))
}

/// Sends a signal; that the process has just ended by itself is no failure.
fn signal(node: &str, pid: Pid, signal: Signal) -> Result<()> {
    match kill_process(pid, signal) {
        Err(error) if error != Errno::SRCH => Err(Failure::environment(format!("{node}: {error}"))),
        _ => Ok(()),
    }
}

async fn until(node: &str, what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + STOP_MAX;
    while !holds() {
        if Instant::now() > deadline {
            return Err(Failure::new(Code::TimedOut, format!("{node} was not {what} within {STOP_MAX:?}")));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

impl Cluster {
    pub fn new(record: Record, state: StateDir) -> Self {
        Self { record, state, started: RefCell::default(), new: RefCell::default() }
    }

    fn pid_path(&self, node: &NodeSpec) -> PathBuf {
        self.state.path().join("pids").join(&node.name)
    }

    fn log_path(&self, node: &NodeSpec) -> PathBuf {
        self.state.path().join("logs").join(&node.name)
    }

    fn data_path(&self, node: &NodeSpec) -> PathBuf {
        self.state.path().join("data").join(&node.name)
    }

    /// The binary that the cluster runs, kept so that a node can be started again.
    fn binary_path(&self) -> PathBuf {
        self.state.path().join("pids").join(".kvnode")
    }

    fn find(&self, node: &NodeSpec) -> Option<Process> {
        let by_data = || processes::with_data_in(&self.state.path().join("data")).remove(&node.name);
        noted_in(&self.pid_path(node)).or_else(by_data)
    }

    fn pid(&self, node: &NodeSpec) -> Option<Pid> {
        self.find(node).and_then(|process| Pid::from_raw(process.pid))
    }

    pub fn process(&self, node: &NodeSpec) -> Option<u32> {
        self.find(node).and_then(|process| u32::try_from(process.pid).ok())
    }

    /// What the record says, and the nodes that run.
    pub fn traces(&self) -> (&Record, Vec<Trace>) {
        (&self.record, traces(&self.state))
    }

    pub fn state(&self, node: &NodeSpec) -> NodeState {
        match self.find(node).map(|process| process.letter) {
            Some('T' | 't') => NodeState::Paused,
            Some(_) => NodeState::Running,
            None if self.data_path(node).exists() => NodeState::Stopped,
            None => NodeState::Missing,
        }
    }

    pub fn gone(&self) -> Vec<Gone> {
        let is_gone = |node: &NodeSpec| {
            let has_data = fs::read_dir(self.data_path(node)).is_ok_and(|mut entries| entries.next().is_some());
            !has_data && self.find(node).is_none()
        };
        let nodes = self.record.spec.members().into_iter().filter(is_gone);
        nodes.map(|node| Gone { place: self.data_path(&node).display().to_string(), node }).collect()
    }

    pub fn up(&self, stays: bool, progress: &Progress) -> Result<()> {
        let found = |node: NodeSpec| {
            let found = Found { state: self.state(&node), place: Place::Right };
            (node, found)
        };
        let steps = plan(self.record.spec.members().into_iter().map(found).collect());
        for (node, _) in steps.iter().filter(|(_, act)| *act != Act::Unpause) {
            check_address(node)?;
        }
        if steps.iter().any(|(_, act)| *act != Act::Unpause) {
            self.state.make("pids")?;
            let (path, binary) = (self.binary_path(), self.found_binary()?);
            fs::write(&path, binary.to_string_lossy().as_bytes()).map_err(|error| fail(&path, &error))?;
        }
        progress.expect(steps.len());
        for (node, act) in steps {
            progress.step(&format!("{} {}", act.doing(), node.name));
            match self.pid(&node) {
                Some(pid) => signal(&node.name, pid, Signal::CONT)?,
                None => {
                    let is_new = self.state(&node) == NodeState::Missing;
                    self.start(&node)?;
                    // One that was there before and is well again stays, whatever becomes of the others.
                    if is_new || !stays {
                        self.started.borrow_mut().push(node);
                    }
                }
            }
            progress.did(1);
        }
        Ok(())
    }

    /// Starts a new node, of the binary that the others run.
    pub fn add(&self, node: &NodeSpec, progress: &Progress) -> Result<()> {
        check_address(node)?;
        if self.state(node) == NodeState::Missing {
            self.new.borrow_mut().push(node.clone());
        }
        progress.step(&format!("starting {}", node.name));
        self.start(node)?;
        self.started.borrow_mut().push(node.clone());
        Ok(())
    }

    /// The binary that was named for the cluster, or the one beside kvctl.
    fn found_binary(&self) -> Result<PathBuf> {
        let found = super::find_kvnode(self.record.kvnode.as_deref())?;
        found.ok_or_else(|| {
            let text = format!("no kvnode binary beside kvctl: {}, or name one with --kvnode", super::BUILD_IT);
            Failure::environment(text)
        })
    }

    /// The binary that the cluster runs: a node that is started again is no upgrade.
    fn binary(&self) -> Result<PathBuf> {
        let noted = || fs::read_to_string(self.binary_path()).ok().map(PathBuf::from);
        match self.record.kvnode {
            Some(_) => self.found_binary(),
            None => noted().map_or_else(|| self.found_binary(), Ok),
        }
    }

    fn start(&self, node: &NodeSpec) -> Result<()> {
        let (data, logs) = (self.state.make("data")?.join(&node.name), self.state.make("logs")?);
        self.state.make("pids")?;
        let log_path = logs.join(&node.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).map_err(|e| fail(&log_path, &e))?;
        let log_too = log.try_clone().map_err(|error| fail(&log_path, &error))?;
        let binary = self.binary()?;
        let spec = &self.record.spec;
        let address = format!("{}:{NODE_PORT}", local_ip(node));
        let mut command = Command::new(&binary);
        command.env_clear();
        if let Some(shards) = spec.shard_count(node) {
            command.env("SHARD_COUNT", shards.to_string());
        }
        if spec.drill {
            command.env("DRILL", "1");
        }
        let mut child = command
            .env("SOCKET_ADDRESS", &address)
            .env("LISTEN_ADDRESS", &address)
            .env("VIEW", spec.view(local_ip))
            .env("DATA_DIR", &data)
            .env("CLUSTER_SECRET", &self.record.secret)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            // A group of its own: Ctrl-C in the terminal is for kvctl alone.
            .process_group(0)
            .spawn()
            .map_err(|error| fail(&binary, &error))?;
        let pid = child.id() as i32;
        let process = Process::look(pid).ok_or_else(|| Failure::environment(format!("{} died at once", node.name)))?;
        fs::write(self.pid_path(node), format!("{pid} {}", process.started)).map_err(|error| {
            // A process that nobody knows of must not stay.
            let _ = child.kill();
            fail(&self.pid_path(node), &error)
        })
    }

    pub async fn undo(&self, progress: &Progress) {
        if !self.started.borrow().is_empty() || !self.new.borrow().is_empty() {
            progress.step(super::TAKING_BACK);
        }
        let started: Vec<NodeSpec> = self.started.borrow_mut().drain(..).collect();
        for node in &started {
            if let Some(pid) = self.pid(node) {
                // It may have ended by itself.
                let _ = signal(&node.name, pid, Signal::KILL);
            }
        }
        for node in &started {
            let _ = self.ends(node).await;
            let _ = fs::remove_file(self.pid_path(node));
        }
        for node in self.new.borrow_mut().drain(..) {
            // What can't be removed is not there.
            let _ = fs::remove_dir_all(self.data_path(&node));
            let _ = fs::remove_file(self.log_path(&node));
        }
    }

    /// Ends all nodes, also those that the record does not know. Those whose data stays are asked to leave first, so that
    /// nothing is in one copy only.
    pub async fn down(&self, data: bool) -> Result<()> {
        let all = running(&self.state);
        let signal_all = |what: Signal| {
            let pid = |process: &Process| Pid::from_raw(process.pid).filter(|_| process.lives());
            all.iter()
                .filter_map(|(name, process)| Some((name, pid(process)?)))
                .try_for_each(|(name, pid)| signal(name, pid, what))
        };
        if !data {
            signal_all(Signal::CONT)?;
            signal_all(Signal::TERM)?;
            // One that does not leave in time is ended below.
            let _ = join_all(all.iter().map(|(name, process)| until(name, "gone", || !process.lives()))).await;
        }
        signal_all(Signal::KILL)?;
        for (name, process) in &all {
            until(name, "gone", || !process.lives()).await?;
        }
        Ok(())
    }

    /// Waits until a node's process is gone, and its files and its address with it.
    async fn ends(&self, node: &NodeSpec) -> Result<()> {
        until(&node.name, "gone", || self.find(node).is_none()).await
    }

    pub async fn act(&self, node: &NodeSpec, action: NodeAction) -> Result<()> {
        let running = self.pid(node);
        let stopped = || Failure::new(Code::Conflict, format!("{} does not run", node.name));
        match action {
            NodeAction::Start if running.is_some() => Ok(()),
            NodeAction::Start => self.start(node),
            NodeAction::Stop => match running {
                None => Ok(()),
                Some(pid) => self.stop(node, pid).await,
            },
            NodeAction::Kill => self.end(node, running.ok_or_else(stopped)?).await,
            NodeAction::Pause => {
                signal(&node.name, running.ok_or_else(stopped)?, Signal::STOP)?;
                self.becomes(node, NodeState::Paused).await
            }
            NodeAction::Unpause => {
                signal(&node.name, running.ok_or_else(stopped)?, Signal::CONT)?;
                self.becomes(node, NodeState::Running).await
            }
        }
    }

    /// Kills a node that runs, and takes its data away. It is not started again.
    pub async fn wipe(&self, node: &NodeSpec) -> Result<()> {
        if let Some(pid) = self.pid(node) {
            signal(&node.name, pid, Signal::KILL)?;
            self.ends(node).await?;
        }
        let path = self.data_path(node);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(fail(&path, &error)),
            _ => Ok(()),
        }
    }

    async fn stop(&self, node: &NodeSpec, pid: Pid) -> Result<()> {
        signal(&node.name, pid, Signal::CONT)?;
        signal(&node.name, pid, Signal::TERM)?;
        self.ends(node).await
    }

    async fn end(&self, node: &NodeSpec, pid: Pid) -> Result<()> {
        signal(&node.name, pid, Signal::KILL)?;
        self.ends(node).await
    }

    /// Waits until a signal has had its effect.
    async fn becomes(&self, node: &NodeSpec, state: NodeState) -> Result<()> {
        until(&node.name, state.name(), || self.state(node) == state).await
    }

    /// Ends a node and removes all there is of it.
    pub async fn delete(&self, node: &NodeSpec) -> Result<()> {
        self.wipe(node).await?;
        for path in [self.log_path(node), self.pid_path(node)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail(&path, &error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives `out` what a node has logged. With `follow` it goes on through restarts, and with the new log of a node that was made anew.
    pub async fn logs(&self, node: &NodeSpec, follow: bool, out: &mut dyn FnMut(&[u8])) -> Result<()> {
        let path = self.log_path(node);
        let mut file = fs::File::open(&path).map_err(|error| fail(&path, &error))?;
        let mut part = vec![0; 1 << 16];
        loop {
            // A file on disk is always there to be read: nothing to wait for but that it grows.
            match file.read(&mut part).map_err(|error| fail(&path, &error))? {
                0 if !follow => return Ok(()),
                0 => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    if let Some(other) = another(&file, &path) {
                        file = other;
                    }
                }
                length => out(&part[..length]),
            }
        }
    }
}

/// The file at a path, if it is another than the one that is open.
fn another(open: &fs::File, path: &Path) -> Option<fs::File> {
    let other = fs::File::open(path).ok()?;
    let inode = |file: &fs::File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    (inode(&other) != inode(open)).then_some(other)
}
