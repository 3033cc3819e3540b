//! Where the logs of a leader and a follower part: two replicas, with no task and no network between them.
#![expect(clippy::unwrap_used, reason = "a test's fixture")]

use std::sync::Arc;
use std::time::Duration;

use bus_log::storage::MemoryStorage;
use bus_log::{AppendBatch, Env, Log, LogConfig};
use bus_protocol::batch::{BatchBuilder, Compression};
use bus_protocol::produce::Acks;
use bus_protocol::replicate::{LeaderFrame, LogEnd, ReplicateOpen};
use bus_protocol::{Durability, Epoch, NodeId, Offset, SystemClock, TopicConfig, TopicId};
use bus_replica::{Append, Replica, Role};
use bytes::Bytes;

const NOW: Duration = Duration::from_secs(1);

fn role(node: NodeId, leader: NodeId, epoch: Epoch, isr: &[NodeId]) -> Role {
    Role {
        node,
        leader: Some(leader),
        epoch,
        partition_epoch: epoch as u32,
        replicas: [(1, 0), (2, 0)].into(),
        isr: isr.to_vec(),
        live: isr.len(),
        config: TopicConfig::default(),
    }
}

fn open(disk: &MemoryStorage, role: Role) -> Replica<()> {
    let env = Env::new(Arc::new(disk.clone()), Arc::new(SystemClock::new()), bus_log::Options::default());
    let log = Log::open(&env, "/p/0", LogConfig::from(&role.config)).unwrap();
    Replica::new(log, role, 0, NOW)
}

/// Appends batches of `records` each, and syncs.
fn append(replica: &mut Replica<()>, batches: usize, records: usize) {
    for _ in 0..batches {
        let mut builder = BatchBuilder::new(Compression::None);
        for _ in 0..records {
            builder.push(1_000, None, Some(b"x"), &[]);
        }
        let batch = AppendBatch::from(builder.build_batch().unwrap());
        let (_, failed) = replica.append(vec![Append { batch, acks: Acks::Leader, ticket: () }], NOW);
        assert!(failed.is_none());
    }
    sync(replica);
}

fn sync(replica: &mut Replica<()>) {
    if let Some(job) = replica.begin_sync() {
        job.run().unwrap();
        replica.note_stored();
    }
}

fn opening(stream: u64, log: LogEnd, epoch: Epoch) -> ReplicateOpen {
    let (topic, partition, node, broker_epoch, since) = (TopicId(1), 0, 2, 9, 0);
    ReplicateOpen { topic, partition, node, broker_epoch, since, stream, leader_epoch: epoch, log }
}

/// What the leader answers to where `follower` ends.
fn ask(leader: &mut Replica<()>, follower: &mut Replica<()>, stream: u64) -> LeaderFrame {
    let epoch = leader.role().epoch;
    leader.follower_opened(&opening(stream, follower.position(epoch).unwrap(), epoch), NOW)
}

/// Sends the follower all that it lacks.
fn push(leader: &Replica<()>, follower: &mut Replica<()>) {
    let log = leader.log();
    let read = log.reader().read(follower.log().log_end(), 1 << 20, Offset::MAX).unwrap();
    let frame = LeaderFrame::Batches { high_watermark: leader.high_watermark(), log_start: log.log_start() };
    follower.follow(leader.role().epoch, frame, Bytes::from(read.chunks.concat())).unwrap();
    sync(follower);
}

#[test]
fn a_follower_whose_log_is_empty_goes_on_where_it_ends() {
    let (one, two) = (MemoryStorage::new(), MemoryStorage::new());
    let mut leader = open(&one, role(1, 1, 0, &[1, 2]));
    let mut follower = open(&two, role(2, 1, 0, &[1, 2]));
    assert_eq!(ask(&mut leader, &mut follower, 1), LeaderFrame::Start);
    append(&mut leader, 4, 2);
    follower.follow(0, LeaderFrame::Start, Bytes::new()).unwrap();
    push(&leader, &mut follower);
    leader.follower_stored((2, 9), 1, 0, 8, NOW);
    push(&leader, &mut follower);
    assert_eq!((leader.high_watermark(), follower.high_watermark()), (8, 8));
    // Retention runs here and not yet there.
    follower.delete_before(8).unwrap();
    assert_eq!(follower.position(0).unwrap(), LogEnd { epoch: None, end: 8 });
    assert_eq!(ask(&mut leader, &mut follower, 2), LeaderFrame::Start, "it has said that it stored up to 8");
}

