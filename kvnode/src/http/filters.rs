//! The filters that every route is made of, and the root that holds all groups together.
//!
//! The shell ([`super::handle`]) has looked a request up before it comes here, and has put what it knows into the request's
//! extensions ([`Arrival`]). A route is its entry in the table and one line in the file of its group:
//!
//! ```text
//! on(&VIEW_PUT).and(body()).then(put)
//! ```
//!
//! where `on` lets through what was looked up as that entry, [`body`] reads the body within its bounds, and the handler gives a
//! [`Reply`] or a [`Refusal`]. Every other `on` says *not found*, which warp takes for "try the next one". A refusal becomes warp's
//! rejection at the root, and an answer in [`refused`], so a handler knows nothing of either.
//!
//! Not used of warp, because the contract says otherwise: `path!` and `end()` (they take `/view/` for `/view`), its rejections of
//! methods (without `Allow`), `body::bytes` and `body::json` (without a bound).

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures_util::{Stream, TryStreamExt};
use http_body_util::StreamBody;
use hyper::Method;
use hyper::body::{Body, Frame};
use warp::filters::BoxedFilter;
use warp::filters::path::FullPath;
use warp::{Filter, Rejection, ext, reject};

use super::accept::Caller;
use super::gate::{Gate, Lease, SMALL, Ticket};
use super::reply::{Refusal, Reply};
use super::route::{Entry, Group, Matched, NoRoute, Work};
use super::{Front, body, drill, listing, metrics, probes, shard, status, view};

/// What the shell knows of a request before any filter runs.
#[derive(Clone)]
pub struct Arrival {
    pub caller: Arc<Caller>,
    pub looked_up: Result<Matched, NoRoute>,
    /// Bytes that the body has at least: all of them where its length was said.
    pub body_min: u64,
}

/// What a handler gives back.
pub type Answered = Result<Reply, Refusal>;

/// A request that a route has let through, as its handler gets it.
pub struct Asked {
    caller: Arc<Caller>,
    matched: Matched,
    path: FullPath,
    /// Keeps the node from stopping until the request is answered.
    _ticket: Option<Ticket<Arc<Gate>>>,
}

impl Asked {
    pub fn front(&self) -> &Front {
        &self.caller.front
    }

    /// The rest of the path, still percent-encoded.
    pub fn parameter(&self) -> &str {
        self.matched.parameter(self.path.as_str())
    }
}

/// A body, and what counts its bytes as long as it is kept.
pub struct Counted(pub Bytes, pub Lease);

fn arrival() -> impl Filter<Extract = (Arrival,), Error = Rejection> + Copy {
    ext::get::<Arrival>()
}

/// Turns away what is for no path, or for a method that its path does not have.
fn admit() -> impl Filter<Extract = (), Error = Rejection> + Copy {
    let looked_up =
        |arrival: Arrival| ready(arrival.looked_up.map(drop).map_err(|none| reject::custom(Refusal::from(none))));
    arrival().and_then(looked_up).untuple_one()
}

/// Lets the requests of one group through, so that the others' routes need not be asked one by one.
fn group(group: Group) -> impl Filter<Extract = (), Error = Rejection> + Copy {
    let is_in = move |arrival: Arrival| {
        let is_in = arrival.looked_up.is_ok_and(|matched| matched.entry.group == group);
        ready(if is_in { Ok(()) } else { Err(reject::not_found()) })
    };
    arrival().and_then(is_in).untuple_one()
}

/// Lets the requests of one entry through; those that work on data only while the node is not stopping.
pub fn on(entry: &'static Entry) -> impl Filter<Extract = (Asked,), Error = Rejection> + Copy {
    let let_through = move |arrival: Arrival, path: FullPath| {
        let matched = arrival.looked_up.ok().filter(|matched| matched.is(entry));
        ready(matched.ok_or_else(reject::not_found).and_then(|matched| {
            let caller = arrival.caller;
            let ticket = match entry.work {
                Work::Data => Some(Gate::enter(caller.front.gate.clone()).ok_or(Refusal::Stopping)?),
                Work::Change | Work::Other => None,
            };
            Ok(Asked { caller, matched, path, _ticket: ticket })
        }))
    };
    arrival().and(warp::path::full()).and_then(let_through)
}

