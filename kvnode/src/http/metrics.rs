//! `GET /metrics`: Prometheus text.

use warp::Filter;
use warp::filters::BoxedFilter;

use super::filters::{Answered, Asked, no_body, on};
use super::reply::Reply;
use super::route::METRICS;

pub fn routes() -> BoxedFilter<(Answered,)> {
    on(&METRICS).and(no_body()).then(metrics).boxed()
}

async fn metrics(asked: Asked) -> Answered {
    let text = asked.front().node.metrics();
    Ok(Reply::bytes("text/plain; version=0.0.4; charset=utf-8", text.into_bytes()))
}
