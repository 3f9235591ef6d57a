//! `/kvs/<key>`: one key is read, written or deleted.
//!
//! These requests go past the filters. A pass through them costs 1.2 us, a seventh of what a GET of a key takes in all where requests come
//! many at a time (ARCHITECTURE.md, "What the filters cost"), and nearly every request is one of these.

use std::any::Any;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::{Method, Request, Response};
use kvnode_core::request::Op;

use super::accept::Caller;
use super::fields::{self, Fields};
use super::filters::{Answered, Counted, counted, hold};
use super::gate::Gate;
use super::reply::{Refusal, Reply};
use super::route::Matched;

/// Answers a request that was looked up as one for a key.
pub async fn answer(caller: &Caller, matched: Matched, request: Request<Incoming>) -> Response<Full<Bytes>> {
    respond(caller, matched, request).await.unwrap_or_else(Refusal::reply).into_full()
}

/// Checks in the order of the contract: route (done), body, key, value, causal metadata, dependencies (the node's).
async fn respond(caller: &Caller, matched: Matched, request: Request<Incoming>) -> Answered {
    let front = &*caller.front;
    let ticket = Gate::enter(&*front.gate).ok_or(Refusal::Stopping)?;
    let (head, incoming) = request.into_parts();
    let body_min = incoming.size_hint().lower();
    let Counted(body, lease) = counted(caller, incoming, body_min).await?;
    let fields = Fields::of(&body)?;
    let key = fields::key(matched.parameter(head.uri.path()), front.limits.max_key_chars)?;
    let op = match head.method {
        Method::PUT => Op::Put { key, value: fields.value()? },
        Method::DELETE => Op::Delete { key },
        _ => Op::Get { key },
    };
    let tokens = fields.tokens(&head.headers)?;
    // What is kept of the body is a copy: the body goes before the node is asked, its lease once the node has answered.
    drop(body);
    let held = lease.is_large().then(|| Box::new(lease) as Box<dyn Any + Send>);
    let reply = Reply::of(front.node.request_holding(op, tokens, held).await);
    drop(ticket);
    hold(reply, front, &head.method)
}
