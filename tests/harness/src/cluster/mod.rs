//! A cluster on this machine, with a network that can be broken.
//!
//! ```text
//!   Cluster ── nodes: `bus start` in processes of their own, or brokers within this one
//!      │ ──── network: a relay in front of each; cuts, losses, delays
//!      │ ──── inquiry: asks each node what it holds to be true
//!      └ kill, stop, pause, wipe, start_node · partition, cut, heal · leader_of, wait_for_isr, ...
//! ```

mod builder;
mod conditions;
mod faults;
#[cfg(feature = "in-process")]
mod in_process;
mod inquiry;
mod node;
mod ports;

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context as _, ensure};
use bus_client::Client;
use bus_protocol::{NodeId, Offset, PartitionId};
use bus_transport::{Trust, TrustStore};
use tempfile::TempDir;
use tokio::task::JoinSet;

pub use builder::ClusterBuilder;
pub use conditions::wait_until;
pub use node::Node;

use crate::command::BusCommand;
use crate::network::Network;
use crate::replicas::{Agreement, replicas_agree};
use inquiry::Inquiry;
use node::Settings;
use ports::Port;

/// A cluster of `bus` brokers. Its methods take `&self`, so that a test's tasks can share it. Nodes are killed, and all
/// folders deleted, when it is dropped; `$BUS_TESTKIT_KEEP` keeps the folders.
#[derive(Debug)]
pub struct Cluster {
    nodes: RwLock<Vec<Arc<Node>>>,
    settings: Settings,
    inquiry: Arc<Inquiry>,
    network: Network,
    /// Whether there are no relays.
    direct: bool,
    /// The last to go: the nodes keep their data there.
    folder: TempDir,
}

