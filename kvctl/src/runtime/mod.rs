//! Where nodes run. Both runtimes do the same things, so every command works the same on both.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::args::RuntimeArg;
use crate::cluster::{NODE_PORT, NodeSpec};
use crate::error::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::render::{Progress, say};
use crate::state::{Record, RuntimeKind, StateDir};
use trace::Trace;

pub mod docker;
pub mod engine;
pub mod image;
pub mod left;
pub mod local;
pub mod ports;
pub mod processes;
pub mod trace;

/// What a node's process or container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    Missing,
    Stopped,
    Running,
    Paused,
}

impl NodeState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

/// A node that does not run and has no data.
pub struct Gone {
    pub node: NodeSpec,
    /// Where its data would be.
    pub place: String,
}

/// What can be done to a single node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAction {
    Stop,
    Start,
    Kill,
    Pause,
    Unpause,
}

/// A cluster's place.
pub enum Runtime {
    Docker(docker::Cluster),
    Local(local::Cluster),
}

/// Where a new cluster is to run. `auto` takes Docker if an engine answers.
pub async fn choose(wanted: Option<RuntimeArg>, known: Option<RuntimeKind>) -> Result<RuntimeKind> {
    match (wanted, known) {
        (Some(RuntimeArg::Docker), None | Some(RuntimeKind::Docker)) => Ok(RuntimeKind::Docker),
        (Some(RuntimeArg::Local), None | Some(RuntimeKind::Local)) => Ok(RuntimeKind::Local),
        (Some(RuntimeArg::Auto) | None, Some(known)) => Ok(known),
        (Some(RuntimeArg::Docker | RuntimeArg::Local), Some(_)) => Err(Failure::new(
            crate::error::Code::Conflict,
            "this cluster exists on the other runtime; `kvctl cluster down` it first, or make another with --name",
        )),
        (Some(RuntimeArg::Auto) | None, None) => match engine::connect().await {
            Ok(_) => Ok(RuntimeKind::Docker),
            Err(failure) => {
                say(&format!("{failure}; running the nodes as local processes instead (--runtime docker to insist)"));
                Ok(RuntimeKind::Local)
            }
        },
    }
}

/// The nodes of a cluster that are there, whatever this kvctl remembers of it: containers, or processes that have their data
/// in its folder.
pub async fn traces(kind: RuntimeKind, cluster: &str, state: &StateDir) -> Result<Vec<Trace>> {
    match kind {
        RuntimeKind::Docker => docker::traces(&engine::connect().await?, cluster).await,
        RuntimeKind::Local => Ok(local::traces(state)),
    }
}

/// A node's own address.
pub fn ip(kind: RuntimeKind, node: &NodeSpec) -> Ipv4Addr {
    match kind {
        RuntimeKind::Docker => node.ip,
        RuntimeKind::Local => local_ip(node),
    }
}

impl Runtime {
    pub async fn open(record: &Record, state: &StateDir) -> Result<Self> {
        match record.runtime {
            RuntimeKind::Docker => Ok(Self::Docker(docker::Cluster::new(engine::connect().await?, record.clone()))),
            RuntimeKind::Local => Ok(Self::Local(local::Cluster::new(record.clone(), state.clone()))),
        }
    }

    /// Makes everything that is missing. After a failure nothing is left that this call made; `stays`: but nodes that were
    /// there before, and that it started again.
    pub async fn up(&self, stays: bool, interrupt: &Interrupt, progress: &Progress) -> Result<()> {
        match self {
            Self::Docker(cluster) => cluster.up(interrupt, progress).await,
            Self::Local(cluster) => cluster.up(stays, progress),
        }
    }

    /// Starts one node more, as the others were, and touches no other. Whether it stays is said by `settle` or `undo`.
    pub async fn add(&self, node: &NodeSpec, interrupt: &Interrupt, progress: &Progress) -> Result<()> {
        match self {
            Self::Docker(cluster) => cluster.add(node, interrupt, progress).await,
            Self::Local(cluster) => cluster.add(node, progress),
        }
    }

    /// Addresses of the cluster's network that something has, be it of this cluster or not.
    pub async fn taken(&self) -> Result<BTreeSet<Ipv4Addr>> {
        match self {
            Self::Docker(cluster) => cluster.taken().await,
            Self::Local(_) => Ok(BTreeSet::new()),
        }
    }

    /// The `up` has succeeded: what it made stays, what it took the place of goes.
    pub async fn settle(&self) {
        match self {
            Self::Docker(cluster) => cluster.settle().await,
            Self::Local(_) => {}
        }
    }

    /// Takes away what the failed `up` made, and says so if there is anything.
    pub async fn undo(&self, progress: &Progress) {
        match self {
            Self::Docker(cluster) => cluster.undo(progress).await,
            Self::Local(cluster) => cluster.undo(progress).await,
        }
    }

