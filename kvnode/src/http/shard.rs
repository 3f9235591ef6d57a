//! `/shard/…`: which shards there are, who is in them, and how many there are to be.

use hyper::StatusCode;
use kvnode_core::admin::{AdminOp, JobState};
use kvnode_core::request::Op;
use kvnode_core::topology::Outcome;
use kvnode_types::ident::ShardId;
use serde_json::json;
use warp::Filter;
use warp::filters::BoxedFilter;

use super::admin::{Fields, decide, finish, refusal};
use super::fields::decoded;
use super::filters::{Answered, Asked, Counted, body, no_body, on, query};
use super::reply::{Refusal, Reply};
use super::route::{
    ADD_MEMBER, KEY_COUNT, NODE_SHARD_ID, RESHARD_DELETE, RESHARD_GET, RESHARD_PUT, SHARD_IDS, SHARD_MEMBERS,
};

pub fn routes() -> BoxedFilter<(Answered,)> {
    let ids = on(&SHARD_IDS).and(no_body()).then(ids);
    let own_id = on(&NODE_SHARD_ID).and(no_body()).then(own_id);
    let members = on(&SHARD_MEMBERS).and(no_body()).then(members);
    let key_count = on(&KEY_COUNT).and(no_body()).then(key_count);
    let add_member = on(&ADD_MEMBER).and(body()).then(add_member);
    let looks = ids.or(own_id).unify().or(members).unify().or(key_count).unify();
    looks.or(add_member).unify().or(reshards()).unify().boxed()
}

fn reshards() -> BoxedFilter<(Answered,)> {
    let job = on(&RESHARD_GET).and(no_body()).then(job);
    let reshard = on(&RESHARD_PUT).and(query()).and(body()).then(reshard);
    let abort = on(&RESHARD_DELETE).and(no_body()).then(abort);
    job.or(reshard).unify().or(abort).unify().boxed()
}

async fn ids(asked: Asked) -> Answered {
    let ids: Vec<String> = asked.front().node.shard_ids()?.iter().map(ShardId::to_string).collect();
    Ok(Reply::ok(&json!({ "shard-ids": ids })))
}

async fn own_id(asked: Asked) -> Answered {
    let id = asked.front().node.own_shard()?.map(|id| id.to_string());
    Ok(Reply::ok(&json!({ "node-shard-id": id })))
}

async fn members(asked: Asked) -> Answered {
    let members = asked.front().node.shard_members(named(&asked)?)?.ok_or(Refusal::NoSuchShard)?;
    Ok(Reply::ok(&json!({ "shard-members": members })))
}

async fn key_count(asked: Asked) -> Answered {
    let shard = named(&asked)?;
    Ok(Reply::of(asked.front().node.request(Op::KeyCount { shard }, Vec::new()).await))
}

async fn add_member(asked: Asked, Counted(body, _lease): Counted) -> Answered {
    let addr = Fields::of(&body)?.addr()?;
    let (node, shard) = (&asked.front().node, named(&asked)?);
    if let Outcome::Started { job, .. } = decide(node, AdminOp::AddMember { shard, addr }).await? {
        finish(node, job, serves).await?;
    }
    Ok(Reply::ok(&json!({ "result": "node added to shard" })))
}

/// The shard that the path names. A node that knows no layout yet can't say that there is no such shard.
fn named(asked: &Asked) -> Result<ShardId, Refusal> {
    let known = asked.front().node.shard_ids()?;
    let id = decoded(asked.parameter()).ok().and_then(|text| text.parse::<ShardId>().ok());
    id.filter(|id| known.contains(id)).ok_or(Refusal::NoSuchShard)
}

async fn job(asked: Asked) -> Answered {
    Ok(Reply::ok(&asked.front().node.change()?))
}

async fn reshard(asked: Asked, question: String, Counted(body, _lease): Counted) -> Answered {
    let query = ReshardQuery::of(&question)?;
    let fields = Fields::of(&body)?;
    let (count, epoch) = (fields.count()?, fields.epoch()?);
    let node = &asked.front().node;
    if query.dry_run {
        let (epoch, plan, warnings) = node.plan_reshard(count).map_err(refusal)?;
        return Ok(Reply::ok(&json!({ "epoch": epoch, "plan": plan, "warnings": warnings })));
    }
    let Outcome::Started { job, warnings } =
        decide(node, AdminOp::Reshard { count, epoch, at_once: query.no_wait }).await?
    else {
        return Ok(Reply::ok(&json!({ "result": "resharded", "unchanged": true })));
    };
    if query.no_wait {
        let body = json!({ "job": job, "warnings": warnings });
        return Ok(Reply::json(StatusCode::ACCEPTED, &body));
    }
    finish(node, job, serves).await?;
    Ok(Reply::ok(&json!({ "result": "resharded" })))
}

async fn abort(asked: Asked) -> Answered {
    decide(&asked.front().node, AdminOp::Abort).await?;
    Ok(Reply::ok(&json!({ "result": "aborted" })))
}

fn serves(state: &JobState) -> bool {
    matches!(state, JobState::Flipped { serving: true } | JobState::Done)
}

/// What follows `?` of a reshard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ReshardQuery {
    no_wait: bool,
    dry_run: bool,
}

impl ReshardQuery {
    /// Unknown parameters are ignored.
    fn of(query: &str) -> Result<Self, Refusal> {
        let mut parsed = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, "true"));
            let truth = || match value {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(Refusal::BadQuery("wait and dry-run must be true or false")),
            };
            match name {
                "wait" => parsed.no_wait = !truth()?,
                "dry-run" => parsed.dry_run = truth()?,
                _ => {}
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        assert_eq!(ReshardQuery::of(""), Ok(ReshardQuery::default()));
        assert_eq!(ReshardQuery::of("wait=false&x=1"), Ok(ReshardQuery { no_wait: true, dry_run: false }));
        assert_eq!(ReshardQuery::of("dry-run"), Ok(ReshardQuery { no_wait: false, dry_run: true }));
        assert!(ReshardQuery::of("wait=maybe").is_err());
    }
}
