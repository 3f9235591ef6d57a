//! What a run has shown: one document for programs, tables for people.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::tally::{Operation, Tally};
use crate::args::{BenchArgs, Mix, Switch};
use crate::render::{line, table};

/// A run.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    pub nodes: Vec<String>,
    pub route: String,
    pub mix: Mix,
    pub keys: u64,
    pub key_size: u16,
    pub value_size: u64,
    pub distribution: String,
    pub connections: usize,
    /// Operations that were to begin per second; `None`: closed loop.
    pub rate: Option<f64>,
    pub causal: bool,
    /// How long was measured.
    pub seconds: f64,
    /// The user ended it early.
    pub interrupted: bool,
    /// Operations that were answered as asked, and those per second.
    pub operations: u64,
    pub per_second: f64,
    /// Of these, reads and deletes of keys that had no value.
    pub missing: u64,
    /// Operations that were due and could not be begun.
    pub unsent: u64,
    pub errors: BTreeMap<String, u64>,
    pub cpu: Cpu,
    /// Operations of each kind that were answered as asked.
    pub answered: BTreeMap<&'static str, u64>,
    /// In µs, from the moment an operation was due; operations that don't occur are absent, `all` never is. Those that timed out
    /// or could not be begun count with the time they waited.
    pub latency_us: BTreeMap<&'static str, Latency>,
    /// In µs, from the moment an operation was sent.
    pub service_us: Latency,
}

/// CPU time per operation that was answered as asked, in µs; `None` where it can't be read or there is none.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cpu {
    /// Of all nodes together.
    pub servers_us: Option<f64>,
    pub nodes_us: BTreeMap<String, f64>,
    pub client_us: Option<f64>,
}

/// A distribution of times, in µs.
#[derive(Debug, Default, Serialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
    #[serde(rename = "p99.99")]
    pub p99_99: f64,
    pub max: f64,
}

impl Latency {
    fn of(times: &Histogram<u64>) -> Self {
        let us = |ns: u64| ns as f64 / 1_000.0;
        let at = |quantile: f64| us(times.value_at_quantile(quantile));
        if times.is_empty() {
            return Self::default();
        }
        Self {
            count: times.len(),
            mean: (times.mean() / 10.0).round() / 100.0,
            min: us(times.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: us(times.max()),
        }
    }
}

/// What was measured beside the tally.
#[derive(Debug, Default)]
pub struct Measured {
    pub time: Duration,
    pub interrupted: bool,
    /// CPU time of the nodes by name, as far as it can be read, and whether that is all of them.
    pub servers: BTreeMap<String, Duration>,
    pub all_servers: bool,
    pub client: Option<Duration>,
}

impl Report {
    pub fn new(args: &BenchArgs, nodes: Vec<String>, tally: &Tally, measured: &Measured) -> Self {
        let seconds = measured.time.as_secs_f64();
        let operations = tally.ended - tally.failed();
        let each = |used: Duration| {
            let us = used.as_secs_f64() * 1e6 / operations as f64;
            (operations > 0).then_some((us * 100.0).round() / 100.0)
        };
        let servers = measured.all_servers.then(|| each(measured.servers.values().sum())).flatten();
        let mut answered = BTreeMap::from([("all", operations)]);
        let mut latency_us = BTreeMap::from([("all", Latency::of(&tally.overall()))]);
        for operation in Operation::ALL {
            let times = tally.latency(operation);
            if !times.is_empty() {
                latency_us.insert(operation.name(), Latency::of(times));
                answered.insert(operation.name(), tally.answered(operation));
            }
        }
        Self {
            nodes,
            route: args.route.to_string(),
            mix: args.mix,
            keys: args.keys,
            key_size: args.key_size,
            value_size: args.value_size,
            distribution: args.distribution.to_string(),
            connections: args.connections,
            rate: args.rate,
            causal: args.causal == Switch::On,
            seconds: (seconds * 1_000.0).round() / 1_000.0,
            interrupted: measured.interrupted,
            operations,
            per_second: if seconds > 0.0 { (operations as f64 / seconds * 10.0).round() / 10.0 } else { 0.0 },
            missing: tally.missing,
            unsent: tally.unsent,
            errors: tally.errors.clone(),
            cpu: Cpu {
                servers_us: servers,
                nodes_us: measured
                    .servers
                    .iter()
                    .filter_map(|(name, used)| Some((name.clone(), each(*used)?)))
                    .collect(),
                client_us: measured.client.and_then(each),
            },
            answered,
            latency_us,
            service_us: Latency::of(tally.service()),
        }
    }

