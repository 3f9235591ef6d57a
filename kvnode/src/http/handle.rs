//! One request, from its parts to its answer.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use hyper::header::CONTENT_LENGTH;
use hyper::{HeaderMap, Method, Uri};
use serde_json::json;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::Front;
use super::admin::{self, ReshardQuery};
use super::body;
use super::conn::Progress;
use super::drill;
use super::fields::{self, Fields};
use super::gate::Lease;
use super::query;
use super::reply::{Refusal, Reply};
use super::route::Route;
use crate::core::request::Op;
use crate::wire::ident::ShardId;

/// What the connection adds to a request: the target as it came (warp's own filters lose or reject parts of it), and where
/// the connection's guard learns how far the request is.
#[derive(Clone)]
pub struct Arrival {
    pub target: Uri,
    pub progress: Arc<Progress>,
}

struct Parts {
    method: Method,
    arrival: Arrival,
    headers: HeaderMap,
}

/// The one filter: it takes requests apart and never rejects.
pub fn filter(front: Arc<Front>) -> BoxedFilter<(warp::reply::Response,)> {
    warp::method()
        .and(warp::ext::get::<Arrival>())
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |method, arrival, headers, body| {
            let front = front.clone();
            async move { answer(&front, &Parts { method, arrival, headers }, body).await }
        })
        .boxed()
}

async fn answer<B: Buf, E>(
    front: &Front,
    parts: &Parts,
    body: impl Stream<Item = Result<B, E>> + Send,
) -> warp::reply::Response {
    let reply = respond(front, parts, body).await.unwrap_or_else(Refusal::reply);
    tracing::debug!(method = %parts.method, path = parts.arrival.target.path(), status = reply.status.as_u16(), "request");
    parts.arrival.progress.answered();
    reply.into_response()
}

/// Checks in the order of the contract: route, body, key, value, causal metadata, dependencies (the node's).
async fn respond<B: Buf, E>(
    front: &Front,
    parts: &Parts,
    body: impl Stream<Item = Result<B, E>> + Send,
) -> Result<Reply, Refusal> {
    let route = Route::of(parts.arrival.target.path()).ok_or(Refusal::UnknownPath)?;
    if !route.methods().contains(&parts.method) {
        return Err(Refusal::WrongMethod(route.methods()));
    }
    let ticket = if route.is_data() { Some(front.gate.enter().ok_or(Refusal::Stopping)?) } else { None };
    let (max, budget) = match route {
        Route::Peer => (front.limits.max_peer_body, &front.peer_bodies),
        _ => (front.limits.max_body, &front.client_bodies),
    };
    let mut lease = budget.lease();
    let declared = parts.headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let body = body::read(body, declared, max, &front.limits, &mut lease).await?;
    parts.arrival.progress.body_is_read();
    let reply = dispatch(front, parts, route, body).await?;
    drop(ticket);
    hold(reply, lease, &parts.method)
}

/// Answers below this size are not counted: connections are, and that bounds them.
const SMALL_ANSWER: usize = 4 << 10;

/// Counts a large answer until it is taken: clients that read slowly must not fill the memory. Only a read can be turned
/// away at this point; what has been done is answered whatever it costs.
fn hold(reply: Reply, mut lease: Lease, method: &Method) -> Result<Reply, Refusal> {
    let size = reply.body.len();
    if size < SMALL_ANSWER || !matches!(*method, Method::GET | Method::HEAD) {
        return Ok(reply);
    }
    if !lease.grow(size) {
        return Err(Refusal::Busy { what: "answers that clients have not taken".to_owned() });
    }
    Ok(reply.held_by(lease))
}

async fn dispatch(front: &Front, parts: &Parts, route: Route<'_>, body: Bytes) -> Result<Reply, Refusal> {
    let node = &front.node;
    match route {
        Route::Key(raw) => on_key(front, parts, raw, &body).await,
        Route::Keys => {
            let fields = Fields::of(&body)?;
            let op = query::list(parts.arrival.target.query().unwrap_or(""))?;
            Ok(Reply::of(node.request(op, fields.tokens(&parts.headers)?).await))
        }
        Route::KeyCount(raw) => key_count(front, raw).await,
        Route::View if matches!(parts.method, Method::PUT | Method::DELETE) => {
            admin::change_view(front, &parts.method, &body).await
        }
        Route::Recover => admin::recover(front, &body).await,
        Route::AddMember(raw) => admin::add_member(front, shard(front, raw).ok(), &body).await,
        Route::Reshard => match parts.method {
            Method::PUT => {
                let query = ReshardQuery::of(parts.arrival.target.query().unwrap_or(""))?;
                admin::reshard(front, query, &body).await
            }
            Method::DELETE => admin::abort(front).await,
            _ => Ok(Reply::ok(&node.change()?)),
        },
        Route::View => Ok(Reply::ok(&json!({ "view": node.view() }))),
        Route::ShardIds => {
            let ids: Vec<String> = node.shard_ids()?.iter().map(ShardId::to_string).collect();
            Ok(Reply::ok(&json!({ "shard-ids": ids })))
        }
        Route::NodeShardId => {
            let id = node.own_shard()?.map(|id| id.to_string());
            Ok(Reply::ok(&json!({ "node-shard-id": id })))
        }
        Route::ShardMembers(raw) => {
            let members = node.shard_members(shard(front, raw)?)?.ok_or(Refusal::NoSuchShard)?;
            Ok(Reply::ok(&json!({ "shard-members": members })))
        }
        Route::Drill => drill::handle(node, &parts.method, &body),
        Route::Health => Ok(Reply::ok(&json!({ "status": "ok" }))),
        Route::Ready => ready(front),
        Route::Status => Ok(Reply::ok(&node.status())),
        Route::Metrics => Ok(Reply::bytes("text/plain; version=0.0.4; charset=utf-8", node.metrics().into_bytes())),
        Route::Peer => match node.peer_batch(&parts.headers, body).await {
            Ok((proof, answer)) => Ok(Reply::bytes("application/octet-stream", answer.into()).with(proof)),
            Err((status, why)) => Err(Refusal::Peer(status, why)),
        },
    }
}

async fn on_key(front: &Front, parts: &Parts, raw: &str, body: &[u8]) -> Result<Reply, Refusal> {
    let fields = Fields::of(body)?;
    let key = fields::key(raw, front.limits.max_key_chars)?;
    let op = match parts.method {
        Method::PUT => Op::Put { key, value: fields.value()? },
        Method::DELETE => Op::Delete { key },
        _ => Op::Get { key },
    };
    let tokens = fields.tokens(&parts.headers)?;
    Ok(Reply::of(front.node.request(op, tokens).await))
}

async fn key_count(front: &Front, raw: &str) -> Result<Reply, Refusal> {
    let shard = shard(front, raw)?;
    Ok(Reply::of(front.node.request(Op::KeyCount { shard }, Vec::new()).await))
}

/// The shard that a path names. A node that knows no layout yet can't say that there is no such shard.
fn shard(front: &Front, raw: &str) -> Result<ShardId, Refusal> {
    let known = front.node.shard_ids()?;
    let id = fields::decoded(raw).ok().and_then(|text| text.parse::<ShardId>().ok());
    id.filter(|id| known.contains(id)).ok_or(Refusal::NoSuchShard)
}

fn ready(front: &Front) -> Result<Reply, Refusal> {
    if front.gate.is_closed() {
        return Err(Refusal::Stopping);
    }
    front.node.ready()?;
    Ok(Reply::ok(&json!({ "status": "ready" })))
}
