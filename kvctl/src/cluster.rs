//! What a cluster is: its nodes' names and addresses, derived from a few numbers. Pure.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::args::UpArgs;
use crate::error::{Failure, Result};

/// Port of every node inside its container, or on its own loopback address.
pub const NODE_PORT: u16 = 8090;
/// The cluster that commands mean when no name is given; its containers have the bare names.
pub const DEFAULT_NAME: &str = "default";

const NAMES: [&str; 26] = [
    "alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "kim", "leo", "mallory",
    "nina", "oscar", "peggy", "quentin", "rupert", "sybil", "trent", "ursula", "victor", "wendy", "xavier", "yves",
    "zoe",
];

/// What `cluster up` was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub name: String,
    pub nodes: usize,
    pub shards: u32,
    /// Network address and prefix length.
    pub subnet: (Ipv4Addr, u8),
    pub ports_from: u16,
    pub image: String,
}

/// One node of a spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeSpec {
    pub name: String,
    pub ip: Ipv4Addr,
    /// On the host's 127.0.0.1; containers only.
    pub port: u16,
}

impl Spec {
    /// The spec that the arguments ask for; what they leave open comes from `known`, or else from the defaults.
    pub fn resolve(name: &str, args: &UpArgs, known: Option<&Self>) -> Result<Self> {
        let default = Self {
            name: name.to_owned(),
            nodes: 6,
            shards: 2,
            subnet: (Ipv4Addr::new(10, 10, 0, 0), 16),
            ports_from: 8082,
            image: "asg4img".into(),
        };
        let base = known.unwrap_or(&default);
        let spec = Self {
            name: name.to_owned(),
            nodes: args.nodes.unwrap_or(base.nodes),
            shards: args.shards.unwrap_or(base.shards),
            subnet: args.subnet.as_deref().map_or(Ok(base.subnet), parse_subnet)?,
            ports_from: args.ports_from.unwrap_or(base.ports_from),
            image: args.image.clone().unwrap_or_else(|| base.image.clone()),
        };
        if let Some(known) = known.filter(|known| **known != spec) {
            let text = format!(
                "the cluster '{name}' exists with {} nodes, {} shards, subnet {}/{}, ports from {}, image {}; \
                 `kvctl cluster down` it first, or make another with --name",
                known.nodes, known.shards, known.subnet.0, known.subnet.1, known.ports_from, known.image
            );
            return Err(Failure::new(crate::error::Code::Conflict, text));
        }
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<()> {
        let hosts = 1_u64 << (32 - u32::from(self.subnet.1));
        if self.nodes == 0 || self.nodes > NAMES.len() {
            return Err(Failure::usage(format!("--nodes is 1 to {}", NAMES.len())));
        }
        if self.shards == 0 || (self.shards != 1 && self.nodes / (self.shards as usize) < 2) {
            let text = "Not enough nodes to provide fault tolerance with requested shard count";
            return Err(Failure::usage(text));
        }
        if self.nodes as u64 + 3 > hosts {
            return Err(Failure::usage(format!("a /{} subnet has no room for {} nodes", self.subnet.1, self.nodes)));
        }
        if usize::from(self.ports_from) + self.nodes > 65_536 || self.ports_from == 0 {
            return Err(Failure::usage(format!(
                "--ports-from {} leaves no ports for {} nodes",
                self.ports_from, self.nodes
            )));
        }
        Ok(())
    }

    /// The nodes in order: fixed names, addresses from the third of the subnet on.
    pub fn node_specs(&self) -> Vec<NodeSpec> {
        let node = |index: usize| NodeSpec {
            name: NAMES[index].to_owned(),
            ip: Ipv4Addr::from(u32::from(self.subnet.0) + 2 + index as u32),
            port: self.ports_from + index as u16,
        };
        (0..self.nodes).map(node).collect()
    }

    /// # Errors
    /// Usage, naming the nodes there are.
    pub fn node(&self, name: &str) -> Result<NodeSpec> {
        let all = self.node_specs();
        let names: Vec<&str> = all.iter().map(|node| node.name.as_str()).collect();
        let text = format!("there is no node '{name}' in this cluster; it has {}", names.join(", "));
        all.iter()
            .find(|node| node.name == name)
            .cloned()
            .ok_or_else(|| Failure::new(crate::error::Code::NotFound, text))
    }

    /// The container of a node.
    pub fn container(&self, node: &NodeSpec) -> String {
        if self.name == DEFAULT_NAME { node.name.clone() } else { format!("{}-{}", self.name, node.name) }
    }

    pub fn volume(&self, node: &NodeSpec) -> String {
        format!("kvnode-{}-{}", self.name, node.name)
    }

    pub fn network(&self) -> String {
        if self.name == DEFAULT_NAME { "kv_subnet".into() } else { format!("kv_subnet-{}", self.name) }
    }

    /// VIEW, given each node's address.
    pub fn view(&self, ip: impl Fn(&NodeSpec) -> Ipv4Addr) -> String {
        let all: Vec<String> = self.node_specs().iter().map(|node| format!("{}:{NODE_PORT}", ip(node))).collect();
        all.join(",")
    }
}

fn parse_subnet(text: &str) -> Result<(Ipv4Addr, u8)> {
    let bad = || Failure::usage(format!("--subnet '{text}' is no IPv4 network such as 10.10.0.0/16"));
    let (ip, bits) = text.split_once('/').ok_or_else(bad)?;
    let (ip, bits): (Ipv4Addr, u8) = (ip.parse().map_err(|_| bad())?, bits.parse().map_err(|_| bad())?);
    let host_bits = 32_u32.checked_sub(u32::from(bits)).filter(|&host| (2..=24).contains(&host)).ok_or_else(bad)?;
    if u32::from(ip) & ((1 << host_bits) - 1) != 0 {
        return Err(bad());
    }
    Ok((ip, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> UpArgs {
        use clap::Parser;
        let cli = crate::args::Cli::parse_from(["kvctl", "cluster", "up"]);
        match cli.command {
            crate::args::Command::Cluster(crate::args::ClusterCommand::Up(args)) => args,
            _ => unreachable!("that is what was parsed"),
        }
    }

    #[test]
    fn the_reference_cluster() {
        let spec = Spec::resolve("default", &args(), None).unwrap();
        let nodes = spec.node_specs();
        assert_eq!(nodes.len(), 6);
        assert_eq!(
            (nodes[0].name.as_str(), nodes[0].ip.to_string().as_str(), nodes[0].port),
            ("alice", "10.10.0.2", 8082)
        );
        assert_eq!(
            (nodes[5].name.as_str(), nodes[5].ip.to_string().as_str(), nodes[5].port),
            ("frank", "10.10.0.7", 8087)
        );
        assert!(spec.view(|node| node.ip).starts_with("10.10.0.2:8090,10.10.0.3:8090,"));
    }

    #[test]
    fn what_can_not_be_is_a_usage_error() {
        for change in [
            |args: &mut UpArgs| args.nodes = Some(0),
            |args: &mut UpArgs| args.nodes = Some(27),
            |args: &mut UpArgs| args.shards = Some(4),
            |args: &mut UpArgs| args.shards = Some(0),
            |args: &mut UpArgs| args.subnet = Some("10.10.0.1/16".into()),
            |args: &mut UpArgs| args.subnet = Some("10.10.0.0/30".into()),
            |args: &mut UpArgs| args.subnet = Some("x".into()),
            |args: &mut UpArgs| args.ports_from = Some(65_533),
        ] {
            let mut args = args();
            change(&mut args);
            assert_eq!(Spec::resolve("default", &args, None).unwrap_err().code, crate::error::Code::Usage, "{args:?}");
        }
    }

    #[test]
    fn a_cluster_that_exists_is_not_changed_by_another_up() {
        let known = Spec::resolve("default", &args(), None).unwrap();
        assert_eq!(Spec::resolve("default", &args(), Some(&known)).unwrap(), known);
        let mut other = args();
        other.nodes = Some(4);
        assert_eq!(Spec::resolve("default", &other, Some(&known)).unwrap_err().code, crate::error::Code::Conflict);
    }
}
