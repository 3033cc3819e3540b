//! Nodes in one process, over a network that can be cut.
#![allow(dead_code, reason = "each test binary uses what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bus_metadata::{
    Applied, Command, DirectoryId, EnterError, Keeps, Metadata, MetadataImage, Options, PeerClient,
    PeerError, Registration,
};
use bus_protocol::request::CreateTopic;
use bus_protocol::{NodeId, TopicName};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The wires between the nodes: who can reach whom.
#[derive(Default)]
pub(crate) struct Wires {
    nodes: Mutex<BTreeMap<NodeId, Metadata>>,
    /// From whom to whom nothing arrives.
    cuts: Mutex<BTreeSet<(NodeId, NodeId)>>,
    /// What the port of all nodes is now, less 1.
    moved: AtomicU64,
}

impl Wires {
    pub(crate) fn plug(&self, node: &Metadata) {
        self.nodes.lock().unwrap().insert(node.node(), node.clone());
    }

    /// Nobody listens there any more.
    pub(crate) fn unplug(&self, node: NodeId) {
        self.nodes.lock().unwrap().remove(&node);
    }

    /// A node is gone, as far as others can tell: it listens no more, and says nothing.
    pub(crate) fn silence(&self, node: NodeId) {
        self.unplug(node);
        self.cuts.lock().unwrap().extend((1..10).map(|other| (node, other)));
    }

    /// Nothing goes from or to a node any more, and nobody is told.
    pub(crate) fn isolate(&self, node: NodeId) {
        let others = (1..10).filter(|other| *other != node);
        self.cuts.lock().unwrap().extend(others.flat_map(|other| [(node, other), (other, node)]));
    }

    /// All nodes listen on the next port from now on.
    pub(crate) fn move_all(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn address(&self, node: NodeId) -> String {
        format!("node-{node}:{}", self.moved.load(Ordering::Relaxed) + 1)
    }

    pub(crate) fn heal(&self) {
        self.cuts.lock().unwrap().clear();
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cuts.lock().unwrap().contains(&(from, to))
    }
}

/// One node's end of the wires.
pub(crate) struct Wire {
    pub(crate) from: NodeId,
    pub(crate) wires: Arc<Wires>,
}

impl Wire {
    async fn carry(&self, node: NodeId, request: Bytes) -> Option<Bytes> {
        assert!(request.len() <= bus_metadata::limits::PEER_MESSAGE_BYTES);
        let target = self.wires.nodes.lock().unwrap().get(&node).cloned()?;
        if self.wires.is_cut(self.from, node) {
            return std::future::pending().await;
        }
        let answer = target.receive(self.from, request).await;
        if self.wires.is_cut(node, self.from) {
            return std::future::pending().await;
        }
        Some(answer)
    }
}

#[async_trait]
impl PeerClient for Wire {
    async fn call(&self, node: NodeId, address: &str, request: Bytes) -> Result<Bytes, PeerError> {
        let gone = || PeerError::Unreachable { node, why: "it is gone".into() };
        if address != self.wires.address(node) {
            return Err(gone());
        }
        self.carry(node, request).await.ok_or_else(gone)
    }

    async fn call_address(&self, address: &str, request: Bytes) -> Result<Bytes, PeerError> {
        let gone = || PeerError::NoAnswer { address: address.to_owned(), why: "nobody is there".into() };
        let node = (1..10).find(|node| address == self.wires.address(*node)).ok_or_else(gone)?;
        self.carry(node, request).await.ok_or_else(gone)
    }
}

pub(crate) fn address(node: NodeId) -> String {
    format!("node-{node}:1")
}

pub(crate) fn seeds(nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().copied().map(address).collect()
}

/// Snapshots so often that a node which was away needs one.
pub(crate) fn quick() -> Options {
    Options {
        snapshot_entries: 40,
        kept_entries: 5,
        propose_timeout_ms: 5_000,
        join_timeout_ms: 15_000,
        ..Options::default()
    }
}

pub(crate) async fn start(wires: &Arc<Wires>, node: NodeId, dir: &TempDir) -> Metadata {
    start_with(quick(), wires, node, dir).await
}

pub(crate) async fn start_with(
    options: Options,
    wires: &Arc<Wires>,
    node: NodeId,
    dir: &TempDir,
) -> Metadata {
    let wire = Arc::new(Wire { from: node, wires: Arc::clone(wires) });
    let metadata = Metadata::start(options, node, &address(node), dir.path(), wire).await.unwrap();
    wires.plug(&metadata);
    metadata
}

/// The directory that node `node` has in its `life`th life.
pub(crate) fn registration(node: NodeId, life: u8) -> Registration {
    let mut directory = [life; 16];
    directory[0] = node as u8;
    Registration {
        node,
        address: address(node),
        rack: None,
        directory: DirectoryId(directory),
        clean: true,
        renewed: true,
    }
}

pub(crate) async fn enter(metadata: &Metadata, listed: &[NodeId], life: u8) -> Result<u64, EnterError> {
    enter_keeping(metadata, listed, nothing("cluster-a"), life).await
}

pub(crate) fn nothing(cluster_id_if_new: &str) -> Keeps<'_> {
    Keeps::Nothing { cluster_id_if_new }
}

pub(crate) async fn enter_keeping(
    metadata: &Metadata,
    listed: &[NodeId],
    keeps: Keeps<'_>,
    life: u8,
) -> Result<u64, EnterError> {
    let node = metadata.node();
    metadata.enter(&address(node), &seeds(listed), keeps, registration(node, life)).await
}

