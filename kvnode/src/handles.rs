//! Who gets how many of the process's file handles.
//!
//! An engine that finds none in the middle of a batch can't go on, and the node with it; a node that finds none is cut off from the
//! others. So both have theirs, and clients get the rest. What counts is the limit that the system sets, raised as far as it may be.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use kvnode_core::topology::NODES_MAX;

/// The listener, the log, the lock, the runtime, and what is open for a moment: a journal that is tidied up, a table that is
/// written, a connection that is turned away.
const REST: usize = 96;
/// Tables that the engine keeps open, at most and at least.
const ENGINE: (usize, usize) = (900, 32);
/// One stream each way, and one that is on its way out.
const OF_A_NODE: usize = 3;
/// Connections that may show that they are a node's, at most and at least: of strangers' addresses, and as many of nodes'.
const TRIALS: (usize, usize) = (64, 8);
/// With fewer a node does not start.
const LEAST: usize = 256;

/// How many handles there are for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handles {
    all: usize,
    /// For the tables of the engine.
    pub engine: usize,
    /// For streams of other nodes. As many again are for the links to them.
    pub streams: usize,
    pub trials: usize,
}

impl Handles {
    /// Raises the limit of this process as far as it may be, and shares out what there is.
    ///
    /// # Errors
    /// One line, if there are too few.
    pub fn of_process() -> Result<Self, String> {
        let limit = getrlimit(Resource::Nofile);
        if limit.current != limit.maximum {
            let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
            if let Err(error) = setrlimit(Resource::Nofile, raised) {
                tracing::debug!(%error, "the limit on file handles can't be raised");
            }
        }
        Self::share_out(allowed())
    }

    fn share_out(all: usize) -> Result<Self, String> {
        if all < LEAST {
            return Err(format!(
                "this process may have {all} file handles and needs at least {LEAST}: raise the limit (ulimit -n, docker --ulimit \
                 nofile, LimitNOFILE of systemd)"
            ));
        }
        let streams = (all / 8 / OF_A_NODE).clamp(8, OF_A_NODE * NODES_MAX);
        let trials = (all / 32).clamp(TRIALS.1, TRIALS.0);
        Ok(Self { all, engine: engine_files_of(all), streams, trials })
    }

    /// Places for clients, of as many as are wanted.
    pub fn clients(&self, wanted: usize) -> usize {
        let taken = REST + self.engine + OF_A_NODE * self.streams + 2 * self.trials;
        wanted.min(self.all.saturating_sub(taken))
    }

    /// Says who has how many.
    pub fn announce(&self, wanted: usize) {
        let Self { all, engine, streams, trials } = *self;
        let (clients, nodes) = (self.clients(wanted), OF_A_NODE * streams);
        tracing::info!(all, engine, nodes, clients, trials, "file handles are shared out");
        if clients < wanted {
            tracing::warn!(
                wanted,
                clients,
                "fewer connections than configured (MAX_CONNECTIONS): file handles are short"
            );
        }
    }
}

/// Tables that the engine may keep open in this process.
pub fn engine_files() -> usize {
    engine_files_of(allowed())
}

fn engine_files_of(all: usize) -> usize {
    (all / 4).clamp(ENGINE.1, ENGINE.0)
}

fn allowed() -> usize {
    let current = getrlimit(Resource::Nofile).current;
    current.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_never_more_than_there_is() {
        for all in [256, 300, 1_024, 4_096, 65_536, 1 << 20, usize::MAX] {
            let handles = Handles::share_out(all).unwrap();
            let clients = handles.clients(4_096);
            let sum = REST + handles.engine + OF_A_NODE * handles.streams + 2 * handles.trials + clients;
            assert!(sum <= all && clients >= 32, "{all}: {handles:?}, {clients}");
        }
        assert_eq!(Handles::share_out(1 << 20).unwrap().clients(4_096), 4_096);
        let line = Handles::share_out(100).unwrap_err();
        assert!(line.contains("100") && line.contains("ulimit") && !line.contains('\n'), "{line}");
    }
}
