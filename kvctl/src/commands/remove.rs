//! node remove: a node that is no member any more is deleted, with its data and its place on the list.

use std::time::{Duration, Instant};

use super::Context;
use crate::cluster::NodeSpec;
use crate::error::{Code, Failure, Result};
use crate::observe::{Observer, Seen};
use crate::render::{Progress, confirm, line, show};
use crate::runtime::Runtime;
use crate::state::Record;

/// A removal that was just decided is known to all members within this.
const NEWS_MAX: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub async fn run(context: &Context, name: &str, unasked: bool) -> Result<()> {
    context.record()?;
    let _lock = context.state.lock()?;
    let (mut record, runtime) = context.runtime().await?;
    let node = record.spec.node(name)?;
    is_no_member(&record, &runtime, &node).await?;
    if !unasked {
        let question = format!("Delete node '{name}' and its data, also what it has set aside? [y/N] ");
        confirm(&question, "this deletes the node's data; say --yes")?;
    }
    runtime.delete(&node).await?;
    record.spec.delete(&node);
    context.state.save(&record)?;
    show(context.output, &super::object("deleted", name), || line(&format!("{name} is gone, and its data with it")));
    Ok(())
}

/// Asks the members until none of them lists the node.
async fn is_no_member(record: &Record, runtime: &Runtime, node: &NodeSpec) -> Result<()> {
    let (name, address) = (&node.name, runtime.address(node));
    let mut others = record.clone();
    // It need not know itself that it is no member any more.
    others.spec.removed.insert(name.clone());
    let mut observer = Observer::new(&others, runtime);
    let (begun, progress) = (Instant::now(), Progress::waiting());
    loop {
        let seen = observer.look().await;
        match listed_by(&seen, &address) {
            Ok(None) => return Ok(()),
            Ok(Some(by)) if begun.elapsed() > NEWS_MAX || !record.spec.removed.contains(name) => {
                let text = format!("{name} is in the view, says {by}; `kvctl view remove {name}` takes it out first");
                return Err(Failure::new(Code::Conflict, text));
            }
            Err(why) if begun.elapsed() > NEWS_MAX => {
                let text = format!("no member tells whether {name} is in the view: {why}");
                return Err(Failure::new(Code::Unreachable, text));
            }
            _ => progress.step(&format!("waiting until the members know that {name} was removed")),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A member that lists the address.
///
/// # Errors
/// Why nobody can tell.
fn listed_by(seen: &[Seen], address: &str) -> std::result::Result<Option<String>, String> {
    let members = || seen.iter().filter(|one| one.address != address);
    let tells = |one: &&Seen| one.status.as_ref().is_ok_and(|status| status.epoch.is_some());
    let lists = |one: &&Seen| one.status.as_ref().is_ok_and(|status| status.lists(address));
    if let Some(one) = members().find(lists) {
        return Ok(Some(one.name.clone()));
    }
    if members().any(|one| tells(&one)) {
        return Ok(None);
    }
    let why =
        |one: &Seen| format!("{}: {}", one.name, one.status.as_ref().err().map_or("in no cluster", String::as_str));
    Err(members().map(why).collect::<Vec<String>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{PeerStatus, Status};

    fn seen(name: &str, epoch: Option<u64>, peers: &[&str]) -> Seen {
        let peers = peers.iter().map(|node| PeerStatus { node: node.to_string(), ..PeerStatus::default() }).collect();
        let status = Ok(Status { epoch, peers, ..Status::default() });
        Seen { name: name.into(), address: name.into(), ready: Ok(()), status }
    }

    #[test]
    fn members_tell_who_is_one() {
        let all = [seen("a", Some(1), &["b"]), seen("b", Some(1), &["a", "x"]), seen("x", Some(1), &["x"])];
        assert_eq!(listed_by(&all, "x"), Ok(Some("b".into())));
        assert_eq!(listed_by(&all[..1], "x"), Ok(None));
        assert!(listed_by(&[seen("a", None, &[])], "x").is_err(), "it knows no members");
        let silent = Seen { status: Err("no answer".into()), ..seen("a", None, &[]) };
        assert_eq!(listed_by(&[silent, all[2].clone()], "x"), Err("a: no answer".into()));
    }
}
