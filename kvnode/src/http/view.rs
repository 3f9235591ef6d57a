//! `/view`: which nodes there are, and which there are to be.

use hyper::StatusCode;
use kvnode_core::admin::{AdminOp, JobState};
use kvnode_core::topology::Outcome;
use serde_json::json;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::admin::{Fields, decide, finish};
use super::filters::{Answered, Asked, Counted, body, no_body, on};
use super::reply::{Refusal, Reply};
use super::route::{RECOVER, VIEW_DELETE, VIEW_GET, VIEW_PUT};

/// What a removal may wait for: an earlier change that had to be finished, and then its own.
const REMOVAL_STEPS: usize = 2;

pub fn routes() -> BoxedFilter<(Answered,)> {
    let get = on(&VIEW_GET).and(no_body()).then(get);
    let put = on(&VIEW_PUT).and(body()).then(put);
    let delete = on(&VIEW_DELETE).and(body()).then(delete);
    let recover = on(&RECOVER).and(body()).then(recover);
    get.or(put).unify().or(delete).unify().or(recover).unify().boxed()
}

async fn get(asked: Asked) -> Answered {
    Ok(Reply::ok(&json!({ "view": asked.front().node.view() })))
}

async fn put(asked: Asked, Counted(body, _lease): Counted) -> Answered {
    let addr = Fields::of(&body)?.addr()?;
    Ok(match decide(&asked.front().node, AdminOp::AddNode(addr)).await? {
        Outcome::Already => Reply::ok(&json!({ "result": "already present" })),
        _ => Reply::json(StatusCode::CREATED, &json!({ "result": "added" })),
    })
}

async fn delete(asked: Asked, Counted(body, _lease): Counted) -> Answered {
    let (node, addr) = (&asked.front().node, Fields::of(&body)?.addr()?);
    let mut warning = String::new();
    // Where an earlier release has listed it twice, one removal takes the other spelling alone.
    let steps = if node.lists_twice(&addr) { 1 } else { REMOVAL_STEPS };
    for _ in 0..steps {
        match decide(node, AdminOp::RemoveNode(addr.clone())).await? {
            Outcome::Started { job, warnings } => {
                if !warnings.is_empty() {
                    warning = warnings.join("; ");
                }
                finish(node, job, |state| matches!(state, JobState::Done)).await?;
            }
            _ => break,
        }
        if !node.lists(&addr) {
            break;
        }
    }
    let mut body = json!({ "result": "deleted" });
    if !warning.is_empty() {
        body["warning"] = warning.into();
    }
    Ok(Reply::ok(&body))
}

async fn recover(asked: Asked, Counted(body, _lease): Counted) -> Answered {
    if !Fields::of(&body)?.is_confirmed() {
        return Err(Refusal::BadBody(
            "it must say \"confirm\": true: what the lost nodes decided last may be lost".to_owned(),
        ));
    }
    decide(&asked.front().node, AdminOp::Recover).await?;
    Ok(Reply::ok(&json!({ "result": "recovered" })))
}
