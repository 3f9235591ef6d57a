//! Settings: arguments and environment as given ([`Args`]), then one checked [`Config`].
//!
//! Every setting is a flag and a variable. What is wrong ends the process with status 2 and one line that names the
//! variable and shows a good value. An empty variable counts as missing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use kvnode_core::topology::NODES_MAX;
use kvnode_types::ident::Addr;

use crate::limits::{LimitArgs, Limits};
use crate::setting::{Setting, count, duration, shown};

/// The literal that existing clients compare.
pub const NOT_ENOUGH_NODES: &str = "Not enough nodes to provide fault tolerance with requested shard count";

/// What is wrong with the settings, on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// A node of a replicated, causally consistent, sharded key-value store.
#[derive(Parser, Clone, Debug, Default)]
#[command(name = "kvnode", version, max_term_width = 120)]
pub struct Args {
    /// For this program alone: reads the store there and tells whether it is damaged
    #[arg(long, hide = true, value_name = "DIR")]
    pub probe_store: Option<PathBuf>,
    /// This node, as the others and its clients reach it: HOST:PORT (required)
    #[arg(long, env = "SOCKET_ADDRESS", value_name = "HOST:PORT")]
    pub socket_address: Option<String>,
    /// All nodes of the cluster, comma-separated, in the same order everywhere [default: this node alone]
    #[arg(long, env = "VIEW", value_name = "HOST:PORT,…")]
    pub view: Option<String>,
    /// Shards that a new cluster starts with; a node that joins a running cluster ignores it [default: 1]
    #[arg(long, env = "SHARD_COUNT", value_name = "COUNT", allow_hyphen_values = true)]
    pub shard_count: Option<String>,
    /// Where the data is kept [default: in memory only]
    #[arg(long, env = "DATA_DIR", value_name = "PATH")]
    pub data_dir: Option<String>,
    /// What to bind [default: all interfaces, the port of SOCKET_ADDRESS]
    #[arg(long, env = "LISTEN_ADDRESS", value_name = "IP:PORT")]
    pub listen_address: Option<String>,
    /// Nodes with another secret are refused [default: none, the network is trusted]
    #[arg(long, env = "CLUSTER_SECRET", value_name = "TEXT", hide_env_values = true)]
    pub cluster_secret: Option<String>,
    /// Nodes of VIEW that may be missing when the cluster is formed, comma-separated. They are taken to have nothing; later, a cluster
    /// that runs waits for them whatever is said here [default: none]
    #[arg(long, env = "FORM_WITHOUT", value_name = "HOST:PORT,…")]
    pub form_without: Option<String>,
    /// Go on without the data that this node had and has no more. Without it, neither a cluster nor a shard begins anew where a node knows
    /// that there was data. For one start, not for good [default: no]
    #[arg(long, env = "ACCEPT_DATA_LOSS", value_name = "YES", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    pub accept_data_loss: Option<String>,
    /// Let operators inject faults into this node with `PUT /drill`. Never on a node that matters [default: off]
    #[arg(long, env = "DRILL", value_name = "YES", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    pub drill: Option<String>,
    /// When writes are forced to the disk: always (before the answer), interval, never [default: interval]
    #[arg(long, env = "FSYNC", value_name = "WHEN")]
    pub fsync: Option<String>,
    /// How often, with --fsync interval [default: 200ms]
    #[arg(long, env = "FSYNC_INTERVAL", value_name = "TIME")]
    pub fsync_interval: Option<String>,
    /// error, warn, info, debug or trace, also per module: info,kvnode::peer=debug [default: info]
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// When committed writes are forced to stable media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Before a write is answered or passed on.
    Always,
    /// This often; a loss of power may cost what came later.
    Interval(Duration),
    /// When the operating system likes.
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The settings in force.
#[derive(Clone)]
pub struct Config {
    pub socket_address: Addr,
    /// All nodes, this one included, in the order given, none twice.
    pub view: Vec<Addr>,
    /// At least 1; unless it is 1, VIEW has at least two nodes for each shard.
    pub shard_count: u32,
    /// Whether the operator named a shard count. Nodes that disagree when a cluster is formed say so.
    pub shard_count_given: bool,
    pub data_dir: Option<PathBuf>,
    pub listen: SocketAddr,
    pub cluster_secret: Option<String>,
    /// Others of `view`.
    pub form_without: Vec<Addr>,
    /// An operator gives up what this node had and has no more.
    pub accept_data_loss: bool,
    /// Faults may be injected.
    pub drill: bool,
    pub fsync: Fsync,
    pub log_level: String,
    pub log_format: LogFormat,
    pub limits: Limits,
}

impl Config {
    pub fn resolve(args: &Args) -> Result<Self, ConfigError> {
        let socket_address = socket_address(args)?;
        let view = view(args, &socket_address)?;
        let shard_count = shard_count(args, view.len())?;
        let data_dir = Setting::new("DATA_DIR", &args.data_dir, "/data").text().map(PathBuf::from);
        Ok(Self {
            shard_count: shard_count.unwrap_or(1),
            shard_count_given: shard_count.is_some(),
            data_dir,
            listen: listen(args, &socket_address)?,
            cluster_secret: args.cluster_secret.clone().filter(|secret| !secret.is_empty()),
            form_without: form_without(args, &socket_address, &view)?,
            accept_data_loss: yes("ACCEPT_DATA_LOSS", &args.accept_data_loss)?,
            drill: yes("DRILL", &args.drill)?,
            fsync: fsync(args)?,
            log_level: log_level(args)?,
            log_format: log_format(args)?,
            limits: args.limits.resolve()?,
            socket_address,
            view,
        })
    }
}

fn socket_address(args: &Args) -> Result<Addr, ConfigError> {
    let setting = Setting::new("SOCKET_ADDRESS", &args.socket_address, "10.10.0.2:8090");
    let address = setting.parse(|text| text.parse::<Addr>().map_err(|e| format!("is bad: {e}")))?;
    address.ok_or_else(|| setting.error("is missing: this node's own HOST:PORT"))
}

fn addresses(text: &str) -> Result<Vec<Addr>, String> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let address = part.trim().parse::<Addr>().map_err(|e| format!("is bad: {e}"))?;
        if !all.contains(&address) {
            all.push(address);
        }
        if all.len() > NODES_MAX {
            return Err(format!("names more than {NODES_MAX} nodes"));
        }
    }
    Ok(all)
}

