//! One node, and three of them in one process, over a network that can be cut.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bus_metadata::{
    Applied, Command, DirectoryId, Error, Metadata, MetadataImage, Options, PeerClient, PeerError,
    ProposeError, Registration, Rejected,
};
use bus_protocol::request::CreateTopic;
use bus_protocol::{ErrorCode, NodeId, TopicName};
use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

const DEADLINE: Duration = Duration::from_secs(20);

/// The wires between the nodes: who can be reached.
#[derive(Default)]
struct Wires {
    nodes: Mutex<BTreeMap<NodeId, Metadata>>,
    /// How many messages were answered.
    answered: watch::Sender<u64>,
}

#[async_trait]
impl PeerClient for Wires {
    async fn call(&self, node: NodeId, address: &str, request: Bytes) -> Result<Bytes, PeerError> {
        assert!(address.starts_with(&format!("node-{node}:")), "{address}");
        assert!(request.len() <= bus_metadata::limits::PEER_MESSAGE_BYTES);
        let target = self.nodes.lock().unwrap().get(&node).cloned();
        match target {
            Some(target) => {
                let answer = target.receive(request).await;
                self.answered.send_modify(|answered| *answered += 1);
                Ok(answer)
            }
            None => Err(PeerError::Unreachable { node, why: "it is cut off".into() }),
        }
    }
}

impl Wires {
    fn join(&self, node: &Metadata) {
        self.nodes.lock().unwrap().insert(node.node(), node.clone());
    }

    fn cut(&self, node: NodeId) {
        self.nodes.lock().unwrap().remove(&node);
    }
}

/// Snapshots so often that a node which was away needs one.
fn quick() -> Options {
    Options {
        heartbeat_ms: 100,
        election_timeout_min_ms: 400,
        election_timeout_max_ms: 800,
        snapshot_entries: 40,
        kept_entries: 5,
        propose_timeout_ms: 2_000,
        ..Options::default()
    }
}

async fn start(wires: &Arc<Wires>, node: NodeId, dir: &TempDir) -> Metadata {
    let started = Metadata::start(quick(), node, &format!("node-{node}:1"), dir.path(), wires.clone()).await;
    let metadata = started.unwrap();
    wires.join(&metadata);
    metadata
}

/// Waits until the node's image fits.
async fn until(metadata: &Metadata, what: &str, fits: impl Fn(&MetadataImage) -> bool) {
    let mut images = metadata.watch();
    let fitting = images.wait_for(|image| fits(image));
    timeout(DEADLINE, fitting).await.unwrap_or_else(|_| panic!("node {}: {what}", metadata.node())).unwrap();
}