    /// `95/5, 10000 keys uniform, …`: what was asked for, on one line.
    pub fn workload(&self) -> String {
        let Mix { reads, writes, deletes } = self.mix;
        let mix = if deletes > 0 { format!("{reads}/{writes}/{deletes}") } else { format!("{reads}/{writes}") };
        let pace = self.rate.map_or_else(|| "closed loop".into(), |rate| format!("{rate}/s due"));
        let causal = if self.causal { "causal" } else { "without context" };
        format!(
            "{mix}, {} keys {}, {} B values, {} connections, {pace}, route {}, {causal}",
            self.keys, self.distribution, self.value_size, self.connections, self.route
        )
    }

    /// For people.
    pub fn show(&self) {
        let order = ["get", "put", "delete", "all"];
        let answered = |name| self.answered.get(name).copied().unwrap_or(0);
        let of_kind = |name| self.latency_us.get(name).map(|latency| self.row(name, answered(name), latency));
        let mut rows: Vec<Vec<String>> = order.into_iter().filter_map(of_kind).collect();
        if self.rate.is_some() {
            rows.push(self.row("all, once sent", self.operations, &self.service_us));
        }
        table(&["OPERATION", "ANSWERED", "PER SECOND", "P50", "P90", "P99", "P99.9", "P99.99", "MAX"], rows);
        let cut = if self.interrupted { ", interrupted" } else { "" };
        line(&format!("\n{:.1}/s in {:.1} s{cut}: {}", self.per_second, self.seconds, self.workload()));
        line(&self.cpu_text());
        if self.missing > 0 {
            line(&format!("{} reads or deletes of keys without a value; --prepare writes all before", self.missing));
        }
        if let (Some(rate), true) = (self.rate, self.unsent > 0) {
            let text = "could not be begun in time; they count with the time they waited";
            line(&format!("{} of the operations due at {rate}/s {text}", self.unsent));
        }
        if !self.errors.is_empty() {
            line("");
            let rows = self.errors.iter().map(|(kind, count)| vec![count.to_string(), kind.clone()]);
            table(&["ERRORS", "KIND"], rows.collect());
        }
    }

    fn row(&self, name: &str, answered: u64, latency: &Latency) -> Vec<String> {
        let rate = if self.seconds > 0.0 { answered as f64 / self.seconds } else { 0.0 };
        let times = [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.p99_99, latency.max];
        let mut row = vec![name.to_owned(), answered.to_string(), format!("{rate:.0}")];
        row.extend(times.map(time_text));
        row
    }

    fn cpu_text(&self) -> String {
        let us = |used: Option<f64>| used.map_or_else(|| "-".to_owned(), |used| format!("{used:.1} µs"));
        let nodes: Vec<String> = self.cpu.nodes_us.iter().map(|(name, used)| format!("{name} {used:.1}")).collect();
        let nodes = if nodes.is_empty() { String::new() } else { format!(" ({})", nodes.join(", ")) };
        let (servers, client) = (us(self.cpu.servers_us), us(self.cpu.client_us));
        format!("CPU per operation: nodes {servers}{nodes}, kvctl {client}")
    }
}

/// `85 µs`, `1.23 ms`, `2.50 s`.
pub fn time_text(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 1_000_000.0 => format!("{:.2} ms", us / 1_000.0),
        us => format!("{:.2} s", us / 1_000_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_or_so() {
        for (us, text) in [(0.4, "0 µs"), (85.2, "85 µs"), (1_234.0, "1.23 ms"), (2_500_000.0, "2.50 s")] {
            assert_eq!(time_text(us), text);
        }
    }

    #[test]
    fn percentiles_are_of_what_was_recorded() {
        let mut times = Histogram::new(3).unwrap();
        (1..=10_000_u64).for_each(|us| times.record(us * 1_000).unwrap());
        let latency = Latency::of(&times);
        for (got, expected) in
            [(latency.p50, 5_000.0), (latency.p99, 9_900.0), (latency.p99_9, 9_990.0), (latency.max, 10_000.0)]
        {
            assert!((got - expected).abs() / expected < 0.002, "{got}, not {expected}");
        }
    }
}
