//! The command line of `kvctl drill`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::UpArgs;
use crate::drill::fault::{Kinds, Scenario};

/// `kvctl drill`.
#[derive(Args, Debug)]
#[command(override_usage = "kvctl drill [OPTIONS]\n       kvctl drill --judge HISTORY [--report FILE]")]
pub struct DrillArgs {
    /// How long clients work and faults come: 5s to 24h. A fault that is planned is carried out, so it may take a little longer
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s")]
    pub duration: Duration,
    /// What goes wrong: any of kill, pause, partition, one-way, slow, clock, reshard, wipe, disk-full, separated by commas
    /// [default: all that the cluster can]
    #[arg(long, value_name = "LIST", conflicts_with = "scenario")]
    pub faults: Option<Kinds>,
    /// A named set of faults: crashes, network, freezes, lost-disks, moving, calm, all
    #[arg(long, value_name = "NAME")]
    pub scenario: Option<Scenario>,
    /// Clients at once, each with its own causal session
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub sessions: u16,
    /// Keys that all of them share. Few keys, many conflicts
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub keys: u16,
    /// The same seed plans the same faults [default: a new one]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How long to wait for all replicas to be equal once all is healed
    #[arg(long, value_name = "TIME", value_parser = super::topology::time, default_value = "60s")]
    pub timeout: Duration,
    /// Where every operation is kept, as JSON lines (see ARCHITECTURE.md) [default: drill-SEED.jsonl, or
    /// drill-SEED-2.jsonl where there is one]
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,
    /// Where the report goes, one HTML page [default: beside the history]
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Judge a history that was kept, and touch no cluster
    #[arg(long, value_name = "HISTORY", conflicts_with_all = ["fresh", "yes", "history", "faults", "scenario", "seed"])]
    pub judge: Option<PathBuf>,
    /// Don't ask
    #[arg(long, short)]
    pub yes: bool,
    /// Make a cluster for this drill alone, with the options below; it goes when the drill is over, unless something failed
    #[arg(long)]
    pub fresh: bool,
    #[command(flatten, next_help_heading = "The cluster of --fresh")]
    pub up: UpArgs,
}

/// Shorter than that, not even one fault fits.
fn duration(text: &str) -> Result<Duration, String> {
    let time = super::topology::time(text)?;
    let fits = (Duration::from_secs(5)..=Duration::from_secs(24 * 3_600)).contains(&time);
    if fits { Ok(time) } else { Err("a drill takes 5s to 24h".into()) }
}
