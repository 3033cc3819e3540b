//! One node: what it answered it keeps.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

mod wires;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bus_metadata::{
    Applied, Command, EnterError, Error, Metadata, MetadataImage, Options, PeerClient, PeerError,
    ProposeError, Rejected,
};
use bus_protocol::ErrorCode;
use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::Instant;

use wires::*;

/// Alone, with brokers that are only registered.
fn alone() -> Options {
    Options { session_timeout_ms: 600_000, ..quick() }
}

async fn first(dir: &TempDir) -> Metadata {
    let metadata = start_with(alone(), &Arc::new(Wires::default()), 1, dir).await;
    enter(&metadata, &[], 0).await.unwrap();
    metadata.ready().await.unwrap();
    metadata
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_leads_at_once_and_keeps_what_it_answered() {
    let dir = TempDir::new().unwrap();
    let began = Instant::now();
    let metadata = start_with(alone(), &Arc::new(Wires::default()), 1, &dir).await;
    assert_eq!(metadata.cluster_id(), None);
    let epoch = enter(&metadata, &[1], 0).await.unwrap();
    assert!(metadata.is_leader() && began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(metadata.image().broker(1).unwrap().fenced);
    metadata.ready().await.unwrap();
    assert!(!metadata.image().broker(1).unwrap().fenced);
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
    for garbage in [&[][..], &[0], &[1], &[1, 0, 1, 2, 3], &[1; 4_096], &[255; 64]] {
        assert!(
            !metadata.receive(2, Bytes::copy_from_slice(garbage)).await.is_empty(),
            "garbage gets an answer"
        );
    }
    let before = metadata.image();
    metadata.shutdown().await;
    assert!(matches!(metadata.propose(create(1)).await, Err(ProposeError::Stopped(_))));

    let began = Instant::now();
    let metadata = start_with(alone(), &Arc::new(Wires::default()), 1, &dir).await;
    assert!(metadata.is_leader() && began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(metadata.image(), before);
    assert_eq!(metadata.cluster_id().as_deref(), Some("cluster-a"));

    // A broker that starts again is elected again, in a new leader epoch, by the controller.
    assert!(enter(&metadata, &[], 0).await.unwrap() > epoch);
    metadata.ready().await.unwrap();
    let led = |image: &MetadataImage| {
        image
            .topics()
            .all(|topic| topic.partitions[0].leader == Some(1) && topic.partitions[0].leader_epoch > 0)
    };
    until(&metadata, "leaders", led).await;
    // A stop hands over to nobody, and does not wait for somebody.
    let began = Instant::now();
    metadata.leave().await;
    assert!(began.elapsed() < Duration::from_secs(1));
    metadata.shutdown().await;
    metadata.shutdown().await;
    let wire = Arc::new(Wire { from: 2, wires: Arc::default() });
    let other = Metadata::start(quick(), 2, "node-2:1", dir.path(), wire).await;
    assert!(matches!(other, Err(Error::OtherNode { found: 1, wanted: 2, .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_cluster_is_refused() {
    let (wires, dirs) = (Arc::new(Wires::default()), [(); 2].map(|()| TempDir::new().unwrap()));
    let one = start_with(alone(), &wires, 1, &dirs[0]).await;
    one.enter("node-1:1", &[], nothing("cluster-a"), registration(1, 0)).await.unwrap();
    let two = start_with(alone(), &wires, 2, &dirs[1]).await;
    two.enter("node-2:1", &[], nothing("cluster-b"), registration(2, 0)).await.unwrap();
    two.shutdown().await;
    let two = start_with(alone(), &wires, 2, &dirs[1]).await;
    let refused = enter(&two, &[1, 2], 0).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "node-1:1 is of cluster cluster-a, and this node's directory of cluster cluster-b: use another directory, \
         or another --join list"
    );
    assert!(matches!(refused, EnterError::OtherCluster { .. }));
    one.shutdown().await;
    two.shutdown().await;
}

/// A network whose nodes have certificates of another authority.
struct Strangers;

#[async_trait]
impl PeerClient for Strangers {
    async fn call(&self, node: u64, _: &str, _: Bytes) -> Result<Bytes, PeerError> {
        Err(PeerError::Unreachable { node, why: "unknown certificate authority".into() })
    }

    async fn call_address(&self, address: &str, _: Bytes) -> Result<Bytes, PeerError> {
        Err(PeerError::Distrusted {
            address: address.to_owned(),
            why: "unknown certificate authority".into(),
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_told_apart_from_silence_at_once() {
    let dir = TempDir::new().unwrap();
    let metadata = Metadata::start(quick(), 1, "node-1:1", dir.path(), Arc::new(Strangers)).await.unwrap();
    let refused = enter(&metadata, &[1, 2], 0).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "node-2:1 and this node do not trust each other's certificates: unknown certificate authority"
    );
    metadata.shutdown().await;
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
    let dir = TempDir::new().unwrap();
    let metadata = first(&dir).await;
    for number in 0..150 {
        metadata.propose(create(number)).await.unwrap();
        if number % 10 == 0 {
            let (killed, before) = (copy(dir.path()), metadata.image());
            let restarted = start_with(alone(), &Arc::new(Wires::default()), 1, &killed).await;
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
    let dir = TempDir::new().unwrap();
    let metadata = first(&dir).await;
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
async fn a_fenced_broker_is_followed_by_elections() {
    let dir = TempDir::new().unwrap();
    let metadata = first(&dir).await;
    let epochs = BTreeMap::from([(2, register(&metadata, 2).await), (3, register(&metadata, 3).await)]);
    metadata.propose(create_wide(0, 3_000, 3)).await.unwrap();
    let began = Instant::now();
    metadata.propose(Command::FenceBroker { node: 2, epoch: epochs[&2] }).await.unwrap();
    until(&metadata, "failover", |image| leads(image, 2) == 0 && leads(image, 1) + leads(image, 3) == 3_000)
        .await;
    println!("1,000 leaders, and 3,000 partitions' ISR: {} ms", since(began));
    metadata.shutdown().await;
}
