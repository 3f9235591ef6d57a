//! Requests that change the topology: `/view` and `/shard/…`.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Front;
use super::reply::{Refusal, Reply};
use crate::core::admin::{AdminAnswer, AdminOp, JobState};
use crate::core::topology::{NODES_MAX, Outcome, Refusal as Refused};
use crate::node::NodeHandle;
use crate::wire::ident::{Addr, Epoch, ShardId};

/// What a removal may wait for: an earlier change that had to be finished, and then its own.
const REMOVAL_STEPS: usize = 2;
/// A change that takes longer goes on, but nobody waits for it on an open request.
const JOB_MAX: Duration = Duration::from_secs(900);

#[derive(Default, Deserialize)]
struct Fields {
    #[serde(rename = "socket-address")]
    socket_address: Option<Value>,
    #[serde(rename = "shard-count")]
    shard_count: Option<Value>,
    epoch: Option<Value>,
    confirm: Option<bool>,
}

/// A body that must be one JSON object, each field at most once.
pub(super) fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    let bad = |error: serde_json::Error| Refusal::BadBody(error.to_string());
    // A sequence would pass for the object with its fields in order; fields that are ignored are not looked at.
    if !serde_json::from_slice::<Value>(body).map_err(bad)?.is_object() {
        return Err(Refusal::BadBody("it must be a JSON object".to_owned()));
    }
    serde_json::from_slice(body).map_err(bad)
}

impl Fields {
    fn of(body: &[u8]) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        object(body)
    }

    fn addr(&self) -> Result<Addr, Refusal> {
        let missing = || Refusal::BadBody("it must have a \"socket-address\" such as \"10.10.0.8:8090\"".to_owned());
        let text = self.socket_address.as_ref().ok_or_else(missing)?.as_str().ok_or_else(missing)?;
        text.parse().map_err(|bad| Refusal::BadBody(format!("{bad}")))
    }

    fn count(&self) -> Result<u32, Refusal> {
        let missing = || Refusal::BadBody("it must have a \"shard-count\", a whole number from 1".to_owned());
        let number = self.shard_count.as_ref().ok_or_else(missing)?;
        let count = number.as_u64().filter(|&count| count > 0).ok_or_else(missing)?;
        // More shards than there can be nodes: the plan says so.
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    fn epoch(&self) -> Result<Option<Epoch>, Refusal> {
        let bad = || Refusal::BadBody("\"epoch\" must be a whole number".to_owned());
        let Some(number) = &self.epoch else { return Ok(None) };
        let epoch = number.as_u64().and_then(|epoch| u32::try_from(epoch).ok()).ok_or_else(bad)?;
        Ok(Some(Epoch(epoch)))
    }
}

/// For [`super::probe`].
pub(super) fn take_apart(body: &[u8]) {
    match Fields::of(body) {
        Ok(fields) => drop((fields.addr(), fields.count(), fields.epoch())),
        Err(refusal) => drop(refusal.reply()),
    }
}

pub async fn change_view(front: &Front, method: &Method, body: &[u8]) -> Result<Reply, Refusal> {
    let addr = Fields::of(body)?.addr()?;
    if *method == Method::PUT {
        return Ok(match decide(&front.node, AdminOp::AddNode(addr)).await? {
            Outcome::Already => Reply::ok(&json!({ "result": "already present" })),
            _ => Reply::json(StatusCode::CREATED, &json!({ "result": "added" })),
        });
    }
    let mut warning = String::new();
    for _ in 0..REMOVAL_STEPS {
        match decide(&front.node, AdminOp::RemoveNode(addr.clone())).await? {
            Outcome::Started { job, warnings } => {
                if !warnings.is_empty() {
                    warning = warnings.join("; ");
                }
                finish(&front.node, job, |state| matches!(state, JobState::Done)).await?;
            }
            _ => break,
        }
        if !front.node.lists(&addr) {
            break;
        }
    }
    let mut body = json!({ "result": "deleted" });
    if !warning.is_empty() {
        body["warning"] = warning.into();
    }
    Ok(Reply::ok(&body))
}

pub async fn recover(front: &Front, body: &[u8]) -> Result<Reply, Refusal> {
    if Fields::of(body)?.confirm != Some(true) {
        return Err(Refusal::BadBody(
            "it must say \"confirm\": true: what the lost nodes decided last may be lost".to_owned(),
        ));
    }
    decide(&front.node, AdminOp::Recover).await?;
    Ok(Reply::ok(&json!({ "result": "recovered" })))
}

pub async fn add_member(front: &Front, shard: Result<ShardId, Refusal>, body: &[u8]) -> Result<Reply, Refusal> {
    let addr = Fields::of(body)?.addr()?;
    let shard = shard?;
    if let Outcome::Started { job, .. } = decide(&front.node, AdminOp::AddMember { shard, addr }).await? {
        finish(&front.node, job, serves).await?;
    }
    Ok(Reply::ok(&json!({ "result": "node added to shard" })))
}

/// What follows `?` of a reshard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReshardQuery {
    no_wait: bool,
    dry_run: bool,
}

