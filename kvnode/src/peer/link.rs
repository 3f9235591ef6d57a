//! The sending side of a link.
//!
//! One connection per link, kept, straight on hyper's own: what a client for any URL does for each request (a pool, redirects, parsing
//! the URL) costs as much as the rest of a small batch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::{PATH, auth};
use crate::drill::{Drill, Way};
use crate::wire::ident::Addr;
use crate::wire::peer::{self, Batch};

/// A node that does not accept a connection for so long counts as not there.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A batch that was not answered for so long is lost. Longer than any pause that is not a failure.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that was not used for so long is not used again: below the server's limit for idle connections, which
/// could close it under a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// An answer is a batch; its size is bounded by what a sender puts in one.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What became of a batch.
pub enum LinkDone {
    /// It was answered with this.
    Answered(Batch),
    /// Nobody listened: it certainly was not seen.
    Undelivered(Batch),
    /// It may or may not have been seen; `why` is for people.
    Lost { why: String },
}

/// A link to one peer. Dropping it ends it.
pub struct Link {
    outgoing: mpsc::Sender<Batch>,
}

impl Link {
    /// Starts a link; `done` is called with the fate of every batch, before the next is taken.
    pub fn start(
        secret: auth::Secret,
        drill: Arc<Drill>,
        peer: Addr,
        done: impl Fn(&Addr, LinkDone) + Send + 'static,
    ) -> Self {
        let (outgoing, mut batches) = mpsc::channel(1);
        let host = HeaderValue::from_str(peer.as_str()).ok();
        let line = host.map(|host| Line { peer: peer.clone(), host, secret, open: None });
        tokio::spawn(async move {
            let mut line = line;
            while let Some(batch) = batches.recv().await {
                let fate = match &mut line {
                    Some(line) => along(&drill, &peer, line.post(batch)).await,
                    None => LinkDone::Lost { why: "its address can't stand in a header".into() },
                };
                done(&peer, fate);
            }
        });
        Self { outgoing }
    }

    /// Hands over a batch. The link must be idle.
    pub fn send(&self, batch: Batch) {
        let sent = self.outgoing.try_send(batch);
        debug_assert!(sent.is_ok(), "one batch at a time");
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

type Sender = SendRequest<Full<Bytes>>;

/// Why there is no answer.
enum Failed {
    /// The request certainly was not seen.
    Unseen,
    Unknown(String),
}

/// A peer, and the connection to it.
struct Line {
    peer: Addr,
    host: HeaderValue,
    secret: auth::Secret,
    /// Since when it has been idle.
    open: Option<(Sender, Instant)>,
}

impl Line {
    async fn post(&mut self, batch: Batch) -> LinkDone {
        let body = peer::encode(&batch);
        let proof = self.secret.prove(&body);
        match timeout(ANSWER_TIMEOUT, self.exchange(&body, &proof)).await {
            Ok(Ok(answer)) => LinkDone::Answered(answer),
            Ok(Err(Failed::Unseen)) => LinkDone::Undelivered(batch),
            Ok(Err(Failed::Unknown(why))) => LinkDone::Lost { why },
            Err(_) => LinkDone::Lost { why: format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()) },
        }
    }

    /// One request and its answer. The connection is kept if all went well.
    async fn exchange(&mut self, body: &Bytes, proof: &str) -> Result<Batch, Failed> {
        if let Some((mut sender, since)) = self.open.take()
            && since.elapsed() < IDLE_TIMEOUT
            && sender.ready().await.is_ok()
        {
            match self.ask(&mut sender, body, proof).await {
                // Closed by the peer in the meantime.
                Err(Failed::Unseen) => {}
                answered => return self.keep(sender, answered),
            }
        }
        let mut sender = self.connect().await?;
        let answered = self.ask(&mut sender, body, proof).await;
        self.keep(sender, answered)
    }

    fn keep(&mut self, sender: Sender, answered: Result<Batch, Failed>) -> Result<Batch, Failed> {
        if answered.is_ok() {
            self.open = Some((sender, Instant::now()));
        }
        answered
    }

    async fn connect(&self) -> Result<Sender, Failed> {
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(self.peer.as_str())).await;
        let Ok(Ok(stream)) = connected else { return Err(Failed::Unseen) };
        // A socket that can't be set up has broken already, and says so when it is used.
        let _ = stream.set_nodelay(true);
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| Failed::Unknown(error.to_string()))?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn ask(&self, sender: &mut Sender, body: &Bytes, proof: &str) -> Result<Batch, Failed> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::from_static(PATH);
        request.headers_mut().insert(HOST, self.host.clone());
        let proof = HeaderValue::from_str(proof).expect("base64 is text");
        request.headers_mut().insert(auth::HEADER, proof);
        match sender.try_send_request(request).await {
            Ok(response) => read_answer(response, &self.secret).await.map_err(Failed::Unknown),
            // It comes back if it was never handed to the socket.
            Err(mut error) => match error.take_message() {
                Some(_) => Err(Failed::Unseen),
                None => Err(Failed::Unknown(error.into_error().to_string())),
            },
        }
    }
}

async fn read_answer(response: Response<hyper::body::Incoming>, secret: &auth::Secret) -> Result<Batch, String> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?.to_bytes();
    if !head.status.is_success() {
        return Err(format!("it answered {}: {}", head.status, String::from_utf8_lossy(&body).trim()));
    }
    let proof = head.headers.get(auth::HEADER).and_then(|value| value.to_str().ok()).unwrap_or("");
    if !secret.accepts(&body, proof) {
        return Err("its answer does not prove this cluster's secret".into());
    }
    peer::decode(&body)
}
