//! A client of the HTTP contract: what `kvctl` uses, and other Rust programs can.
//!
//! [`Client`] knows several nodes, any of which can answer anything. It goes on to the next node when nobody listens at one;
//! it sends nothing a second time that may have arrived. [`Session`] carries the causal context from answer to request.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The header that carries the causal context.
pub const METADATA_HEADER: &str = "x-causal-metadata";
/// Longer than any wait that a node itself allows by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

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
    /// The connection broke, or what came is no HTTP; a write may have been done.
    Broken(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(what) => write!(f, "no node can be reached: {what}"),
            Self::TimedOut(what) => write!(f, "no answer within {ANSWER_TIMEOUT:?} from {what}"),
            Self::Broken(what) => write!(f, "the connection broke: {what}"),
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

    /// What the node says is wrong.
    pub fn error(&self) -> String {
        let json = self.json();
        let told = json.get("error").and_then(serde_json::Value::as_str);
        told.map_or_else(|| format!("status {}", self.status), str::to_owned)
    }
}

/// Talks to the nodes of one cluster.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    /// `HOST:PORT`, in the order in which they are tried.
    nodes: Vec<String>,
}

impl Client {
    /// # Panics
    /// If the HTTP client can't be built, which nothing in its settings allows.
    pub fn new(nodes: Vec<String>) -> Self {
        let builder = reqwest::Client::builder().no_proxy().tcp_nodelay(true);
        let http = builder.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT).build();
        Self { http: http.expect("plain HTTP needs nothing that can be missing"), nodes }
    }

    /// Sends a request to the first node that listens. The session's context goes along and is replaced by the answer's.
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
        let mut refused = Vec::new();
        for node in &self.nodes {
            let mut request = self.http.request(method.clone(), format!("http://{node}{path}"));
            if let Some(metadata) = &session.metadata {
                request = request.header(METADATA_HEADER, metadata);
            }
            if let Some(body) = &body {
                request = request.header("content-type", "application/json").body(body.clone());
            }
            match request.send().await {
                Ok(response) => return read(node, response, session).await,
                Err(error) if error.is_connect() => refused.push(node.as_str()),
                Err(error) if error.is_timeout() => return Err(Error::TimedOut(node.clone())),
                Err(error) => return Err(Error::Broken(format!("{node}: {}", error.without_url()))),
            }
        }
        Err(Error::Unreachable(refused.join(", ")))
    }

    /// # Errors
    /// See [`Client::request`].
    pub async fn get(&self, key: &str, session: &mut Session) -> Result<Answer, Error> {
        self.request(Method::GET, &key_path(key), None, session).await
    }

    /// `value`: JSON text.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn put(&self, key: &str, value: &RawValue, session: &mut Session) -> Result<Answer, Error> {
        self.request(Method::PUT, &key_path(key), Some(format!(r#"{{"value":{value}}}"#)), session).await
    }

    /// # Errors
    /// See [`Client::request`].
    pub async fn delete(&self, key: &str, session: &mut Session) -> Result<Answer, Error> {
        self.request(Method::DELETE, &key_path(key), None, session).await
    }

    /// A request without a context.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn look(&self, path: &str) -> Result<Answer, Error> {
        self.request(Method::GET, path, None, &mut Session::default()).await
    }
}

/// The path of a key, percent-encoded.
pub fn key_path(key: &str) -> String {
    format!("/kvs/{}", encode(key))
}

/// Percent-encodes text for a path or a query.
pub fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

async fn read(node: &str, response: reqwest::Response, session: &mut Session) -> Result<Answer, Error> {
    let status = response.status().as_u16();
    let metadata = response.headers().get(METADATA_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let broken = |error: reqwest::Error| Error::Broken(format!("{node}: {}", error.without_url()));
    let body = response.bytes().await.map_err(broken)?;
    if metadata.is_some() {
        session.metadata = metadata;
    }
    Ok(Answer { status, body, node: node.to_owned() })
}
