//! The command line of `kvctl bench`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::topology::time;

/// Connections of one run. Each is a socket here and one at a node (three shards and `--route owner`: three).
const CONNECTIONS_MAX: usize = 4_096;
/// A value stays below the largest body that a node takes by default.
const VALUE_MAX: u64 = 1_000_000;

/// `kvctl bench`.
#[derive(Args, Debug, Clone)]
pub struct BenchArgs {
    /// Load these nodes instead of the cluster's: HOST:PORT, separated by commas
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub url: Vec<String>,
    /// Shares of reads, writes and, if there is a third number, deletes
    #[arg(long, default_value = "95/5")]
    pub mix: Mix,
    /// How many keys there are to choose from
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub keys: u64,
    /// Characters of a key
    #[arg(long, default_value_t = 16, value_name = "CHARACTERS", value_parser = clap::value_parser!(u16).range(10..=1_000))]
    pub key_size: u16,
    /// Characters of a value
    #[arg(long, default_value_t = 100, value_name = "CHARACTERS", value_parser = clap::value_parser!(u64).range(0..=VALUE_MAX))]
    pub value_size: u64,
    /// Which keys are chosen how often: uniform, or zipfian[:THETA], where the n-th key comes up n^-THETA as often as the first
    #[arg(long, default_value = "uniform")]
    pub distribution: Distribution,
    /// Connections, each with one request under way at most
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = connections)]
    pub connections: usize,
    /// Open loop: begin so many operations per second, whether or not earlier ones were answered, and count each one's
    /// time from the moment it was due. Without: closed loop, each connection goes on as soon as it is answered
    #[arg(long, value_name = "PER SECOND", value_parser = rate)]
    pub rate: Option<f64>,
    /// How long to measure, such as 30s or 2m
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    pub duration: Duration,
    /// How long to load before that without counting
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "2s")]
    pub warmup: Duration,
    /// Where requests go: spread (each connection to the next node), one:NODE, owner (to a replica of the key's shard), or
    /// elsewhere (to a node of another shard, which passes them on)
    #[arg(long, default_value = "spread")]
    pub route: Route,
    /// Whether each connection hands on the causal context that it got last
    #[arg(long, value_enum, default_value = "on")]
    pub causal: Switch,
    /// Write every key once before the run
    #[arg(long)]
    pub prepare: bool,
    /// An operation that is not answered within this is given up, and its connection closed
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "5s")]
    pub timeout: Duration,
    /// Runs with the same seed choose the same keys
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    pub seed: u64,
    /// Draw the latency curve into this file
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

fn connections(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=CONNECTIONS_MAX).contains(number));
    number.ok_or_else(|| format!("a number from 1 to {CONNECTIONS_MAX}"))
}

fn rate(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|rate: &f64| (0.01..=10_000_000.0).contains(rate));
    number.ok_or_else(|| "operations per second, from 0.01 to 10000000".to_owned())
}

/// Shares of the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mix {
    pub reads: u32,
    pub writes: u32,
    pub deletes: u32,
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "READS/WRITES or READS/WRITES/DELETES, such as 95/5 or 50/40/10".to_owned();
        let shares: Option<Vec<u32>> = text.split('/').map(|share| share.parse().ok()).collect();
        let shares = shares.filter(|shares| shares.iter().all(|share| *share <= 1_000_000)).ok_or_else(bad)?;
        let (reads, writes, deletes) = match shares[..] {
            [reads, writes] => (reads, writes, 0),
            [reads, writes, deletes] => (reads, writes, deletes),
            _ => return Err(bad()),
        };
        if reads + writes + deletes == 0 { Err(bad()) } else { Ok(Self { reads, writes, deletes }) }
    }
}

/// Which keys are chosen how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    Uniform,
    /// The exponent.
    Zipfian(f64),
}

/// What YCSB uses.
const THETA: f64 = 0.99;

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "uniform, zipfian, or zipfian:THETA with THETA from 0.01 to 10".to_owned();
        match text.split_once(':') {
            None if text == "uniform" => Ok(Self::Uniform),
            None if text == "zipfian" => Ok(Self::Zipfian(THETA)),
            Some(("zipfian", theta)) => {
                let theta = theta.parse().ok().filter(|theta| (0.01..=10.0).contains(theta));
                theta.map(Self::Zipfian).ok_or_else(bad)
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipfian(theta) => write!(f, "zipfian:{theta}"),
        }
    }
}

/// Which node gets a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// A node's name or address.
    One(String),
    Spread,
    Owner,
    Elsewhere,
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "spread" => Ok(Self::Spread),
            None if text == "owner" => Ok(Self::Owner),
            None if text == "elsewhere" => Ok(Self::Elsewhere),
            Some(("one", node)) if !node.is_empty() => Ok(Self::One(node.to_owned())),
            _ => Err("spread, owner, elsewhere, or one:NODE".to_owned()),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(node) => write!(f, "one:{node}"),
            Self::Spread => f.write_str("spread"),
            Self::Owner => f.write_str("owner"),
            Self::Elsewhere => f.write_str("elsewhere"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_that_are_some_and_none() {
        assert_eq!("95/5".parse(), Ok(Mix { reads: 95, writes: 5, deletes: 0 }));
        assert_eq!("1/0/2".parse(), Ok(Mix { reads: 1, writes: 0, deletes: 2 }));
        for bad in ["", "95", "0/0", "a/b", "1/2/3/4", "-1/2", "1/", "4294967295/4294967295"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn distributions_and_routes_are_read_as_they_are_written() {
        for text in ["uniform", "zipfian:0.99", "zipfian:1", "zipfian:1.5"] {
            assert_eq!(text.parse::<Distribution>().unwrap().to_string(), text);
        }
        assert_eq!("zipfian".parse(), Ok(Distribution::Zipfian(0.99)));
        for bad in ["", "normal", "zipfian:", "zipfian:0", "zipfian:-1", "zipfian:NaN", "uniform:1"] {
            assert!(bad.parse::<Distribution>().is_err(), "{bad}");
        }
        for text in ["spread", "owner", "one:alice", "one:10.10.0.2:8090"] {
            assert_eq!(text.parse::<Route>().unwrap().to_string(), text);
        }
        for bad in ["", "one", "one:", "all", "owner:alice"] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_and_connections_have_bounds() {
        assert_eq!(rate("2500.5"), Ok(2500.5));
        assert_eq!(connections("64"), Ok(64));
        for bad in ["0", "-1", "x", "NaN", "inf", "1e12", ""] {
            assert!(rate(bad).is_err(), "{bad}");
            assert!(connections(bad).is_err(), "{bad}");
        }
    }
}
