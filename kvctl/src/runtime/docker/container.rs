//! One node's container: what is there of it, and how one is made.

use std::net::{Ipv4Addr, SocketAddr};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerState, EndpointIpamConfig, EndpointSettings, HostConfig,
    NetworkSettings, NetworkingConfig, PortBinding, PortSummary, VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};

use super::{Cluster, Made, present};
use crate::cluster::{NODE_PORT, NodeSpec};
use crate::error::{Code, Failure, Result};
use crate::plan::{Found, Place};
use crate::runtime::trace::Trace;
use crate::runtime::{NodeState, ports};

pub(super) fn state_of(state: Option<&ContainerState>) -> NodeState {
    match state.map(|state| (state.paused, state.running)) {
        Some((Some(true), _)) => NodeState::Paused,
        Some((_, Some(true))) => NodeState::Running,
        _ => NodeState::Stopped,
    }
}

/// The value of an environment variable of a container.
pub(super) fn variable(container: &ContainerInspectResponse, name: &str) -> Option<String> {
    let all = container.config.as_ref()?.env.as_ref()?;
    all.iter().find_map(|one| one.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

/// What is to be compared of a container.
pub(super) fn trace(container: ContainerInspectResponse) -> Trace {
    let config = container.config.unwrap_or_default();
    let pairs = config.env.unwrap_or_default();
    let pairs = pairs.iter().filter_map(|one| one.split_once('='));
    Trace {
        // Every container of ours has its node's name inside.
        node: config.hostname.unwrap_or_default(),
        handle: container.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        variables: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
    }
}

fn port_name() -> String {
    format!("{NODE_PORT}/tcp")
}

/// How a container's network and port compare with what they are meant to be.
fn place(settings: Option<&NetworkSettings>, node: &NodeSpec, network: Option<&str>) -> Place {
    let endpoints = settings.and_then(|settings| settings.networks.as_ref());
    let at_home = |endpoint: &EndpointSettings| {
        let address = endpoint.ipam_config.as_ref().and_then(|config| config.ipv4_address.as_deref());
        endpoint.network_id.as_deref() == network && address == Some(node.ip.to_string().as_str())
    };
    if network.is_none() || !endpoints.is_some_and(|endpoints| endpoints.values().any(at_home)) {
        return Place::Elsewhere;
    }
    let bindings = settings.and_then(|settings| settings.ports.as_ref()?.get(&port_name())?.as_ref());
    let ours = |binding: &PortBinding| binding.host_port.as_deref() == Some(node.port.to_string().as_str());
    if bindings.is_some_and(|bindings| bindings.iter().any(ours)) { Place::Right } else { Place::Unpublished }
}

impl Cluster {
    /// The container of that name; an error if it belongs to somebody else.
    pub(super) async fn own_container(&self, node: &NodeSpec) -> Result<Option<ContainerInspectResponse>> {
        let name = self.spec().container(node);
        let Some(container) = present(self.docker.inspect_container(&name, None).await)? else { return Ok(None) };
        let labels = container.config.as_ref().and_then(|config| config.labels.as_ref());
        let whose = if !self.is_own(labels) {
            "was not made by kvctl"
        } else if !variable(&container, "VIEW").is_some_and(|view| self.spec().is_own_view(&view, |node| node.ip)) {
            "is of another cluster with this name, which this kvctl does not remember"
        } else if variable(&container, "CLUSTER_SECRET").as_ref() != Some(&self.record.secret) {
            "was started with another secret than this kvctl remembers"
        } else {
            return Ok(Some(container));
        };
        let text = format!("container '{name}' exists and {whose}; remove it (`docker rm -f {name}`), or use --name");
        Err(Failure::new(Code::Conflict, text))
    }

    /// What is there of a node, and the image it was made of.
    pub(super) async fn found(&self, node: &NodeSpec, network: Option<&str>) -> Result<(Found, Option<String>)> {
        let Some(container) = self.own_container(node).await? else {
            return Ok((Found { state: NodeState::Missing, place: Place::Elsewhere }, None));
        };
        let place = place(container.network_settings.as_ref(), node, network);
        Ok((Found { state: state_of(container.state.as_ref()), place }, container.image))
    }

    /// The port that a node is to be published on must be free.
    pub(super) async fn check_port(&self, node: &NodeSpec) -> Result<()> {
        // The engine first: it may publish a port without a process that holds it.
        let container = self.container_on(node.port).await?;
        let holder = container.or_else(|| ports::holder(SocketAddr::from((Ipv4Addr::LOCALHOST, node.port))));
        let Some(holder) = holder else { return Ok(()) };
        let text = format!(
            "port {} of 127.0.0.1, which {} needs, is held by {holder}; free it, or choose others with --ports-from",
            node.port, node.name
        );
        Err(Failure::environment(text))
    }

    async fn container_on(&self, port: u16) -> Result<Option<String>> {
        let all = self.docker.list_containers(Some(ListContainersOptionsBuilder::default().build())).await?;
        let in_the_way = |one: &PortSummary| {
            one.public_port == Some(port) && matches!(one.ip.as_deref(), None | Some("" | "0.0.0.0" | "127.0.0.1"))
        };
        let publishes = |ports: &Vec<PortSummary>| ports.iter().any(in_the_way);
        let holder = all.into_iter().find(|container| container.ports.as_ref().is_some_and(publishes));
        let name = holder.and_then(|container| container.names?.into_iter().next());
        Ok(name.map(|name| format!("container '{}'", name.trim_start_matches('/'))))
    }

    /// Makes a node's container, and its volume if that is missing, and starts it.
    pub(super) async fn make_node(&self, node: &NodeSpec, network: &str, image: &str) -> Result<()> {
        let id = self.create_node(node, network, image).await?;
        Ok(self.docker.start_container(&id, None).await?)
    }

    /// Makes a node's container, and its volume if that is missing. The container's id.
    pub(super) async fn create_node(&self, node: &NodeSpec, network: &str, image: &str) -> Result<String> {
        self.ensure_volume(node).await?;
        let options = CreateContainerOptionsBuilder::default().name(&self.spec().container(node)).build();
        let made = self.docker.create_container(Some(options), self.container_body(node, network, image)).await?;
        self.made.borrow_mut().push(Made::Container(made.id.clone()));
        Ok(made.id)
    }

    async fn ensure_volume(&self, node: &NodeSpec) -> Result<()> {
        let name = self.spec().volume(node);
        if let Some(volume) = present(self.docker.inspect_volume(&name).await)? {
            // Names may meet: node `b-c` of cluster `a`, node `c` of cluster `a-b`.
            let other = volume.labels.get(super::LABEL).filter(|cluster| **cluster != self.spec().name);
            let other = other.map(|cluster| {
                let text = format!("volume '{name}', which {} needs, belongs to cluster '{cluster}'", node.name);
                Failure::new(Code::Conflict, text)
            });
            return other.map_or(Ok(()), Err);
        }
        let request =
            VolumeCreateRequest { name: Some(name.clone()), labels: Some(self.labels()), ..Default::default() };
        self.docker.create_volume(request).await?;
        self.made.borrow_mut().push(Made::Volume(name));
        Ok(())
    }

    fn container_body(&self, node: &NodeSpec, network: &str, image: &str) -> ContainerCreateBody {
        let binding = PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some(node.port.to_string()) };
        let address = EndpointIpamConfig { ipv4_address: Some(node.ip.to_string()), ..EndpointIpamConfig::default() };
        let endpoint = EndpointSettings { ipam_config: Some(address), ..EndpointSettings::default() };
        let mut env = vec![
            format!("SOCKET_ADDRESS={}:{NODE_PORT}", node.ip),
            format!("VIEW={}", self.spec().view(|node| node.ip)),
            format!("CLUSTER_SECRET={}", self.record.secret),
            "DATA_DIR=/data".into(),
        ];
        if self.spec().drill {
            env.push("DRILL=1".into());
        }
        env.extend(self.spec().shard_count(node).map(|shards| format!("SHARD_COUNT={shards}")));
        ContainerCreateBody {
            image: Some(image.to_owned()),
            hostname: Some(node.name.clone()),
            env: Some(env),
            labels: Some(self.labels()),
            exposed_ports: Some(vec![port_name()]),
            host_config: Some(HostConfig {
                binds: Some(vec![format!("{}:/data", self.spec().volume(node))]),
                port_bindings: Some([(port_name(), Some(vec![binding]))].into()),
                network_mode: Some(network.to_owned()),
                ..HostConfig::default()
            }),
            networking_config: Some(NetworkingConfig {
                endpoints_config: Some([(network.to_owned(), endpoint)].into()),
            }),
            ..ContainerCreateBody::default()
        }
    }

    pub(super) async fn remove(&self, container: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        present(self.docker.remove_container(container, Some(options)).await).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeSpec {
        NodeSpec { name: "alice".into(), ip: [10, 10, 0, 2].into(), port: 8082 }
    }

    fn settings(network: &str, address: &str, port: Option<&str>) -> NetworkSettings {
        let config = EndpointIpamConfig { ipv4_address: Some(address.into()), ..EndpointIpamConfig::default() };
        let endpoint = EndpointSettings {
            network_id: Some(network.into()),
            ipam_config: Some(config),
            ..EndpointSettings::default()
        };
        let binding = port.map(|port| PortBinding { host_ip: None, host_port: Some(port.into()) });
        NetworkSettings {
            networks: Some([("any".into(), endpoint)].into()),
            ports: Some([(port_name(), binding.map(|one| vec![one]))].into()),
            ..NetworkSettings::default()
        }
    }

    #[test]
    fn a_container_is_known_by_network_id_address_and_port() {
        let right = settings("n1", "10.10.0.2", Some("8082"));
        assert_eq!(place(Some(&right), &node(), Some("n1")), Place::Right);
        for (settings, network) in [
            (settings("n2", "10.10.0.2", Some("8082")), Some("n1")),
            (settings("n1", "10.10.0.9", Some("8082")), Some("n1")),
            (settings("n1", "10.10.0.2", Some("8082")), None),
        ] {
            assert_eq!(place(Some(&settings), &node(), network), Place::Elsewhere, "{network:?}");
        }
        let cut_and_healed = settings("n1", "10.10.0.2", None);
        assert_eq!(place(Some(&cut_and_healed), &node(), Some("n1")), Place::Unpublished);
    }
}