impl Cluster {
    /// A cluster to be set up and started: three nodes within this process, unless said otherwise.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    fn all(&self) -> Vec<Arc<Node>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ids of all nodes, running or not.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.all().iter().map(|node| node.id()).collect()
    }

    /// A node, running or not.
    pub fn node(&self, id: NodeId) -> anyhow::Result<Arc<Node>> {
        let found = self.all().into_iter().find(|node| node.id() == id);
        found.with_context(|| format!("there is no node {id}: there are {:?}", self.nodes()))
    }

    /// The nodes' addresses, which are their relays' where there are any, by id.
    pub fn addresses(&self) -> Vec<String> {
        self.all().iter().map(|node| node.address()).collect()
    }

    /// What a client is given to find the cluster by: `HOST:PORT,HOST:PORT,HOST:PORT`.
    pub fn bootstrap(&self) -> String {
        self.addresses().join(",")
    }

    /// The folder with the CA of each node's address: `$BUS_TRUST_DIR` for programs that shall trust the cluster.
    pub fn trust_dir(&self) -> &Path {
        &self.settings.trust
    }

    /// Whom a client of this cluster trusts.
    pub fn trust(&self) -> Trust {
        Trust::Store(TrustStore::at(self.trust_dir()))
    }

    /// A folder for the test's own files, deleted with the cluster.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// The network between the nodes, for faults that have no method here.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// A client of its own, connected.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let client = Client::builder().servers(self.bootstrap()).trust(self.trust()).connect().await;
        client.context("no node lets a client in")
    }

    /// `bus ARGUMENTS` against the cluster. Its `run` blocks: where tasks of the test must go on, use `finished`.
    pub fn bus<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> BusCommand {
        BusCommand::bus(arguments).against(&self.bootstrap(), self.trust_dir())
    }

    /// Puts the cluster's CA and its key into a data folder, so that a broker that is none of the cluster's nodes is
    /// of its CA all the same. Fails where the nodes were told to find their CA themselves.
    pub fn give_ca(&self, data: &Path) -> anyhow::Result<()> {
        let ca = self.settings.ca.as_deref().context("the nodes were given no CA")?;
        node::give_ca(ca, data)
    }

    /// One more node, started: it joins by the addresses of those that formed the cluster. Answers its id.
    pub async fn add_node(&self) -> anyhow::Result<NodeId> {
        let id = self.nodes().into_iter().max().unwrap_or_default() + 1;
        let port = Port::reserve()?;
        let address = match self.direct {
            true => port.address(),
            false => self.network.relay(id, port.address())?,
        };
        self.publish_ca(&[address])?;
        let node = Arc::new(Node::new(id, self.folder.path(), port, address, self.settings.clone()));
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).push(node);
        self.start_node(id).await?;
        Ok(id)
    }

    fn publish_ca(&self, addresses: &[SocketAddr]) -> anyhow::Result<()> {
        if let Some(ca) = &self.settings.ca {
            let pem = std::fs::read_to_string(ca.join("ca.pem"))?;
            let store = TrustStore::at(self.trust_dir());
            for address in addresses {
                store.publish(&address.to_string(), &pem)?;
            }
        }
        Ok(())
    }

    /// What blocks, on a thread that may.
    async fn on_node(
        &self,
        id: NodeId,
        act: impl FnOnce(&Node) -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let node = self.node(id)?;
        tokio::task::spawn_blocking(move || act(&node)).await?
    }

    /// SIGKILL, as if its power went (a node within this process is dropped where it stands); waits until it is gone.
    pub async fn kill(&self, node: NodeId) -> anyhow::Result<()> {
        self.on_node(node, Node::kill).await
    }

    /// SIGTERM; waits until it has stopped, and fails where that was not with exit code 0.
    pub async fn stop(&self, node: NodeId) -> anyhow::Result<()> {
        self.on_node(node, Node::stop).await
    }

    /// Stops all nodes that run, at once.
    pub async fn stop_all(&self) -> anyhow::Result<()> {
        let mut stops = JoinSet::new();
        for node in self.all().into_iter().filter(|node| node.is_running()) {
            stops.spawn_blocking(move || node.stop());
        }
        first_error(stops).await
    }

    /// Kills all nodes that run, at once: the power of the whole house.
    pub async fn kill_all(&self) -> anyhow::Result<()> {
        let mut kills = JoinSet::new();
        for node in self.all().into_iter().filter(|node| node.is_running()) {
            kills.spawn_blocking(move || node.kill());
        }
        first_error(kills).await
    }

    /// Starts a stopped node again, on the data that it has; waits until it is ready.
    pub async fn start_node(&self, node: NodeId) -> anyhow::Result<()> {
        self.on_node(node, Node::start).await
    }

    /// Starts all nodes that do not run, at once; waits until they are ready.
    pub async fn start_all(&self) -> anyhow::Result<()> {
        let mut starts = JoinSet::new();
        for node in self.all().into_iter().filter(|node| !node.is_running()) {
            starts.spawn_blocking(move || node.start());
        }
        first_error(starts).await
    }

    /// SIGSTOP: it stays where it is, and says nothing. For nodes in processes of their own.
    pub async fn pause(&self, node: NodeId) -> anyhow::Result<()> {
        self.on_node(node, |node| node.pause(true)).await
    }

    /// SIGCONT: it goes on as if nothing had been.
    pub async fn resume(&self, node: NodeId) -> anyhow::Result<()> {
        self.on_node(node, |node| node.pause(false)).await
    }

    /// Deletes the data folder of a stopped node: a new disk.
    pub async fn wipe(&self, node: NodeId) -> anyhow::Result<()> {
        self.on_node(node, Node::wipe).await
    }

    /// The folder in which a node keeps a replica, to be looked at, or damaged, while the node is stopped.
    pub fn partition_folder(
        &self,
        node: NodeId,
        topic: &str,
        partition: PartitionId,
    ) -> anyhow::Result<PathBuf> {
        self.node(node)?.partition(topic, partition)
    }

    /// Compares what stopped nodes hold of a partition below its high watermark, batch by batch, byte by byte.
    pub async fn replicas_agree(
        &self,
        nodes: &[NodeId],
        topic: &str,
        partition: PartitionId,
        high_watermark: Offset,
    ) -> anyhow::Result<Agreement> {
        for &node in nodes {
            ensure!(
                !self.node(node)?.is_running(),
                "node {node} runs: what it holds is not all in its files"
            );
        }
        let folders = nodes.iter().map(|&node| self.partition_folder(node, topic, partition));
        let folders = folders.collect::<anyhow::Result<Vec<_>>>()?;
        let compared = tokio::task::spawn_blocking(move || replicas_agree(&folders, high_watermark)).await?;
        compared.with_context(|| format!("{topic}-{partition} on nodes {nodes:?}"))
    }
}

async fn first_error(mut tasks: JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut result = Ok(());
    while let Some(task) = tasks.join_next().await {
        result = result.and(task?);
    }
    result
}
