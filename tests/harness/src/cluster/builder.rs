//! A cluster's settings, and its start.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use anyhow::{Context as _, ensure};
use bus_protocol::NodeId;
use bus_transport::Identity;

use super::Cluster;
use super::inquiry::Inquiry;
use super::node::{Kind, Node, Settings};
use super::ports::Port;
use crate::network::Network;

/// A cluster, before it runs.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    nodes: NodeId,
    kind: Kind,
    config: String,
    config_of: BTreeMap<NodeId, String>,
    arguments: Vec<String>,
    finds_ca: bool,
    direct: bool,
    seed: u64,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        Self {
            nodes: 3,
            kind: if cfg!(feature = "in-process") { Kind::InProcess } else { Kind::Process },
            config: String::new(),
            config_of: BTreeMap::new(),
            arguments: Vec::new(),
            finds_ca: false,
            direct: false,
            seed: 1,
        }
    }
}

impl ClusterBuilder {
    /// How many nodes form it, with the ids from 1 on. Default: 3.
    pub fn nodes(mut self, nodes: NodeId) -> Self {
        self.nodes = nodes;
        self
    }

    /// Nodes that are `bus start` in processes of their own: slower to start, and all that an operator would run.
    pub fn processes(mut self) -> Self {
        self.kind = Kind::Process;
        self
    }

    /// Nodes within this process, on threads of their own: the default, where the harness is built with its feature
    /// `in-process`.
    pub fn in_process(mut self) -> Self {
        self.kind = Kind::InProcess;
        self
    }

    /// Settings of all nodes, as `bus.toml` holds them; without node id, data, addresses and join, which are the
    /// harness's. Called again, it adds to what was said before.
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Settings of one node, in front of those of all: so top-level ones, such as its rack.
    pub fn config_of(mut self, node: NodeId, toml: &str) -> Self {
        let config = self.config_of.entry(node).or_default();
        config.push_str(toml);
        config.push('\n');
        self
    }

    /// More flags for `bus start`, on all nodes. For processes.
    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Gives the nodes no CA: they find one another's through their trust folder, as brokers do that are started by
    /// hand on one machine. For processes. Otherwise all are given the same, as an operator does on several machines.
    pub fn finds_ca(mut self) -> Self {
        self.finds_ca = true;
        self
    }

    /// Nodes are reached where they listen, with no relays in front: for measurements, as a relay takes each datagram
    /// in hand. The network has no faults then.
    pub fn direct(mut self) -> Self {
        self.direct = true;
        self
    }

    /// The seed of what chance decides in the network. Default: 1.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Lays it out, and starts no node: see [`Cluster::start_node`].
    pub fn build(self) -> anyhow::Result<Cluster> {
        ensure!(self.nodes > 0, "a cluster has at least one node");
        let mut folder = tempfile::Builder::new().prefix("bus-cluster-").tempdir()?;
        folder.disable_cleanup(std::env::var_os("BUS_TESTKIT_KEEP").is_some());
        let trust = folder.path().join("trust");
        let ca = match self.finds_ca {
            true => None,
            false => {
                let ca = folder.path().join("ca");
                Identity::load_or_create(&ca, 1, &[]).context("the cluster's CA")?;
                Some(ca)
            }
        };
        let network = Network::new(self.seed)?;
        let mut places = Vec::new();
        for id in 1..=self.nodes {
            let port = Port::reserve()?;
            let address = match self.direct {
                true => port.address(),
                false => network.relay(id, port.address())?,
            };
            places.push((id, port, address));
        }
        let addresses: Vec<_> = places.iter().map(|(_, _, address)| *address).collect();
        let join: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let settings = Settings {
            kind: self.kind,
            join: join.join(","),
            config: self.config.clone(),
            arguments: self.arguments,
            ca,
            trust,
        };
        let nodes = places.into_iter().map(|(id, port, address)| {
            let own = self.config_of.get(&id).map(String::as_str).unwrap_or_default();
            let settings = Settings { config: format!("{own}{}", self.config), ..settings.clone() };
            Arc::new(Node::new(id, folder.path(), port, address, settings))
        });
        let nodes = RwLock::new(nodes.collect());
        let inquiry = {
            let _guard = network.handle()?.enter();
            let store = bus_transport::TrustStore::at(&settings.trust);
            Arc::new(Inquiry::new(bus_transport::Trust::Store(store))?)
        };
        let cluster = Cluster { nodes, settings, inquiry, network, direct: self.direct, folder };
        cluster.publish_ca(&addresses)?;
        Ok(cluster)
    }

    /// Starts all nodes, and waits until they are one cluster.
    pub async fn start(self) -> anyhow::Result<Cluster> {
        let cluster = self.build()?;
        cluster.start_all().await?;
        cluster.wait_all_in_sync().await?;
        Ok(cluster)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn without_relays_there_are_no_faults() {
        let cluster = Cluster::builder().processes().direct().build().unwrap();
        let node = cluster.node(1).unwrap();
        assert_eq!(node.address(), node.listens().to_string());
        assert!(cluster.cut(1, 2).await.is_err() && cluster.isolate(1).await.is_err());
        let relayed = Cluster::builder().processes().build().unwrap();
        let node = relayed.node(1).unwrap();
        assert_ne!(node.address(), node.listens().to_string());
        relayed.cut(1, 2).await.unwrap();
    }
}
