//! Taking connections in: how many at once, what happens to those beyond, and how they end when the node stops.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::Front;
use super::conn::{Guarded, Progress};
use super::handle;
use super::places::Place;
use super::reply::canned;

/// How the request of another node begins.
const PEER_START: &[u8] = b"GET /peer ";
/// Header lines that hyper takes by itself.
const HEADERS_OF_HYPER: usize = 100;
/// How long a connection beyond the bound has for each of its steps: to begin as a node's does, to become a stream, to be told.
const TRIAL_TIME: Duration = Duration::from_secs(1);
/// First and longest pause after accepting failed. Waiting connections stay in the kernel's queue meanwhile.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// A failure that goes on is logged this often.
const COMPLAINT_EVERY: Duration = Duration::from_secs(10);

/// Serves until `closing` turns true, then lets the connections finish what they have begun; ends when all are closed.
/// Bounding that time is the caller's part.
pub async fn serve(listener: TcpListener, front: Arc<Front>, mut closing: watch::Receiver<bool>) {
    let (open, mut all_closed) = mpsc::channel::<Infallible>(1);
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = told(&mut closing) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, source)) => {
                trouble.is_over();
                let caller = |place| {
                    let (front, progress, closing) = (front.clone(), Progress::new(), closing.clone());
                    let place = Mutex::new(place);
                    Arc::new(Caller { front, progress, source, closing, place, _open: open.clone() })
                };
                if let Some(place) = front.places.client() {
                    tokio::spawn(connection(stream, caller(place), true));
                } else if let Some(trial) = front.places.trial(source.ip()) {
                    tokio::spawn(beyond_the_bound(stream, caller(Place::Trial(trial))));
                } else {
                    // It may be lost where the client has sent something already. There are no handles to wait for that.
                    let _ = stream.try_write(&too_many());
                }
            }
            Err(error) => trouble.pause(&error).await,
        }
    }
    drop((listener, open));
    all_closed.recv().await;
}

/// A connection, as far as its requests have to do with it.
pub struct Caller {
    pub front: Arc<Front>,
    pub progress: Arc<Progress>,
    /// Where it comes from.
    pub source: SocketAddr,
    /// Turns true when the server closes.
    pub closing: watch::Receiver<bool>,
    /// What it holds, also after it was upgraded.
    pub place: Mutex<Place>,
    /// Gone when all connections are.
    _open: mpsc::Sender<Infallible>,
}

#[cfg(test)]
impl Caller {
    /// One without a connection.
    pub fn alone(front: Arc<Front>) -> Arc<Self> {
        let place = Mutex::new(front.places.client().expect("one is free"));
        let (source, closing) = (SocketAddr::from(([127, 0, 0, 1], 1)), watch::channel(false).1);
        Arc::new(Self { front, progress: Progress::new(), source, closing, place, _open: mpsc::channel(1).0 })
    }
}

/// Waits until the server is closing, also because whoever would say so is gone.
pub async fn told(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

/// One connection, to its end. `keep_alive`: for more than one request.
async fn connection(stream: TcpStream, caller: Arc<Caller>, keep_alive: bool) {
    let _ = stream.set_nodelay(true);
    let mut closing = caller.closing.clone();
    let limits = caller.front.limits.clone();
    let socket = TokioIo::new(Guarded::new(stream, caller.progress.clone(), &limits));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        caller.progress.request_begins();
        let caller = caller.clone();
        async move { Ok::<_, Infallible>(handle::answer(caller, request).await) }
    });
    let mut builder = http1::Builder::new();
    // hyper keeps room for its own default on the stack, and for any other number on the heap, for every request.
    if limits.max_headers != HEADERS_OF_HYPER {
        builder.max_headers(limits.max_headers);
    }
    let connection = builder
        .timer(TokioTimer::new())
        .keep_alive(keep_alive)
        // The guard does this, and tells a half header from an idle connection.
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(limits.max_header_bytes.max(64 << 10))
        .serve_connection(socket, service)
        .with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = told(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// A connection beyond the bound. Another node's is served all the same, or clients that hold all places could keep the nodes from
/// talking; others are told.
async fn beyond_the_bound(mut stream: TcpStream, caller: Arc<Caller>) {
    if timeout(TRIAL_TIME, is_of_a_node(&stream)).await.is_ok_and(|is| is) {
        // Once it is a stream, the stream has it.
        let _ = timeout(TRIAL_TIME, connection(stream, caller, false)).await;
        return;
    }
    let talk = async {
        stream.write_all(&too_many()).await?;
        stream.shutdown().await?;
        // What the client sends is read, so that closing doesn't reset the connection under the answer.
        let mut discarded = [0; 1024];
        while stream.read(&mut discarded).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(TRIAL_TIME, talk).await;
}

fn too_many() -> Vec<u8> {
    canned(StatusCode::SERVICE_UNAVAILABLE, "Too many connections")
}

/// Whether what comes begins as the request of another node does. Nothing of it is taken.
async fn is_of_a_node(stream: &TcpStream) -> bool {
    let mut start = [0; PEER_START.len()];
    loop {
        match stream.peek(&mut start).await {
            Ok(length) if length == start.len() => return start == PEER_START,
            Ok(length) if length > 0 && PEER_START.starts_with(&start[..length]) => sleep(PAUSE.0).await,
            _ => return false,
        }
    }
}

/// Accepting that fails, mostly for want of file handles.
#[derive(Default)]
struct Trouble {
    pause: Option<Duration>,
    complained: Option<Instant>,
}

impl Trouble {
    fn is_over(&mut self) {
        self.pause = None;
    }

    async fn pause(&mut self, error: &io::Error) {
        // The client went away while it waited: its trouble, not ours.
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT_EVERY) {
            self.complained = Some(Instant::now());
            tracing::warn!(%error, "no connection can be accepted; waiting for handles to become free");
        }
        let pause = self.pause.map_or(PAUSE.0, |last| (last * 2).min(PAUSE.1));
        self.pause = Some(pause);
        sleep(pause).await;
    }
}
