//! One request, from where hyper hands it over to its answer.
//!
//! The shell: it looks the request up once, answers what takes the short path, and hands everything else to the filters.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Either;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::service::TowerToHyperService;

use super::accept::Caller;
use super::filters::Arrival;
use super::reply::Refusal;
use super::route::{self, Group, Matched, Work};
use super::{key, streams};

/// One request of a connection, and its answer.
pub async fn answer(
    caller: Arc<Caller>,
    request: Request<Incoming>,
) -> Response<impl Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>>> {
    let told = tracing::enabled!(tracing::Level::DEBUG).then(|| (request.method().clone(), request.uri().clone()));
    let looked_up = route::look_up(request.method(), request.uri().path());
    if looked_up.is_ok_and(|matched| matched.entry.work == Work::Change) {
        let (method, target) = (request.method(), request.uri());
        tracing::info!(client = %caller.source, %method, %target, "a change is asked for");
    }
    let response = match looked_up {
        Ok(matched) if matched.entry.group == Group::Key => {
            key::answer(&caller, matched, request).await.map(Either::Left)
        }
        Ok(matched) if matched.entry.group == Group::Peer => {
            streams::open(&caller, request).unwrap_or_else(Refusal::reply).into_full().map(Either::Left)
        }
        // Boxed: the state of the filters would else be a part of every request for a key.
        looked_up => Box::pin(filtered(&caller, looked_up, request)).await.map(Either::Right),
    };
    if let Some((method, target)) = told {
        let (route, status) = (looked_up.map_or("none", |matched| matched.entry.name), response.status().as_u16());
        tracing::debug!(%method, path = target.path(), route, source = %caller.source, status, "request");
    }
    caller.progress.answered();
    response
}

async fn filtered(
    caller: &Arc<Caller>,
    looked_up: Result<Matched, route::NoRoute>,
    mut request: Request<Incoming>,
) -> warp::reply::Response {
    let body_min = request.body().size_hint().lower();
    request.extensions_mut().insert(Arrival { caller: caller.clone(), looked_up, body_min });
    match TowerToHyperService::new(warp::service(caller.front.filters.clone())).call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