#[test]
fn what_a_leader_has_deleted_and_forgotten_is_skipped_in_one_step() {
    let (one, two) = (MemoryStorage::new(), MemoryStorage::new());
    let mut leader = open(&one, role(1, 1, 3, &[1]));
    let mut follower = open(&two, role(2, 2, 0, &[2]));
    append(&mut follower, 2, 2);
    append(&mut leader, 4, 2);
    leader.delete_before(6).unwrap();
    follower.configure(role(2, 1, 3, &[1]), NOW);
    // It ends below the leader's start, or within its log, and nothing of it is on the leader's history.
    assert_eq!(ask(&mut leader, &mut follower, 1), LeaderFrame::Reset { log_start: 6 });
    let open = opening(2, LogEnd { epoch: Some(0), end: 7 }, 3);
    assert_eq!(leader.follower_opened(&open, NOW), LeaderFrame::Reset { log_start: 6 });
}

#[test]
fn a_log_that_starts_within_a_batch_can_be_had_anew() {
    let (one, two) = (MemoryStorage::new(), MemoryStorage::new());
    let mut leader = open(&one, role(1, 1, 0, &[1]));
    append(&mut leader, 3, 10);
    leader.delete_before(14).unwrap();
    let mut follower = open(&two, role(2, 1, 0, &[1]));
    let frame = ask(&mut leader, &mut follower, 1);
    assert_eq!(frame, LeaderFrame::Reset { log_start: 14 });
    follower.follow(0, frame, Bytes::new()).unwrap();
    let frame = ask(&mut leader, &mut follower, 1);
    assert_eq!(frame, LeaderFrame::Start);
    follower.follow(0, frame, Bytes::new()).unwrap();
    push(&leader, &mut follower);
    let log = follower.log();
    assert_eq!((log.log_start(), log.log_end(), log.stored()), (14, 30, 30));
}

#[test]
fn a_stream_that_arrives_after_a_later_one_begins_nothing() {
    let (one, two) = (MemoryStorage::new(), MemoryStorage::new());
    let mut leader = open(&one, role(1, 1, 0, &[1, 2]));
    let mut follower = open(&two, role(2, 1, 0, &[1, 2]));
    append(&mut leader, 1, 4);
    assert_eq!(ask(&mut leader, &mut follower, 8), LeaderFrame::Start);
    leader.follower_stored((2, 9), 8, 0, 4, NOW);
    let late = opening(7, LogEnd { epoch: None, end: 0 }, 0);
    assert!(matches!(leader.follower_opened(&late, NOW), LeaderFrame::Refused(_)));
    leader.follower_gone((2, 9), 7, NOW);
    assert_eq!(leader.followers(), [(2, 4)]);
    append(&mut leader, 1, 4);
    leader.follower_stored((2, 9), 8, 0, 8, NOW);
    assert_eq!(leader.high_watermark(), 8);
}

#[test]
fn a_topic_that_turns_to_fsync_does_not_take_back_what_is_committed() {
    let (one, two) = (MemoryStorage::new(), MemoryStorage::new());
    let in_memory = |mut role: Role| {
        role.config.durability = Durability::Replicated;
        role
    };
    let mut leader = open(&one, in_memory(role(1, 1, 0, &[1, 2])));
    let mut follower = open(&two, in_memory(role(2, 1, 0, &[1, 2])));
    assert_eq!(ask(&mut leader, &mut follower, 1), LeaderFrame::Start);
    follower.follow(0, LeaderFrame::Start, Bytes::new()).unwrap();
    append(&mut leader, 1, 4);
    leader.follower_stored((2, 9), 1, 0, 4, NOW);
    let read = leader.log().reader().read(0, 1 << 20, Offset::MAX).unwrap();
    let frame = LeaderFrame::Batches { high_watermark: 4, log_start: 0 };
    follower.follow(0, frame, Bytes::from(read.chunks.concat())).unwrap();
    assert_eq!((follower.high_watermark(), follower.log().stored()), (4, 0));
    // Nothing of it is synced yet when it comes to lead.
    follower.configure(role(2, 2, 1, &[1, 2]), NOW);
    assert_eq!(follower.high_watermark(), 4);
}

#[test]
fn an_opening_from_another_stay_is_refused_until_both_know_of_the_same() {
    let (one, two) = (MemoryStorage::new(), MemoryStorage::new());
    let mut leader = open(&one, role(1, 1, 0, &[1]));
    let mut follower = open(&two, role(2, 1, 0, &[1]));
    let back = |partition_epoch| Role {
        partition_epoch,
        replicas: [(1, 0), (2, partition_epoch)].into(),
        ..role(1, 1, 0, &[1])
    };
    leader.configure(back(2), NOW);
    let LeaderFrame::Refused(refused) = ask(&mut leader, &mut follower, 1) else { panic!("it is let in") };
    assert!(refused.code.is_retriable(), "{refused}");
    let open = opening(2, LogEnd { epoch: None, end: 0 }, 0);
    assert_eq!(leader.follower_opened(&ReplicateOpen { since: 2, ..open }, NOW), LeaderFrame::Start);
    let away = Role { replicas: [(1, 0)].into(), ..back(3) };
    leader.configure(away, NOW);
    assert!(matches!(ask(&mut leader, &mut follower, 3), LeaderFrame::Refused(_)), "it holds no replica");
}
