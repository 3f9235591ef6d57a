//! The sending side of a link.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{PATH, auth};
use crate::drill::{Drill, Way};
use crate::wire::ident::Addr;
use crate::wire::peer::{self, Batch};

/// A node that does not accept a connection for so long counts as not there.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// A batch that was not answered for so long is lost. Longer than any pause that is not a failure.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
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
        client: reqwest::Client,
        secret: auth::Secret,
        drill: Arc<Drill>,
        peer: Addr,
        done: impl Fn(&Addr, LinkDone) + Send + 'static,
    ) -> Self {
        let (outgoing, mut batches) = mpsc::channel(1);
        let url = reqwest::Url::parse(&format!("http://{peer}{PATH}"));
        tokio::spawn(async move {
            while let Some(batch) = batches.recv().await {
                let fate = match &url {
                    Ok(url) => along(&drill, &peer, post(&client, &secret, url, batch)).await,
                    // Numbers that are no IP address, for one.
                    Err(why) => LinkDone::Lost { why: why.to_string() },
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

/// A client for all links of a node.
///
/// # Panics
/// If the HTTP client can't be built, which nothing in its settings allows.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(ANSWER_TIMEOUT)
        // Below the server's limit for idle connections, so that a connection is not closed while it is taken up again.
        .pool_idle_timeout(Duration::from_secs(5))
        .build()
        .expect("plain HTTP needs nothing that can be missing")
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

async fn post(client: &reqwest::Client, secret: &auth::Secret, url: &reqwest::Url, batch: Batch) -> LinkDone {
    let body = peer::encode(&batch);
    let proof = secret.prove(&body);
    let request = client.post(url.clone()).header(auth::HEADER, proof).body(body);
    match request.send().await {
        Err(error) if error.is_connect() => LinkDone::Undelivered(batch),
        Err(error) => LinkDone::Lost { why: error.without_url().to_string() },
        Ok(response) => match read_answer(response, secret).await {
            Ok(answer) => LinkDone::Answered(answer),
            Err(why) => LinkDone::Lost { why },
        },
    }
}

async fn read_answer(mut response: reqwest::Response, secret: &auth::Secret) -> Result<Batch, String> {
    let status = response.status();
    let proof = response.headers().get(auth::HEADER).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| error.without_url().to_string())? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err("its answer is too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        return Err(format!("it answered {status}: {}", String::from_utf8_lossy(&body).trim()));
    }
    if !secret.accepts(&body, &proof) {
        return Err("its answer does not prove this cluster's secret".into());
    }
    peer::decode(&Bytes::from(body))
}
