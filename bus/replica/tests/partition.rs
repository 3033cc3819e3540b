//! A partition's owner: on a disk that fails when told to, through its roles, and between two owners that replicate.
#![expect(clippy::unwrap_used, reason = "a test's fixture")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bus_log::storage::MemoryStorage;
use bus_log::{Env, Log, LogConfig};
use bus_protocol::batch::{BatchBuilder, Compression, RecordBatch};
use bus_protocol::produce::Acks;
use bus_protocol::replicate::{LeaderFrame, ReplicateOpen};
use bus_protocol::{Clock, Epoch, NodeId, SystemClock, Timestamp, TopicConfig, TopicId};
use bus_replica::{
    AppendError, Fault, FollowError, Following, Lane, Matter, Partition, Report, Role, Runtime,
};
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};

const TOPIC: TopicId = TopicId(7);

struct Fixture {
    disk: MemoryStorage,
    env: Env,
    runtime: Runtime,
    reports: mpsc::Receiver<Report>,
}

impl Fixture {
    fn new(budget: usize) -> Self {
        let disk = MemoryStorage::new();
        let clock = Arc::new(SystemClock::new());
        let env = Env::new(Arc::new(disk.clone()), clock.clone(), bus_log::Options::default());
        let (reports, received) = mpsc::channel(64);
        let runtime = Runtime {
            disk: tokio::runtime::Handle::current(),
            budget: Arc::new(Semaphore::new(budget)),
            replicating: Arc::new(Semaphore::new(32 << 20)),
            clock,
            reports,
            lag: Duration::from_secs(3_600),
        };
        Self { disk, env, runtime, reports: received }
    }

    fn open(&self, role: Role) -> Partition {
        let log = Log::open(&self.env, "/p/0", LogConfig::from(&role.config)).unwrap();
        Partition::open((TOPIC, 0), log, role, 0, &self.runtime)
    }

    /// The one replica of its partition, which leads.
    fn lead(&self, min_isr: u32) -> Partition {
        self.open(role(1, &[1], &[1], (0, 0), min_isr))
    }
}

/// What metadata says to node 1 or 2: the ISR's first member leads.
fn role(node: NodeId, replicas: &[NodeId], isr: &[NodeId], epochs: (Epoch, u32), min_isr: u32) -> Role {
    let config = TopicConfig { min_insync_replicas: min_isr, ..TopicConfig::default() };
    Role {
        node,
        leader: isr.first().copied(),
        epoch: epochs.0,
        partition_epoch: epochs.1,
        replicas: replicas.iter().map(|node| (*node, 0)).collect(),
        isr: isr.to_vec(),
        live: isr.len(),
        config,
    }
}

fn batch(records: usize, value: &[u8]) -> RecordBatch {
    build(BatchBuilder::new(Compression::None), records, value)
}

fn numbered(sequence: i32, value: &[u8]) -> RecordBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.set_producer(9, 0, sequence);
    build(builder, 1, value)
}

fn build(mut builder: BatchBuilder, records: usize, value: &[u8]) -> RecordBatch {
    for _ in 0..records {
        builder.push(1_000, None, Some(value), &[]);
    }
    builder.build_batch().unwrap()
}

