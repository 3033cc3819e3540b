//! openraft's own suite on this store, and what it leaves out: that things are still there after a restart.

use std::collections::BTreeMap;

use bus_protocol::request::CreateTopic;
use bus_protocol::{NodeId, TopicName};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite, blank_ent, log_id};
use openraft::{Entry, EntryPayload, RaftLogReader, RaftSnapshotBuilder, StorageError, Vote};
use tempfile::TempDir;

use super::{LogStore, StateMachine, Store, TypeConfig};
use crate::{Command, DirectoryId, Error, Registration};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<NodeId>> {
        let dir = TempDir::new().unwrap();
        let (store, _, _) = Store::open(dir.path(), 1, 1 << 20).await.unwrap();
        let (log, machine, _) = store.raft_storage().await.unwrap();
        Ok((dir, log, machine))
    }
}

#[test]
fn openrafts_suite_passes() {
    Suite::test_all(Builder).unwrap();
}

async fn open(dir: &TempDir) -> (Store, super::Liveness) {
    let (store, liveness, _) = Store::open(dir.path(), 1, 1 << 20).await.unwrap();
    (store, liveness)
}

fn command(index: u64, command: Command) -> Entry<TypeConfig> {
    Entry { log_id: log_id(1, 1, index), payload: EntryPayload::Normal(command) }
}

fn commands() -> Vec<Entry<TypeConfig>> {
    let broker = Registration {
        node: 1,
        address: "localhost:9440".into(),
        rack: None,
        directory: DirectoryId([7; 16]),
        clean: true,
        renewed: true,
    };
    let register = Command::RegisterBroker { broker, follows: None };
    let create = Command::CreateTopic(CreateTopic {
        topic: TopicName::new("orders").unwrap(),
        partitions: 1_000,
        replicas: 1,
        config: BTreeMap::new(),
        if_not_exists: false,
    });
    vec![
        blank_ent::<TypeConfig>(1, 1, 0),
        command(1, register),
        command(2, Command::UnfenceBroker { node: 1, epoch: 1 }),
        command(3, create),
    ]
}

#[tokio::test]
async fn all_is_there_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let (store, liveness) = open(&dir).await;
    let (mut log, mut machine, image) = store.raft_storage().await.unwrap();
    drop(store);
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    log.blocking_append(commands()).await.unwrap();
    log.save_committed(Some(log_id(1, 1, 3))).await.unwrap();
    machine.apply(commands()).await.unwrap();
    let made = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    log.purge(log_id(1, 1, 2)).await.unwrap();
    let before = image.borrow().clone();
    assert_eq!(before.topics().next().unwrap().partitions.len(), 1_000);
    drop((log, machine));
    liveness.wait().await;

    let (store, liveness) = open(&dir).await;
    let (mut log, mut machine, image) = store.raft_storage().await.unwrap();
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(1, 1)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 1, 3)));
    let state = log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(log_id(1, 1, 2)), Some(log_id(1, 1, 3))));
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), commands()[3..]);
    assert_eq!(*image.borrow(), before, "the image is the snapshot's");
    let found = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!((&found.meta, found.snapshot.get_ref()), (&made.meta, made.snapshot.get_ref()));

    // A snapshot that was long in the making does not take the place of a newer one.
    let mut late = machine.get_snapshot_builder().await;
    late.applied = Some(log_id(1, 1, 1));
    late.build_snapshot().await.unwrap();
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().meta, made.meta);
    drop((store, log, machine, late));
    liveness.wait().await;
}

#[tokio::test]
async fn large_entries_are_read_a_few_at_a_time() {
    let dir = TempDir::new().unwrap();
    let (store, _liveness) = open(&dir).await;
    let (mut log, _, _) = store.raft_storage().await.unwrap();
    let large = |index| command(index, Command::NameCluster { cluster_id: "x".repeat(1 << 20) });
    log.blocking_append((0..8).map(large)).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 8).await.unwrap().len(), 4);
    assert_eq!(log.limited_get_log_entries(7, 8).await.unwrap().len(), 1);
    assert_eq!(log.try_get_log_entries(2..8).await.unwrap().len(), 6);
    #[expect(clippy::reversed_empty_ranges, reason = "what sled would panic at")]
    let backwards = log.try_get_log_entries(8..2).await.unwrap();
    assert!(backwards.is_empty());
}

#[tokio::test]
async fn a_directory_is_one_nodes_and_one_processs() {
    let dir = TempDir::new().unwrap();
    let (store, liveness) = open(&dir).await;
    store.set_cluster_id(1, "c").await.unwrap();
    assert!(matches!(Store::open(dir.path(), 1, 1 << 20).await, Err(Error::InUse { .. })));
    drop(store);
    liveness.wait().await;
    assert!(matches!(
        Store::open(dir.path(), 2, 1 << 20).await,
        Err(Error::OtherNode { found: 1, wanted: 2, .. })
    ));
    let (store, liveness, cluster_id) = Store::open(dir.path(), 1, 1 << 20).await.unwrap();
    assert_eq!(cluster_id.as_deref(), Some("c"));
    store.state.insert("identity", &[9, 1]).unwrap();
    drop(store);
    liveness.wait().await;
    assert!(matches!(
        Store::open(dir.path(), 1, 1 << 20).await,
        Err(Error::Format { found: 9, known: 1, .. })
    ));
}
