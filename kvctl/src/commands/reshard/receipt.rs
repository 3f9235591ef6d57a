//! The receipt of a reshard: what every shard holds now, and that its replicas agree.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::plan::Planned;
use crate::commands::Names;
use crate::goal::{Goal, Unmet};
use crate::interrupt::Interrupt;
use crate::observe::{Observer, Seen, layout};
use crate::render::{Progress, line, printable, say, table};

/// Replicas that take no writes agree within this; where writes go on, a look may never find them equal.
const AGREE_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What there was and what there is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Receipt {
    shards: Vec<ShardReceipt>,
    keys_before: Option<u64>,
    keys: Option<u64>,
    /// All replicas of every shard hold the same.
    converged: bool,
    #[serde(skip)]
    unmet: Vec<Unmet>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ShardReceipt {
    id: String,
    members: Vec<String>,
    /// `None`: it did not exist, or did not answer.
    keys_before: Option<u64>,
    /// `None`: no replica answers.
    keys: Option<u64>,
    /// What all replicas hold, if that is the same.
    digest: Option<String>,
}

/// Looks until all replicas agree, or no longer than that should take.
pub async fn take(observer: &mut Observer, planned: &Planned, interrupt: &Interrupt) -> Receipt {
    let begun = Instant::now();
    let mut progress = None;
    loop {
        let receipt = receipt(&observer.look().await, &planned.keys);
        if receipt.converged || begun.elapsed() > AGREE_WITHIN || interrupt.check().is_err() {
            return receipt;
        }
        let progress = progress.get_or_insert_with(Progress::waiting);
        progress.step(&crate::commands::wait::waiting_text(Goal::Converged, &receipt.unmet));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn receipt(seen: &[Seen], before: &BTreeMap<String, Option<u64>>) -> Receipt {
    let shard = |(id, members): (String, Vec<String>)| {
        let replicas = seen.iter().filter(|node| members.contains(&node.address));
        let statuses: Vec<_> = replicas.filter_map(|node| node.status.as_ref().ok()).collect();
        let digests: BTreeSet<_> = statuses.iter().map(|status| status.digest.clone()).collect();
        let all_say = statuses.len() == members.len() && digests.len() == 1;
        ShardReceipt {
            keys_before: before.get(&id).copied().flatten(),
            keys: statuses.iter().filter_map(|status| status.keys).max(),
            digest: digests.into_iter().next().flatten().filter(|_| all_say),
            id,
            members,
        }
    };
    let shards: Vec<ShardReceipt> = layout(seen).into_iter().map(shard).collect();
    let unmet = Goal::Converged.unmet(seen);
    Receipt {
        keys_before: before.values().copied().sum(),
        keys: shards.iter().map(|shard| shard.keys).sum(),
        converged: unmet.is_empty(),
        unmet,
        shards,
    }
}

impl Receipt {
    pub fn print(&self, names: &Names) {
        let number = |count: Option<u64>| count.map_or_else(|| "-".into(), |count| count.to_string());
        let row = |shard: &ShardReceipt| {
            let digest = shard.digest.clone().unwrap_or_else(|| "-".into());
            let digests = if shard.digest.is_some() { "equal" } else { "differ" };
            let (before, keys) = (number(shard.keys_before), number(shard.keys));
            vec![shard.id.clone(), names.list(&shard.members), before, keys, digests.into(), digest]
        };
        let mut rows: Vec<Vec<String>> = self.shards.iter().map(row).collect();
        let (before, keys) = (number(self.keys_before), number(self.keys));
        rows.push(vec!["all".into(), String::new(), before, keys, String::new(), String::new()]);
        table(&["SHARD", "MEMBERS", "KEYS-BEFORE", "KEYS", "REPLICAS", "DIGEST"], rows);
        let count = self.shards.len();
        line(&format!("resharded to {count} {}", if count == 1 { "shard" } else { "shards" }));
    }

    /// Says what does not agree yet.
    pub fn warn(&self) {
        if self.converged {
            return;
        }
        for unmet in &self.unmet {
            say(&printable(&format!("warning: {}: {}", unmet.who, unmet.why)));
        }
        say(
            "warning: not all replicas agree yet, as they don't while clients write; `kvctl wait --for converged` looks again",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{ShardStatus, Status};

    fn node(address: &str, shard: &str, keys: u64, digest: &str) -> Seen {
        let members = |id: &str, all: &[&str]| ShardStatus {
            id: id.into(),
            members: all.iter().map(ToString::to_string).collect(),
        };
        let status = Status {
            epoch: Some(2),
            shard: Some(shard.into()),
            keys: Some(keys),
            digest: Some(digest.into()),
            shards: vec![members("s1", &["a", "b"]), members("s2", &["c"])],
            ..Status::default()
        };
        Seen { name: address.into(), address: address.into(), ready: Ok(()), status: Ok(status) }
    }

    #[test]
    fn it_tells_keys_and_whether_replicas_agree() {
        let before = BTreeMap::from([("s1".to_owned(), Some(10))]);
        let good = receipt(&[node("a", "s1", 6, "x"), node("b", "s1", 6, "x"), node("c", "s2", 4, "y")], &before);
        assert_eq!((good.keys_before, good.keys, good.converged), (Some(10), Some(10), true));
        let s1 = &good.shards[0];
        assert_eq!((s1.keys_before, s1.keys, s1.digest.as_deref()), (Some(10), Some(6), Some("x")));
        assert_eq!((good.shards[1].keys_before, good.shards[1].keys), (None, Some(4)));
        let bad = receipt(&[node("a", "s1", 6, "x"), node("b", "s1", 5, "z"), node("c", "s2", 4, "y")], &before);
        assert_eq!((bad.converged, bad.shards[0].digest.as_deref()), (false, None));
        let silent = receipt(&[node("a", "s1", 6, "x"), node("c", "s2", 4, "y")], &before);
        assert_eq!(silent.shards[0].digest, None, "b may hold something else");
    }
}
