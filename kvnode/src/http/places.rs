//! Whose a connection is, and what it may take: a place among those that are served at once, and room for its frames.
//!
//! - *Clients* have most places. Who comes when all are taken is told so.
//! - A connection beyond that may be another node's. It has a *trial*: a moment to show that it is. Trials are few, few for one
//!   address, and apart for the addresses of nodes, so that a crowd of strangers does not keep nodes from theirs.
//! - *Nodes* have places and room of their own. A stream gets them once a whole batch on it has proven the cluster's secret and names a
//!   node that this one knows as a peer. Until then it has a client's place or a trial, and strangers' room: nothing of what is the
//!   nodes'. (The proof that opens a stream is the same at all times, so that alone shows nothing.)
//!
//! A node has one stream; a second one means that it has given up the first. So the newest ones count.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvnode_types::ident::Addr;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::gate::{Budget, Lease};
use crate::handles::Handles;
use crate::limits::Limits;
use crate::node::NodeHandle;

/// Streams of one node. More than one, because the end of one that is given up may take longer to arrive than the next.
const STREAMS_OF_A_NODE: usize = 4;
/// Bytes of batches held at once, as a multiple of the largest one, which is a node's share.
const SHARES: usize = 4;
/// The addresses of nodes are looked up at most so often.
const ADDRESSES_HOLD: Duration = Duration::from_secs(1);

pub struct Places {
    node: NodeHandle,
    clients: Arc<Semaphore>,
    state: Mutex<State>,
    trials_max: usize,
    streams_max: usize,
    /// For batches of nodes, all together, and what is one node's of it.
    frames: Arc<Budget>,
    frame_max: usize,
    /// For a stream of which nobody knows yet whose it is, from an address of a node: one share for all. And from any other.
    unnamed_frames: Arc<Budget>,
    strangers_frames: Arc<Budget>,
}

#[derive(Default)]
struct State {
    trials: HashMap<IpAddr, usize>,
    /// Trials of addresses that no node has, and of those that one has.
    trials_of: [usize; 2],
    nodes: BTreeMap<Addr, Streams>,
    streams: usize,
    last_stream: u64,
    /// The addresses that nodes are known by, and when they were looked up.
    addresses: HashSet<IpAddr>,
    looked_up: Option<Instant>,
}

/// What a node has here.
struct Streams {
    ip: IpAddr,
    open: VecDeque<(u64, Arc<Notify>)>,
    frames: Arc<Budget>,
}

/// What a connection holds as long as it lasts.
pub enum Place {
    Client { _permit: OwnedSemaphorePermit },
    Trial(Trial),
    Node(NodePlace),
}

pub struct Trial {
    places: Arc<Places>,
    ip: IpAddr,
    is_nodes: bool,
}

pub struct NodePlace {
    places: Arc<Places>,
    node: Addr,
    number: u64,
    replaced: Arc<Notify>,
}

impl Places {
    pub fn new(node: NodeHandle, limits: &Limits, handles: &Handles) -> Arc<Self> {
        let clients = handles.clients(limits.max_connections).min(Semaphore::MAX_PERMITS);
        let frames = Budget::new(limits.max_peer_body.saturating_mul(SHARES));
        Arc::new(Self {
            node,
            clients: Arc::new(Semaphore::new(clients)),
            state: Mutex::default(),
            trials_max: handles.trials,
            streams_max: handles.streams,
            unnamed_frames: frames.share(limits.max_peer_body),
            strangers_frames: Budget::new(limits.least_peer_body()),
            frame_max: limits.max_peer_body,
            frames,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client's place, if one is free.
    pub fn client(&self) -> Option<Place> {
        let permit = self.clients.clone().try_acquire_owned().ok()?;
        Some(Place::Client { _permit: permit })
    }

    /// A moment to show whose it is.
    pub fn trial(self: &Arc<Self>, ip: IpAddr) -> Option<Trial> {
        let is_nodes = self.is_a_nodes(ip);
        let mut state = self.lock();
        let of_address = state.trials.get(&ip).copied().unwrap_or(0);
        let of_kind = &mut state.trials_of[usize::from(is_nodes)];
        if *of_kind >= self.trials_max || of_address >= self.trials_max.div_ceil(2) {
            return None;
        }
        *of_kind += 1;
        *state.trials.entry(ip).or_default() += 1;
        Some(Trial { places: self.clone(), ip, is_nodes })
    }

    /// The place of a stream that a node has spoken on; `None` if it is no node's that is known here, or there are too many.
    pub fn of_node(self: &Arc<Self>, node: &Addr, ip: IpAddr) -> Option<NodePlace> {
        if !self.node.is_peer(node) {
            return None;
        }
        let mut state = self.lock();
        if state.streams >= self.streams_max {
            return None;
        }
        state.streams += 1;
        state.last_stream += 1;
        let (number, replaced) = (state.last_stream, Arc::new(Notify::new()));
        let share = || self.frames.share(self.frame_max);
        let streams = state.nodes.entry(node.clone());
        let streams = streams.or_insert_with(|| Streams { ip, open: VecDeque::new(), frames: share() });
        streams.ip = ip;
        streams.open.push_back((number, replaced.clone()));
        let too_many = streams.open.len().saturating_sub(STREAMS_OF_A_NODE);
        streams.open.iter().take(too_many).for_each(|(_, replaced)| replaced.notify_one());
        Some(NodePlace { places: self.clone(), node: node.clone(), number, replaced })
    }

    /// Room for a frame of a stream that nobody has spoken on yet.
    fn unnamed(&self, ip: IpAddr) -> Lease {
        if self.is_a_nodes(ip) { self.unnamed_frames.lease() } else { self.strangers_frames.lease() }
    }

    /// Whether a node is known to have this address: one that is written in its name, or that it has spoken from.
    fn is_a_nodes(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let is_fresh = |state: &State| state.looked_up.is_some_and(|at| at.elapsed() < ADDRESSES_HOLD);
        if !is_fresh(&self.lock()) {
            let addresses = self.node.peers().iter().filter_map(Addr::ip).collect();
            let mut state = self.lock();
            (state.addresses, state.looked_up) = (addresses, Some(Instant::now()));
        }
        let state = self.lock();
        state.addresses.contains(&ip) || state.nodes.values().any(|node| node.ip.to_canonical() == ip)
    }
}

impl Place {
    /// Room for a frame of the stream that has this place.
    pub fn frame(&self, places: &Places, ip: IpAddr) -> Lease {
        let Self::Node(place) = self else { return places.unnamed(ip) };
        let state = places.lock();
        state.nodes.get(&place.node).map_or_else(|| places.strangers_frames.lease(), |streams| streams.frames.lease())
    }

    /// Resolves when newer streams have taken the node's places.
    pub fn replaced(&self) -> Option<Arc<Notify>> {
        if let Self::Node(place) = self { Some(place.replaced.clone()) } else { None }
    }

    pub fn is_nodes(&self) -> bool {
        matches!(self, Self::Node(_))
    }

    pub fn is_trial(&self) -> bool {
        matches!(self, Self::Trial(_))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.trials_of[usize::from(self.is_nodes)] -= 1;
        if let Some(count) = state.trials.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                state.trials.remove(&self.ip);
            }
        }
    }
}

impl Drop for NodePlace {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.streams -= 1;
        if let Some(streams) = state.nodes.get_mut(&self.node) {
            streams.open.retain(|(number, _)| *number != self.number);
            if streams.open.is_empty() {
                state.nodes.remove(&self.node);
            }
        }
    }
}
