//! A cluster's network. Docker allows two networks of one name: ours is known by its label, and used by its id.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use bollard::models::{Ipam, IpamConfig, Network, NetworkCreateRequest};
use bollard::query_parameters::ListNetworksOptionsBuilder;

use super::{Cluster, Made};
use crate::error::{Failure, Result};

impl Cluster {
    pub(super) async fn networks(&self) -> Result<Vec<Network>> {
        Ok(self.docker.list_networks(Some(ListNetworksOptionsBuilder::default().build())).await?)
    }

    /// The id of the cluster's network.
    pub(super) async fn own_network(&self) -> Result<Option<String>> {
        let networks = self.networks().await?;
        Ok(networks.into_iter().find(|network| self.is_own(network.labels.as_ref())).and_then(|network| network.id))
    }

    /// Addresses that containers on the cluster's network have, whoever made them.
    pub async fn taken(&self) -> Result<BTreeSet<Ipv4Addr>> {
        let Some(network) = self.own_network().await? else { return Ok(BTreeSet::new()) };
        let network = self.docker.inspect_network(&network, None).await?;
        let containers = network.containers.unwrap_or_default();
        let address = |with_bits: String| with_bits.split('/').next()?.parse().ok();
        Ok(containers.into_values().filter_map(|one| one.ipv4_address.and_then(address)).collect())
    }

    /// An error that names the network which has addresses of ours.
    pub(super) async fn check_subnet(&self) -> Result<()> {
        let (ip, bits) = self.spec().subnet;
        let networks = self.networks().await?;
        let Some(other) = networks.iter().find(|network| overlaps(network, (ip, bits))) else { return Ok(()) };
        let name = other.name.as_deref().unwrap_or("?");
        Err(Failure::environment(format!(
            "the network {ip}/{bits} overlaps Docker network '{name}'; remove that (`docker network rm {name}`), \
             or choose another with --subnet"
        )))
    }

    pub(super) async fn make_network(&self) -> Result<String> {
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
