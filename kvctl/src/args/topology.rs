//! The command line of what changes who has what.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::Via;
use crate::goal::Goal;

/// `kvctl view`.
#[derive(Args, Debug)]
pub struct ViewArgs {
    /// Ask this node (by name) instead of any
    #[arg(long, global = true, value_name = "NODE")]
    pub via: Option<String>,
    /// Nothing: list the members.
    #[command(subcommand)]
    pub command: Option<ViewCommand>,
}

/// `kvctl view …`.
#[derive(Subcommand, Debug)]
pub enum ViewCommand {
    /// Make a node a member, in no shard yet. Nothing needs to run there
    Add {
        /// HOST:PORT, or a node's name
        #[arg(value_name = "ADDR")]
        address: String,
    },
    /// Take a node out of the cluster; one that runs hands over first what only it has
    Remove {
        /// HOST:PORT, or a node's name
        #[arg(value_name = "ADDR")]
        address: String,
        /// How long to wait until it is done
        #[arg(long, value_name = "TIME", value_parser = time, default_value = "60s")]
        timeout: Duration,
    },
    /// Last resort, when most nodes are gone for good: the one named with --via goes on with those it reaches. Writes that
    /// only the others have may be lost
    Recover {
        /// Don't ask
        #[arg(long)]
        yes_i_may_lose_writes: bool,
    },
}

/// `kvctl shard …`.
#[derive(Subcommand, Debug)]
pub enum ShardCommand {
    /// List the shards
    Ids(Via),
    /// List a shard's members
    Members {
        shard: String,
        #[command(flatten)]
        via: Via,
    },
    /// Count a shard's keys
    KeyCount {
        shard: String,
        #[command(flatten)]
        via: Via,
    },
    /// Tell a node's shard
    Node { node: String },
    /// Give a shard one replica more; done once that serves
    AddMember {
        shard: String,
        /// HOST:PORT, or a node's name
        #[arg(value_name = "ADDR")]
        address: String,
        /// How long to wait until it serves
        #[arg(long, value_name = "TIME", value_parser = time, default_value = "10m")]
        timeout: Duration,
        #[command(flatten)]
        via: Via,
    },
}

/// `kvctl reshard`.
#[derive(Args, Debug)]
#[command(
    subcommand_negates_reqs = true,
    override_usage = "kvctl reshard [OPTIONS] <N>\n       kvctl reshard status|abort"
)]
pub struct ReshardArgs {
    /// How many shards there are to be
    #[arg(value_name = "N", required = true)]
    pub shards: Option<u32>,
    /// Only show what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Watch until it is done; Ctrl-C ends the watching only. This is the default
    #[arg(long, overrides_with = "no_wait")]
    pub wait: bool,
    /// Begin it and return
    #[arg(long, overrides_with = "wait")]
    pub no_wait: bool,
    /// Don't ask
    #[arg(long, short)]
    pub yes: bool,
    /// Ask this node (by name) instead of any
    #[arg(long, global = true, value_name = "NODE")]
    pub via: Option<String>,
    #[command(subcommand)]
    pub command: Option<ReshardCommand>,
}

/// `kvctl reshard …`.
#[derive(Subcommand, Debug)]
pub enum ReshardCommand {
    /// Show the change that runs, or the last one
    Status,
    /// Give up the change that runs, if it still copies
    Abort,
}

/// `kvctl wait`.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// ready: every node serves; converged: all replicas hold the same; epoch=N: every node knows layout N or a later one.
    /// Nodes in no shard don't count
    #[arg(long = "for", value_name = "GOAL")]
    pub goal: Goal,
    /// How long, such as 500ms, 60s, 2m
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "60s")]
    pub timeout: Duration,
}

/// `500ms`, `60s`, `2m`, `1h`; a bare number means seconds.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit_ms = match unit {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let bad = || "a time is a number and ms, s, m or h, such as 30s".to_owned();
    let number: u32 = number.parse().map_err(|_| bad())?;
    if unit_ms == 0 { Err(bad()) } else { Ok(Duration::from_millis(u64::from(number) * unit_ms)) }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(line: &str) -> Result<Command, String> {
        let cli = Cli::try_parse_from(std::iter::once("kvctl").chain(line.split(' ')));
        cli.map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times() {
        let all = [("500ms", 500), ("60s", 60_000), ("7", 7_000), ("2m", 120_000), ("1h", 3_600_000), ("0s", 0)];
        for (text, ms) in all {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "1d", "1 s", "99999999999s"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn reshard_takes_a_number_or_a_subcommand() {
        let Ok(Command::Reshard(args)) = parse("reshard 3 --yes --wait --no-wait") else { panic!("a reshard") };
        assert_eq!((args.shards, args.yes, args.wait, args.no_wait), (Some(3), true, false, true));
        let Ok(Command::Reshard(args)) = parse("reshard status -o json --via bob") else { panic!("a reshard") };
        assert!(matches!(args.command, Some(ReshardCommand::Status)) && args.via.as_deref() == Some("bob"));
        for line in ["reshard", "reshard x", "reshard -1", "reshard 4294967296"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn view_alone_lists() {
        let Ok(Command::View(args)) = parse("view --via bob") else { panic!("a view") };
        assert!(args.command.is_none() && args.via.as_deref() == Some("bob"));
        let Ok(Command::View(args)) = parse("view add 10.10.0.8:8090 --via bob") else { panic!("a view") };
        assert!(matches!(args.command, Some(ViewCommand::Add { .. })) && args.via.as_deref() == Some("bob"));
    }
}