/// Waits until one of `nodes` leads, and the others agree.
async fn leader<'a>(nodes: &[&'a Metadata]) -> &'a Metadata {
    let agreed = async {
        loop {
            for node in nodes {
                let mut leaders = node.watch_leader();
                leaders
                    .wait_for(|leader| {
                        leader.is_some_and(|leader| nodes.iter().any(|node| node.node() == leader))
                    })
                    .await
                    .unwrap();
            }
            let leaders: BTreeSet<_> = nodes.iter().map(|node| node.leader()).collect();
            if let (1, Some(Some(leader))) = (leaders.len(), leaders.first()) {
                return *nodes.iter().find(|node| node.node() == *leader).unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, agreed).await.expect("no leader")
}

fn name(number: u32) -> TopicName {
    TopicName::new(&format!("topic-{number}")).unwrap()
}

fn create(number: u32) -> Command {
    Command::CreateTopic(CreateTopic {
        topic: name(number),
        partitions: 1,
        replicas: 1,
        config: BTreeMap::new(),
        if_not_exists: true,
    })
}

async fn register(leader: &Metadata, node: NodeId) -> u64 {
    let registration = Registration {
        node,
        address: format!("node-{node}:2"),
        rack: None,
        directory: DirectoryId([node as u8; 16]),
        clean: true,
    };
    let applied = leader.propose(Command::RegisterBroker(registration)).await;
    let Ok(Applied::Broker { epoch }) = applied else { panic!("{applied:?}") };
    leader.propose(Command::UnfenceBroker { node, epoch }).await.unwrap();
    epoch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_leads_at_once_and_keeps_what_it_answered() {
    let (wires, dir) = (Arc::new(Wires::default()), TempDir::new().unwrap());
    let began = Instant::now();
    let metadata = start(&wires, 1, &dir).await;
    assert_eq!(metadata.cluster_id(), None);
    assert!(matches!(
        metadata.propose(create(1)).await,
        Err(ProposeError::NotLeader { node: 1, leader: None })
    ));
    metadata.bootstrap("cluster-a").await.unwrap();
    assert!(metadata.is_leader() && began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    metadata.bootstrap("cluster-a").await.unwrap();
    assert!(matches!(metadata.bootstrap("cluster-b").await, Err(Error::OtherCluster { .. })));
    let epoch = register(&metadata, 1).await;
    for number in 0..100 {
        let applied = metadata.propose(create(number)).await.unwrap();
        let Applied::Topic { id, created: true } = applied else { panic!("{applied:?}") };
        assert_eq!(
            metadata.image().topic_by_id(id).unwrap().name,
            name(number),
            "the image shows it at once"
        );
    }
    let refused = metadata.propose(Command::DeleteTopic { topic: name(1_000) }).await.unwrap_err();
    assert_eq!(refused, ProposeError::Rejected(Rejected::UnknownTopic { topic: name(1_000) }));
    assert_eq!(refused.code(), ErrorCode::UnknownTopic);
    let huge = Command::NameCluster { cluster_id: "x".repeat(2 << 20) };
    assert!(matches!(metadata.propose(huge).await, Err(ProposeError::TooLarge { .. })));
    let before = metadata.image();
    metadata.shutdown().await;
    assert!(matches!(metadata.propose(create(1)).await, Err(ProposeError::Stopped(_))));

    let began = Instant::now();
    let metadata = start(&wires, 1, &dir).await;
    assert!(metadata.is_leader() && began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(metadata.image(), before);
    assert_eq!(metadata.cluster_id().as_deref(), Some("cluster-a"));
    assert!(matches!(metadata.bootstrap("cluster-b").await, Err(Error::OtherCluster { .. })));
    metadata.bootstrap("cluster-a").await.unwrap();

    // A broker that starts again is elected again, in a new leader epoch, by the controller.
    assert!(register(&metadata, 1).await > epoch);
    until(&metadata, "leaders", |image| {
        image
            .topics()
            .all(|topic| topic.partitions[0].leader == Some(1) && topic.partitions[0].leader_epoch > 0)
    })
    .await;
    metadata.shutdown().await;
    metadata.shutdown().await;
    let other = Metadata::start(quick(), 2, "node-2:1", dir.path(), wires.clone()).await;
    assert!(matches!(other, Err(Error::OtherNode { found: 1, wanted: 2, .. })));
}

/// The directory as it is at this moment: what a killed process leaves.
fn copy(from: &Path) -> TempDir {
    fn copy_into(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir_all(&to).unwrap();
                copy_into(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), &to).unwrap();
            }
        }
    }
    let to = TempDir::new().unwrap();
    copy_into(from, to.path());
    to
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_outlives_a_kill() {
    let (wires, dir) = (Arc::new(Wires::default()), TempDir::new().unwrap());
    let metadata = start(&wires, 1, &dir).await;
    metadata.bootstrap("cluster-a").await.unwrap();
    register(&metadata, 1).await;
    for number in 0..150 {
        metadata.propose(create(number)).await.unwrap();
        if number % 10 == 0 {
            let (killed, before) = (copy(dir.path()), metadata.image());
            let restarted = start(&Arc::new(Wires::default()), 1, &killed).await;
            assert!(restarted.is_leader());
            assert_eq!(restarted.image(), before);
            assert_eq!(restarted.cluster_id().as_deref(), Some("cluster-a"));
            restarted.shutdown().await;
        }
    }
    assert!(
        metadata.progress().purged.is_some(),
        "with snapshots and purges on the way: {:?}",
        metadata.progress()
    );
    metadata.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proposals_at_once_are_all_applied() {
    let (wires, dir) = (Arc::new(Wires::default()), TempDir::new().unwrap());
    let metadata = start(&wires, 1, &dir).await;
    metadata.bootstrap("cluster-a").await.unwrap();
    register(&metadata, 1).await;
    let proposals: Vec<_> = (0..1_000)
        .map(|number| {
            let metadata = metadata.clone();
            tokio::spawn(async move { metadata.propose(create(number)).await })
        })
        .collect();
    for proposal in proposals {
        proposal.await.unwrap().unwrap();
    }
    assert_eq!(metadata.image().topics().len(), 1_000);
    metadata.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_outlive_the_leader_and_teach_who_was_away() {
    let wires = Arc::new(Wires::default());
    let dirs = [(); 3].map(|()| TempDir::new().unwrap());
    let one = start(&wires, 1, &dirs[0]).await;
    let two = start(&wires, 2, &dirs[1]).await;
    let three = start(&wires, 3, &dirs[2]).await;
    one.bootstrap("cluster-a").await.unwrap();
    for node in [2, 3] {
        one.add_learner(node, &format!("node-{node}:1")).await.unwrap();
    }
    one.set_voters(BTreeSet::from([1, 2, 3])).await.unwrap();
    assert_eq!(one.members().voters.len(), 3);
    for node in 1..=3 {
        register(&one, node).await;
    }
    one.propose(create(0)).await.unwrap();
    for node in [&two, &three] {
        until(node, "the first topic", |image| image.topic(&name(0)).is_some()).await;
        assert_eq!(node.cluster_id().as_deref(), Some("cluster-a"), "it has noted where it belongs");
    }
    let refused = two.propose(create(9)).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { node: 2, leader: Some(1) })), "{refused:?}");

    // The leader goes; the others go on, far enough that it needs a snapshot to come back.
    wires.cut(1);
    let had = one.progress().last;
    one.shutdown().await;
    let new = leader(&[&two, &three]).await;
    new.propose(create(1)).await.unwrap();
    for number in 2..200 {
        new.propose(create(number)).await.unwrap();
    }
    assert!(new.progress().purged > had, "the log still holds what node 1 lacks: {:?}", new.progress());
    let one = start(&wires, 1, &dirs[0]).await;
    until(&one, "all topics", |image| image.topics().len() == 200).await;
    assert!(one.progress().snapshot > had, "node 1 was not sent a snapshot: {:?}", one.progress());
    leader(&[&one, &two, &three]).await;
    assert_eq!(*one.image(), *new.image());

    // Without a majority nothing is agreed on.
    let leads = leader(&[&one, &two, &three]).await.clone();
    for node in [&one, &two, &three] {
        if node.node() != leads.node() {
            wires.cut(node.node());
        }
    }
    let lonely = leads.propose(create(500)).await;
    assert!(matches!(lonely, Err(ProposeError::TimedOut(_) | ProposeError::NotLeader { .. })), "{lonely:?}");
    assert!(leads.image().topic(&name(500)).is_none());
    [&one, &two, &three].iter().for_each(|node| wires.join(node));
    let again = async { while leader(&[&one, &two, &three]).await.propose(create(501)).await.is_err() {} };
    timeout(DEADLINE, again).await.unwrap();
    for node in [&one, &two, &three] {
        until(node, "the last topic", |image| image.topic(&name(501)).is_some()).await;
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_broker_is_followed_by_an_election() {
    let (wires, dir) = (Arc::new(Wires::default()), TempDir::new().unwrap());
    let metadata = start(&wires, 1, &dir).await;
    metadata.bootstrap("cluster-a").await.unwrap();
    let mut epochs = BTreeMap::new();
    for node in 1..=3 {
        epochs.insert(node, register(&metadata, node).await);
    }
    let wide = Command::CreateTopic(CreateTopic {
        topic: name(0),
        partitions: 3_000,
        replicas: 3,
        config: BTreeMap::new(),
        if_not_exists: false,
    });
    metadata.propose(wide).await.unwrap();
    metadata.propose(Command::FenceBroker { node: 2, epoch: epochs[&2] }).await.unwrap();
    let leads = |image: &MetadataImage, node| {
        let partitions = &image.topic(&name(0)).unwrap().partitions;
        partitions.iter().filter(|partition| partition.leader == Some(node)).count()
    };
    until(&metadata, "failover", |image| leads(image, 2) == 0 && leads(image, 1) + leads(image, 3) == 3_000)
        .await;
    metadata.propose(Command::UnfenceBroker { node: 2, epoch: epochs[&2] }).await.unwrap();
    until(&metadata, "the way back", |image| leads(image, 2) == 1_000).await;
    metadata.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() {
    let wires = Arc::new(Wires::default());
    let dirs = [(); 2].map(|()| TempDir::new().unwrap());
    let (one, two) = (start(&wires, 1, &dirs[0]).await, start(&wires, 2, &dirs[1]).await);
    one.bootstrap("cluster-a").await.unwrap();
    two.bootstrap("cluster-b").await.unwrap();
    // Garbage of any length gets an answer.
    for garbage in [&[][..], &[0], &[1], &[1, 0, 1, 2, 3], &[1; 4_096], &[255; 64]] {
        assert!(!two.receive(Bytes::copy_from_slice(garbage)).await.is_empty());
    }
    one.add_learner(2, "node-2:1").await.unwrap();
    let mut answered = wires.answered.subscribe();
    timeout(DEADLINE, answered.wait_for(|answered| *answered >= 3)).await.unwrap().unwrap();
    assert_eq!(two.image().cluster_id(), Some("cluster-b"));
    assert!(two.is_leader());
    one.shutdown().await;
    two.shutdown().await;
}
