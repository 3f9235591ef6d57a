//! Nodes as containers. Everything kvctl makes carries a label with the cluster's name; it works with ids, because Docker
//! allows two networks of one name.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use bollard::Docker;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, EndpointIpamConfig, EndpointSettings, HostConfig, Ipam, IpamConfig,
    Network, NetworkCreateRequest, NetworkingConfig, PortBinding, RestartPolicy, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, KillContainerOptionsBuilder, ListContainersOptionsBuilder,
    ListNetworksOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
    StopContainerOptionsBuilder,
};
use futures_util::StreamExt;

use super::{NodeAction, NodeState, image, ports};
use crate::cluster::{NODE_PORT, NodeSpec, Spec};
use crate::error::{Code, Failure, Result};
use crate::render::{Progress, write_out};
use crate::state::Record;

/// The label of what belongs to a cluster; its value is the cluster's name.
const LABEL: &str = "kvctl.cluster";
/// Seconds that Docker waits for a node to leave before it kills it; a node takes 10 at most.
const STOP_SECONDS: i32 = 12;

pub struct Cluster {
    docker: Docker,
    record: Record,
    /// What this command made, in order.
    made: RefCell<Vec<Made>>,
}

enum Made {
    Network(String),
    Volume(String),
    Container(String),
}

/// `None` for "there is no such thing".
fn present<T>(answer: std::result::Result<T, bollard::errors::Error>) -> Result<Option<T>> {
    match answer {
        Ok(thing) => Ok(Some(thing)),
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Cluster {
    pub fn new(docker: Docker, record: Record) -> Self {
        Self { docker, record, made: RefCell::new(Vec::new()) }
    }

    fn spec(&self) -> &Spec {
        &self.record.spec
    }

    fn labels(&self) -> HashMap<String, String> {
        [(LABEL.to_owned(), self.spec().name.clone())].into()
    }

    /// Makes what is missing and starts what is stopped.
    pub async fn up(&self, kvnode: Option<&Path>, progress: &Progress) -> Result<()> {
        let nodes = self.spec().node_specs();
        let mut missing = Vec::new();
        for node in &nodes {
            match self.own_container(node).await? {
                None => missing.push(node.clone()),
                Some(_) if self.state(node).await? == NodeState::Running => {}
                Some(_) => missing.push(node.clone()),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        for node in &missing {
            self.check_port(node).await?;
        }
        image::ensure(&self.docker, &self.spec().image, kvnode, progress).await?;
        let network = self.ensure_network(progress).await?;
        for node in &missing {
            progress.step(&format!("starting {}", self.spec().container(node)));
            self.ensure_node(node, &network).await?;
        }
        Ok(())
    }

    /// The port that a node is to be published on must be free.
    async fn check_port(&self, node: &NodeSpec) -> Result<()> {
        let Some(holder) = ports::holder(SocketAddr::from((Ipv4Addr::LOCALHOST, node.port))) else { return Ok(()) };
        let holder = self.container_on(node.port).await?.unwrap_or(holder);
        let text = format!(
            "port {} of 127.0.0.1, which {} needs, is held by {holder}; free it, or choose others with --ports-from",
            node.port, node.name
        );
        Err(Failure::environment(text))
    }

    async fn container_on(&self, port: u16) -> Result<Option<String>> {
        let all = self.docker.list_containers(Some(ListContainersOptionsBuilder::default().build())).await?;
        let publishes = |ports: &Vec<bollard::models::PortSummary>| ports.iter().any(|p| p.public_port == Some(port));
        let holder = all.into_iter().find(|container| container.ports.as_ref().is_some_and(publishes));
        let name = holder.and_then(|container| container.names?.into_iter().next());
        Ok(name.map(|name| format!("container '{}'", name.trim_start_matches('/'))))
    }

    async fn networks(&self) -> Result<Vec<Network>> {
        Ok(self.docker.list_networks(Some(ListNetworksOptionsBuilder::default().build())).await?)
    }

    fn is_own(&self, labels: Option<&HashMap<String, String>>) -> bool {
        labels.and_then(|labels| labels.get(LABEL)) == Some(&self.spec().name)
    }

    async fn ensure_network(&self, progress: &Progress) -> Result<String> {
        let networks = self.networks().await?;
        if let Some(id) = networks.iter().find(|n| self.is_own(n.labels.as_ref())).and_then(|n| n.id.clone()) {
            return Ok(id);
        }
        if let Some(other) = networks.iter().find(|network| overlaps(network, self.spec().subnet)) {
            let (ip, bits) = self.spec().subnet;
            let text = format!(
                "the network {ip}/{bits} overlaps Docker network '{}'; remove that (`docker network rm {}`), or choose another with --subnet",
                other.name.as_deref().unwrap_or("?"),
                other.name.as_deref().unwrap_or("?")
            );
            return Err(Failure::environment(text));
        }
        progress.step(&format!("making network {}", self.spec().network()));
        let made = self.docker.create_network(self.network_request()).await?;
        self.made.borrow_mut().push(Made::Network(made.id.clone()));
        Ok(made.id)
    }

    /// The subnet's upper half is for addresses that Docker gives out; the nodes' are in the lower.
    fn network_request(&self) -> NetworkCreateRequest {
        let (ip, bits) = self.spec().subnet;
        let upper_half = Ipv4Addr::from(u32::from(ip) + (1 << (31 - u32::from(bits))));
        let config = IpamConfig {
            subnet: Some(format!("{ip}/{bits}")),
            ip_range: Some(format!("{upper_half}/{}", bits + 1)),
            gateway: Some(Ipv4Addr::from(u32::from(ip) + 1).to_string()),
            ..IpamConfig::default()
        };
        NetworkCreateRequest {
            name: self.spec().network(),
            driver: Some("bridge".into()),
            ipam: Some(Ipam { config: Some(vec![config]), ..Ipam::default() }),
            labels: Some(self.labels()),
            ..NetworkCreateRequest::default()
        }
    }

    /// The container of that name; an error if it belongs to somebody else.
    async fn own_container(&self, node: &NodeSpec) -> Result<Option<ContainerInspectResponse>> {
        let name = self.spec().container(node);
        let Some(container) = present(self.docker.inspect_container(&name, None).await)? else { return Ok(None) };
        let labels = container.config.as_ref().and_then(|config| config.labels.as_ref());
        if self.is_own(labels) {
            return Ok(Some(container));
        }
        let text = format!(
            "container '{name}' exists and was not made by kvctl; remove it (`docker rm -f {name}`), or use --name"
        );
        Err(Failure::new(Code::Conflict, text))
    }

    async fn ensure_node(&self, node: &NodeSpec, network: &str) -> Result<()> {
        if let Some(container) = self.own_container(node).await? {
            let attached = container.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
            let here = attached.values().any(|endpoint| endpoint.network_id.as_deref() == Some(network));
            let id = container.id.unwrap_or_default();
            if here {
                if self.state(node).await? == NodeState::Paused {
                    return Ok(self.docker.unpause_container(&id).await?);
                }
                return Ok(self.docker.start_container(&id, None).await?);
            }
            // It belonged to a network that is gone: a new container on the old volume takes its place.
            self.remove(&id).await?;
        }
        self.ensure_volume(node).await?;
        let options = CreateContainerOptionsBuilder::default().name(&self.spec().container(node)).build();
        let made = self.docker.create_container(Some(options), self.container_body(node, network)).await?;
        self.made.borrow_mut().push(Made::Container(made.id.clone()));
        Ok(self.docker.start_container(&made.id, None).await?)
    }

    async fn ensure_volume(&self, node: &NodeSpec) -> Result<()> {
        let name = self.spec().volume(node);
        if present(self.docker.inspect_volume(&name).await)?.is_some() {
            return Ok(());
        }
        let request =
            VolumeCreateRequest { name: Some(name.clone()), labels: Some(self.labels()), ..Default::default() };
        self.docker.create_volume(request).await?;
        self.made.borrow_mut().push(Made::Volume(name));
        Ok(())
    }

    fn container_body(&self, node: &NodeSpec, network: &str) -> ContainerCreateBody {
        let port = format!("{NODE_PORT}/tcp");
        let binding = PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some(node.port.to_string()) };
        let address = EndpointIpamConfig { ipv4_address: Some(node.ip.to_string()), ..EndpointIpamConfig::default() };
        let endpoint = EndpointSettings { ipam_config: Some(address), ..EndpointSettings::default() };
        ContainerCreateBody {
            image: Some(self.spec().image.clone()),
            hostname: Some(node.name.clone()),
            env: Some(vec![
                format!("SOCKET_ADDRESS={}:{NODE_PORT}", node.ip),
                format!("VIEW={}", self.spec().view(|node| node.ip)),
                format!("SHARD_COUNT={}", self.spec().shards),
                format!("CLUSTER_SECRET={}", self.record.secret),
                "DATA_DIR=/data".into(),
            ]),
            labels: Some(self.labels()),
            exposed_ports: Some(vec![port.clone()]),
            host_config: Some(HostConfig {
                binds: Some(vec![format!("{}:/data", self.spec().volume(node))]),
                port_bindings: Some([(port, Some(vec![binding]))].into()),
                network_mode: Some(network.to_owned()),
                restart_policy: Some(RestartPolicy::default()),
                ..HostConfig::default()
            }),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some([(network.to_owned(), endpoint)].into()),
            }),
            ..ContainerCreateBody::default()
        }
    }

    async fn remove(&self, container: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        present(self.docker.remove_container(container, Some(options)).await).map(|_| ())
    }

    pub async fn undo(&self) {
        let made: Vec<Made> = self.made.borrow_mut().drain(..).collect();
        for thing in made.into_iter().rev() {
            // Whatever can't be removed is gone already, or the engine is.
            let _ = match thing {
                Made::Container(id) => self.remove(&id).await,
                Made::Network(id) => self.docker.remove_network(&id).await.map_err(Failure::from),
                Made::Volume(name) => {
                    self.docker.remove_volume(&name, None::<RemoveVolumeOptions>).await.map_err(Failure::from)
                }
            };
        }
    }

    pub async fn down(&self, data: bool) -> Result<()> {
        let ours = HashMap::from([("label".to_owned(), vec![format!("{LABEL}={}", self.spec().name)])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&ours).build();
        for container in self.docker.list_containers(Some(options)).await? {
            self.remove(&container.id.unwrap_or_default()).await?;
        }
        for network in self.networks().await?.iter().filter(|network| self.is_own(network.labels.as_ref())) {
            present(self.docker.remove_network(network.id.as_deref().unwrap_or_default()).await)?;
        }
        if data {
            for node in self.spec().node_specs() {
                present(self.docker.remove_volume(&self.spec().volume(&node), None::<RemoveVolumeOptions>).await)?;
            }
        }
        Ok(())
    }

    pub async fn state(&self, node: &NodeSpec) -> Result<NodeState> {
        let container = present(self.docker.inspect_container(&self.spec().container(node), None).await)?;
        let Some(state) = container.map(|container| container.state.unwrap_or_default()) else {
            return Ok(NodeState::Missing);
        };
        Ok(match (state.paused, state.running) {
            (Some(true), _) => NodeState::Paused,
            (_, Some(true)) => NodeState::Running,
            _ => NodeState::Stopped,
        })
    }

    pub async fn act(&self, node: &NodeSpec, action: NodeAction) -> Result<()> {
        let name = self.spec().container(node);
        if self.own_container(node).await?.is_none() {
            let text = format!("{name} is missing; `kvctl cluster up` makes it again");
            return Err(Failure::new(Code::NotFound, text));
        }
        let running = self.state(node).await?;
        let stop = StopContainerOptionsBuilder::default().t(STOP_SECONDS).build();
        let kill = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        match (action, running) {
            (NodeAction::Start, NodeState::Stopped) => self.docker.start_container(&name, None).await?,
            (NodeAction::Start, _) => {}
            (NodeAction::Stop, NodeState::Stopped) => {}
            (_, NodeState::Stopped) => return Err(Failure::new(Code::Conflict, format!("{name} does not run"))),
            (NodeAction::Stop, NodeState::Paused) => {
                self.docker.unpause_container(&name).await?;
                self.docker.stop_container(&name, Some(stop)).await?;
            }
            (NodeAction::Stop, _) => self.docker.stop_container(&name, Some(stop)).await?,
            (NodeAction::Kill, _) => self.docker.kill_container(&name, Some(kill)).await?,
            (NodeAction::Pause, NodeState::Paused) => {}
            (NodeAction::Pause, _) => self.docker.pause_container(&name).await?,
            (NodeAction::Unpause, NodeState::Paused) => self.docker.unpause_container(&name).await?,
            (NodeAction::Unpause, _) => {}
        }
        Ok(())
    }

    pub async fn logs(&self, node: &NodeSpec, follow: bool) -> Result<()> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).follow(follow).build();
        let mut lines = self.docker.logs(&self.spec().container(node), Some(options));
        while let Some(line) = lines.next().await {
            write_out(&line?.into_bytes());
        }
        Ok(())
    }
}

