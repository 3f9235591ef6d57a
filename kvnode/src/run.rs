//! The life of the process after its settings are known: bind, start the node, serve, stop in order.

use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kvnode_core::loss::{Identity, Lost, Past, is_blank};
use kvnode_core::settings::Settings;
use kvnode_core::store::memory::MemoryStore;
use kvnode_core::store::{Store, StoreError};
use kvnode_types::ident::Incarnation;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::config::{Config, Fsync};
use crate::handles::Handles;
use crate::http::{self, Front, accept};
use crate::memory;
use crate::node::{NodeHandle, NodeParts};
use crate::storage::damaged::{SetAside, last_set_aside};
use crate::storage::dir::DataDir;
use crate::storage::durable::DurableStore;
use crate::storage::opening::Opening;
use crate::threads;

/// Status for settings that can't be used, as for a wrong command line.
pub const EXIT_USAGE: u8 = 2;
/// Status after a failure while running.
const EXIT_FAILED: u8 = 1;

// Together below the 10 s within which the process is gone.
/// For requests that are in flight when the node is told to stop.
const FINISH_TIME: Duration = Duration::from_secs(4);
/// For pushing to the peers what they lack.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// For their answers to be taken by the clients, and for connections to close.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// Runs a node until it is told to stop (0), can't start with these settings (2), or fails (1).
pub async fn run(config: Config) -> ExitCode {
    match start_and_serve(&config).await {
        Ok(code) => code,
        Err(line) => {
            eprintln!("{line}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// `Err` is what to print: the settings can't be used here.
async fn start_and_serve(config: &Config) -> Result<ExitCode, String> {
    let mut stop = Stop::listen()?;
    memory::check()?;
    let handles = Handles::of_process()?;
    threads::check(config.data_dir.is_some())?;
    // As long as there is one such thread, the runtime waits where the system refuses another; with none it would panic.
    let first = tokio::task::spawn_blocking(|| ()).await;
    first.map_err(|error| format!("no thread for tasks that block: {error}"))?;
    let listener = TcpListener::bind(config.listen).await.map_err(|error| {
        let listen = config.listen;
        format!("LISTEN_ADDRESS (--listen-address) {listen} can't be bound: {error}; a good value is a free IP:PORT of this host")
    })?;
    let Some(node) = open_node(config, &listener, &mut stop).await? else { return Ok(ExitCode::SUCCESS) };
    handles.announce(config.limits.max_connections);
    let front = Front::new(node.clone(), config.limits.clone(), &handles);
    let (close, closing) = watch::channel(false);
    let server = tokio::spawn(accept::serve(listener, front.clone(), closing));

    let code = tokio::select! {
        signal = stop.told() => {
            tracing::info!(signal, "stopping: finishing what is in flight");
            ExitCode::SUCCESS
        }
        why = node.failed() => {
            tracing::error!(why, "the node can't go on");
            ExitCode::from(EXIT_FAILED)
        }
    };
    // `/ready` is 503 from here on, and so are new data requests.
    front.gate().close();
    let ending = async {
        within(FINISH_TIME, "requests in flight", front.gate().emptied()).await;
        // Peers that have not heard yet that this node leaves still pass requests on to it: their streams close last.
        within(DRAIN_TIME, "writes that peers lack", node.drain()).await;
        let _ = close.send(true);
        within(CLOSE_TIME, "open connections", server).await;
        // After a failure the next start looks whether what is stored can be read.
        if let Some(dir) = config.data_dir.as_ref().filter(|_| !node.has_failed()) {
            DurableStore::note_end(dir);
        }
        tracing::info!("stopped");
    };
    tokio::select! {
        () = ending => Ok(code),
        signal = stop.told() => {
            tracing::warn!(signal, "told to stop again: leaving at once");
            Ok(ExitCode::from(EXIT_FAILED))
        }
    }
}

/// Opens the store and starts the node on it, beside this thread: meanwhile signals are heard, and the port answers. `None`: it was told
/// to stop. `Err`: the data directory can't be used.
async fn open_node(config: &Config, listener: &TcpListener, stop: &mut Stop) -> Result<Option<NodeHandle>, String> {
    let opening = Arc::new(Opening::default());
    if config.data_dir.is_none() {
        return start_node(config, &opening).map(Some);
    }
    let (for_work, told) = (config.clone(), opening.clone());
    let work = tokio::task::spawn_blocking(move || start_node(&for_work, &told));
    tokio::select! {
        node = work => node.unwrap_or_else(|panic| Err(format!("the node can't be started: {panic}"))).map(Some),
        signal = stop.told() => {
            // Its thread ends with the process, wherever it is: as after a kill, what is stored stays whole.
            tracing::info!(signal, "stopping before the store is open");
            Ok(None)
        }
        never = http::opening::serve(listener, || opening.reason()) => match never {},
    }
}

/// `Err`: the data directory can't be used.
fn start_node(config: &Config, opening: &Arc<Opening>) -> Result<NodeHandle, String> {
    let Opened { store, owned, past } = match &config.data_dir {
        None => {
            announce(config);
            Opened { store: Box::new(MemoryStore::new()), owned: None, past: Past::InStore }
        }
        Some(path) => open(config, path, opening)?,
    };
    let noted = owned.as_ref().and_then(|owned| owned.identity.noted());
    let secret = config.cluster_secret.clone();
    let parts = NodeParts {
        settings: settings(config, past, noted)?,
        store,
        owned,
        fsync: config.fsync,
        secret,
        store_bytes_max: store_bytes_max(config),
        drill: config.drill,
        peer_body_max: config.limits.max_peer_body,
    };
    let node = NodeHandle::start(parts).map_err(|error| match &config.data_dir {
        Some(path) => unusable(path, &error),
        None => error.to_string(),
    })?;
    if config.data_dir.is_some() {
        tracing::info!("recovered {} keys in {:.1?}", node.status()["keys"], opening.took());
    }
    Ok(node)
}

/// What a node keeps its data in.
struct Opened {
    store: Box<dyn Store>,
    owned: Option<DataDir>,
    past: Past,
}

fn open(config: &Config, path: &Path, opening: &Arc<Opening>) -> Result<Opened, String> {
    let owned = DataDir::open(path, &config.socket_address)?;
    announce(config);
    tracing::info!(path = %path.display(), "opening the store");
    let program = std::env::current_exe().ok();
    let bad = |error: &StoreError| unusable(path, error);
    let (store, aside) =
        DurableStore::open_or_set_aside_telling(path, program.as_deref(), opening).map_err(|error| bad(&error))?;
    if let Some(SetAside { place, why }) = &aside {
        tracing::warn!("{why}: set aside as {}", place.display());
    }
    let is_blank = is_blank(&store).map_err(|error| bad(&error))?;
    let lost = if is_blank { lost(path, &owned) } else { None };
    let past = match lost {
        _ if config.accept_data_loss => Past::GivenUp,
        Some(lost) => Past::Lost(lost),
        None => Past::InStore,
    };
    match &past {
        Past::GivenUp => tracing::warn!("ACCEPT_DATA_LOSS: going on without whatever data was lost here"),
        Past::Lost(lost) if config.view.len() > 1 => {
            tracing::warn!("{}: this node is filled by its peers, if they have it", lost.what);
        }
        Past::Lost(lost) => tracing::warn!("{}, and VIEW names no other node that may have it", lost.what),
        Past::InStore => {}
    }
    Ok(Opened { store: Box::new(store), owned: Some(owned), past })
}

/// What a directory without data is known to have held.
fn lost(path: &Path, owned: &DataDir) -> Option<Lost> {
    let (identity, aside) = (owned.identity.noted(), last_set_aside(path));
    let whose = identity.map_or_else(String::new, |Identity { cluster, node, .. }| {
        format!(" of node {} of the cluster {:032x}", node.0, cluster.0)
    });
    let where_to = match &aside {
        Some(aside) => format!("was damaged, and is in {}", aside.display()),
        None if identity.is_some() => format!("is gone from {}", path.display()),
        None => return None,
    };
    Some(Lost::new(identity.map(|identity| identity.cluster), format!("the data{whose} {where_to}")))
}

/// One line: what is wrong with a data directory, and what can be done about it.
fn unusable(path: &Path, error: &StoreError) -> String {
    let advice = match error {
        StoreError::Unreadable(_) => {
            "; nothing was moved: start the release that wrote it, or, if it is damaged, move the folder fjall out of it: peers that have \
             the data fill it"
        }
        _ => "",
    };
    format!("DATA_DIR (--data-dir) {}: {error}{advice}", path.display())
}

/// Data in memory must leave room for everything else.
fn store_bytes_max(config: &Config) -> Option<u64> {
    let half_of_memory = || memory::allowed().map(|allowed| allowed as u64 / 2);
    config.limits.store_bytes_max.or_else(|| half_of_memory().filter(|_| config.data_dir.is_none()))
}

fn settings(config: &Config, past: Past, noted: Option<Identity>) -> Result<Settings, String> {
    let mut entropy = [0; 48];
    getrandom::fill(&mut entropy).map_err(|error| format!("the system gives no random numbers: {error}"))?;
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millis = |duration: Duration| duration.as_millis() as u64;
    let limits = &config.limits;
    // Also where the store that knew of them is gone, no life has the name of an earlier one.
    let earlier = noted.map_or(0, |identity| identity.life.0.saturating_add(1));
    Ok(Settings {
        me: config.socket_address.clone(),
        view: config.view.clone(),
        form_without: config.form_without.clone(),
        shard_count: config.shard_count,
        life: Incarnation(millis(since_1970).max(earlier)),
        entropy,
        causal_wait_ms: millis(limits.causal_wait),
        ack_wait_ms: millis(limits.ack_wait),
        waiting_max: limits.max_parked,
        forwards_max: limits.max_forwards,
        peer_queue_weight_max: limits.max_peer_queue,
        log_weight_max: limits.log_bytes,
        durable_at_commit: config.data_dir.is_none() || !matches!(config.fsync, Fsync::Interval(_)),
        past,
        mutant: None,
    })
}

/// What an operator should know of a node that starts. Not before it can: where it can't, one line is all it says.
fn announce(config: &Config) {
    tracing::info!(address = %config.socket_address, listen = %config.listen, nodes = config.view.len(), "starting");
    if config.data_dir.is_none() {
        tracing::warn!("no DATA_DIR: data is kept in memory only and lost when this process ends");
    }
    if config.drill {
        tracing::warn!("started for drills: everybody who can reach this port can inject faults (PUT /drill)");
    }
    if config.cluster_secret.is_none() {
        tracing::warn!("no CLUSTER_SECRET: everybody who can reach this port is trusted");
    }
}

async fn within<F: Future>(limit: Duration, what: &str, future: F) {
    if timeout(limit, future).await.is_err() {
        tracing::warn!(?limit, "gave up waiting for {what}");
    }
}

/// The signals that end the process.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("signals can't be received: {error}"));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    async fn told(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
