//! A partition's owner on a disk that fails when told to.
#![expect(clippy::unwrap_used, reason = "a test's fixture")]

use std::sync::Arc;

use bus_log::storage::MemoryStorage;
use bus_log::{Env, Log, LogConfig};
use bus_protocol::batch::{BatchBuilder, Compression, RecordBatch};
use bus_protocol::produce::Acks;
use bus_protocol::{SystemClock, TopicConfig};
use bus_replica::{AppendError, Lane, Partition, Role, Runtime};
use tokio::sync::Semaphore;

struct Fixture {
    disk: MemoryStorage,
    env: Env,
    runtime: Runtime,
}

impl Fixture {
    fn new(budget: usize) -> Self {
        let disk = MemoryStorage::new();
        let clock = Arc::new(SystemClock::new());
        let env = Env::new(Arc::new(disk.clone()), clock.clone(), bus_log::Options::default());
        let disk_threads = tokio::runtime::Handle::current();
        let runtime = Runtime { disk: disk_threads, budget: Arc::new(Semaphore::new(budget)), clock };
        Self { disk, env, runtime }
    }

    fn open(&self, min_isr: u32) -> Partition {
        let config = TopicConfig { min_insync_replicas: min_isr, ..TopicConfig::default() };
        let log = Log::open(&self.env, "/p/0", LogConfig::from(&config)).unwrap();
        Partition::lead(0, log, Role { node: 1, epoch: 0, isr: vec![1], config }, &self.runtime)
    }
}

fn batch(records: usize, value: &[u8]) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    for _ in 0..records {
        builder.push(1_000, None, Some(value), &[]);
    }
    builder.build_batch().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_are_stored_in_the_order_of_their_calls_and_share_syncs() {
    let fixture = Fixture::new(1 << 20);
    let partition = fixture.open(1);
    let mut tickets = Vec::new();
    for _ in 0..500 {
        tickets.push(partition.append(batch(2, b"x"), Acks::All, &Lane::default()).await.unwrap());
    }
    for (number, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.await.unwrap().base_offset, 2 * number as i64);
    }
    assert_eq!(partition.high_watermark(), 1_000);
    partition.close().await.unwrap();
    assert!(matches!(
        partition.append(batch(1, b"x"), Acks::All, &Lane::default()).await,
        Err(AppendError::Closed)
    ));
    assert_eq!(fixture.open(1).high_watermark(), 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_the_partition_goes_on_when_there_is_room() {
    let fixture = Fixture::new(1 << 20);
    let partition = fixture.open(1);
    partition.append(batch(1, b"kept"), Acks::All, &Lane::default()).await.unwrap().await.unwrap();
    fixture.disk.set_room(Some(0));
    let refused = partition.append(batch(1, b"lost"), Acks::All, &Lane::default()).await.unwrap().await;
    assert_eq!(refused, Err(AppendError::Full));
    fixture.disk.set_room(None);
    let ack =
        partition.append(batch(1, b"kept too"), Acks::All, &Lane::default()).await.unwrap().await.unwrap();
    assert_eq!(ack.base_offset, 1);
    assert_eq!(partition.offline(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_refused_batch_nothing_of_its_lane_is_stored() {
    let fixture = Fixture::new(1 << 20);
    let partition = fixture.open(1);
    let lane = Lane::default();
    fixture.disk.set_room(Some(0));
    let refused = partition.append(batch(1, b"first"), Acks::All, &lane).await.unwrap().await;
    assert_eq!(refused, Err(AppendError::Full));
    fixture.disk.set_room(None);
    let behind = partition.append(batch(1, b"second"), Acks::All, &lane).await.unwrap().await;
    assert_eq!(
        behind,
        Err(AppendError::Behind),
        "the first is sent again: the second must not stand before it"
    );
    partition.append(batch(1, b"another's"), Acks::All, &Lane::default()).await.unwrap().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_takes_the_partition_offline_and_nobody_waits_for_ever() {
    let fixture = Fixture::new(64 << 20);
    let partition = fixture.open(1);
    partition.append(batch(1, b"kept"), Acks::All, &Lane::default()).await.unwrap().await.unwrap();
    fixture.disk.fail_syncs(1);
    // More than the owner leaves unsynced at once: the rest must be answered too.
    let value = vec![7; 1 << 20];
    let mut tickets = Vec::new();
    for _ in 0..48 {
        tickets.push(partition.append(batch(1, &value), Acks::All, &Lane::default()).await.unwrap());
    }
    for ticket in tickets {
        assert!(matches!(ticket.await, Err(AppendError::Offline(_))));
    }
    assert!(partition.offline().is_some());
    assert_eq!(partition.high_watermark(), 1, "what was committed before can be read");
}

#[tokio::test(flavor = "multi_thread")]
async fn below_min_insync_replicas_acks_all_is_refused_before_it_is_ordered() {
    let fixture = Fixture::new(1 << 20);
    let partition = fixture.open(2);
    let refused = partition.append(batch(1, b"x"), Acks::All, &Lane::default()).await.unwrap().await;
    assert_eq!(refused, Err(AppendError::NotEnoughReplicas { in_sync: 1, wanted: 2 }));
    let stored =
        partition.append(batch(1, b"x"), Acks::Leader, &Lane::default()).await.unwrap().await.unwrap();
    assert_eq!(stored.base_offset, 0);
    assert_eq!(partition.high_watermark(), 0);
}
