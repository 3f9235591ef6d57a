//! What a cluster is: its nodes' names and addresses, derived from a few numbers, and the nodes added since. Pure.

use std::collections::BTreeSet;
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

/// What `cluster up` was asked for, and what `node add` added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub name: String,
    pub nodes: usize,
    pub shards: u32,
    /// Network address and prefix length.
    pub subnet: (Ipv4Addr, u8),
    pub ports_from: u16,
    pub image: String,
    /// Nodes that came later, in this order. They did not form the cluster and know no number of shards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<NodeSpec>,
    /// Names of nodes that were taken out of the view: still there, but no longer wanted to run, nor asked for anything.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removed: BTreeSet<String>,
    /// Names of founders that were deleted. Their addresses stay in VIEW, which tells the cluster's nodes from others', and are given to
    /// nobody else.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub gone: BTreeSet<String>,
    /// Whether its nodes let faults be injected.
    #[serde(default)]
    pub drill: bool,
}

/// One node of a spec.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
            added: Vec::new(),
            removed: BTreeSet::new(),
            gone: BTreeSet::new(),
            drill: false,
        };
        let base = known.unwrap_or(&default);
        let spec = Self {
            name: name.to_owned(),
            nodes: args.nodes.unwrap_or(base.nodes),
            shards: args.shards.unwrap_or(base.shards),
            subnet: args.subnet.as_deref().map_or(Ok(base.subnet), parse_subnet)?,
            ports_from: args.ports_from.unwrap_or(base.ports_from),
            image: args.image.clone().unwrap_or_else(|| base.image.clone()),
            added: base.added.clone(),
            removed: base.removed.clone(),
            gone: base.gone.clone(),
            drill: base.drill || args.drill,
        };
        if let Some(known) = known.filter(|known| **known != spec) {
            let text = format!(
                "the cluster '{name}' exists with {} nodes, {} shards, subnet {}/{}, ports from {}, image {}, {}; \
                 `kvctl node add` and `kvctl reshard` change it; else `kvctl cluster down` it first, or make another \
                 with --name",
                known.nodes,
                known.shards,
                known.subnet.0,
                known.subnet.1,
                known.ports_from,
                known.image,
                if known.drill { "for drills" } else { "not for drills" }
            );
            return Err(Failure::new(crate::error::Code::Conflict, text));
        }
        spec.check()?;
        Ok(spec)
    }

    /// How many addresses its network has.
    fn hosts(&self) -> u64 {
        1 << (32 - u32::from(self.subnet.1))
    }

    /// # Errors
    /// Usage: what of it can't be.
    pub fn check(&self) -> Result<()> {
        if !(8..=30).contains(&self.subnet.1) {
            return Err(Failure::usage(format!("a /{} subnet is none for a cluster", self.subnet.1)));
        }
        if self.nodes == 0 || self.nodes > NAMES.len() {
            return Err(Failure::usage(format!("--nodes is 1 to {}", NAMES.len())));
        }
        if self.shards == 0 || (self.shards != 1 && self.nodes / (self.shards as usize) < 2) {
            let text = "Not enough nodes to provide fault tolerance with requested shard count";
            return Err(Failure::usage(text));
        }
        if self.nodes as u64 + 3 > self.hosts() {
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

    /// The nodes that form the cluster, in order: fixed names, addresses from the third of the subnet on.
    fn founders(&self) -> Vec<NodeSpec> {
        let node = |index: usize| NodeSpec {
            name: NAMES[index].to_owned(),
            ip: self.ip(index as u32),
            port: self.ports_from + index as u16,
        };
        (0..self.nodes).map(node).collect()
    }

    /// All nodes that there are: the founders, then those that were added.
    pub fn node_specs(&self) -> Vec<NodeSpec> {
        let founders = self.founders().into_iter().filter(|node| !self.gone.contains(&node.name));
        founders.chain(self.added.iter().cloned()).collect()
    }

    /// The same, and the founders that are gone.
    fn past_and_present(&self) -> Vec<NodeSpec> {
        self.founders().into_iter().chain(self.added.iter().cloned()).collect()
    }

    /// A node is there no more.
    pub fn delete(&mut self, node: &NodeSpec) {
        self.removed.remove(&node.name);
        let count = self.added.len();
        self.added.retain(|one| one != node);
        if self.added.len() == count {
            self.gone.insert(node.name.clone());
        }
    }

    /// The nodes that are meant to run: all but those taken out of the view.
    pub fn members(&self) -> Vec<NodeSpec> {
        self.node_specs().into_iter().filter(|node| !self.removed.contains(&node.name)).collect()
    }

    /// The address of the node of this number, counted from 0.
    fn ip(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.0) + 2 + index)
    }

    /// SHARD_COUNT of a node. One that was added learns from the others how many shards there are.
    pub fn shard_count(&self, node: &NodeSpec) -> Option<u32> {
        (!self.added.contains(node)).then_some(self.shards)
    }

    /// One node more: the next address that neither a node nor anything in `taken` has, and the port that goes with it.
    ///
    /// # Errors
    /// If the name is none or is taken, or the network or the ports are used up.
    pub fn next_node(&self, name: Option<&str>, taken: &BTreeSet<Ipv4Addr>) -> Result<NodeSpec> {
        let nodes = self.node_specs();
        let named = |name: &str| nodes.iter().any(|node| node.name == name);
        let free = || NAMES.iter().copied().find(|name| !named(name));
        let name = name.or_else(free).ok_or_else(|| Failure::usage("all names are used up: say one"))?;
        if !crate::state::is_name(name) {
            return Err(Failure::usage(format!("'{name}' is no node name: {}", crate::state::NAME_RULE)));
        }
        if named(name) {
            let text =
                format!("there is a node '{name}' already; `kvctl node start {name}` starts it if it does not run");
            return Err(Failure::new(crate::error::Code::Conflict, text));
        }
        // Not the network's own address, not the gateway's, not the one for broadcasts.
        let hosts = (self.hosts() - 3) as u32;
        let past_and_present = self.past_and_present();
        let held = |ip: Ipv4Addr| taken.contains(&ip) || past_and_present.iter().any(|node| node.ip == ip);
        let index = (0..hosts).find(|&index| !held(self.ip(index))).ok_or_else(|| {
            Failure::environment(format!("the network {}/{} has no free address", self.subnet.0, self.subnet.1))
        })?;
        let port = u32::from(self.ports_from) + index;
        let port = u16::try_from(port).map_err(|_| Failure::environment("the ports after --ports-from are used up"))?;
        Ok(NodeSpec { name: name.to_owned(), ip: self.ip(index), port })
    }

    /// The node of this name and address, as [`Spec::next_node`] would have made it; `None` if neither it nor its address
    /// can be of this cluster, or another node has the address.
    pub fn node_of(&self, name: &str, ip: Ipv4Addr) -> Option<NodeSpec> {
        let index = u32::from(ip).checked_sub(u32::from(self.ip(0)))?;
        let is_inside = u64::from(index) + 3 < self.hosts();
        let is_held = self.node_specs().iter().any(|node| node.ip == ip);
        let port = u16::try_from(u32::from(self.ports_from).checked_add(index)?).ok()?;
        let fits = is_inside && !is_held && crate::state::is_name(name);
        fits.then(|| NodeSpec { name: name.to_owned(), ip, port })
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
        let all: Vec<String> = self.past_and_present().iter().map(|node| format!("{}:{NODE_PORT}", ip(node))).collect();
        all.join(",")
    }

    /// Whether a node that was made with this VIEW is of this cluster. Nodes may have been added since.
    pub fn is_own_view(&self, view: &str, ip: impl Fn(&NodeSpec) -> Ipv4Addr) -> bool {
        let founders = self.founders();
        let mut addresses = view.split(',');
        founders.iter().all(|node| addresses.next() == Some(&format!("{}:{NODE_PORT}", ip(node))))
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
            crate::args::Command::Cluster(crate::args::ClusterCommand::Up(command)) => command.up,
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
    fn the_seventh_node_is_grace_and_the_cluster_stays_the_same() {
        let mut spec = Spec::resolve("default", &args(), None).unwrap();
        let view = spec.view(|node| node.ip);
        let grace = spec.next_node(None, &BTreeSet::new()).unwrap();
        assert_eq!((grace.name.as_str(), grace.ip.to_string().as_str(), grace.port), ("grace", "10.10.0.8", 8088));
        spec.added.push(grace.clone());
        assert_eq!(spec.node("grace").unwrap(), grace);
        assert_eq!((spec.shard_count(&grace), spec.shard_count(&spec.node("bob").unwrap())), (None, Some(2)));
        assert_eq!(spec.view(|node| node.ip), format!("{view},10.10.0.8:8090"));
        for own in [&view, &spec.view(|node| node.ip)] {
            assert!(spec.is_own_view(own, |node| node.ip), "{own}");
        }
        assert!(!spec.is_own_view("10.10.0.2:8090", |node| node.ip));
        assert_eq!(Spec::resolve("default", &args(), Some(&spec)).unwrap(), spec, "another up changes nothing");
        spec.removed.insert("frank".into());
        assert!(spec.members().iter().all(|node| node.name != "frank") && spec.members().contains(&grace));
        assert!(spec.node("frank").is_ok(), "it can still be stopped");
        let kept: Spec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(kept, spec);
    }

    #[test]
    fn a_deleted_node_leaves_its_name_and_the_cluster_stays_the_same() {
        let mut spec = Spec::resolve("default", &args(), None).unwrap();
        let view = spec.view(|node| node.ip);
        let frank = spec.node("frank").unwrap();
        spec.removed.insert("frank".into());
        spec.delete(&frank);
        assert!(spec.node("frank").is_err() && spec.node_specs().len() == 5 && spec.removed.is_empty());
        assert!(spec.is_own_view(&view, |node| node.ip), "the others were made with this VIEW");
        let again = spec.next_node(Some("frank"), &BTreeSet::new()).unwrap();
        assert_eq!(again.ip.to_string(), "10.10.0.8", "not the address of the one that is gone");
        spec.added.push(again.clone());
        assert_eq!((spec.node("frank").unwrap(), spec.shard_count(&again)), (again.clone(), None));
        assert_eq!(Spec::resolve("default", &args(), Some(&spec)).unwrap(), spec, "another up changes nothing");
        spec.delete(&again);
        assert_eq!(spec.node_specs().len(), 5);
        let kept: Spec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(kept, spec);
    }

    #[test]
    fn a_node_is_added_at_a_free_address_or_not_at_all() {
        let spec = Spec::resolve("default", &args(), None).unwrap();
        let taken = BTreeSet::from(["10.10.0.8".parse().unwrap()]);
        let node = spec.next_node(Some("x1"), &taken).unwrap();
        assert_eq!((node.name.as_str(), node.ip.to_string().as_str(), node.port), ("x1", "10.10.0.9", 8089));
        let code = |name: &str| spec.next_node(Some(name), &taken).unwrap_err().code;
        assert_eq!(code("bob"), crate::error::Code::Conflict);
        assert_eq!((code("../x"), code("")), (crate::error::Code::Usage, crate::error::Code::Usage));
        let full = Spec { subnet: (Ipv4Addr::new(10, 10, 0, 0), 29), nodes: 5, ..spec };
        assert_eq!(full.next_node(None, &BTreeSet::new()).unwrap_err().code, crate::error::Code::Environment);
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
