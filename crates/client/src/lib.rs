//! A client of the HTTP contract: what `kvctl` uses, and other Rust programs can.
//!
//! [`Client`] knows several nodes, any of which can answer anything. It goes on to the next node when nobody listens at one.
//! A read also goes on when a node answers nothing, or 503: asking twice does no harm. A write that may have arrived is never
//! sent again. [`Session`] carries the causal context from answer to request.
//!
//! ```no_run
//! use kvnode_client::{Client, Session};
//! # async fn example() -> Result<(), kvnode_client::Error> {
//! let client = Client::new(vec!["127.0.0.1:8082".into(), "127.0.0.1:8083".into()]);
//! let mut session = Session::default();
//! let value = serde_json::value::to_raw_value("hello").expect("text is JSON");
//! client.put("greeting", &value, &mut session).await?;
//! assert!(client.get("greeting", &mut session).await?.is_success());
//! # Ok(()) }
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::redirect::Policy;
use reqwest::{Method, Response};
use serde::Deserialize;
use serde_json::value::RawValue;

mod printable;

pub use kvnode_types::METADATA_HEADER;
pub use printable::printable;

/// Longer than any wait that a node itself allows by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of an answer that are taken: more than a node with the default limits ever sends, whose largest value has a megabyte.
pub const ANSWER_BYTES_MAX: usize = 8 << 20;
/// How long a read waits for a node while there are others to ask: a little longer than a node waits for its peers.
const NEXT_NODE_AFTER: Duration = Duration::from_secs(4);

/// What a client has seen. Begins with nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    pub metadata: Option<String>,
}

/// An answer of whatever status.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
    /// The node that answered.
    pub node: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nobody listens at any of the nodes: nothing was done.
    Unreachable(String),
    /// The answer did not come in time; a write may have been done.
    TimedOut(String),
    /// The connection broke, or what came is no HTTP, or more than is taken; a write may have been done.
    Broken(String),
    /// This key can't be named in a URL: `.` and `..` mean folders there, percent-encoded or not. Nothing was sent.
    NoUrl(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(what) => write!(f, "no node can be reached: {what}"),
            Self::TimedOut(what) => write!(f, "no answer in time from {what}"),
            Self::Broken(what) => write!(f, "no usable answer from {what}"),
            Self::NoUrl(key) => write!(f, "the key '{key}' can't be named in a URL"),
        }
    }
}

impl std::error::Error for Error {}

impl Answer {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as JSON; `Null` if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The value of a GET, to the last digit.
    pub fn value(&self) -> Option<Box<RawValue>> {
        #[derive(Deserialize)]
        struct Found {
            value: Box<RawValue>,
        }
        serde_json::from_slice::<Found>(&self.body).ok().map(|found| found.value)
    }

    /// What the node says is wrong, on one [`printable`] line.
    pub fn error(&self) -> String {
        let json = self.json();
        let told = json.get("error").and_then(serde_json::Value::as_str);
        told.map_or_else(|| format!("status {}", self.status), |told| printable(told).into_owned())
    }
}

/// Talks to the nodes of one cluster.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// `HOST:PORT`, in the order in which they are tried.
    nodes: Vec<String>,
    /// How long a write waits for its answer.
    write_timeout: Duration,
    answer_bytes_max: usize,
    /// Index of the node that was asked last, for whoever waits.
    asked: Arc<AtomicUsize>,
}