fn view(args: &Args, me: &Addr) -> Result<Vec<Addr>, ConfigError> {
    let setting = Setting::new("VIEW", &args.view, "10.10.0.2:8090,10.10.0.3:8090");
    let mut view = setting.parse_or(Vec::new(), addresses)?;
    if !view.contains(me) {
        view.push(me.clone());
    }
    Ok(view)
}

/// `None` if it is not given.
fn shard_count(args: &Args, nodes: usize) -> Result<Option<u32>, ConfigError> {
    let setting = Setting::new("SHARD_COUNT", &args.shard_count, "2 (at least 1)");
    let parse = |text: &str| count(text, 1, u32::MAX as usize);
    let Some(shards) = setting.parse(parse)? else { return Ok(None) };
    if shards != 1 && nodes / shards < 2 {
        return Err(ConfigError(NOT_ENOUGH_NODES.to_owned()));
    }
    u32::try_from(shards).map(Some).map_err(|_| setting.error("is too large"))
}

/// All interfaces, of the family that the node's own address has: an IPv6 node takes both families.
fn listen(args: &Args, me: &Addr) -> Result<SocketAddr, ConfigError> {
    let any: IpAddr = match me.as_str().starts_with('[') {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let setting = Setting::new("LISTEN_ADDRESS", &args.listen_address, "0.0.0.0:8090 or [::]:8090");
    setting.parse_or(SocketAddr::new(any, me.port()), |text| {
        text.parse::<SocketAddr>().map_err(|_| format!("is {}, which is no IP:PORT", shown(text)))
    })
}

fn form_without(args: &Args, me: &Addr, view: &[Addr]) -> Result<Vec<Addr>, ConfigError> {
    let setting = Setting::new("FORM_WITHOUT", &args.form_without, "10.10.0.4:8090, another node of VIEW");
    let missing = setting.parse_or(Vec::new(), addresses)?;
    match missing.iter().find(|address| *address == me || !view.contains(address)) {
        Some(stranger) => Err(setting.error(&format!("names {stranger}, which is not another node of VIEW"))),
        None => Ok(missing),
    }
}

fn yes(name: &'static str, given: &Option<String>) -> Result<bool, ConfigError> {
    Setting::new(name, given, "1 or 0").parse_or(false, |text| match text {
        "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        _ => Err(format!("is {}", shown(text))),
    })
}

fn fsync(args: &Args) -> Result<Fsync, ConfigError> {
    let interval = Setting::new("FSYNC_INTERVAL", &args.fsync_interval, "200ms");
    let bounds = (Duration::from_millis(1), Duration::from_secs(3600));
    let every = interval.parse_or(Duration::from_millis(200), |text| duration(text, bounds.0, bounds.1))?;
    let setting = Setting::new("FSYNC", &args.fsync, "always, interval or never");
    setting.parse_or(Fsync::Interval(every), |text| match text {
        "always" => Ok(Fsync::Always),
        "interval" => Ok(Fsync::Interval(every)),
        "never" => Ok(Fsync::Never),
        _ => Err(format!("is {}", shown(text))),
    })
}

fn log_level(args: &Args) -> Result<String, ConfigError> {
    let setting = Setting::new("LOG_LEVEL", &args.log_level, "info, debug or info,kvnode::peer=debug");
    setting.parse_or("info".to_owned(), |text| {
        let filter = text.parse::<tracing_subscriber::filter::Targets>();
        filter.map(|_| text.to_owned()).map_err(|_| format!("is {}", shown(text)))
    })
}

fn log_format(args: &Args) -> Result<LogFormat, ConfigError> {
    let setting = Setting::new("LOG_FORMAT", &args.log_format, "text or json");
    setting.parse_or(LogFormat::Text, |text| match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("is {}", shown(text))),
    })
}

#[cfg(test)]
mod tests;
