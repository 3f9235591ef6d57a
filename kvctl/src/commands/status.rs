//! cluster status: a line for each node, and what the shards have left.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use kvnode_client::Client;
use serde::Serialize;

use super::{Context, Names};
use crate::cluster::NodeSpec;
use crate::error::Result;
use crate::observe::{LOOK_TIMEOUT, Status, layout_of};
use crate::render::{line, printable, say, show, table};
use crate::runtime::{NodeState, Runtime};
use crate::state::{Record, RuntimeKind};

#[derive(Serialize)]
struct NodeStatus {
    name: String,
    address: String,
    endpoint: String,
    state: NodeState,
    ready: bool,
    reason: String,
    shard: Option<String>,
    keys: Option<u64>,
    /// The most writes of this node that a replica of its shard has not acknowledged.
    lag: Option<u64>,
}

/// How much of a shard is there.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ShardStatus {
    id: String,
    members: Vec<String>,
    serving: usize,
    majority: bool,
}

#[derive(Serialize)]
struct ClusterStatus {
    cluster: String,
    runtime: RuntimeKind,
    nodes: Vec<NodeStatus>,
    shards: Vec<ShardStatus>,
}

/// A node, and what it says of itself if it runs and answers.
struct Seen {
    node: NodeSpec,
    address: String,
    state: NodeState,
    status: Option<Status>,
}

pub async fn run(context: &Context) -> Result<()> {
    super::cluster::remembered(context).await?;
    let (record, runtime) = context.runtime().await?;
    if let Err(failure) = runtime.agrees().await {
        say(&format!("warning: {failure}, which is not what {} says", context.state.record_path().display()));
    }
    show_status(context, &record, &runtime).await
}

pub async fn show_status(context: &Context, record: &Record, runtime: &Runtime) -> Result<()> {
    let specs = record.spec.node_specs();
    let seen = join_all(specs.into_iter().map(|node| look(runtime, node))).await;
    let seen = seen.into_iter().collect::<Result<Vec<Seen>>>()?;
    let layout = layout_of(seen.iter().filter_map(|one| one.status.as_ref()));
    let names = Names::of(record, runtime);
    let nodes = seen.iter().map(|one| node_status(record, runtime, one, &layout, &names)).collect();
    let shards = shard_statuses(&seen, &layout, &names);
    let status = ClusterStatus { cluster: context.name.clone(), runtime: record.runtime, nodes, shards };
    show(context.output, &status, || status.print());
    Ok(())
}

async fn look(runtime: &Runtime, node: NodeSpec) -> Result<Seen> {
    let state = runtime.state(&node).await?;
    let client = Client::new(vec![runtime.endpoint(&node)]);
    let look = tokio::time::timeout(LOOK_TIMEOUT, client.look("/status"));
    let answer = if state == NodeState::Running { look.await.ok().and_then(std::result::Result::ok) } else { None };
    let status = answer.and_then(|answer| serde_json::from_slice(&answer.body).ok());
    Ok(Seen { address: runtime.address(&node), node, state, status })
}

fn node_status(
    record: &Record,
    runtime: &Runtime,
    seen: &Seen,
    layout: &BTreeMap<String, Vec<String>>,
    names: &Names,
) -> NodeStatus {
    let Seen { node, address, state, status } = seen;
    let removed = record.spec.removed.contains(&node.name);
    // One that is silent is where the others know it to be.
    let known = layout.iter().find(|(_, members)| members.contains(address)).map(|(id, _)| id.clone());
    let told = status.as_ref().and_then(|status| status.shard.clone());
    let reason = status.as_ref().map(|status| reason(status, names)).unwrap_or_default();
    let removal = || format!("not in the view any more; `kvctl node remove {}` deletes it", node.name);
    NodeStatus {
        name: node.name.clone(),
        address: address.clone(),
        endpoint: runtime.endpoint(node),
        state: *state,
        ready: status.as_ref().is_some_and(Status::is_serving),
        reason: if removed { removal() } else { reason },
        shard: told.or(known).filter(|_| !removed),
        keys: status.as_ref().and_then(|status| status.keys),
        lag: status.iter().flat_map(|status| &status.peers).filter_map(|peer| peer.lag).max(),
    }
}

/// Why a node does not serve, or what it lacks though it does.
fn reason(status: &Status, names: &Names) -> String {
    let by: Vec<&str> = status.refused_by().into_iter().map(|address| names.name(address)).collect();
    if by.is_empty() || !status.reason.is_empty() {
        return names.said(&status.reason);
    }
    format!("refused by {}: another CLUSTER_SECRET", by.join(", "))
}

fn shard_statuses(seen: &[Seen], layout: &BTreeMap<String, Vec<String>>, names: &Names) -> Vec<ShardStatus> {
    let serves = |address: &String| match seen.iter().find(|one| one.address == *address) {
        Some(one) => one.status.as_ref().is_some_and(Status::is_serving),
        // Of one that kvctl did not start the others tell.
        None => seen.iter().filter_map(|one| one.status.as_ref()).any(|status| status.sees_serving(address)),
    };
    let shard = |(id, members): (&String, &Vec<String>)| {
        let serving = members.iter().filter(|member| serves(member)).count();
        ShardStatus {
            id: id.clone(),
            members: members.iter().map(|member| names.name(member).to_owned()).collect(),
            serving,
            majority: 2 * serving > members.len(),
        }
    };
    layout.iter().map(shard).collect()
}

impl ShardStatus {
    /// `s2: 1 of 3, no majority`.
    fn text(&self) -> String {
        let lost = if self.majority { "" } else { ", no majority" };
        format!("{}: {} of {}{lost}", self.id, self.serving, self.members.len())
    }
}

impl ClusterStatus {
    fn print(&self) {
        let dash = || "-".to_owned();
        let row = |node: &NodeStatus| {
            vec![
                node.name.clone(),
                node.address.clone(),
                format!("http://{}", node.endpoint),
                node.shard.clone().unwrap_or_else(dash),
                if node.ready { "ready".to_owned() } else { node.state.name().to_owned() },
                node.keys.map_or_else(dash, |keys| keys.to_string()),
                node.lag.map_or_else(dash, |lag| lag.to_string()),
                node.reason.clone(),
            ]
        };
        table(&["NODE", "ADDRESS", "URL", "SHARD", "STATE", "KEYS", "LAG", ""], self.nodes.iter().map(row).collect());
        line(&printable(&self.summary()));
    }

    /// `6 nodes, 5 serve; s1: 3 of 3; s2: 2 of 3`.
    fn summary(&self) -> String {
        let serving = self.nodes.iter().filter(|node| node.ready).count();
        let nodes = format!("{} nodes, {serving} ready", self.nodes.len());
        let shards = self.shards.iter().map(ShardStatus::text);
        std::iter::once(nodes).chain(shards).collect::<Vec<String>>().join("; ")
    }
}
