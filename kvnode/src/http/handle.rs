//! One request, from its parts to its answer.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::{HeaderMap, Method, Request, Response, Uri};
use serde_json::json;

use super::accept::Caller;
use super::admin::{self, ReshardQuery};
use super::fields::{self, Fields};
use super::gate::{Lease, SMALL};
use super::reply::{Refusal, Reply};
use super::route::Route;
use super::{Front, body, drill, query, streams};
use crate::core::request::Op;
use crate::wire::ident::ShardId;

/// A request without its body.
struct Parts {
    method: Method,
    target: Uri,
    headers: HeaderMap,
}

/// One request of a connection, and its answer.
pub async fn answer(caller: &Arc<Caller>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let told = tracing::enabled!(tracing::Level::DEBUG).then(|| (request.method().clone(), request.uri().clone()));
    let reply = respond(caller, request).await.unwrap_or_else(Refusal::reply);
    if let Some((method, target)) = told {
        tracing::debug!(%method, path = target.path(), status = reply.status.as_u16(), "request");
    }
    caller.progress.answered();
    reply.into_response()
}

/// Checks in the order of the contract: route, body, key, value, causal metadata, dependencies (the node's).
async fn respond(caller: &Arc<Caller>, mut request: Request<Incoming>) -> Result<Reply, Refusal> {
    let front = &*caller.front;
    let route = Route::of(request.uri().path()).ok_or(Refusal::UnknownPath)?;
    if !route.methods().contains(request.method()) {
        return Err(Refusal::WrongMethod(route.methods()));
    }
    if matches!(route, Route::Peer) {
        return streams::open(caller, &mut request);
    }
    let ticket = if route.is_data() { Some(front.gate.enter().ok_or(Refusal::Stopping)?) } else { None };
    let mut lease = front.client_bodies.lease();
    let (head, incoming) = request.into_parts();
    let body = if incoming.is_end_stream() {
        Bytes::new()
    } else {
        body::read(incoming, front.limits.max_body, &front.limits, &mut lease).await?
    };
    caller.progress.body_is_read();
    let parts = Parts { method: head.method, target: head.uri, headers: head.headers };
    let route = Route::of(parts.target.path()).ok_or(Refusal::UnknownPath)?;
    let reply = dispatch(front, &parts, route, Counted(body, lease)).await?;
    drop(ticket);
    hold(reply, front.client_bodies.lease(), &parts.method)
}

/// A body, and what counts its bytes. What is kept of it is a copy: the body goes before the node is asked, its lease once the node
/// has answered.
struct Counted(Bytes, Lease);

/// Counts a large answer until it is taken: clients that read slowly must not fill the memory. Only a read can be turned
/// away at this point; what has been done is answered whatever it costs.
fn hold(reply: Reply, mut lease: Lease, method: &Method) -> Result<Reply, Refusal> {
    let size = reply.body.len();
    if size < SMALL || !matches!(*method, Method::GET | Method::HEAD) {
        return Ok(reply);
    }
    if !lease.grow(size) {
        return Err(Refusal::Busy { what: "answers that clients have not taken".to_owned() });
    }
    Ok(reply.held_by(lease))
}

async fn dispatch(front: &Front, parts: &Parts, route: Route<'_>, body: Counted) -> Result<Reply, Refusal> {
    let node = &front.node;
    if let Route::Key(raw) = route {
        return on_key(front, parts, raw, body).await;
    }
    let Counted(body, _lease) = body;
    match route {
        Route::Keys => {
            let fields = Fields::of(&body)?;
            let op = query::list(parts.target.query().unwrap_or(""))?;
            Ok(Reply::of(node.request(op, fields.tokens(&parts.headers)?).await))
        }
        Route::KeyCount(raw) => key_count(front, raw).await,
        Route::View if matches!(parts.method, Method::PUT | Method::DELETE) => {
            admin::change_view(front, &parts.method, &body).await
        }
        Route::Recover => admin::recover(front, &body).await,
        Route::AddMember(raw) => admin::add_member(front, shard(front, raw), &body).await,
        Route::Reshard => match parts.method {
            Method::PUT => {
                let query = ReshardQuery::of(parts.target.query().unwrap_or(""))?;
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
        // The one was answered before its body was read, the other above.
        Route::Peer | Route::Key(_) => Err(Refusal::UnknownPath),
    }
}

async fn on_key(front: &Front, parts: &Parts, raw: &str, body: Counted) -> Result<Reply, Refusal> {
    let Counted(body, lease) = body;
    let fields = Fields::of(&body)?;
    let key = fields::key(raw, front.limits.max_key_chars)?;
    let op = match parts.method {
        Method::PUT => Op::Put { key, value: fields.value()? },
        Method::DELETE => Op::Delete { key },
        _ => Op::Get { key },
    };
    let tokens = fields.tokens(&parts.headers)?;
    drop(body);
    let held = lease.is_large().then(|| Box::new(lease) as Box<dyn Any + Send>);
    Ok(Reply::of(front.node.request_holding(op, tokens, held).await))
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
