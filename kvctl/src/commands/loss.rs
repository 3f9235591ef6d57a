//! Data that is gone. A node that starts with nothing can't tell whether it is new or has lost everything; kvctl can, where it
//! has seen the cluster serve.

use std::collections::{BTreeMap, BTreeSet};

use super::Context;
use crate::error::{Code, Failure, Result};
use crate::observe::{self, Observer, Seen};
use crate::render::say;
use crate::runtime::{Gone, Runtime};
use crate::state::Record;

/// Remembers which shards there are, and where. That it can't is no failure of the command.
pub fn remember(context: &Context, seen: &[Seen]) {
    if let Err(failure) = context.state.keep_layout(&observe::layout(seen)) {
        say(&format!("warning: {failure}; `kvctl cluster up` may not notice lost data"));
    }
}

/// [`remember`], after a change.
pub async fn remember_now(context: &Context, record: &Record, runtime: &Runtime) {
    remember(context, &Observer::new(record, runtime).look().await);
}

/// Refuses to start nodes where a shard would begin anew, because the data of all its members is gone; with `accept`, says
/// so and forgets what the shards were.
pub async fn check(context: &Context, record: &Record, runtime: &Runtime, accept: bool) -> Result<()> {
    let gone = runtime.gone().await?;
    if gone.is_empty() {
        return Ok(());
    }
    let seen = Observer::new(record, runtime).look().await;
    // Whoever answers has something, however it was started.
    let answers = |address: &String| seen.iter().any(|one| one.address == *address && one.status.is_ok());
    let addresses = gone.iter().map(|one| runtime.address(&one.node));
    let addresses: BTreeSet<String> = addresses.filter(|address| !answers(address)).collect();
    let told = observe::layout(&seen);
    let layout = if told.is_empty() { context.state.layout()? } else { told };
    let lost = lost_shards(&layout, &addresses);
    if lost.is_empty() {
        return Ok(());
    }
    let is_of_lost = |one: &&Gone| lost.values().any(|members| members.contains(&runtime.address(&one.node)));
    let what: Vec<String> =
        gone.iter().filter(is_of_lost).map(|one| format!("{} ({})", one.node.name, one.place)).collect();
    let shards: Vec<&str> = lost.keys().map(|shard| shard.as_str()).collect();
    let shards = format!("{} {}", if lost.len() == 1 { "shard" } else { "shards" }, shards.join(", "));
    let what = what.join(", ");
    if accept {
        say(&format!("{shards} begins without any data: that of {what} is gone"));
        return context.state.forget_layout();
    }
    let text = format!(
        "nothing was started: all data of {shards} is gone, which this cluster had: that of {what}. Bring it back; or \
         `kvctl cluster up --accept-data-loss` starts the nodes without it"
    );
    Err(Failure::new(Code::Conflict, text))
}

/// The shards all of whose members are among `gone`.
fn lost_shards<'a>(
    layout: &'a BTreeMap<String, Vec<String>>,
    gone: &BTreeSet<String>,
) -> BTreeMap<&'a String, &'a Vec<String>> {
    let is_lost = |members: &Vec<String>| !members.is_empty() && members.iter().all(|member| gone.contains(member));
    layout.iter().filter(|(_, members)| is_lost(members)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_lost_with_the_last_of_its_members() {
        let all = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<String>>();
        let layout = [("s1".into(), all(&["a", "b"])), ("s2".into(), all(&["c", "d"])), ("s3".into(), all(&[]))].into();
        let lost = |gone: &[&str]| -> Vec<String> {
            lost_shards(&layout, &all(gone).into_iter().collect()).into_keys().cloned().collect()
        };
        assert_eq!(lost(&["a", "c"]), all(&[]));
        assert_eq!(lost(&["a", "b", "c"]), all(&["s1"]));
        assert_eq!(lost(&["d", "c", "x"]), all(&["s2"]));
        assert_eq!(lost_shards(&BTreeMap::new(), &all(&["a"]).into_iter().collect()), BTreeMap::new());
    }
}
