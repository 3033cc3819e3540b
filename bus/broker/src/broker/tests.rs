use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use bus_metadata::Error;
use tokio::time::timeout;

use super::*;
use crate::data_dir::DataDirError;

/// The settings of a node that is listed itself, on a port of this start.
fn options(folder: &Path, node_id: u64) -> Options {
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    Options {
        node_id,
        data: folder.join(format!("node-{node_id}")),
        listen: free,
        http: None,
        trust: Some(folder.join("trust")),
        join: vec![free.to_string()],
        ..Options::default()
    }
}

/// Starts a node once the start before has let go of the folder.
async fn start(options: Options) -> Result<Broker, StartError> {
    let started = Box::pin(async {
        loop {
            match Broker::start(options.clone()).await {
                Err(
                    StartError::DataDir(DataDirError::InUse { .. })
                    | StartError::Metadata(Error::InUse { .. }),
                ) => tokio::task::yield_now().await,
                started => return started,
            }
        }
    });
    timeout(Duration::from_secs(20), started).await.unwrap()
}

/// Starts a node and stops it; what it leaves has a topic, and no metadata. Gives the topic's folder, and whose it is.
async fn loses_its_metadata(options: Options) -> (PathBuf, Vec<u8>) {
    let data = options.data.clone();
    start(options).await.unwrap().shutdown().await;
    let topic = data.join("topics/orders@3");
    std::fs::create_dir_all(topic.join("0")).unwrap();
    std::fs::remove_dir_all(data.join("metadata")).unwrap();
    (topic, std::fs::read(data.join("node.json")).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_its_metadata_forms_no_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let listed = || options(folder.path(), 1);
    let (topic, belongs) = loses_its_metadata(listed()).await;
    let alone = Options { join: Vec::new(), ..listed() };
    // Nor by the empty store that the start before has left.
    for options in [listed(), alone, listed()] {
        let node = options.data.join("node.json");
        let refused = start(options).await.err().unwrap();
        assert!(matches!(refused, StartError::Enter(EnterError::MetadataLost { .. })), "{refused}");
        assert!(topic.exists());
        assert_eq!(std::fs::read(node).unwrap(), belongs);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_its_metadata_enters_no_other_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (options(folder.path(), 1), options(folder.path(), 2));
    let other = start(one.clone()).await.unwrap();
    // An operator with one CA for both.
    std::fs::create_dir_all(two.data.join("tls")).unwrap();
    for file in ["tls/ca.pem", "tls/ca.key"] {
        std::fs::copy(one.data.join(file), two.data.join(file)).unwrap();
    }
    let (topic, belongs) = loses_its_metadata(two.clone()).await;
    let refused = start(Options { join: one.join, ..options(folder.path(), 2) }).await.err().unwrap();
    assert!(matches!(refused, StartError::Enter(EnterError::OtherCluster { .. })), "{refused}");
    assert!(topic.exists());
    assert_eq!(std::fs::read(two.data.join("node.json")).unwrap(), belongs);
    assert!(other.node.metadata.image().broker(2).is_none(), "nobody has heard of it");
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_ends_with_what_it_cannot_be_without() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = start(options(folder.path(), 1)).await.unwrap();
    broker.spawn("timer", |_| async { panic!("as a bug does it") });
    assert_eq!(broker.tasks.lost().await, "timer");
    // As if it had happened while it entered, and for ever after.
    let entered = timeout(Duration::from_secs(20), broker.enter(mpsc::channel(1).1)).await.unwrap();
    assert!(matches!(entered, Err(StartError::Failed(Failure::Task("timer")))), "{entered:?}");
    let waits = broker.unless_failed(std::future::pending());
    let waits = timeout(Duration::from_secs(20), waits).await.unwrap();
    assert!(matches!(waits, Err(StartError::Failed(Failure::Task("timer")))), "{waits:?}");
    // A request that waits for what nobody does any more ends with the broker.
    let waits = tokio::spawn({
        let node = Arc::clone(&broker.node);
        async move { node.await_metadata(u64::MAX).await }
    });
    broker.shutdown().await;
    waits.await.unwrap().unwrap_err();
}
