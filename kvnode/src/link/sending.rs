//! The sending side of a link.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kvnode_core::messages::Batch;
use kvnode_types::ident::Addr;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::frames::{Frames, Patience};
use super::names::Names;
use super::{PATH, auth, protocol};
use crate::drill::{Drill, Way};

/// A node that does not accept a connection for so long counts as not there.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long it may take until the connection has become a stream: the system accepts for a node that is busy, and the node answers.
/// Below the time for an answer, so that what was certainly not seen is known to be that.
const OPEN_TIMEOUT: Duration = Duration::from_millis(1_500);
/// A batch that was not answered for so long is lost. Longer than any pause that is not a failure.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Text of a refusal that is read.
const REFUSAL_BYTES_MAX: usize = 4 << 10;

/// What became of a batch.
pub enum LinkDone {
    /// It was answered with this.
    Answered(Batch),
    /// It certainly was not seen: nobody listened, or the stream for it was refused, because the secret of the cluster there is another.
    Undelivered { batch: Batch, another_secret: bool },
    /// It may or may not have been seen; `why` is for people.
    Lost { why: String },
}

/// A link to one peer, which carries one batch at a time. Dropping it ends it.
pub struct Link {
    woken: Arc<Notify>,
    task: AbortHandle,
}

impl Link {
    /// Starts a link that takes answers of up to `answer_bytes_max`. Whenever it is idle and woken it asks `next` for a batch: so a
    /// batch carries what came while the one before was on its way. `done` is called with the fate of each before that.
    pub fn start(
        secret: auth::Secret,
        names: Arc<Names>,
        drill: Arc<Drill>,
        peer: Addr,
        answer_bytes_max: usize,
        next: impl Fn(&Addr) -> Option<Batch> + Send + 'static,
        done: impl Fn(&Addr, LinkDone) + Send + 'static,
    ) -> Self {
        let woken = Arc::new(Notify::new());
        let host = HeaderValue::from_str(peer.as_str()).ok();
        let mut line = host.map(|host| Line { peer: peer.clone(), host, secret, names, answer_bytes_max, open: None });
        let wake = woken.clone();
        let task = tokio::spawn(async move {
            loop {
                let Some(batch) = next(&peer) else {
                    wake.notified().await;
                    continue;
                };
                let fate = match &mut line {
                    Some(line) => along(&drill, &peer, line.post(batch)).await,
                    None => LinkDone::Lost { why: "its address can't stand in a header".into() },
                };
                done(&peer, fate);
            }
        });
        Self { woken, task: task.abort_handle() }
    }

    /// There may be a batch to carry.
    pub fn wake(&self) {
        self.woken.notify_one();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends along the link as a drill has made it.
async fn along(drill: &Drill, peer: &Addr, sent: impl Future<Output = LinkDone>) -> LinkDone {
    let cut = || LinkDone::Lost { why: "the link is cut by a drill".into() };
    if drill.pass(Way::To, peer).await.is_err() {
        return cut();
    }
    let fate = sent.await;
    match (&fate, drill.pass(Way::From, peer).await) {
        // What had not come by itself is not lost again.
        (LinkDone::Answered(_), Err(_)) => cut(),
        _ => fate,
    }
}

/// Why there is no answer.
enum Failed {
    /// The batch certainly was not acted on.
    Unseen(String),
    /// The same, because the peer says that this node's secret is another.
    AnotherSecret,
    Unknown(String),
}

/// A peer, and the stream to it.
struct Line {
    peer: Addr,
    host: HeaderValue,
    secret: auth::Secret,
    names: Arc<Names>,
    answer_bytes_max: usize,
    /// Nothing is on its way here.
    open: Option<Frames>,
}

impl Line {
    async fn post(&mut self, batch: Batch) -> LinkDone {
        match timeout(ANSWER_TIMEOUT, self.exchange(&batch)).await {
            Ok(Ok(answer)) => LinkDone::Answered(answer),
            Ok(Err(Failed::Unseen(why))) => {
                // Operators name it in LOG_LEVEL.
                tracing::debug!(target: "kvnode::peer::link", peer = %self.peer, why, "a message can't be delivered");
                LinkDone::Undelivered { batch, another_secret: false }
            }
            Ok(Err(Failed::AnotherSecret)) => LinkDone::Undelivered { batch, another_secret: true },
            Ok(Err(Failed::Unknown(why))) => LinkDone::Lost { why },
            Err(_) => LinkDone::Lost { why: format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()) },
        }
    }

    /// One batch and its answer. The stream is kept if all went well.
    async fn exchange(&mut self, batch: &Batch) -> Result<Batch, Failed> {
        if let Some(mut frames) = self.open.take()
            && frames.is_idle()
        {
            match self.ask(&mut frames, batch).await {
                // Closed by the peer in the meantime.
                Err(Failed::Unseen(_)) => {}
                answered => return self.keep(frames, answered),
            }
        }
        let opened = timeout(OPEN_TIMEOUT, self.open()).await;
        let late = |_| Err(Failed::Unseen("it does not open a stream".into()));
        let mut frames = opened.unwrap_or_else(late)?;
        let answered = self.ask(&mut frames, batch).await;
        self.keep(frames, answered)
    }

    async fn ask(&self, frames: &mut Frames, batch: &Batch) -> Result<Batch, Failed> {
        frames.send(batch).await.map_err(|error| Failed::Unseen(error.to_string()))?;
        let answer = async {
            let length = frames.begins(self.answer_bytes_max).await?;
            let patience = Patience { silence: ANSWER_TIMEOUT, whole: ANSWER_TIMEOUT };
            frames.take(length, patience, |_| true).await
        };
        answer.await.map_err(|broken| Failed::Unknown(broken.to_string()))
    }

    fn keep(&mut self, frames: Frames, answered: Result<Batch, Failed>) -> Result<Batch, Failed> {
        if answered.is_ok() {
            self.open = Some(frames);
        }
        answered
    }

    /// Opens a stream, or says why there is none.
    async fn open(&self) -> Result<Frames, Failed> {
        let stream = self.connect().await.inspect_err(|_| self.names.doubt(&self.peer)).map_err(unseen)?;
        // A socket that can't be set up has broken already, and says so when it is used.
        let _ = stream.set_nodelay(true);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unseen)?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(self.request()).await.map_err(unseen)?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {}
            auth::REFUSED => return Err(Failed::AnotherSecret),
            _ => return Err(unseen(refusal(response).await)),
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(unseen)?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| unseen("it is no socket"))?;
        Ok(Frames::new(parts.io.into_inner(), parts.read_buf, self.secret.clone()))
    }

    async fn connect(&self) -> Result<TcpStream, String> {
        let found = self.names.find(&self.peer).await?;
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(&found[..])).await;
        connected.map_err(|_| "it does not accept connections")?.map_err(|error| error.to_string())
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let protocol = protocol();
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = hyper::Uri::from_static(PATH);
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        let proof = self.secret.prove(protocol.as_bytes());
        headers.insert(auth::HEADER, HeaderValue::from_str(&proof).expect("base64 is text"));
        headers.insert(UPGRADE, HeaderValue::from_str(&protocol).expect("a name and a number are text"));
        request
    }
}

fn unseen(why: impl ToString) -> Failed {
    Failed::Unseen(why.to_string())
}

/// What a peer says that does not open a stream.
async fn refusal(response: Response<hyper::body::Incoming>) -> String {
    let (head, body) = response.into_parts();
    let text = match Limited::new(body, REFUSAL_BYTES_MAX).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    format!("it answered {}: {text}", head.status)
}

#[cfg(test)]
mod tests;
