//! What requests that change the topology have in common: their bodies, and what becomes of them.

use std::time::Duration;

use kvnode_core::admin::{AdminAnswer, AdminOp, JobState};
use kvnode_core::topology::{NODES_MAX, Outcome, Refusal as Refused};
use kvnode_types::ident::{Addr, Epoch};
use serde::Deserialize;
use serde_json::Value;

use super::reply::Refusal;
use crate::node::NodeHandle;

/// A change that takes longer goes on, but nobody waits for it on an open request.
const JOB_MAX: Duration = Duration::from_secs(900);

/// What the body of such a request may say, taken apart but not judged.
#[derive(Default, Deserialize)]
pub struct Fields {
    #[serde(rename = "socket-address")]
    socket_address: Option<Value>,
    #[serde(rename = "shard-count")]
    shard_count: Option<Value>,
    epoch: Option<Value>,
    confirm: Option<bool>,
}

/// A body that must be one JSON object, each field at most once.
pub fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    let bad = |error: serde_json::Error| Refusal::BadBody(error.to_string());
    // A sequence would pass for the object with its fields in order; fields that are ignored are not looked at.
    if !serde_json::from_slice::<Value>(body).map_err(bad)?.is_object() {
        return Err(Refusal::BadBody("it must be a JSON object".to_owned()));
    }
    serde_json::from_slice(body).map_err(bad)
}

impl Fields {
    pub fn of(body: &[u8]) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        object(body)
    }

    pub fn is_confirmed(&self) -> bool {
        self.confirm == Some(true)
    }

    pub fn addr(&self) -> Result<Addr, Refusal> {
        let missing = || Refusal::BadBody("it must have a \"socket-address\" such as \"10.10.0.8:8090\"".to_owned());
        let text = self.socket_address.as_ref().ok_or_else(missing)?.as_str().ok_or_else(missing)?;
        text.parse().map_err(|bad| Refusal::BadBody(format!("{bad}")))
    }

    pub fn count(&self) -> Result<u32, Refusal> {
        let missing = || Refusal::BadBody("it must have a \"shard-count\", a whole number from 1".to_owned());
        let number = self.shard_count.as_ref().ok_or_else(missing)?;
        let count = number.as_u64().filter(|&count| count > 0).ok_or_else(missing)?;
        // More shards than there can be nodes: the plan says so.
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    pub fn epoch(&self) -> Result<Option<Epoch>, Refusal> {
        let bad = || Refusal::BadBody("\"epoch\" must be a whole number".to_owned());
        let Some(number) = &self.epoch else { return Ok(None) };
        let epoch = number.as_u64().and_then(|epoch| u32::try_from(epoch).ok()).ok_or_else(bad)?;
        Ok(Some(Epoch(epoch)))
    }
}

/// For [`super::fuzz`].
pub fn take_apart(body: &[u8]) {
    match Fields::of(body) {
        Ok(fields) => drop((fields.addr(), fields.count(), fields.epoch())),
        Err(refusal) => drop(refusal.reply()),
    }
}

/// What the topology's log decided on `op`; a refusal where it was refused.
pub async fn decide(node: &NodeHandle, op: AdminOp) -> Result<Outcome, Refusal> {
    match node.admin(op).await {
        AdminAnswer::Decided(Outcome::Refused(refused)) => {
            Err(refusal(AdminAnswer::Decided(Outcome::Refused(refused))))
        }
        AdminAnswer::Decided(outcome) => Ok(outcome),
        other => Err(refusal(other)),
    }
}

pub fn refusal(answer: AdminAnswer) -> Refusal {
    let refused = match answer {
        AdminAnswer::Decided(Outcome::Refused(refused)) => refused,
        AdminAnswer::Decided(_) => return Refusal::NotReady("the request was decided otherwise".into()),
        AdminAnswer::Unreachable(addr) => {
            return Refusal::Conflict(format!("{addr} is in the view and can't be reached: start it, then add it"));
        }
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
pub async fn finish(node: &NodeHandle, job: u32, wanted: impl Fn(&JobState) -> bool) -> Result<(), Refusal> {
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