/// The request's body, read within the bounds.
pub fn body() -> impl Filter<Extract = (Counted,), Error = Rejection> + Copy {
    arrival().and(warp::body::stream().map(framed)).and_then(|arrival: Arrival, body| async move {
        counted(&arrival.caller, body, arrival.body_min).await.map_err(Rejection::from)
    })
}

/// warp hands over a body as a stream of its pieces only.
fn framed(pieces: impl Stream<Item = Result<impl Buf, warp::Error>>) -> impl Body<Data = Bytes, Error = warp::Error> {
    StreamBody::new(pieces.map_ok(|mut piece| Frame::data(piece.copy_to_bytes(piece.remaining()))))
}

/// Reads the body of a request that has no use for one: within the bounds, and for nothing.
pub fn no_body() -> impl Filter<Extract = (), Error = Rejection> + Copy {
    body().map(drop).untuple_one()
}

/// What follows `?`; empty where nothing does.
pub fn query() -> impl Filter<Extract = (String,), Error = Infallible> + Copy {
    warp::query::raw().or(warp::any().map(String::new)).unify()
}

/// Reads a body for short path and filters alike.
pub async fn counted<B>(caller: &Caller, incoming: B, body_min: u64) -> Result<Counted, Refusal>
where
    B: Body<Data = Bytes>,
{
    let front = &caller.front;
    let mut lease = front.client_bodies.lease();
    let body = body::read(incoming, body_min, front.limits.max_body, &front.limits, &mut lease).await?;
    caller.progress.body_is_read();
    Ok(Counted(body, lease))
}

/// Counts a large answer until it is taken: clients that read slowly must not fill the memory. Only a read can be turned
/// away at this point; what has been done is answered whatever it costs.
pub fn hold(reply: Reply, front: &Front, method: &Method) -> Answered {
    let size = reply.body.len();
    if size < SMALL || !matches!(*method, Method::GET | Method::HEAD) {
        return Ok(reply);
    }
    let mut lease = front.client_bodies.lease();
    if !lease.grow(size) {
        return Err(Refusal::Busy { what: "answers that clients have not taken".to_owned() });
    }
    Ok(reply.held_by(lease))
}

/// Everything that the filters answer. `warp::service` makes a service of it.
pub type Root = BoxedFilter<(Reply,)>;

pub fn root() -> Root {
    let groups = within(Group::Listing, listing::routes())
        .or(within(Group::View, view::routes()))
        .unify()
        .or(within(Group::Shard, shard::routes()))
        .unify()
        .or(within(Group::Status, status::routes()))
        .unify()
        .or(within(Group::Probes, probes::routes()))
        .unify()
        .or(within(Group::Metrics, metrics::routes()))
        .unify()
        .or(within(Group::Drill, drill::routes()))
        .unify();
    let held = |answered: Answered, arrival: Arrival, method| {
        ready(answered.and_then(|reply| hold(reply, &arrival.caller.front, &method)).map_err(Rejection::from))
    };
    answering(admit().and(groups).and(arrival()).and(warp::method()).and_then(held))
}

/// The filters of a group behind one look at the group. Boxed, which keeps the types small that the compiler has to work with.
fn within(of: Group, routes: BoxedFilter<(Answered,)>) -> BoxedFilter<(Answered,)> {
    group(of).and(routes).boxed()
}

/// Gives every rejection an answer.
fn answering(filter: impl Filter<Extract = (Reply,), Error = Rejection> + Clone + Send + Sync + 'static) -> Root {
    filter.recover(|rejection| ready(Ok::<_, Infallible>(refused(&rejection)))).unify().boxed()
}

/// The answer to a rejection. One that is none of ours is a fault of this program: an entry without a filter, or a filter of
/// warp's that was not meant to reject.
fn refused(rejection: &Rejection) -> Reply {
    if let Some(refusal) = rejection.find::<Refusal>() {
        return refusal.clone().reply();
    }
    tracing::error!(?rejection, "a request found no route although its path exists");
    Refusal::Internal.reply()
}

#[cfg(test)]
mod tests;
