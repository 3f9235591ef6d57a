//! What a reshard would do, as the nodes plan it, with how many keys each shard has.

use std::collections::{BTreeMap, BTreeSet};

use kvnode_client::Client;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::commands::topology::change;
use crate::commands::{Names, refused};
use crate::error::{Code, Failure, Result};
use crate::render::{line, printable, table};

/// A plan, and what there is before it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Planned {
    /// The layout it was made for; it holds for no other.
    pub epoch: u64,
    plan: Plan,
    pub warnings: Vec<String>,
    /// Live keys of each shard that there is now, as far as it answers.
    #[serde(skip)]
    pub keys: BTreeMap<String, Option<u64>>,
    /// Shards none of whose replicas can be reached.
    #[serde(skip)]
    gone: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Plan {
    shards: Vec<ShardPlan>,
    moved_slots: u64,
}

/// One shard, before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", default)]
struct ShardPlan {
    id: String,
    members: Vec<String>,
    members_before: Vec<String>,
    slots: u64,
    slots_before: u64,
}

/// A shard's line of the plan as a document.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Line {
    #[serde(flatten)]
    shard: ShardPlan,
    keys_before: Option<u64>,
    /// As many as its slots would hold if keys were spread evenly.
    keys_estimated: Option<u64>,
}

impl Planned {
    /// Asks for the plan, and counts the keys there are.
    pub async fn ask(client: &Client, names: &Names, shards: u32) -> Result<Self> {
        let body = json!({ "shard-count": shards });
        let answer = change(client, names, Method::PUT, "/shard/reshard?dry-run=true", Some(&body)).await?;
        let planned = serde_json::from_slice(&answer.body);
        let mut planned: Self = planned.map_err(|error| {
            Failure::new(Code::Failed, format!("the plan of {} can't be understood: {error}", answer.node))
        })?;
        let ids = client.look("/shard/ids").await?;
        if !ids.is_success() {
            return Err(refused(&ids));
        }
        for id in ids.json()["shard-ids"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let count = client.look(&format!("/shard/key-count/{}", kvnode_client::encode(id))).await?;
            if !count.is_success() && refused(&count).code == Code::Unreachable {
                planned.gone.push(id.to_owned());
            }
            planned.keys.insert(id.to_owned(), count.json().get("shard-key-count").and_then(Value::as_u64));
        }
        Ok(planned)
    }

    /// # Errors
    /// If the change could begin but not go on: what a shard has can't be copied while none of its replicas can be reached.
    pub fn check(&self) -> Result<()> {
        if self.gone.is_empty() {
            return Ok(());
        }
        let text = format!(
            "this can't be done now: no replica of {} can be reached, so that keys could be copied; `kvctl cluster status` shows who is \
             down, `kvctl cluster up` starts them",
            printable(&self.gone.join(", "))
        );
        let mut document = self.document();
        document["error"] = text.as_str().into();
        document["exit-code"] = (Code::Unreachable as u8).into();
        Err(Failure { document: Some(Box::new(document)), ..Failure::new(Code::Unreachable, text) })
    }

    /// Whether the cluster is laid out like this already.
    pub fn changes_nothing(&self) -> bool {
        let same = |shard: &ShardPlan| shard.members == shard.members_before && shard.slots == shard.slots_before;
        let same_shards = self.keys.keys().all(|id| self.plan.shards.iter().any(|shard| shard.id == *id));
        self.plan.moved_slots == 0 && same_shards && self.plan.shards.iter().all(same)
    }

    /// All shards that there are or will be.
    fn lines(&self) -> Vec<Line> {
        let planned: BTreeSet<&str> = self.plan.shards.iter().map(|shard| shard.id.as_str()).collect();
        // One that ends may not be in the plan.
        let ends = self.keys.keys().filter(|id| !planned.contains(id.as_str()));
        let ends = ends.map(|id| ShardPlan { id: id.clone(), ..ShardPlan::default() });
        let all = self.plan.shards.iter().cloned().chain(ends);
        // A shard that does not answer makes the sum, and so all estimates, unknown.
        let keys: Option<u64> = self.keys.values().copied().sum();
        let slots: u64 = self.plan.shards.iter().map(|shard| shard.slots).sum();
        let line = |shard: ShardPlan| Line {
            keys_before: self.keys.get(&shard.id).copied().unwrap_or(Some(0)),
            keys_estimated: keys.filter(|_| slots > 0).map(|keys| share(keys, shard.slots, slots)),
            shard,
        };
        all.map(line).collect()
    }