impl ReshardQuery {
    /// Unknown parameters are ignored.
    pub fn of(query: &str) -> Result<Self, Refusal> {
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

pub async fn reshard(front: &Front, query: ReshardQuery, body: &[u8]) -> Result<Reply, Refusal> {
    let fields = Fields::of(body)?;
    let (count, epoch) = (fields.count()?, fields.epoch()?);
    if query.dry_run {
        let (epoch, plan, warnings) = front.node.plan_reshard(count).map_err(refusal)?;
        return Ok(Reply::ok(&json!({ "epoch": epoch, "plan": plan, "warnings": warnings })));
    }
    let outcome = decide(&front.node, AdminOp::Reshard { count, epoch }).await?;
    if let Outcome::Started { job, warnings } = &outcome {
        if query.no_wait {
            let body = json!({ "job": job, "warnings": warnings });
            return Ok(Reply::json(StatusCode::ACCEPTED, &body));
        }
        finish(&front.node, *job, serves).await?;
    }
    Ok(Reply::ok(&json!({ "result": "resharded" })))
}

pub async fn abort(front: &Front) -> Result<Reply, Refusal> {
    decide(&front.node, AdminOp::Abort).await?;
    Ok(Reply::ok(&json!({ "result": "aborted" })))
}

fn serves(state: &JobState) -> bool {
    matches!(state, JobState::Flipped { serving: true } | JobState::Done)
}

async fn decide(node: &NodeHandle, op: AdminOp) -> Result<Outcome, Refusal> {
    match node.admin(op).await {
        AdminAnswer::Decided(Outcome::Refused(refused)) => {
            Err(refusal(AdminAnswer::Decided(Outcome::Refused(refused))))
        }
        AdminAnswer::Decided(outcome) => Ok(outcome),
        other => Err(refusal(other)),
    }
}

fn refusal(answer: AdminAnswer) -> Refusal {
    let refused = match answer {
        AdminAnswer::Decided(Outcome::Refused(refused)) => refused,
        AdminAnswer::Decided(_) => return Refusal::NotReady("the request was decided otherwise".into()),
        AdminAnswer::Undecided(why) => return Refusal::NotReady(format!("Not decided: {why}")),
        AdminAnswer::NotReady(why) => return Refusal::NotReady(why),
    };
    match refused {
        Refused::NoSuchShard => Refusal::NoSuchShard,
        Refused::NoSuchReplica => Refusal::NoSuchReplica,
        Refused::ViewFull => Refusal::Conflict(format!("The view has {NODES_MAX} nodes already: no more fit")),
        Refused::NotEnoughNodes => Refusal::NotEnoughNodes,
        Refused::InAnotherShard(shard) => Refusal::Conflict(format!("The node is in shard {shard} already")),
        Refused::LastReplica(shard) => {
            Refusal::Conflict(format!("It is the last replica of shard {shard}: add another first, or reshard"))
        }
        Refused::Busy { what, .. } => Refusal::Conflict(format!("Another change comes first: {what}")),
        Refused::EpochMoved(Epoch(epoch)) => {
            Refusal::Conflict(format!("The layout has changed since: its epoch is {epoch} now"))
        }
        Refused::NothingToAbort => Refusal::Conflict("No change runs".into()),
        Refused::TooLateToAbort => Refusal::Conflict("It can't be aborted any more: the new layout is in force".into()),
    }
}

/// Waits until a change is as far as wanted.
async fn finish(node: &NodeHandle, job: u32, wanted: impl Fn(&JobState) -> bool) -> Result<(), Refusal> {
    let ended = |state: &JobState| wanted(state) || matches!(state, JobState::Aborted);
    match node.wait_for_job(job, ended, JOB_MAX).await {
        Some(JobState::Aborted) => Err(Refusal::Conflict(format!("Job {job} was aborted"))),
        Some(_) => Ok(()),
        None => Err(Refusal::NotReady(format!("Job {job} still runs; GET /shard/reshard tells how far it is"))),
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

    #[test]
    fn bodies() {
        let fields = |text: &str| Fields::of(text.as_bytes());
        assert!(fields(r#"{"socket-address":"10.10.0.8:8090"}"#).unwrap().addr().is_ok());
        for bad in ["{}", r#"{"socket-address":5}"#, r#"{"socket-address":"x"}"#] {
            assert!(matches!(fields(bad).unwrap().addr(), Err(Refusal::BadBody(_))), "{bad}");
        }
        assert_eq!(fields(r#"{"shard-count":3}"#).unwrap().count(), Ok(3));
        for bad in [
            "{}",
            r#"{"shard-count":"x"}"#,
            r#"{"shard-count":-1}"#,
            r#"{"shard-count":0}"#,
            r#"{"shard-count":1180591620717411303424}"#,
            r#"{"shard-count":1.5}"#,
        ] {
            assert!(matches!(fields(bad).unwrap().count(), Err(Refusal::BadBody(_))), "{bad}");
        }
        for bad in ["[]", "x", r#"{"shard-count":2,"shard-count":3}"#] {
            assert!(matches!(fields(bad), Err(Refusal::BadBody(_))), "{bad}");
        }
    }
}
