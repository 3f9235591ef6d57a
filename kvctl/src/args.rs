//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod bench;
mod drill;
mod topology;

pub use bench::{BenchArgs, Distribution, Mix, Route, Switch};
pub use drill::DrillArgs;
pub use topology::{ReshardArgs, ReshardCommand, ShardCommand, ViewArgs, ViewCommand, WaitArgs};

/// Starts, stops, inspects and talks to a cluster of kvnode.
#[derive(Parser, Debug)]
#[command(name = "kvctl", version, max_term_width = 110)]
pub struct Cli {
    /// Which cluster
    #[arg(long, global = true, env = "KVCTL_NAME", default_value = "default", value_name = "NAME")]
    pub name: String,
    /// text for people, json for programs: one document on standard output
    #[arg(long, short, global = true, value_enum, default_value = "text")]
    pub output: Output,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

/// Whether a command line that can't be understood asks for JSON all the same.
pub fn wants_json(arguments: impl Iterator<Item = std::ffi::OsString>) -> bool {
    let all: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    let apart = all.windows(2).any(|pair| matches!(pair[0].as_str(), "-o" | "--output") && pair[1] == "json");
    apart || all.iter().any(|one| matches!(one.as_str(), "-ojson" | "-o=json" | "--output=json"))
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Bring a cluster up, take it down, look at it
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Add and remove nodes; stop, start, kill, pause and unpause single ones
    #[command(subcommand)]
    Node(NodeCommand),
    /// Write a key. VALUE is JSON; what is no JSON is taken as a string
    Put {
        #[arg(allow_negative_numbers = true)]
        key: String,
        #[arg(allow_negative_numbers = true)]
        value: String,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Print the value of a key
    Get {
        #[arg(allow_negative_numbers = true)]
        key: String,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Delete a key
    Delete {
        #[arg(allow_negative_numbers = true)]
        key: String,
        #[command(flatten)]
        data: DataArgs,
    },
    /// List keys, in key order
    Keys {
        /// Only keys that start with this
        #[arg(long, default_value = "")]
        prefix: String,
        /// At most so many [default: all]
        #[arg(long)]
        limit: Option<usize>,
        #[command(flatten)]
        data: DataArgs,
    },
    /// List the members that a node can reach now; add and remove members
    View(ViewArgs),
    /// Look at the shards; add members to one
    #[command(subcommand)]
    Shard(ShardCommand),
    /// Change the number of shards: shows the plan, asks, and watches until every shard serves
    Reshard(ReshardArgs),
    /// Wait until the cluster is as it is meant to be
    Wait(WaitArgs),
    /// Load the cluster, and tell how many operations it did, how long they took, and what CPU time they cost
    Bench(BenchArgs),
    /// Load a cluster, inject faults, heal, and judge whether every promise was kept
    Drill(DrillArgs),
}

#[derive(Args, Debug, Clone, Default)]
pub struct Via {
    /// Ask this node (by name) instead of any
    #[arg(long, value_name = "NODE")]
    pub via: Option<String>,
}

#[derive(Args, Debug, Clone)]
pub struct DataArgs {
    #[command(flatten)]
    pub via: Via,
    /// The causal session that this command belongs to: it sees all that the session has seen
    #[arg(long, env = "KVCTL_SESSION", default_value = "default", value_name = "NAME")]
    pub session: String,
    /// Belong to no session: depend on nothing, remember nothing
    #[arg(long)]
    pub no_session: bool,
    /// Begin the session anew: forget what it has seen
    #[arg(long, conflicts_with = "no_session")]
    pub reset_session: bool,
}

#[derive(Subcommand, Debug)]
pub enum ClusterCommand {
    /// Bring the cluster up; where it runs already, repair what is missing and change nothing else
    Up(UpCommand),
    /// Stop all nodes and delete the cluster's data
    Down {
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
        /// Keep the data for the next `cluster up`
        #[arg(long)]
        keep_data: bool,
    },
    /// Show what every node does
    Status,
    /// Print what a node logs
    Logs {
        node: String,
        /// Go on as it logs more, also after a restart
        #[arg(long, short)]
        follow: bool,
    },
}

/// `kvctl cluster up`.
#[derive(Args, Debug)]
pub struct UpCommand {
    #[command(flatten)]
    pub up: UpArgs,
    #[command(flatten)]
    pub consent: Consent,
}

/// What is done only if somebody says so.
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct Consent {
    /// Go on with data that is left of a cluster which kvctl does not remember
    #[arg(long)]
    pub adopt: bool,
    /// Delete data that is left of a cluster which kvctl does not remember
    #[arg(long, conflicts_with = "adopt")]
    pub wipe: bool,
    /// Start the nodes of a shard although the data of all of them is gone: it begins empty
    #[arg(long)]
    pub accept_data_loss: bool,
}

#[derive(Args, Debug, Clone, Default)]
pub struct UpArgs {
    /// How many nodes [default: 6]
    #[arg(long)]
    pub nodes: Option<usize>,
    /// How many shards [default: 2]
    #[arg(long)]
    pub shards: Option<u32>,
    /// The nodes' network; the first address is the gateway's [default: 10.10.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub subnet: Option<String>,
    /// The first node's port on 127.0.0.1; the others follow [default: 8082]
    #[arg(long, value_name = "PORT")]
    pub ports_from: Option<u16>,
    /// The image's name [default: asg4img]
    #[arg(long)]
    pub image: Option<String>,
    /// Where the nodes run [default: auto, or what the cluster was made with]
    #[arg(long, value_enum)]
    pub runtime: Option<RuntimeArg>,
    /// The kvnode binary [default: the one that was named last for this cluster, or else the one beside kvctl]
    #[arg(long, env = "KVNODE", value_name = "PATH")]
    pub kvnode: Option<PathBuf>,
    /// Start the nodes so that `kvctl drill` can inject faults into them
    #[arg(long)]
    pub drill: bool,
    /// How long to wait until all nodes are ready, in seconds
    #[arg(long, default_value_t = 60)]
    pub wait: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuntimeArg {
    /// Docker where an engine answers, else local
    Auto,
    /// Containers
    Docker,
    /// Processes on 127.10.0.2, 127.10.0.3, …
    Local,
}

#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// Start one node more, at the next free address; it joins the cluster, in no shard yet
    Add {
        /// Its name [default: the next of alice, bob, carol, …]
        node: Option<String>,
        /// How long to wait until the others list it, such as 30s or 2m
        #[arg(long, value_name = "TIME", value_parser = topology::time, default_value = "60s")]
        timeout: Duration,
    },
    /// Ask it to leave (SIGTERM): it hands over what its peers lack
    Stop { node: String },
    /// Start it again
    Start { node: String },
    /// End it at once (SIGKILL)
    Kill { node: String },
    /// Freeze it: it keeps everything and answers nothing
    Pause { node: String },
    /// Unfreeze it
    Unpause { node: String },
    /// Delete a node that was taken out of the view, with its data; it goes from the list
    Remove {
        node: String,
        /// Don't ask
        #[arg(long, short)]
        yes: bool,
    },
}
