//! Watches a change until it is over. Watching is all it does: whoever stops it stops nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kvnode_client::{Answer, Client};
use serde::Deserialize;

use crate::commands::Names;
use crate::error::{Code, Failure, Result};
use crate::interrupt::Interrupt;
use crate::render::{Transfer, Transfers};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A change that no node tells anything of for so long is given up on.
const NO_NEWS_MAX: Duration = Duration::from_secs(30);

/// The change that runs or ran last, as a node tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Job {
    pub job: Option<u64>,
    pub kind: Option<String>,
    pub phase: String,
    pub epoch: Option<u64>,
    pub moves: Vec<Move>,
    pub waiting_for: Vec<String>,
}

/// What one node gets from one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Move {
    pub from: String,
    pub to: String,
    pub node: String,
    pub keys: u64,
    pub keys_total: u64,
    pub bytes: u64,
}

/// What a look says about the change that is watched.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Runs,
    Done,
    Aborted,
    /// A later change has begun, so this one is over.
    Followed(u64),
    /// It tells of another one, or of none: the node has not heard yet.
    None,
}

impl Job {
    /// # Errors
    /// If the answer is not as agreed.
    pub fn of(answer: &Answer) -> Result<Self> {
        serde_json::from_slice(&answer.body).map_err(|error| {
            Failure::new(Code::Failed, format!("what {} says of the change can't be understood: {error}", answer.node))
        })
    }

    /// Its layout is in force: nothing but the rest of it is left to be done.
    pub fn is_being_finished(&self) -> bool {
        self.phase == "settling"
    }

    fn news_of(&self, watched: u64) -> News {
        match (self.job, self.phase.as_str()) {
            (Some(job), "done") if job == watched => News::Done,
            (Some(job), "aborted") if job == watched => News::Aborted,
            (Some(job), "copying" | "settling") if job == watched => News::Runs,
            (Some(job), _) if job > watched => News::Followed(job),
            _ => News::None,
        }
    }

    /// One transfer for each pair of shards: the sum over the nodes.
    fn transfers(&self) -> Vec<Transfer> {
        let mut sums: BTreeMap<(&str, &str), Transfer> = BTreeMap::new();
        for one in &self.moves {
            let new = || Transfer { from: one.from.clone(), to: one.to.clone(), ..Transfer::default() };
            let sum = sums.entry((&one.from, &one.to)).or_insert_with(new);
            sum.keys = sum.keys.saturating_add(one.keys);
            sum.keys_total = sum.keys_total.saturating_add(one.keys_total);
            sum.bytes = sum.bytes.saturating_add(one.bytes);
        }
        sums.into_values().collect()
    }
}

/// `job 3`.
pub fn called(job: Option<u64>) -> String {
    job.map_or_else(|| "the change".into(), |job| format!("job {job}"))
}

/// Shows how far the change is until it is done. A node that gave it no number has done it already.
pub async fn until_done(client: &Client, job: Option<u64>, names: &Names, interrupt: &Interrupt) -> Result<Job> {
    let Some(number) = job else { return Ok(Job { phase: "done".into(), ..Job::default() }) };
    let mut screen = Transfers::new();
    let mut heard = Instant::now();
    loop {
        let look = interrupt.or(async { Job::of(&client.look("/shard/reshard").await?) }).await;
        if interrupt.check().is_err() {
            return Err(detached(number));
        }
        let news = look.as_ref().map_or(News::None, |job| job.news_of(number));
        match (look, news) {
            (Ok(job), News::Done) => return Ok(job),
            (Ok(job), News::Runs) => {
                heard = Instant::now();
                let waits_for: Vec<String> = job.waiting_for.iter().map(|what| names.said(what)).collect();
                screen.show(&job.transfers(), &job.phase, &waits_for);
            }
            (_, News::Aborted) => {
                let text = format!("job {number} was aborted; the shards are as they were");
                return Err(Failure::new(Code::Failed, text));
            }
            (_, News::Followed(other)) => {
                let text =
                    format!("job {number} is over and job {other} followed; `kvctl shard ids` shows what became of it");
                return Err(Failure::new(Code::Failed, text));
            }
            (look, _) if heard.elapsed() > NO_NEWS_MAX => return Err(no_news(number, look)),
            _ => {}
        }
        let pause = async {
            tokio::time::sleep(LOOK_EVERY).await;
            Ok(())
        };
        // If it was interrupted, the next look says so.
        let _ = interrupt.or(pause).await;
    }
}

fn detached(job: u64) -> Failure {
    let text = format!(
        "no longer watching job {job}, which goes on: `kvctl reshard status` shows it, `kvctl reshard abort` gives it up"
    );
    Failure::new(Code::Failed, text)
}

fn no_news(job: u64, last: Result<Job>) -> Failure {
    let hint = "it may still go on: `kvctl cluster status` shows who is missing, `kvctl reshard status` looks again";
    match last {
        Ok(other) => {
            let text =
                format!("no node has told of job {job} for {NO_NEWS_MAX:?} (but of {}); {hint}", called(other.job));
            Failure::new(Code::TimedOut, text)
        }
        Err(failure) => {
            Failure::new(failure.code, format!("no news of job {job} for {NO_NEWS_MAX:?}: {failure}; {hint}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(number: Option<u64>, phase: &str) -> Job {
        Job { job: number, phase: phase.into(), ..Job::default() }
    }

    #[test]
    fn only_news_of_the_watched_job_counts() {
        for (told, news) in [
            (job(Some(3), "copying"), News::Runs),
            (job(Some(3), "settling"), News::Runs),
            (job(Some(3), "done"), News::Done),
            (job(Some(3), "aborted"), News::Aborted),
            (job(Some(3), "idle"), News::None),
            (job(Some(2), "done"), News::None),
            (job(None, "idle"), News::None),
            (job(Some(4), "copying"), News::Followed(4)),
        ] {
            assert_eq!(told.news_of(3), news, "{told:?}");
        }
    }

    #[test]
    fn nodes_are_summed_up_by_pair_of_shards() {
        let one = |from: &str, node: &str, keys| Move {
            from: from.into(),
            to: "s3".into(),
            node: node.into(),
            keys,
            keys_total: 100,
            bytes: 10 * keys,
        };
        let job =
            Job { moves: vec![one("s1", "a", 1), one("s2", "a", 3), one("s1", "b", 5)], ..job(Some(3), "copying") };
        let sum = |from: &str, keys, keys_total| Transfer {
            from: from.into(),
            to: "s3".into(),
            keys,
            keys_total,
            bytes: 10 * keys,
        };
        assert_eq!(job.transfers(), [sum("s1", 6, 200), sum("s2", 3, 100)]);
    }
}
