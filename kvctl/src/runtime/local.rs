//! Nodes as processes of this host, each on a loopback address of its own.
//!
//! A process is known by its number and its start time, so that a number that was used again is never taken for a node.

use std::cell::RefCell;
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

use super::{NodeAction, NodeState, local_ip, ports};
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

/// When a process started, in clock ticks since boot, and its state letter.
fn process(pid: i32) -> Option<(String, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after it don't.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some((fields.get(19)?.to_string(), fields.first()?.chars().next()?))
}

/// An error that names who holds the address which a node is to have.
fn check_address(node: &NodeSpec) -> Result<()> {
    let address = SocketAddr::from((local_ip(node), NODE_PORT));
    let Some(holder) = ports::holder(address) else { return Ok(()) };
    Err(Failure::environment(format!("{address}, which {} needs, is held by {holder}", node.name)))
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

    fn pid(&self, node: &NodeSpec) -> Option<(Pid, char)> {
        let text = fs::read_to_string(self.pid_path(node)).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        let (started, letter) = process(pid)?;
        if started == start && letter != 'Z' { Some((Pid::from_raw(pid)?, letter)) } else { None }
    }

    pub fn process(&self, node: &NodeSpec) -> Option<u32> {
        self.pid(node).map(|(pid, _)| pid.as_raw_nonzero().get().unsigned_abs())
    }

    pub fn state(&self, node: &NodeSpec) -> NodeState {
        match self.pid(node) {
            Some((_, 'T' | 't')) => NodeState::Paused,
            Some(_) => NodeState::Running,
            None if self.data_path(node).exists() => NodeState::Stopped,
            None => NodeState::Missing,
        }
    }

    pub fn up(&self, kvnode: &Path, progress: &Progress) -> Result<()> {
        let found = |node: NodeSpec| {
            let found = Found { state: self.state(&node), place: Place::Right };
            (node, found)
        };
        let steps = plan(self.record.spec.members().into_iter().map(found).collect());
        for (node, _) in steps.iter().filter(|(_, act)| *act != Act::Unpause) {
            check_address(node)?;
        }
        self.state.make("pids")?;
        let binary = fs::canonicalize(kvnode).map_err(|error| fail(kvnode, &error))?;
        fs::write(self.binary_path(), binary.to_string_lossy().as_bytes()).map_err(|error| fail(kvnode, &error))?;
        progress.expect(steps.len());
        for (node, act) in steps {
            progress.step(&format!("{} {}", act.doing(), node.name));
            match self.pid(&node) {
                Some((pid, _)) => self.signal(&node, pid, Signal::CONT)?,
                None => {
                    let is_new = self.state(&node) == NodeState::Missing;
                    self.start(&node)?;
                    // One that was there before and is well again stays, whatever becomes of the others.
                    if is_new {
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

    fn start(&self, node: &NodeSpec) -> Result<()> {
        let (data, logs) = (self.state.make("data")?.join(&node.name), self.state.make("logs")?);
        self.state.make("pids")?;
        let log_path = logs.join(&node.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).map_err(|e| fail(&log_path, &e))?;
        let log_too = log.try_clone().map_err(|error| fail(&log_path, &error))?;
        let binary = fs::read_to_string(self.binary_path()).map_err(|error| fail(&self.binary_path(), &error))?;
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
            .map_err(|error| fail(Path::new(&binary), &error))?;
        let pid = child.id() as i32;
        let (started, _) = process(pid).ok_or_else(|| Failure::environment(format!("{} died at once", node.name)))?;
        fs::write(self.pid_path(node), format!("{pid} {started}")).map_err(|error| {
            // A process that nobody knows of must not stay.
            let _ = child.kill();
            fail(&self.pid_path(node), &error)
        })
    }

    pub async fn undo(&self) {
        let started: Vec<NodeSpec> = self.started.borrow_mut().drain(..).collect();
        for node in &started {
            if let Some((pid, _)) = self.pid(node) {
                // It may have ended by itself.
                let _ = self.signal(node, pid, Signal::KILL);
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

    /// Ends all nodes. Those whose data stays are asked to leave first, so that nothing is in one copy only.
    pub async fn down(&self, data: bool) -> Result<()> {
        let nodes = self.record.spec.node_specs();
        let running = || nodes.iter().filter_map(|node| Some((node, self.pid(node)?.0)));
        if !data {
            for (node, pid) in running() {
                self.signal(node, pid, Signal::CONT)?;
                self.signal(node, pid, Signal::TERM)?;
            }
            // One that does not leave in time is ended below.
            let _ = join_all(nodes.iter().map(|node| self.ends(node))).await;
        }
        for (node, pid) in running() {
            self.signal(node, pid, Signal::KILL)?;
        }
        for node in &nodes {
            self.ends(node).await?;
        }
        Ok(())
    }

    /// Waits until a node's process is gone, and its files and its address with it.
    async fn ends(&self, node: &NodeSpec) -> Result<()> {
        self.until(node, "gone", || self.pid(node).is_none()).await
    }

    /// Sends a signal; that the process has just ended by itself is no failure.
    fn signal(&self, node: &NodeSpec, pid: Pid, signal: Signal) -> Result<()> {
        match kill_process(pid, signal) {
            Err(error) if error != Errno::SRCH => Err(Failure::environment(format!("{}: {error}", node.name))),
            _ => Ok(()),
        }
    }

    pub async fn act(&self, node: &NodeSpec, action: NodeAction) -> Result<()> {
        let running = self.pid(node).map(|(pid, _)| pid);
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
                self.signal(node, running.ok_or_else(stopped)?, Signal::STOP)?;
                self.becomes(node, NodeState::Paused).await
            }
            NodeAction::Unpause => {
                self.signal(node, running.ok_or_else(stopped)?, Signal::CONT)?;
                self.becomes(node, NodeState::Running).await
            }
        }
    }

    /// Kills a node that runs, and takes its data away. It is not started again.
    pub async fn wipe(&self, node: &NodeSpec) -> Result<()> {
        if let Some((pid, _)) = self.pid(node) {
            self.signal(node, pid, Signal::KILL)?;
            self.ends(node).await?;
        }
        let path = self.data_path(node);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(fail(&path, &error)),
            _ => Ok(()),
        }
    }

    async fn stop(&self, node: &NodeSpec, pid: Pid) -> Result<()> {
        self.signal(node, pid, Signal::CONT)?;
        self.signal(node, pid, Signal::TERM)?;
        self.becomes(node, NodeState::Stopped).await
    }

    async fn end(&self, node: &NodeSpec, pid: Pid) -> Result<()> {
        self.signal(node, pid, Signal::KILL)?;
        self.becomes(node, NodeState::Stopped).await
    }

    /// Waits until a signal has had its effect.
    async fn becomes(&self, node: &NodeSpec, state: NodeState) -> Result<()> {
        self.until(node, state.name(), || self.state(node) == state).await
    }

    async fn until(&self, node: &NodeSpec, what: &str, holds: impl Fn() -> bool) -> Result<()> {
        let deadline = Instant::now() + STOP_MAX;
        while !holds() {
            if Instant::now() > deadline {
                return Err(Failure::new(Code::TimedOut, format!("{} was not {what} within {STOP_MAX:?}", node.name)));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
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