async fn append(partition: &Partition, batch: RecordBatch, acks: Acks, lane: &Lane) -> bus_replica::Ticket {
    partition.append(batch, acks, lane).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_are_stored_in_the_order_of_their_calls_and_share_syncs() {
    let fixture = Fixture::new(1 << 20);
    let partition = fixture.lead(1);
    let lane = partition.lane().unwrap();
    let mut tickets = Vec::new();
    for _ in 0..500 {
        tickets.push(append(&partition, batch(2, b"x"), Acks::All, &lane).await);
    }
    for (number, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.await.unwrap().base_offset, 2 * number as i64);
    }
    assert_eq!(partition.high_watermark(), 1_000);
    partition.close().await.unwrap();
    // The queue may outlive the answer by a moment; what gets into it is answered all the same.
    let late = match partition.append(batch(1, b"x"), Acks::All, &lane).await {
        Ok(ticket) => ticket.await.map(drop),
        Err(error) => Err(error),
    };
    assert_eq!(late, Err(AppendError::Closed));
    assert_eq!(fixture.lead(1).high_watermark(), 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_the_partition_goes_on_when_there_is_room() {
    let fixture = Fixture::new(1 << 20);
    let partition = fixture.lead(1);
    let lane = || partition.lane().unwrap();
    append(&partition, batch(1, b"kept"), Acks::All, &lane()).await.await.unwrap();
    fixture.disk.set_room(Some(0));
    let refused = append(&partition, batch(1, b"lost"), Acks::All, &lane()).await.await;
    assert_eq!(refused, Err(AppendError::Full));
    fixture.disk.set_room(None);
    let ack = append(&partition, batch(1, b"kept too"), Acks::All, &lane()).await.await.unwrap();
    assert_eq!(ack.base_offset, 1);
    assert_eq!(partition.offline(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_refused_batch_nothing_of_its_lane_is_stored() {
    let fixture = Fixture::new(1 << 20);
    let partition = fixture.lead(1);
    let lane = partition.lane().unwrap();
    fixture.disk.set_room(Some(0));
    let refused = append(&partition, batch(1, b"first"), Acks::All, &lane).await.await;
    assert_eq!(refused, Err(AppendError::Full));
    fixture.disk.set_room(None);
    let behind = append(&partition, batch(1, b"second"), Acks::All, &lane).await.await;
    assert_eq!(
        behind,
        Err(AppendError::Behind),
        "the first is sent again: the second must not stand before it"
    );
    append(&partition, batch(1, b"another's"), Acks::All, &partition.lane().unwrap()).await.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_takes_the_partition_offline_reports_it_lost_and_nobody_waits_for_ever() {
    let mut fixture = Fixture::new(64 << 20);
    let partition = fixture.lead(1);
    let lane = partition.lane().unwrap();
    append(&partition, batch(1, b"kept"), Acks::All, &lane).await.await.unwrap();
    fixture.disk.fail_syncs(1);
    // More than the owner leaves unsynced at once: the rest must be answered too.
    let value = vec![7; 1 << 20];
    let mut tickets = Vec::new();
    for _ in 0..48 {
        tickets.push(append(&partition, batch(1, &value), Acks::All, &lane).await);
    }
    for ticket in tickets {
        assert!(matches!(ticket.await, Err(AppendError::Offline(_))));
    }
    assert!(partition.offline().is_some());
    assert_eq!(partition.high_watermark(), 1, "what was committed before can be read");
    let report = fixture.reports.recv().await.unwrap();
    assert_eq!((report.topic, report.partition), (TOPIC, 0));
    assert!(matches!(report.matter, Matter::Offline(Fault::Failed(_))), "{report:?}");
    assert!(matches!(partition.follow(0).await, Err(FollowError::Closed)), "what is lost follows nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_is_reported_once_and_takes_nothing() {
    let mut fixture = Fixture::new(1 << 20);
    let partition = fixture.lead(1);
    let lane = partition.lane().unwrap();
    let (file, why) = ("/p/0/00000000000000000000.log".into(), "a wrong CRC".to_owned());
    let error = bus_log::Error::Damaged { file, position: 0, offset: 0, why };
    partition.damaged(&error).await;
    partition.damaged(&error).await;
    let refused = append(&partition, batch(1, b"x"), Acks::All, &lane).await.await;
    assert!(matches!(refused, Err(AppendError::Offline(_))));
    let matter = fixture.reports.recv().await.unwrap().matter;
    assert!(matches!(&matter, Matter::Offline(Fault::Damaged(_))), "{matter:?}");
    partition.close().await.ok();
    assert!(fixture.reports.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn below_min_insync_replicas_acks_all_is_refused_before_it_is_ordered() {
    let fixture = Fixture::new(1 << 20);
    let partition = fixture.lead(2);
    let lane = || partition.lane().unwrap();
    let refused = append(&partition, batch(1, b"x"), Acks::All, &lane()).await.await;
    assert_eq!(refused, Err(AppendError::NotEnoughReplicas { in_sync: 1, wanted: 2 }));
    let stored = append(&partition, batch(1, b"x"), Acks::Leader, &lane()).await.await.unwrap();
    assert_eq!(stored.base_offset, 0);
    assert_eq!(partition.high_watermark(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_steps_down_answers_all_who_wait_and_refuses_the_lanes_of_its_epoch() {
    let fixture = Fixture::new(1 << 20);
    let partition = fixture.open(role(1, &[1, 2], &[1, 2], (0, 0), 1));
    let (lane, idle) = (partition.lane().unwrap(), partition.lane().unwrap());
    let waiting = append(&partition, batch(1, b"x"), Acks::All, &lane).await;
    partition.configure(role(1, &[1, 2], &[2, 1], (1, 1), 1)).await.unwrap();
    assert_eq!(waiting.await, Err(AppendError::NotLeader));
    assert!(matches!(partition.lane(), Err(AppendError::NotLeader)));
    // It leads again: what was on its way in the old epoch must not come between.
    partition.configure(role(1, &[1, 2], &[1], (2, 2), 1)).await.unwrap();
    let mut shown = partition.watch();
    let led = shown.wait_for(|committed| committed.leads && committed.epoch == 2).await.unwrap().settled;
    assert!(led, "alone in sync, all it has is committed");
    assert_eq!(append(&partition, batch(1, b"y"), Acks::All, &lane).await.await, Err(AppendError::Behind));
    assert_eq!(append(&partition, batch(1, b"y"), Acks::All, &idle).await.await, Err(AppendError::NotLeader));
    let lane = partition.lane().unwrap();
    assert_eq!(append(&partition, batch(1, b"z"), Acks::All, &lane).await.await.unwrap().base_offset, 1);
    // An older word than the last changes nothing.
    partition.configure(role(1, &[1, 2], &[2, 1], (1, 1), 1)).await.unwrap();
    append(&partition, batch(1, b"z"), Acks::All, &lane).await.await.unwrap();
}

/// Opens a stream of node 2's `follower` to `leader`; the follower cuts its log as it is told.
async fn open_stream(leader: &Partition, follower: &Partition, epoch: Epoch, stream: u64) -> Following {
    let following = follower.follow(epoch).await.unwrap();
    let mut end = following.begin_at();
    loop {
        let (topic, partition, broker_epoch) = (TOPIC, 0, 5);
        let (node, since, leader_epoch, log) = (2, 0, epoch, end);
        let open = ReplicateOpen { topic, partition, node, broker_epoch, since, stream, leader_epoch, log };
        let frame = leader.follower_opened(open).await.unwrap();
        match following.settle(frame).await.unwrap() {
            Some(cut) => end = cut,
            None => return following,
        }
    }
}

/// Pushes all that the leader has and the follower has not.
async fn push(leader: &Partition, follower: &Partition, following: &Following) {
    let from = following.stored(None).await.unwrap();
    let read = leader.reader().read(from, 1 << 20, i64::MAX).unwrap();
    let frame = LeaderFrame::Batches { high_watermark: leader.high_watermark(), log_start: 0 };
    following.replicate(frame, Bytes::from(read.chunks.concat())).await.unwrap();
    let end = read.next_offset;
    let mut stored = from;
    while stored < end {
        stored = following.stored(Some(stored)).await.unwrap();
    }
    assert_eq!(follower.reader().log_end(), end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_without_room_says_so_and_begins_no_stream_before_it_has_some() {
    let (one, mut two) = (Fixture::new(1 << 20), Fixture::new(1 << 20));
    let leader = one.open(role(1, &[1, 2], &[1, 2], (0, 0), 1));
    let follower = two.open(role(2, &[1, 2], &[1, 2], (0, 0), 1));
    let following = open_stream(&leader, &follower, 0, 1).await;
    append(&leader, batch(1, &[7; 2_000]), Acks::Leader, &leader.lane().unwrap()).await.await.unwrap();
    two.disk.set_room(Some(1_000));
    let read = leader.reader().read(0, 1 << 20, i64::MAX).unwrap();
    let frame = LeaderFrame::Batches { high_watermark: 0, log_start: 0 };
    following.replicate(frame, Bytes::from(read.chunks.concat())).await.unwrap();
    assert!(following.failed().await.contains("full"));
    assert!(matches!(two.reports.recv().await.unwrap().matter, Matter::Full));
    assert!(matches!(follower.follow(0).await, Err(FollowError::Full)));
    assert_eq!(follower.offline(), None, "what it has stored counts");

    two.disk.set_room(None);
    let following = open_stream(&leader, &follower, 0, 2).await;
    push(&leader, &follower, &following).await;
    assert!(two.reports.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_room_says_so_and_goes_on_once_it_has_some() {
    let mut fixture = Fixture::new(1 << 20);
    let partition = fixture.lead(1);
    fixture.disk.set_room(Some(0));
    let refused = append(&partition, batch(1, b"x"), Acks::All, &partition.lane().unwrap()).await.await;
    assert_eq!(refused, Err(AppendError::Full));
    assert!(matches!(fixture.reports.recv().await.unwrap().matter, Matter::Full));
    fixture.disk.set_room(None);
    let stored = append(&partition, batch(1, b"x"), Acks::All, &partition.lane().unwrap()).await.await;
    assert_eq!(stored.unwrap().base_offset, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_in_a_later_epoch_is_not_told_to_the_leader_of_this_one() {
    let (one, two) = (Fixture::new(1 << 20), Fixture::new(1 << 20));
    let leader = one.open(role(1, &[1, 2], &[1, 2], (0, 0), 1));
    let follower = two.open(role(2, &[1, 2], &[1, 2], (0, 0), 1));
    let following = open_stream(&leader, &follower, 0, 1).await;
    assert_eq!(following.stored(None).await.unwrap(), 0);
    // The follower is elected, and its old leader does not know yet.
    follower.configure(role(2, &[2, 1], &[2], (1, 1), 1)).await.unwrap();
    append(&follower, batch(1, b"its own"), Acks::All, &follower.lane().unwrap()).await.await.unwrap();
    assert!(matches!(following.stored(Some(0)).await, Err(FollowError::Stale(0))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_stores_what_its_leader_pushes_and_its_word_commits_it() {
    let (one, two) = (Fixture::new(1 << 20), Fixture::new(1 << 20));
    let leader = one.open(role(1, &[1, 2], &[1, 2], (0, 0), 2));
    let follower = two.open(role(2, &[1, 2], &[1, 2], (0, 0), 2));
    let following = open_stream(&leader, &follower, 0, 1).await;
    let lane = leader.lane().unwrap();
    let first = append(&leader, numbered(0, b"a"), Acks::All, &lane).await;
    let again = append(&leader, numbered(0, b"a"), Acks::All, &lane).await;
    leader.watch_end().wait_for(|end| *end == 1).await.unwrap();
    // The repeated batch is stored here, and yet not committed.
    assert_eq!(leader.followers().await.unwrap(), [(2, 0)]);
    assert_eq!(leader.high_watermark(), 0);
    push(&leader, &follower, &following).await;
    leader.follower_stored((2, 4), 1, 0, 1).await.unwrap();
    leader.follower_stored((2, 5), 1, 3, 1).await.unwrap();
    assert_eq!(
        leader.followers().await.unwrap(),
        [(2, 0)],
        "an earlier life's, and another epoch's, count nothing"
    );
    leader.follower_stored((2, 5), 1, 0, 1).await.unwrap();
    assert_eq!(first.await.unwrap().base_offset, 0);
    assert_eq!(again.await.unwrap().base_offset, 0);
    assert_eq!(leader.high_watermark(), 1);
    push(&leader, &follower, &following).await;
    follower.watch().wait_for(|committed| committed.high_watermark == 1).await.unwrap();
    // It is known to the follower too, if that leads next.
    follower.configure(role(2, &[1, 2], &[2], (1, 1), 1)).await.unwrap();
    follower.watch().wait_for(|committed| committed.leads).await.unwrap();
    let lane = follower.lane().unwrap();
    assert_eq!(append(&follower, numbered(0, b"a"), Acks::All, &lane).await.await.unwrap().base_offset, 0);
    assert_eq!(append(&follower, numbered(1, b"b"), Acks::All, &lane).await.await.unwrap().base_offset, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_cuts_what_its_leader_does_not_have_and_frames_of_an_old_epoch_are_refused() {
    let (one, two) = (Fixture::new(1 << 20), Fixture::new(1 << 20));
    // Node 2 led alone in epoch 0, and wrote what nobody else has.
    let follower = two.open(role(2, &[1, 2], &[2, 1], (0, 0), 1));
    let lane = follower.lane().unwrap();
    append(&follower, batch(3, b"own"), Acks::Leader, &lane).await.await.unwrap();
    let leader = one.open(role(1, &[1, 2], &[1], (1, 1), 1));
    append(&leader, batch(1, b"new"), Acks::All, &leader.lane().unwrap()).await.await.unwrap();
    follower.configure(role(2, &[1, 2], &[1], (1, 1), 1)).await.unwrap();
    assert!(matches!(follower.follow(0).await, Err(FollowError::Stale(0))));
    let early = follower.follow(1).await.unwrap();
    early.replicate(LeaderFrame::Batches { high_watermark: 0, log_start: 0 }, Bytes::new()).await.unwrap();
    assert!(early.failed().await.contains("before the logs agree"));
    let following = open_stream(&leader, &follower, 1, 1).await;
    assert_eq!(follower.reader().log_end(), 0);
    push(&leader, &follower, &following).await;
    follower.watch().wait_for(|committed| committed.high_watermark == 1).await.unwrap();
    // The role moves on under the stream.
    follower.configure(role(2, &[1, 2], &[2], (2, 2), 1)).await.unwrap();
    following
        .replicate(LeaderFrame::Batches { high_watermark: 1, log_start: 0 }, Bytes::new())
        .await
        .unwrap();
    assert!(following.failed().await.contains("any more"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_has_caught_up_is_proposed_for_the_isr_and_a_refusal_frees_the_high_watermark() {
    let (mut one, two) = (Fixture::new(1 << 20), Fixture::new(1 << 20));
    let leader = one.open(role(1, &[1, 2], &[1], (0, 0), 1));
    let follower = two.open(role(2, &[1, 2], &[1], (0, 0), 1));
    let _following = open_stream(&leader, &follower, 0, 1).await;
    leader.follower_stored((2, 5), 1, 0, 0).await.unwrap();
    let Report { matter: Matter::Isr(proposal), .. } = one.reports.recv().await.unwrap() else {
        panic!("another report");
    };
    assert_eq!((proposal.partition_epoch, &proposal.isr[..]), (0, &[(1, 0), (2, 5)][..]));
    let lane = leader.lane().unwrap();
    let waiting = append(&leader, batch(1, b"x"), Acks::All, &lane).await;
    leader.watch_end().wait_for(|end| *end == 1).await.unwrap();
    assert_eq!(leader.followers().await.unwrap(), [(2, 0)]);
    assert_eq!(leader.high_watermark(), 0, "the one that is to join may be in the ISR already");
    leader.proposal_refused(proposal).await.unwrap();
    assert_eq!(waiting.await.unwrap().base_offset, 0);
    // A stream that another has taken the place of ends nothing.
    let _following = open_stream(&leader, &follower, 0, 2).await;
    leader.follower_gone((2, 5), 1);
    assert_eq!(leader.followers().await.unwrap(), [(2, 0)]);
    leader.follower_gone((2, 5), 2);
    assert_eq!(leader.followers().await.unwrap(), []);
}

/// Whoever asks it when it is broken panics, as a mistake in the program would have it.
struct Breakable {
    clock: SystemClock,
    broken: AtomicBool,
}

impl Clock for Breakable {
    fn monotonic(&self) -> Duration {
        assert!(!self.broken.load(Ordering::Relaxed), "as a mistake does it");
        self.clock.monotonic()
    }

    fn timestamp(&self) -> Timestamp {
        self.clock.timestamp()
    }
}

/// A disk, a clock that breaks when it is told to, and a leader that has stored one batch.
async fn breakable() -> (Fixture, Arc<Breakable>, Partition) {
    let mut fixture = Fixture::new(1 << 20);
    let clock = Arc::new(Breakable { clock: SystemClock::new(), broken: AtomicBool::new(false) });
    fixture.runtime.clock = clock.clone();
    let partition = fixture.lead(1);
    append(&partition, batch(1, b"kept"), Acks::All, &partition.lane().unwrap()).await.await.unwrap();
    (fixture, clock, partition)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_task_panics_is_offline_and_says_so_and_leaves_its_files_alone() {
    let (mut fixture, clock, partition) = breakable().await;
    let lane = partition.lane().unwrap();
    clock.broken.store(true, Ordering::Relaxed);
    append(&partition, batch(1, b"unknown"), Acks::All, &lane).await.await.unwrap_err();
    let report = fixture.reports.recv().await.unwrap();
    assert!(matches!(report.matter, Matter::Offline(Fault::Panicked)), "{report:?}");
    clock.broken.store(false, Ordering::Relaxed);
    let offline = Err(AppendError::Offline("its task has panicked".to_owned()));
    let refused = append(&partition, batch(1, b"late"), Acks::All, &lane).await.await;
    assert_eq!(refused.map(drop), offline);
    assert_eq!(partition.offline(), Some(&Fault::Panicked));
    let files = || ["checkpoint", "stored"].map(|name| fixture.disk.contents(&Path::new("/p/0").join(name)));
    let before = files();
    assert_eq!(partition.delete_before(1).await, offline);
    partition.maintain();
    assert_eq!(partition.close().await, offline);
    assert!(files() == before, "of what a panic has left in memory nothing comes to the disk");
    let again = fixture.open(role(1, &[1], &[1], (1, 1), 1));
    assert_eq!(again.reader().read(0, 1 << 20, 1).unwrap().next_offset, 1);
}

#[tokio::test]
async fn a_stop_is_carried_out_whatever_becomes_of_what_came_with_it() {
    let (fixture, clock, partition) = breakable().await;
    let lane = partition.lane().unwrap();
    clock.broken.store(true, Ordering::Relaxed);
    // The owner has this one thread, and finds all three in its queue at once.
    let unknown = append(&partition, batch(1, b"unknown"), Acks::All, &lane).await;
    partition.tick();
    let ended = partition.close().await;
    assert!(matches!(ended, Err(AppendError::Offline(_))), "nobody else may open the folder yet: {ended:?}");
    unknown.await.unwrap_err();
    clock.broken.store(false, Ordering::Relaxed);
    assert_eq!(fixture.lead(1).reader().log_end(), 1);
}
