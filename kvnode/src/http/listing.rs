//! `GET /kvs`: the keys of the whole store, a page at a time.

use hyper::HeaderMap;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::fields::Fields;
use super::filters::{Answered, Asked, Counted, body, on, query};
use super::query;
use super::reply::Reply;
use super::route::KEYS;

pub fn routes() -> BoxedFilter<(Answered,)> {
    on(&KEYS).and(query()).and(warp::header::headers_cloned()).and(body()).then(page).boxed()
}

async fn page(asked: Asked, question: String, headers: HeaderMap, Counted(body, _lease): Counted) -> Answered {
    let fields = Fields::of(&body)?;
    let op = query::list(&question)?;
    Ok(Reply::of(asked.front().node.request(op, fields.tokens(&headers)?).await))
}