/// Starts a node, and waits until it is a broker that is up.
pub(crate) async fn up(
    wires: &Arc<Wires>,
    node: NodeId,
    dir: &TempDir,
    listed: &[NodeId],
    life: u8,
) -> Metadata {
    let metadata = start(wires, node, dir).await;
    enter(&metadata, listed, life).await.unwrap();
    metadata.ready().await.unwrap();
    metadata
}

/// A cluster of nodes 1 to `nodes`, all up, with as many voters as there should be.
pub(crate) struct Cluster {
    pub(crate) wires: Arc<Wires>,
    pub(crate) dirs: Vec<TempDir>,
    pub(crate) nodes: Vec<Metadata>,
}

impl Cluster {
    pub(crate) async fn of(nodes: u64) -> Self {
        let wires = Arc::new(Wires::default());
        let dirs: Vec<_> = (0..nodes).map(|_| TempDir::new().unwrap()).collect();
        let listed: Vec<_> = (1..=nodes).collect();
        let starting: Vec<_> = dirs
            .iter()
            .zip(1..)
            .map(|(dir, node)| {
                let (wires, listed) = (Arc::clone(&wires), listed.clone());
                let dir = dir.path().to_owned();
                tokio::spawn(async move {
                    let wire = Arc::new(Wire { from: node, wires: Arc::clone(&wires) });
                    let started = Metadata::start(quick(), node, &address(node), &dir, wire).await.unwrap();
                    wires.plug(&started);
                    enter(&started, &listed, 0).await.unwrap();
                    started.ready().await.unwrap();
                    started
                })
            })
            .collect();
        let mut nodes = Vec::new();
        for node in starting {
            nodes.push(timeout(DEADLINE, node).await.expect("the cluster is not formed").unwrap());
        }
        let cluster = Self { wires, dirs, nodes };
        let count = cluster.nodes.len();
        cluster.voters(if count.is_multiple_of(2) { count - 1 } else { count }.min(5)).await;
        cluster
    }

    /// Waits until all nodes know of as many voters.
    pub(crate) async fn voters(&self, voters: usize) {
        for node in &self.nodes {
            until_members(node, voters).await;
        }
    }

    pub(crate) fn node(&self, node: NodeId) -> &Metadata {
        self.nodes.iter().find(|metadata| metadata.node() == node).unwrap()
    }

    pub(crate) async fn leader(&self) -> Metadata {
        leader(&self.nodes.iter().collect::<Vec<_>>()).await.clone()
    }

    /// As `kill -9` does it, as far as others can tell.
    pub(crate) async fn kill(&mut self, node: NodeId) {
        self.wires.silence(node);
        let place = self.nodes.iter().position(|metadata| metadata.node() == node).unwrap();
        self.nodes.remove(place).shutdown().await;
        self.wires.heal();
    }

    pub(crate) async fn shutdown(self) {
        for node in &self.nodes {
            node.shutdown().await;
        }
    }
}

pub(crate) async fn until_members(node: &Metadata, voters: usize) {
    let grown = async {
        while node.members().voters.len() != voters {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, grown).await.unwrap_or_else(|_| panic!("{:?}", node.members()));
}

/// Waits until the node's image fits.
pub(crate) async fn until(metadata: &Metadata, what: &str, fits: impl Fn(&MetadataImage) -> bool) {
    let mut images = metadata.watch();
    let fitting = images.wait_for(|image| fits(image));
    timeout(DEADLINE, fitting).await.unwrap_or_else(|_| panic!("node {}: {what}", metadata.node())).unwrap();
}

/// Waits until one of `nodes` leads, and the others agree.
pub(crate) async fn leader<'a>(nodes: &[&'a Metadata]) -> &'a Metadata {
    let agreed = async {
        loop {
            let leaders: BTreeSet<_> = nodes.iter().map(|node| node.leader()).collect();
            if let (1, Some(Some(leader))) = (leaders.len(), leaders.first())
                && let Some(leader) = nodes.iter().find(|node| node.node() == *leader)
            {
                return *leader;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, agreed).await.expect("no leader")
}

pub(crate) fn name(number: u32) -> TopicName {
    TopicName::new(&format!("topic-{number}")).unwrap()
}

pub(crate) fn create(number: u32) -> Command {
    create_wide(number, 1, 1)
}

pub(crate) fn create_wide(number: u32, partitions: u32, replicas: u32) -> Command {
    let config = BTreeMap::new();
    Command::CreateTopic(CreateTopic {
        topic: name(number),
        partitions,
        replicas,
        config,
        if_not_exists: true,
    })
}

/// Registers a broker that is not there.
pub(crate) async fn register(leader: &Metadata, node: NodeId) -> u64 {
    let applied =
        leader.propose(Command::RegisterBroker { broker: registration(node, 0), follows: None }).await;
    let Ok(Applied::Broker { epoch }) = applied else { panic!("{applied:?}") };
    leader.propose(Command::UnfenceBroker { node, epoch }).await.unwrap();
    epoch
}

pub(crate) fn leads(image: &MetadataImage, node: NodeId) -> usize {
    let partitions = image.topics().flat_map(|topic| &topic.partitions);
    partitions.filter(|partition| partition.leader == Some(node)).count()
}

pub(crate) fn since(began: Instant) -> u128 {
    began.elapsed().as_millis()
}
