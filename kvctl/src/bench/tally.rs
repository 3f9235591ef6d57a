//! What is counted.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies are kept in ns with three digits, up to this; a time-out is below it.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
/// Different kinds of errors that are told apart.
const KINDS_MAX: usize = 50;
const KIND_CHARS_MAX: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Get,
    Put,
    Delete,
}

impl Operation {
    pub const ALL: [Self; 3] = [Self::Get, Self::Put, Self::Delete];

    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
        }
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// A read or a delete of a key that has no value.
    Missing,
    TimedOut,
    /// Refused or broken, of this kind.
    Failed(String),
}

/// When an operation was due, sent and over.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From the moment when it was due.
    pub latency: Duration,
    /// From the moment when it was sent.
    pub service: Duration,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3).expect("these bounds are valid")
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1));
}

/// The counts of a run.
pub struct Tally {
    latency: [Histogram<u64>; 3],
    service: Histogram<u64>,
    answered: [u64; 3],
    pub missing: u64,
    /// Due, and not begun when the time was over.
    pub unsent: u64,
    pub errors: BTreeMap<String, u64>,
    /// All that ended, however.
    pub ended: u64,
}

impl Tally {
    pub fn new() -> Self {
        Self {
            latency: [histogram(), histogram(), histogram()],
            service: histogram(),
            answered: [0; 3],
            missing: 0,
            unsent: 0,
            errors: BTreeMap::new(),
            ended: 0,
        }
    }

    /// Counts an operation. The histograms get the answered ones, and those that timed out with the time they waited; a
    /// connection that is refused at once would only flatter them.
    pub fn count(&mut self, operation: Operation, times: Times, outcome: Outcome) {
        self.ended += 1;
        match outcome {
            Outcome::Failed(kind) => return self.count_error(kind),
            Outcome::TimedOut => self.count_error("timed out".into()),
            Outcome::Missing => {
                self.answered[operation as usize] += 1;
                self.missing += 1;
            }
            Outcome::Done => self.answered[operation as usize] += 1,
        }
        record(&mut self.latency[operation as usize], times.latency);
        record(&mut self.service, times.service);
    }

    /// An operation that was due so long and never begun: it took at least that.
    pub fn count_unsent(&mut self, operation: Operation, waited: Duration) {
        self.unsent += 1;
        record(&mut self.latency[operation as usize], waited);
    }

    fn count_error(&mut self, kind: String) {
        let known = self.errors.len() < KINDS_MAX || self.errors.contains_key(&kind);
        *self.errors.entry(if known { kind } else { "others".into() }).or_default() += 1;
    }

    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Those that were answered as asked. The histogram has those that timed out or could not be begun, too.
    pub fn answered(&self, operation: Operation) -> u64 {
        self.answered[operation as usize]
    }

    pub fn latency(&self, operation: Operation) -> &Histogram<u64> {
        &self.latency[operation as usize]
    }

    /// Of all operations.
    pub fn overall(&self) -> Histogram<u64> {
        let mut all = histogram();
        for one in &self.latency {
            all.add(one).expect("the bounds are the same");
        }
        all
    }

    /// Of all operations, without the time they waited to be sent.
    pub fn service(&self) -> &Histogram<u64> {
        &self.service
    }
}

/// The kind of a refusal: its status, and its text without what differs from case to case.
pub fn kind_of(status: u16, body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = json.get("error").and_then(serde_json::Value::as_str).unwrap_or_default();
    let word = |word: &str| if word.contains(|c: char| c.is_ascii_digit()) { "…".into() } else { word.to_owned() };
    let mut words: Vec<String> = text.split_whitespace().map(word).collect();
    words.dedup_by(|one, other| one == "…" && other == "…");
    let all = format!("{status} {}", words.join(" "));
    all.trim_end().chars().take(KIND_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn times(latency: Duration) -> Times {
        Times { latency, service: MS }
    }

    #[test]
    fn kinds_leave_out_what_differs() {
        let body = br#"{"error":"No replica of shard s17 is reachable"}"#;
        assert_eq!(kind_of(503, body), "503 No replica of shard … is reachable");
        let body = br#"{"error":"away: 10.0.0.1:80, 10.0.0.2:80"}"#;
        assert_eq!(kind_of(503, body), "503 away: …");
        assert_eq!(kind_of(502, b"<html>"), "502");
        assert_eq!(kind_of(500, &[b'"'; 9]), "500");
        let long = format!(r#"{{"error":"{}"}}"#, "x".repeat(9_999));
        assert_eq!(kind_of(400, long.as_bytes()).chars().count(), KIND_CHARS_MAX);
    }

    #[test]
    fn errors_are_counted_by_kind_and_kinds_are_bounded() {
        let mut tally = Tally::new();
        for number in 0..1_000 {
            tally.count(Operation::Put, times(MS), Outcome::Failed(format!("kind {number}")));
        }
        tally.count(Operation::Put, times(MS), Outcome::Failed("kind 0".into()));
        assert_eq!((tally.failed(), tally.errors.len(), tally.errors["kind 0"]), (1_001, KINDS_MAX + 1, 2));
        assert_eq!(tally.overall().len(), 0, "what failed has no latency");
    }

    #[test]
    fn waiting_counts_in_latency_alone() {
        let mut tally = Tally::new();
        for _ in 0..99 {
            tally.count(Operation::Get, times(MS), Outcome::Done);
        }
        tally.count(Operation::Get, times(500 * MS), Outcome::Missing);
        tally.count(Operation::Put, times(800 * MS), Outcome::TimedOut);
        tally.count_unsent(Operation::Put, 900 * MS);
        let near = |value: u64, ms: u64| value.abs_diff(ms * 1_000_000) <= ms * 2_000;
        assert!(near(tally.latency(Operation::Get).max(), 500));
        assert!(near(tally.overall().max(), 900) && tally.overall().len() == 102);
        assert!(near(tally.service().max(), 1) && tally.service().len() == 101);
        assert_eq!((tally.missing, tally.unsent, tally.failed(), tally.ended), (1, 1, 1, 101));
        assert_eq!(Operation::ALL.map(|operation| tally.answered(operation)), [100, 0, 0]);
    }
}
