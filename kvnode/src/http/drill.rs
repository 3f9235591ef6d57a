//! `/drill`: what is injected at this node, for drills. Refused by a node that was not started for them.
//!
//! GET tells what is injected, PUT says all that is to be from now on, DELETE ends it. Each answers with what then is.

use hyper::StatusCode;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::filters::{Answered, Asked, Counted, body, no_body, on};
use super::reply::{Refusal, Reply};
use super::route::{DRILL_DELETE, DRILL_GET, DRILL_PUT};
use crate::drill::Injected;
use crate::node::NodeHandle;

pub fn routes() -> BoxedFilter<(Answered,)> {
    let get = on(&DRILL_GET).and(no_body()).then(get);
    let put = on(&DRILL_PUT).and(body()).then(put);
    let delete = on(&DRILL_DELETE).and(no_body()).then(delete);
    get.or(put).unify().or(delete).unify().boxed()
}

async fn get(asked: Asked) -> Answered {
    Ok(injected(allowed(&asked)?))
}

async fn put(asked: Asked, Counted(body, _lease): Counted) -> Answered {
    let node = allowed(&asked)?;
    let faults: Injected = super::admin::object(&body)?;
    faults.check(&node.peers()).map_err(Refusal::BadBody)?;
    Ok(inject(node, faults))
}

async fn delete(asked: Asked) -> Answered {
    Ok(inject(allowed(&asked)?, Injected::default()))
}

fn allowed(asked: &Asked) -> Result<&NodeHandle, Refusal> {
    let node = &asked.front().node;
    if node.drill().is_allowed() {
        return Ok(node);
    }
    let text = "This node was not started for drills (DRILL=1 or --drill)";
    Err(Refusal::Drill(StatusCode::FORBIDDEN, text.to_owned()))
}

fn inject(node: &NodeHandle, faults: Injected) -> Reply {
    let said = serde_json::to_string(&faults).unwrap_or_default();
    node.inject(faults);
    tracing::warn!("drill: {said}");
    injected(node)
}

fn injected(node: &NodeHandle) -> Reply {
    Reply::ok(&serde_json::to_value(node.drill().injected()).unwrap_or_default())
}