/// Whether a Docker network has addresses of this subnet.
fn overlaps(network: &Network, (ip, bits): (Ipv4Addr, u8)) -> bool {
    let configs = network.ipam.as_ref().and_then(|ipam| ipam.config.as_deref()).unwrap_or_default();
    let subnets = configs.iter().filter_map(|config| {
        let (other, other_bits) = config.subnet.as_deref()?.split_once('/')?;
        Some((other.parse::<Ipv4Addr>().ok()?, other_bits.parse::<u8>().ok()?))
    });
    let prefix = |ip: Ipv4Addr, bits: u8| u32::from(ip).checked_shr(32 - u32::from(bits)).unwrap_or(0);
    subnets.into_iter().any(|(other, other_bits)| {
        let common = bits.min(other_bits);
        prefix(ip, common) == prefix(other, common)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(subnet: &str) -> Network {
        let config = IpamConfig { subnet: Some(subnet.into()), ..IpamConfig::default() };
        Network { ipam: Some(Ipam { config: Some(vec![config]), ..Ipam::default() }), ..Network::default() }
    }

    #[test]
    fn networks_overlap_if_one_contains_the_other() {
        let ours = (Ipv4Addr::new(10, 10, 0, 0), 16);
        for subnet in ["10.10.0.0/16", "10.0.0.0/8", "10.10.3.0/24", "0.0.0.0/0"] {
            assert!(overlaps(&network(subnet), ours), "{subnet}");
        }
        for subnet in ["10.11.0.0/16", "172.17.0.0/16", "10.9.255.0/24", "fd00::/64"] {
            assert!(!overlaps(&network(subnet), ours), "{subnet}");
        }
    }
}
