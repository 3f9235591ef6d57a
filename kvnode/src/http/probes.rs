//! `GET /health` and `GET /ready`: what whoever runs the process asks of it.

use serde_json::json;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::filters::{Answered, Asked, no_body, on};
use super::reply::{Refusal, Reply};
use super::route::{HEALTH, READY};

pub fn routes() -> BoxedFilter<(Answered,)> {
    let health = on(&HEALTH).and(no_body()).then(health);
    let ready = on(&READY).and(no_body()).then(ready);
    health.or(ready).unify().boxed()
}

async fn health(_: Asked) -> Answered {
    Ok(Reply::ok(&json!({ "status": "ok" })))
}

async fn ready(asked: Asked) -> Answered {
    let front = asked.front();
    if front.gate.is_closed() {
        return Err(Refusal::Stopping);
    }
    front.node.ready()?;
    Ok(Reply::ok(&json!({ "status": "ready" })))
}
