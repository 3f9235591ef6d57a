//! The receiving side of peer links: a connection that another node has upgraded to a stream of batches.

use std::pin::pin;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::Front;
use super::accept::{Caller, told};
use super::conn::Guarded;
use super::reply::{Refusal, Reply};
use crate::peer::frames::{Broken, Frames};
use crate::peer::{auth, protocol};

/// Answers a request for a stream, and serves the stream once the answer is out.
pub fn open(caller: &Arc<Caller>, mut request: Request<Incoming>) -> Result<Reply, Refusal> {
    let protocol = protocol();
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok()).unwrap_or("");
    if header(UPGRADE.as_str()) != protocol {
        return Err(Refusal::NoStream(protocol));
    }
    if !caller.front.node.secret().is_proven(protocol.as_bytes(), header(auth::HEADER)) {
        return Err(Refusal::Unproven);
    }
    tokio::spawn(serve(hyper::upgrade::on(&mut request), caller.clone()));
    let protocol = HeaderValue::from_str(&protocol).expect("a name and a number are text");
    let reply = Reply::empty(StatusCode::SWITCHING_PROTOCOLS);
    Ok(reply.with((CONNECTION, HeaderValue::from_static("upgrade"))).with((UPGRADE, protocol)))
}

/// One stream, to its end.
async fn serve(upgrade: OnUpgrade, caller: Arc<Caller>) {
    let (front, mut closing) = (&*caller.front, caller.closing.clone());
    // Fails if the connection ended before.
    let Ok(upgraded) = upgrade.await else { return };
    let Some(mut frames) = frames(front, upgraded) else { return };
    let ended = answer_all(front, &mut frames, &mut closing).await;
    if !matches!(ended, Broken::Ended) {
        tracing::debug!(why = %ended, "a stream of another node ended");
    }
}

fn frames(front: &Front, upgraded: Upgraded) -> Option<Frames> {
    let parts = upgraded.downcast::<TokioIo<Guarded>>().ok()?;
    Some(Frames::new(parts.io.into_inner().into_stream(), parts.read_buf, front.node.secret().clone()))
}

/// Answers batch after batch; gives why no more come. A batch that has begun when the server closes is answered still.
async fn answer_all(front: &Front, frames: &mut Frames, closing: &mut watch::Receiver<bool>) -> Broken {
    let limits = &front.limits;
    let mut silence = pin!(sleep_until(Instant::now() + limits.idle_timeout));
    loop {
        let length = tokio::select! {
            biased;
            length = frames.begins(limits.max_peer_body) => length,
            () = told(closing) => return Broken::Ended,
            () = &mut silence => return Broken::Stalled,
        };
        let mut lease = front.peer_bodies.lease();
        let length = match length {
            Ok(length) if lease.grow(length) => length,
            // Four of the largest are here: one more is not taken, and comes again.
            Ok(length) => return Broken::TooLarge(length),
            Err(broken) => return broken,
        };
        let batch = match frames.take(length, limits.body_timeout).await {
            Ok(batch) => batch,
            Err(broken) => return broken,
        };
        let Some(answer) = front.node.peer_batch(batch).await else { return Broken::Ended };
        match timeout(limits.write_timeout, frames.send(&answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Broken::Io(error),
            Err(_) => return Broken::Stalled,
        }
        silence.as_mut().reset(Instant::now() + limits.idle_timeout);
    }
}