    pub fn document(&self) -> Value {
        let Plan { moved_slots, .. } = self.plan;
        json!({
            "epoch": self.epoch, "shards": self.lines(), "moved-slots": moved_slots, "warnings": self.warnings,
            "unreachable-shards": self.gone,
        })
    }

    pub fn print(&self, names: &Names) {
        let lines = self.lines();
        let number = |count: Option<u64>| count.map_or_else(|| "-".into(), |count| count.to_string());
        let row = |Line { shard, keys_before, keys_estimated }: &Line| {
            vec![
                shard.id.clone(),
                names.list(&shard.members_before),
                names.list(&shard.members),
                shard.slots_before.to_string(),
                shard.slots.to_string(),
                number(*keys_before),
                keys_estimated.map_or_else(|| "-".into(), |count| format!("~{count}")),
            ]
        };
        let header = ["SHARD", "MEMBERS", "MEMBERS-AFTER", "SLOTS", "SLOTS-AFTER", "KEYS", "KEYS-AFTER(ESTIMATE)"];
        table(&header, lines.iter().map(row).collect());
        let slots: u64 = self.plan.shards.iter().map(|shard| shard.slots).sum();
        line(&format!("{} of {slots} slots move", self.plan.moved_slots));
    }
}

/// `keys` in proportion, rounded.
fn share(keys: u64, slots: u64, of: u64) -> u64 {
    let (keys, slots, of) = (u128::from(keys), u128::from(slots), u128::from(of));
    u64::try_from((2 * keys * slots + of) / (2 * of)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(keys: &[(&str, Option<u64>)]) -> Planned {
        let shard = |id: &str, before: &[&str], after: &[&str], slots_before, slots| json!({"id": id, "members": after, "members-before": before, "slots": slots, "slots-before": slots_before});
        let shards = [
            shard("s1", &["a", "b", "c"], &["a", "b"], 8192, 5461),
            shard("s2", &["d", "e", "f"], &["d", "e"], 8192, 5462),
            shard("s3", &[], &["c", "f"], 0, 5461),
        ];
        let text = json!({"epoch": 1, "plan": {"shards": shards, "moved-slots": 5461}, "warnings": ["w"]}).to_string();
        let mut planned: Planned = serde_json::from_str(&text).unwrap();
        planned.keys = keys.iter().map(|(id, count)| (id.to_string(), *count)).collect();
        planned
    }

    fn counts(planned: &Planned) -> Vec<(String, Option<u64>, Option<u64>)> {
        planned.lines().into_iter().map(|line| (line.shard.id, line.keys_before, line.keys_estimated)).collect()
    }

    #[test]
    fn keys_after_are_estimated_by_slots() {
        let planned = planned(&[("s1", Some(301)), ("s2", Some(299))]);
        let wanted = [("s1", 301, 200), ("s2", 299, 200), ("s3", 0, 200)];
        assert_eq!(counts(&planned), wanted.map(|(id, before, after)| (id.to_owned(), Some(before), Some(after))));
        assert!(!planned.changes_nothing());
        assert_eq!(share(u64::MAX, 1, 1), u64::MAX);
    }

    #[test]
    fn a_shard_that_ends_is_shown_and_one_that_is_silent_leaves_no_estimate() {
        let counts = counts(&planned(&[("s1", Some(1)), ("s2", None), ("s9", Some(4))]));
        assert_eq!(counts[1], ("s2".into(), None, None));
        assert_eq!(counts[3], ("s9".into(), Some(4), None));
    }

    #[test]
    fn a_plan_that_moves_nothing_is_known() {
        let mut planned = planned(&[("s1", Some(1))]);
        planned.plan.moved_slots = 0;
        planned.plan.shards.truncate(1);
        assert!(!planned.changes_nothing());
        let shard = &mut planned.plan.shards[0];
        (shard.members_before, shard.slots_before) = (shard.members.clone(), shard.slots);
        assert!(planned.changes_nothing());
        planned.keys.insert("s2".into(), Some(0));
        assert!(!planned.changes_nothing(), "s2 ends");
    }
}
