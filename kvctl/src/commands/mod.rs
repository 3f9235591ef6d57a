//! The commands. Each takes its arguments and ends in data on standard output, or in a [`Failure`].

use std::collections::BTreeMap;

use kvnode_client::Client;

use crate::args::{Cli, Command, Output, ShardCommand, Via};
use crate::cluster::NodeSpec;
use crate::error::{Code, Failure, Result};
use crate::render::printable;
use crate::runtime::{self, NodeState, Runtime, trace};
use crate::state::{Record, RuntimeKind, StateDir};

mod add;
mod bench;
mod cluster;
mod data;
mod drill;
mod leftover;
mod look;
mod loss;
mod node;
mod patience;
mod recover;
mod refusal;
mod remove;
mod reshard;
mod status;
mod topology;
mod up;
mod wait;

use patience::patiently;
use refusal::refused;

/// What every command needs.
pub struct Context {
    pub name: String,
    pub output: Output,
    pub state: StateDir,
}

impl Context {
    /// The cluster that the command is about.
    pub fn record(&self) -> Result<Record> {
        self.state.load()?.ok_or_else(|| {
            let traces = runtime::local::traces(&self.state);
            if !traces.is_empty() {
                let text = format!(
                    "{} is gone, but its nodes run: {}; `kvctl cluster up`, with the options that the cluster was made \
                     with, takes them over",
                    self.state.record_path().display(),
                    trace::shown(&traces, RuntimeKind::Local)
                );
                return Failure::new(Code::Conflict, text);
            }
            let option = if self.name == crate::cluster::DEFAULT_NAME {
                String::new()
            } else {
                format!(" --name {}", self.name)
            };
            let text = format!("there is no cluster '{}'; `kvctl cluster up{option}` makes one", self.name);
            Failure::new(Code::Environment, text)
        })
    }

    pub async fn runtime(&self) -> Result<(Record, Runtime)> {
        let record = self.record()?;
        let runtime = Runtime::open(&record, &self.state).await?;
        Ok((record, runtime))
    }
}

/// A client of the cluster: of one node if one is named, else of all, starting anywhere. Nodes that are known not to run come last.
pub async fn client_of(record: &Record, runtime: &Runtime, via: &Via) -> Result<Client> {
    match &via.via {
        Some(name) => Ok(Client::new(vec![runtime.endpoint(&record.spec.node(name)?)])),
        None => client_but(record, runtime, None).await,
    }
}

/// A client of all nodes that asks the one named `shunned` only where no other answers. A paused node takes connections and answers
/// nothing: it is asked only if all are.
pub async fn client_but(record: &Record, runtime: &Runtime, shunned: Option<&str>) -> Result<Client> {
    let mut nodes = record.spec.node_specs();
    let mut start = [0];
    getrandom::fill(&mut start).map_err(|error| Failure::environment(error.to_string()))?;
    let length = nodes.len();
    nodes.rotate_left(usize::from(start[0]) % length);
    let mut ranked = Vec::new();
    for node in &nodes {
        let state = runtime.state(node).await?;
        let shunned = shunned == Some(&node.name) || record.spec.removed.contains(&node.name);
        ranked.push((shunned, state, runtime.endpoint(node)));
    }
    if ranked.iter().any(|(_, state, _)| *state != NodeState::Paused) {
        ranked.retain(|(_, state, _)| *state != NodeState::Paused);
    }
    // Stable: within a rank, the order stays the random one.
    ranked.sort_by_key(|(shunned, state, _)| (*shunned, *state != NodeState::Running));
    Ok(Client::new(ranked.into_iter().map(|(_, _, endpoint)| endpoint).collect()))
}

/// The punctuation after a word.
fn tail(word: &str) -> &str {
    &word[word.trim_end_matches([',', ';', ':']).len()..]
}

/// What people call each node, by its address and by where it is reached from here.
pub struct Names(BTreeMap<String, String>);

impl Names {
    pub fn of(record: &Record, runtime: &Runtime) -> Self {
        let nodes = record.spec.node_specs();
        let names =
            |node: NodeSpec| [(runtime.endpoint(&node), node.name.clone()), (runtime.address(&node), node.name)];
        Self(nodes.into_iter().flat_map(names).collect())
    }

    /// The node's name; its address if kvctl did not start it.
    pub fn name<'a>(&'a self, address: &'a str) -> &'a str {
        self.0.get(address).map_or(address, String::as_str)
    }

    /// What a node says, with names in place of the addresses in it.
    pub fn said(&self, text: &str) -> String {
        let word = |word: &str| self.name(word.trim_end_matches([',', ';', ':'])).to_owned() + tail(word);
        text.split(' ').map(word).collect::<Vec<String>>().join(" ")
    }

    /// `alice,bob`; `-` for none.
    pub fn list(&self, addresses: &[String]) -> String {
        let names: Vec<&str> = addresses.iter().map(|address| self.name(address)).collect();
        if names.is_empty() { "-".into() } else { printable(&names.join(",")).into_owned() }
    }
}

pub async fn run(cli: Cli) -> Result<()> {
    let context = Context { state: StateDir::of(&cli.name)?, name: cli.name, output: cli.output };
    match cli.command {
        Command::Cluster(command) => cluster::run(&context, command).await,
        Command::Node(command) => node::run(&context, command).await,
        Command::Put { key, value, data } => data::put(&context, &key, &value, &data).await,
        Command::Get { key, data } => data::get(&context, &key, &data).await,
        Command::Delete { key, data } => data::delete(&context, &key, &data).await,
        Command::Keys { prefix, limit, data } => data::keys(&context, &prefix, limit, &data).await,
        Command::View(args) => topology::view(&context, args).await,
        Command::Shard(ShardCommand::AddMember { shard, address, timeout, via }) => {
            topology::add_member(&context, &shard, &address, timeout, &via).await
        }
        Command::Shard(command) => look::shard(&context, command).await,
        Command::Reshard(args) => reshard::run(&context, args).await,
        Command::Wait(args) => wait::run(&context, &args).await,
        Command::Bench(args) => bench::run(&context, args).await,
        Command::Drill(args) => drill::run(&context, &args).await,
    }
}

/// `{"name": value}` for answers that are one thing.
pub fn object(name: &str, value: impl serde::Serialize) -> BTreeMap<String, serde_json::Value> {
    [(name.to_owned(), serde_json::to_value(value).unwrap_or_default())].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_say_of_addresses_is_told_with_names() {
        let names = Names([("10.10.0.4:8090".to_owned(), "carol".to_owned())].into());
        assert_eq!(names.said("10.10.0.4:8090, 10.10.0.9:8090 to copy: x"), "carol, 10.10.0.9:8090 to copy: x");
        assert_eq!(names.list(&["10.10.0.4:8090".into(), "x:1".into()]), "carol,x:1");
        assert_eq!(names.list(&[]), "-");
    }
}
