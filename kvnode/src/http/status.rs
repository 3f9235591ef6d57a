//! `GET /status`: the cluster as this node sees it.

use warp::Filter;
use warp::filters::BoxedFilter;

use super::filters::{Answered, Asked, no_body, on};
use super::reply::Reply;
use super::route::STATUS;

pub fn routes() -> BoxedFilter<(Answered,)> {
    on(&STATUS).and(no_body()).then(status).boxed()
}

async fn status(asked: Asked) -> Answered {
    Ok(Reply::ok(&asked.front().node.status()))
}
