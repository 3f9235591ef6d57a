//! The receiving side of peer links: a connection that another node has upgraded to a stream of batches.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use kvnode_core::messages::Batch;
use kvnode_types::ident::Addr;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::Front;
use super::accept::{Caller, told};
use super::conn::Guarded;
use super::places::Place;
use super::reply::{Refusal, Reply};
use crate::link::frames::{Broken, Frames, Patience};
use crate::link::{auth, protocol};

/// Answers a request for a stream, and serves the stream once the answer is out.
pub fn open(caller: &Arc<Caller>, mut request: Request<Incoming>) -> Result<Reply, Refusal> {
    let protocol = protocol();
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or("");
    if header(UPGRADE.as_str()) != protocol {
        return Err(Refusal::NoStream(protocol));
    }
    if !caller.front.node.secret().is_proven(protocol.as_bytes(), header(auth::HEADER)) {
        refused(caller);
        return Err(Refusal::Unproven);
    }
    tokio::spawn(serve(hyper::upgrade::on(&mut request), caller.clone()));
    let protocol = HeaderValue::from_str(&protocol).expect("a name and a number are text");
    let reply = Reply::empty(StatusCode::SWITCHING_PROTOCOLS);
    Ok(reply.with((CONNECTION, HeaderValue::from_static("upgrade"))).with((UPGRADE, protocol)))
}

/// How long a stream that has no place of its own may take until a batch has shown whose it is.
const TRIAL_TIME: Duration = Duration::from_secs(4);
/// Nobody waits for the answer to a frame for longer than the sending side of a link does.
const FRAME_TIME: Duration = Duration::from_secs(4);
/// Says that a node was refused: of which address, where the view knows one there. All that a request tells is where it comes from.
fn refused(caller: &Caller) {
    let from = caller.source.ip();
    if caller.front.strangers.came(from, std::time::Instant::now()) {
        let of = |addr: &Addr| addr.as_str().parse().is_ok_and(|at: SocketAddr| at.ip() == from);
        let node = caller.front.node.peers().into_iter().find(of);
        let node = node.as_ref().map_or("unknown", Addr::as_str);
        tracing::warn!(%from, %node, "a node was refused: its CLUSTER_SECRET is another, or only one of both has any");
    }
}

/// One stream, to its end.
async fn serve(upgrade: OnUpgrade, caller: Arc<Caller>) {
    // Fails if the connection ended before.
    let Ok(upgraded) = upgrade.await else { return };
    let Some(frames) = frames(&caller.front, upgraded) else { return };
    let ended = Stream { caller, frames }.answer_all().await;
    if !matches!(ended, Broken::Ended) {
        tracing::debug!(why = %ended, "a stream of another node ended");
    }
}

fn frames(front: &Front, upgraded: Upgraded) -> Option<Frames> {
    let parts = upgraded.downcast::<TokioIo<Guarded>>().ok()?;
    Some(Frames::new(parts.io.into_inner().into_stream(), parts.read_buf, front.node.secret().clone()))
}

/// A stream, whose place is its connection's until it is known to be a node's.
struct Stream {
    caller: Arc<Caller>,
    frames: Frames,
}

impl Stream {
    fn place(&self) -> MutexGuard<'_, Place> {
        place_of(&self.caller)
    }

    /// Answers batch after batch; gives why no more come. A batch that has begun when the server closes is answered still.
    async fn answer_all(mut self) -> Broken {
        let (front, mut closing) = (self.caller.front.clone(), self.caller.closing.clone());
        let limits = &front.limits;
        let mut silence = pin!(sleep_until(Instant::now() + limits.idle_timeout));
        let trial_ends = Instant::now() + TRIAL_TIME;
        loop {
            let is_trial = self.place().is_trial();
            let replaced = self.place().replaced();
            let length = tokio::select! {
                biased;
                length = self.frames.begins(limits.max_peer_body) => length,
                () = told(&mut closing) => return Broken::Ended,
                () = notified(replaced.as_deref()) => return Broken::Ended,
                () = sleep_until(trial_ends), if is_trial => return Broken::Stalled,
                () = &mut silence => return Broken::Stalled,
            };
            let length = match length {
                Ok(length) => length,
                Err(broken) => return broken,
            };
            let patience = Patience { silence: limits.body_timeout, whole: FRAME_TIME };
            // Most frames fit into the buffer that a stream has anyway.
            let mut lease = None;
            let room = || place_of(&self.caller).frame(&front.places, self.caller.source.ip());
            let covers = |bytes| lease.get_or_insert_with(room).cover(bytes);
            let batch = match self.frames.take(length, patience, covers).await {
                Ok(batch) => batch,
                Err(broken) => return broken,
            };
            self.recognize(&batch);
            // It may be this batch that has told whose the stream is. Who has opened newer ones waits for no answer here.
            let replaced = self.place().replaced();
            let answer = async {
                let answer = front.node.peer_batch(batch).await.ok_or(Broken::Ended)?;
                match timeout(limits.write_timeout, self.frames.send(&answer)).await {
                    Ok(sent) => sent.map_err(Broken::Io),
                    Err(_) => Err(Broken::Stalled),
                }
            };
            let answered = tokio::select! {
                biased;
                answered = answer => answered,
                () = notified(replaced.as_deref()) => Err(Broken::Ended),
            };
            if let Err(broken) = answered {
                return broken;
            }
            silence.as_mut().reset(Instant::now() + limits.idle_timeout);
        }
    }

    /// A batch that proves the secret tells whose the stream is, from then on.
    fn recognize(&self, batch: &Batch) {
        if self.place().is_nodes() {
            return;
        }
        if let Some(place) = self.caller.front.places.of_node(&batch.from, self.caller.source.ip()) {
            *self.place() = Place::Node(place);
        }
    }
}

fn place_of(caller: &Caller) -> MutexGuard<'_, Place> {
    caller.place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Never, where there is nothing to be notified of.
async fn notified(of: Option<&Notify>) {
    match of {
        Some(of) => of.notified().await,
        None => std::future::pending().await,
    }
}
