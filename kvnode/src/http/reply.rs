//! Every answer that leaves the node: the literals and fields of the contract, and the one table from what went wrong to a
//! status.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE};
use hyper::{Method, Response, StatusCode};
use kvnode_core::request::{Answer, Missing};
use kvnode_types::METADATA_HEADER;
use kvnode_types::ident::Dot;
use serde_json::{Value, json};

use super::gate::Lease;
use super::query;
use super::route::{self, NoRoute};
use crate::link::auth;
use crate::node::NotReady;

const METADATA: HeaderName = HeaderName::from_static(METADATA_HEADER);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const CLOSE: (HeaderName, HeaderValue) = (CONNECTION, HeaderValue::from_static("close"));
const COME_BACK: (HeaderName, HeaderValue) = (RETRY_AFTER, HeaderValue::from_static("1"));

/// An answer before it becomes hyper's.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    content_type: Option<HeaderValue>,
    headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Vec<u8>,
    /// The body's part of a bound on bytes in memory, given back once the client has taken it.
    lease: Option<Lease>,
}

/// A body and its lease, dropped together.
struct Leased(Vec<u8>, #[expect(dead_code, reason = "held to be dropped")] Lease);

impl AsRef<[u8]> for Leased {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Why a request is turned away before the node is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    UnknownPath,
    /// The methods that the path has.
    WrongMethod(Vec<&'static Method>),
    BodyTooLarge {
        max: usize,
    },
    BodyStalled,
    BodyBroken,
    /// Bodies of other requests take up all the memory there is for them.
    NoRoomForBody,
    BadBody(String),
    BadKey(&'static str),
    KeyTooLong,
    NoValue,
    MalformedMetadata,
    BadQuery(&'static str),
    NoSuchShard,
    NoSuchReplica,
    NotEnoughNodes,
    /// The state of the cluster does not allow it.
    Conflict(String),
    Busy {
        what: String,
    },
    NotReady(String),
    Stopping,
    /// A fault that can't be injected here.
    Drill(StatusCode, String),
    /// The connection was not asked to become this stream.
    NoStream(String),
    /// A node that does not prove the cluster's secret.
    Unproven,
    /// A fault of this program, told in its log.
    Internal,
}

impl warp::reject::Reject for Refusal {}

impl From<NoRoute> for Refusal {
    fn from(none: NoRoute) -> Self {
        match none {
            NoRoute::Path => Self::UnknownPath,
            NoRoute::Method(pattern) => Self::WrongMethod(route::methods_of(pattern).collect()),
        }
    }
}

impl From<NotReady> for Refusal {
    fn from(not_ready: NotReady) -> Self {
        Self::NotReady(not_ready.0)
    }
}

impl Reply {
    pub fn json(status: StatusCode, body: &Value) -> Self {
        Self { status, content_type: Some(JSON), headers: Vec::new(), body: body.to_string().into_bytes(), lease: None }
    }

    pub fn ok(body: &Value) -> Self {
        Self::json(StatusCode::OK, body)
    }

    pub fn bytes(content_type: &'static str, body: Vec<u8>) -> Self {
        let content_type = Some(HeaderValue::from_static(content_type));
        Self { status: StatusCode::OK, content_type, headers: Vec::new(), body, lease: None }
    }

    /// No more than a status, and headers.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, content_type: None, headers: Vec::new(), body: Vec::new(), lease: None }
    }

    fn error(status: StatusCode, error: &str) -> Self {
        Self::json(status, &json!({ "error": error }))
    }

    pub fn with(mut self, header: (HeaderName, HeaderValue)) -> Self {
        self.headers.push(header);
        self
    }

    /// An object of `fields`, which are whole JSON members, with the causal metadata as its last member and as a header.
    fn causal(status: StatusCode, fields: &[&[u8]], token: &str) -> Self {
        let mut body = Vec::with_capacity(fields.iter().map(|f| f.len()).sum::<usize>() + token.len() + 32);
        body.push(b'{');
        for field in fields {
            body.extend_from_slice(field);
        }
        // A token is base64: nothing in it needs an escape.
        body.extend_from_slice(b",\"causal-metadata\":\"");
        body.extend_from_slice(token.as_bytes());
        body.extend_from_slice(b"\"}");
        let reply = Self { status, content_type: Some(JSON), headers: Vec::new(), body, lease: None };
        match HeaderValue::from_str(token) {
            Ok(value) => reply.with((METADATA, value)),
            Err(_) => reply,
        }
    }

    fn written(status: StatusCode, result: &str, replicas: u32, tombstone: Option<Dot>, token: &str) -> Self {
        let fields = format!(r#""result":"{result}","replicas":{replicas}{}"#, tombstone_member(tombstone));
        Self::causal(status, &[fields.as_bytes()], token)
    }

    /// The node's answer to a data request.
    pub fn of(answer: Answer<String>) -> Self {
        match answer {
            Answer::Found { value, context } => {
                Self::causal(StatusCode::OK, &[br#""result":"found","value":"#, &value], &context)
            }
            Answer::NotFound { context, tombstone } => {
                let fields = format!(r#""error":"Key does not exist"{}"#, tombstone_member(tombstone));
                Self::causal(StatusCode::NOT_FOUND, &[fields.as_bytes()], &context)
            }
            Answer::Created { context, replicas } => {
                Self::written(StatusCode::CREATED, "created", replicas, None, &context)
            }
            Answer::Replaced { context, replicas } => {
                Self::written(StatusCode::OK, "replaced", replicas, None, &context)
            }
            Answer::Deleted { context, replicas, tombstone } => {
                Self::written(StatusCode::OK, "deleted", replicas, Some(tombstone), &context)
            }
            Answer::Keys { keys, next, context } => {
                let keys = json!(keys.iter().map(|key| &**key).collect::<Vec<&str>>());
                let cursor = json!(next.as_ref().map(query::cursor));
                let fields = format!(r#""keys":{keys},"cursor":{cursor}"#);
                Self::causal(StatusCode::OK, &[fields.as_bytes()], &context)
            }
            Answer::Count(count) => Self::ok(&json!({ "shard-key-count": count })),
            Answer::Malformed => Refusal::MalformedMetadata.reply(),
            Answer::NoSuchShard => Refusal::NoSuchShard.reply(),
            Answer::Busy { what } => Refusal::Busy { what }.reply(),
            Answer::NotReady { reason } => Refusal::NotReady(reason).reply(),
            Answer::Unsatisfied { missing } => Self::unsatisfied(&missing),
            Answer::NoReplica { shard } => {
                let error = format!("No replica of shard {shard} is reachable");
                Self::error(StatusCode::SERVICE_UNAVAILABLE, &error).with(COME_BACK)
            }
            Answer::OutcomeUnknown => Self::outcome_unknown(),
            Answer::Full { reason } => Self::error(StatusCode::INSUFFICIENT_STORAGE, &reason),
        }
    }

    /// Without `Retry-After`: a client that follows it blindly would write twice.
    fn outcome_unknown() -> Self {
        let error = "The write was passed on and not confirmed; it may or may not take effect";
        Self::json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": error, "outcome": "unknown" }))
    }

    fn unsatisfied(missing: &[Missing]) -> Self {
        let describe = |m: &Missing| json!({ "writer": m.writer, "from": m.from, "to": m.to, "held_by": m.held_by });
        let body = json!({
            "error": "Causal dependencies not satisfied; try again later",
            "missing": missing.iter().map(describe).collect::<Vec<_>>(),
        });
        Self::json(StatusCode::SERVICE_UNAVAILABLE, &body).with(COME_BACK)
    }

    /// Counts the body in `lease` until the client has taken it.
    pub fn held_by(mut self, lease: Lease) -> Self {
        self.lease = Some(lease);
        self
    }

    /// For the short path: the body as one piece.
    pub fn into_full(self) -> Response<Full<Bytes>> {
        self.into_response_of()
    }

    fn into_response_of<B: From<Bytes>>(self) -> Response<B> {
        let body = match self.lease {
            Some(lease) => Bytes::from_owner(Leased(self.body, lease)),
            None => Bytes::from(self.body),
        };
        let mut response = Response::new(B::from(body));
        *response.status_mut() = self.status;
        if let Some(content_type) = self.content_type {
            response.headers_mut().insert(CONTENT_TYPE, content_type);
        }
        for (name, value) in self.headers {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl warp::Reply for Reply {
    fn into_response(self) -> warp::reply::Response {
        self.into_response_of()
    }
}

impl Refusal {
    /// The one place where errors become statuses.
    pub fn reply(self) -> Reply {
        let bad = |error: &str| Reply::error(StatusCode::BAD_REQUEST, error);
        match self {
            Self::UnknownPath => Reply::error(StatusCode::NOT_FOUND, "No such path"),
            Self::WrongMethod(allowed) => {
                let allow: Vec<&str> = allowed.into_iter().map(Method::as_str).collect();
                let allow = HeaderValue::from_str(&allow.join(", ")).expect("method names are header text");
                Reply::error(StatusCode::METHOD_NOT_ALLOWED, "The path does not have this method").with((ALLOW, allow))
            }
            Self::BodyTooLarge { max } => {
                // What is left of it is not read.
                Reply::error(StatusCode::PAYLOAD_TOO_LARGE, &format!("The body is larger than {max} bytes")).with(CLOSE)
            }
            Self::NoRoomForBody => Self::Busy { what: "request bodies".to_owned() }.reply().with(CLOSE),
            Self::BodyStalled => {
                Reply::error(StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time").with(CLOSE)
            }
            Self::BodyBroken => bad("The body ended early or is encoded wrongly").with(CLOSE),
            Self::BadBody(why) => bad(&format!("Malformed body: {why}")),
            Self::BadKey(why) => bad(&format!("Malformed key: {why}")),
            Self::KeyTooLong => bad("Key is too long"),
            Self::NoValue => bad("PUT request does not specify a value"),
            Self::MalformedMetadata => bad("Malformed causal-metadata"),
            Self::BadQuery(why) => bad(&format!("Malformed query: {why}")),
            Self::NoSuchShard => Reply::error(StatusCode::NOT_FOUND, "Shard ID not found"),
            Self::NoSuchReplica => Reply::error(StatusCode::NOT_FOUND, "View has no such replica"),
            Self::NotEnoughNodes => bad("Not enough nodes to provide fault tolerance with requested shard count"),
            Self::Conflict(why) => Reply::error(StatusCode::CONFLICT, &why),
            Self::Busy { what } => {
                Reply::error(StatusCode::SERVICE_UNAVAILABLE, &format!("Too much waiting already: {what}"))
                    .with(COME_BACK)
            }
            Self::NotReady(reason) => Reply::error(StatusCode::SERVICE_UNAVAILABLE, &reason).with(COME_BACK),
            Self::Stopping => {
                let reply = Reply::error(StatusCode::SERVICE_UNAVAILABLE, "This node is shutting down");
                reply.with(COME_BACK).with(CLOSE)
            }
            Self::Drill(status, error) => Reply::error(status, &error),
            Self::NoStream(protocol) => {
                let error = format!("Nodes talk here: this one speaks {protocol}, and nothing else");
                let protocol = HeaderValue::from_str(&protocol).expect("a name and a number are text");
                Reply::error(StatusCode::UPGRADE_REQUIRED, &error).with((UPGRADE, protocol))
            }
            Self::Internal => {
                Reply::error(StatusCode::INTERNAL_SERVER_ERROR, "This node can't answer that; its log says why")
            }
            Self::Unproven => Reply::error(auth::REFUSED, "This cluster's secret was not proven"),
        }
    }
}

/// A further member that names the deletion made or seen; nothing where there is none.
fn tombstone_member(tombstone: Option<Dot>) -> String {
    tombstone.map_or_else(String::new, |dot| format!(r#","tombstone":"{dot}""#))
}

/// A whole answer as bytes, for connections that have no request to answer.
pub fn canned(status: StatusCode, error: &str) -> Vec<u8> {
    canned_json(status, &json!({ "error": error }))
}

/// The same with any body.
pub fn canned_json(status: StatusCode, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let retry = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    let head =
        format!("content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n{retry}", body.len());
    format!("HTTP/1.1 {status}\r\n{head}\r\n{body}").into_bytes()
}

#[cfg(test)]
mod tests;