    /// Whether the nodes that are there are what the record says.
    ///
    /// # Errors
    /// Conflict: what differs.
    pub async fn agrees(&self) -> Result<()> {
        let (record, traces) = match self {
            Self::Docker(cluster) => cluster.traces().await?,
            Self::Local(cluster) => cluster.traces(),
        };
        trace::agree(&record.spec, Some(&record.secret), record.runtime, &traces).map(|_| ())
    }

    /// The nodes that are meant to run, don't, and have no data: new, or robbed.
    pub async fn gone(&self) -> Result<Vec<Gone>> {
        match self {
            Self::Docker(cluster) => cluster.gone().await,
            Self::Local(cluster) => Ok(cluster.gone()),
        }
    }

    pub async fn down(&self, data: bool) -> Result<()> {
        match self {
            Self::Docker(cluster) => cluster.down(data).await,
            Self::Local(cluster) => cluster.down(data).await,
        }
    }

    pub async fn state(&self, node: &NodeSpec) -> Result<NodeState> {
        match self {
            Self::Docker(cluster) => cluster.state(node).await,
            Self::Local(cluster) => Ok(cluster.state(node)),
        }
    }

    /// The number of a node's process: on this host, unless the engine is elsewhere.
    pub async fn process(&self, node: &NodeSpec) -> Result<Option<u32>> {
        match self {
            Self::Docker(cluster) => cluster.process(node).await,
            Self::Local(cluster) => Ok(cluster.process(node)),
        }
    }

    pub async fn act(&self, node: &NodeSpec, action: NodeAction) -> Result<()> {
        match self {
            Self::Docker(cluster) => cluster.act(node, action).await,
            Self::Local(cluster) => cluster.act(node, action).await,
        }
    }

    /// Kills a node and takes its data away; started again it is as good as new.
    pub async fn wipe(&self, node: &NodeSpec) -> Result<()> {
        match self {
            Self::Docker(cluster) => cluster.wipe(node).await,
            Self::Local(cluster) => cluster.wipe(node).await,
        }
    }

    /// Ends a node and removes all there is of it, its data included.
    pub async fn delete(&self, node: &NodeSpec) -> Result<()> {
        match self {
            Self::Docker(cluster) => cluster.delete(node).await,
            Self::Local(cluster) => cluster.delete(node).await,
        }
    }

    /// Gives `out` what a node has logged, a part at a time; with `follow`, goes on for ever, whatever becomes of the node.
    pub async fn logs(&self, node: &NodeSpec, follow: bool, out: &mut dyn FnMut(&[u8])) -> Result<()> {
        match self {
            Self::Docker(cluster) => cluster.logs(node, follow, out).await,
            Self::Local(cluster) => cluster.logs(node, follow, out).await,
        }
    }

    /// Where this host reaches a node.
    pub fn endpoint(&self, node: &NodeSpec) -> String {
        match self {
            Self::Docker(_) => format!("127.0.0.1:{}", node.port),
            Self::Local(_) => format!("{}:{NODE_PORT}", local_ip(node)),
        }
    }

    /// A node's SOCKET_ADDRESS.
    pub fn address(&self, node: &NodeSpec) -> String {
        let kind = match self {
            Self::Docker(_) => RuntimeKind::Docker,
            Self::Local(_) => RuntimeKind::Local,
        };
        format!("{}:{NODE_PORT}", ip(kind, node))
    }
}

/// The loopback address that stands for a container's: 127 in place of the first number.
pub fn local_ip(node: &NodeSpec) -> Ipv4Addr {
    let [_, b, c, d] = node.ip.octets();
    Ipv4Addr::new(127, b, c, d)
}

/// What is said where a failed command takes away what it made.
const TAKING_BACK: &str = "taking back what was made";
/// How a kvnode comes to be beside kvctl.
const BUILD_IT: &str = "`cargo build --release` in the source tree builds one";

/// The full path of a program that was named with --kvnode: it is used again from other folders.
pub fn program(named: &Path) -> Result<PathBuf> {
    let path = std::fs::canonicalize(named).ok().filter(|path| path.is_file());
    path.ok_or_else(|| Failure::usage(format!("--kvnode {}: there is no such file", named.display())))
}

/// The kvnode binary that was named for a cluster, or the one beside kvctl.
fn find_kvnode(named: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(path) = named {
        let gone = || {
            Failure::usage(format!(
                "{}, which was named with --kvnode when this cluster was brought up, is gone; `kvctl cluster up --kvnode \
                 PATH` names another",
                path.display()
            ))
        };
        return if path.is_file() { Ok(Some(path.to_path_buf())) } else { Err(gone()) };
    }
    let own = std::env::current_exe().map_err(|error| Failure::environment(error.to_string()))?;
    Ok(own.parent().map(|folder| folder.join("kvnode")).filter(|path| path.is_file()))
}