impl Client {
    /// # Panics
    /// If the HTTP client can't be built, which nothing in its settings allows.
    pub fn new(nodes: Vec<String>) -> Self {
        // A node sends nobody elsewhere.
        let builder = reqwest::Client::builder().no_proxy().redirect(Policy::none()).tcp_nodelay(true);
        let http = builder.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT).build();
        let http = http.expect("plain HTTP needs nothing that can be missing");
        Self { http, nodes, write_timeout: ANSWER_TIMEOUT, answer_bytes_max: ANSWER_BYTES_MAX, asked: Arc::default() }
    }

    /// Waits so long for the answer to a write: changes of the topology are answered when they are done.
    pub fn patient(self, write_timeout: Duration) -> Self {
        Self { write_timeout, ..self }
    }

    /// Takes answers of so many bytes, in the place of [`ANSWER_BYTES_MAX`]: for nodes that were started with a larger `--max-body`.
    pub fn taking(self, answer_bytes_max: usize) -> Self {
        Self { answer_bytes_max, ..self }
    }

    /// The node that the present request, or the last one, waits for: while a request takes long, this tells for whom.
    pub fn asking(&self) -> &str {
        self.nodes.get(self.asked.load(Ordering::Relaxed)).map_or("nobody", String::as_str)
    }

    /// Sends a request to the first node that listens; a read to the first that answers it. The session's context goes along
    /// and is replaced by the answer's.
    ///
    /// # Errors
    /// If no answer came; see [`Error`] for what that means for a write.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        session: &mut Session,
    ) -> Result<Answer, Error> {
        let read_until = (method == Method::GET).then(|| Instant::now() + ANSWER_TIMEOUT);
        let mut refused = Vec::new();
        let mut last = None;
        for (index, node) in self.nodes.iter().enumerate() {
            self.asked.store(index, Ordering::Relaxed);
            let may_go_on = read_until.is_some_and(|end| Instant::now() < end) && index + 1 < self.nodes.len();
            let limit = match read_until {
                Some(_) if may_go_on => NEXT_NODE_AFTER,
                Some(_) => ANSWER_TIMEOUT,
                None => self.write_timeout,
            };
            let mut request = self.http.request(method.clone(), format!("http://{node}{path}")).timeout(limit);
            if let Some(metadata) = &session.metadata {
                request = request.header(METADATA_HEADER, metadata);
            }
            if let Some(body) = &body {
                request = request.header("content-type", "application/json").body(body.clone());
            }
            match answer(node, request, session, self.answer_bytes_max).await {
                Err(Error::Unreachable(node)) => refused.push(node),
                Ok(answer) if answer.status == 503 && may_go_on => last = Some(Ok(answer)),
                Err(error) if may_go_on => last = Some(Err(error)),
                done => return done,
            }
        }
        last.unwrap_or_else(|| Err(Error::Unreachable(refused.join(", "))))
    }

    /// # Errors
    /// See [`Client::request`].
    pub async fn get(&self, key: &str, session: &mut Session) -> Result<Answer, Error> {
        self.request(Method::GET, &key_path(key)?, None, session).await
    }

    /// `value`: JSON text.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn put(&self, key: &str, value: &RawValue, session: &mut Session) -> Result<Answer, Error> {
        self.request(Method::PUT, &key_path(key)?, Some(format!(r#"{{"value":{value}}}"#)), session).await
    }

    /// # Errors
    /// See [`Client::request`].
    pub async fn delete(&self, key: &str, session: &mut Session) -> Result<Answer, Error> {
        self.request(Method::DELETE, &key_path(key)?, None, session).await
    }

    /// A page of the keys that begin with `prefix`, in key order; the answer's `cursor` asks for the next.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn keys(
        &self,
        prefix: &str,
        limit: usize,
        cursor: Option<&str>,
        session: &mut Session,
    ) -> Result<Answer, Error> {
        let cursor = cursor.map(|cursor| format!("&cursor={}", encode(cursor))).unwrap_or_default();
        let path = format!("/kvs?prefix={}&limit={limit}{cursor}", encode(prefix));
        self.request(Method::GET, &path, None, session).await
    }

    /// `/ready`, `/status`, `/view`, `/shard/…`: a GET without a context.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn look(&self, path: &str) -> Result<Answer, Error> {
        self.request(Method::GET, path, None, &mut Session::default()).await
    }
}

/// The path of a key, percent-encoded.
///
/// # Errors
/// [`Error::NoUrl`].
pub fn key_path(key: &str) -> Result<String, Error> {
    if key == "." || key == ".." { Err(Error::NoUrl(key.to_owned())) } else { Ok(format!("/kvs/{}", encode(key))) }
}

/// Percent-encodes text for a path or a query.
pub fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Sends a request and reads the answer to its end. `Unreachable`: nothing was sent.
async fn answer(
    node: &str,
    request: reqwest::RequestBuilder,
    session: &mut Session,
    bytes_max: usize,
) -> Result<Answer, Error> {
    let failed = |error: reqwest::Error| match error {
        error if error.is_connect() => Error::Unreachable(node.to_owned()),
        error if error.is_timeout() => Error::TimedOut(node.to_owned()),
        error => Error::Broken(format!("{node}: {}", error.without_url())),
    };
    let response = request.send().await.map_err(failed)?;
    let status = response.status().as_u16();
    let metadata = response.headers().get(METADATA_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = body(response, bytes_max).await.map_err(failed)?;
    let body = body.ok_or_else(|| Error::Broken(format!("{node}: it is longer than {bytes_max} bytes")))?;
    if metadata.is_some() {
        session.metadata = metadata;
    }
    Ok(Answer { status, body, node: node.to_owned() })
}

/// Reads a body; `None` as soon as it is known to be longer than `bytes_max`.
async fn body(mut response: Response, bytes_max: usize) -> reqwest::Result<Option<Bytes>> {
    if response.content_length().is_some_and(|length| length > bytes_max as u64) {
        return Ok(None);
    }
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await? {
        if body.len() + part.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&part);
    }
    Ok(Some(body.into()))
}

#[cfg(test)]
mod tests;
