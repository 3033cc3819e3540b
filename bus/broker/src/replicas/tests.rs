//! Replicas that fail, and what becomes of them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use bus_metadata::Command;
use bus_protocol::batch::{BatchBuilder, Compression};
use bus_protocol::produce::Acks;
use bus_protocol::request::CreateTopic;
use bus_protocol::{Epoch, Offset, TopicName};

use super::*;
use crate::{Broker, Options};

async fn start(folder: &Path, node_id: NodeId, join: &[&Broker]) -> Broker {
    let options = Options {
        node_id,
        data: folder.join(node_id.to_string()),
        listen: ([127, 0, 0, 1], 0).into(),
        http: None,
        join: join.iter().map(|broker| broker.address().to_owned()).collect(),
        trust: Some(folder.join("trust")),
        ..Options::default()
    };
    Broker::start(options).await.unwrap()
}

/// Creates topic `t`, of one partition; gives its leader, and its epoch.
async fn create(on: &Broker, replicas: u32, min: &str) -> (NodeId, Epoch) {
    let create = CreateTopic {
        topic: TopicName::new("t").unwrap(),
        partitions: 1,
        replicas,
        config: BTreeMap::from([("min.insync.replicas".into(), min.into())]),
        if_not_exists: false,
    };
    on.node.change_everywhere(Command::CreateTopic(create)).await.unwrap();
    let image = on.node.metadata.image();
    let partition = image.topic(&TopicName::new("t").unwrap()).unwrap().partition(0).unwrap();
    (partition.leader.unwrap(), partition.leader_epoch)
}

fn topic(broker: &Broker) -> Arc<Topic> {
    broker.node.topics.get(&TopicName::new("t").unwrap()).unwrap()
}

/// Why the replica on this node is offline, if it is.
fn offline(broker: &Broker) -> Option<Fault> {
    topic(broker).replicas().remove(0).offline().cloned()
}

/// Appends a record as the leader; gives its offset.
async fn produce(leader: &Broker) -> Offset {
    let replica = topic(leader).partition(0).unwrap();
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(1_000, None, Some(b"kept"), &[]);
    let lane = replica.lane().unwrap();
    let ticket = replica.append(batch.build_batch().unwrap(), Acks::All, &lane).await.unwrap();
    let committed = tokio::time::timeout(Duration::from_secs(60), ticket).await.unwrap();
    committed.unwrap().base_offset
}

/// Waits for what nobody tells of.
async fn until(what: impl Fn() -> bool) {
    let waited = async {
        while !what() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.unwrap();
}

/// Waits until these are the ISR of the one partition of topic `t`, in leader epoch `least` or later, and the node runs
/// that; gives the epoch.
async fn in_sync(on: &Broker, isr: &[NodeId], least: Epoch) -> Epoch {
    let state = |image: &MetadataImage| {
        image.topic(&TopicName::new("t").unwrap()).and_then(|topic| topic.partition(0)).cloned()
    };
    let mut images = on.node.metadata.watch();
    let is_so = |image: &Arc<MetadataImage>| {
        state(image).is_some_and(|mut now| {
            Arc::make_mut(&mut now).isr.sort_unstable();
            now.isr == isr && now.leader.is_some() && now.leader_epoch >= least
        })
    };
    let image = tokio::time::timeout(Duration::from_secs(60), images.wait_for(is_so)).await;
    let image = image.unwrap_or_else(|_| panic!("not in time: {:?}", state(&on.node.metadata.image())));
    let (index, epoch) = image.map(|image| (image.index(), state(&image).unwrap().leader_epoch)).unwrap();
    on.node.await_metadata(index).await.unwrap();
    epoch
}

/// The replica on this node is told what cannot be, and so panics.
async fn panic(broker: &Broker) {
    topic(broker).replicas().remove(0).configure(wrong(broker.node.id)).await.unwrap_err();
}

/// A leader that is not in sync.
fn wrong(node: NodeId) -> Role {
    Role {
        node,
        leader: Some(node),
        epoch: 1_000,
        partition_epoch: 1_000,
        replicas: BTreeMap::new(),
        isr: Vec::new(),
        live: 0,
        config: Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_task_has_panicked_keeps_what_it_has_and_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), 1, &[]).await;
    let two = start(folder.path(), 2, &[&one]).await;
    let (leader, _) = create(&one, 2, "1").await;
    let (old, new) = if leader == 1 { (&one, &two) } else { (&two, &one) };
    let epoch = in_sync(old, &[1, 2], 0).await;
    produce(old).await;
    let topic = topic(old);
    let folder = old.node.data.partition(&topic.name, topic.id, 0);
    let inode = || std::fs::metadata(&folder).unwrap().ino();
    let before = inode();

    // Another leads, and this one follows it with the log that it has.
    panic(old).await;
    let epoch = in_sync(old, &[1, 2], epoch + 1).await;
    assert_eq!((inode(), offline(old)), (before, None));
    // One that panics again is left alone.
    panic(old).await;
    in_sync(old, &[new.node.id], epoch).await;
    assert_eq!((inode(), offline(old)), (before, Some(Fault::Panicked)));
    let counted = old.node.metrics.render();
    for counter in ["bus_lost_replicas_total 0", "bus_refetched_replicas_total 0"] {
        assert!(counted.contains(counter), "{counter}: {counted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_panicked_and_is_alone_leads_anew() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), 1, &[]).await;
    let (_, epoch) = create(&one, 1, "1").await;
    assert_eq!(produce(&one).await, 0);
    let refused = || {
        let refused = WireError::new(ErrorCode::StorageFailed, "its task has panicked");
        one.node.moved_on(topic(&one).id, 0, refused).code
    };
    assert_eq!(refused(), ErrorCode::StorageFailed);
    panic(&one).await;
    let epoch = in_sync(&one, &[1], epoch + 1).await;
    assert_eq!(offline(&one), None);
    assert_eq!(produce(&one).await, 1);

    // One that panics again is left alone, and nobody is told to wait for another.
    panic(&one).await;
    until(|| offline(&one).is_some()).await;
    one.node.change(Command::DrainBroker { node: 1, drained: true }).await.unwrap();
    assert_eq!((offline(&one), refused()), (Some(Fault::Panicked), ErrorCode::StorageFailed));
    assert_eq!(in_sync(&one, &[1], epoch).await, epoch);
    // Long after, it is as if it had been the first time.
    one.node.reopened.forget(|_| true);
    assert_eq!(refused(), ErrorCode::NotLeader);
    one.node.change(Command::DrainBroker { node: 1, drained: false }).await.unwrap();
    in_sync(&one, &[1], epoch + 1).await;
    assert_eq!(produce(&one).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_has_panicked_and_cannot_be_spared_leads_anew() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), 1, &[]).await;
    let (two, three) = (start(folder.path(), 2, &[&one]).await, start(folder.path(), 3, &[&one]).await);
    let (leader, _) = create(&one, 3, "2").await;
    in_sync(&one, &[1, 2, 3], 0).await;
    let (other, down) = if leader == 3 { (three, two) } else { (two, three) };
    let left = [1, other.node.id];
    down.shutdown().await;
    let leader = if leader == 1 { &one } else { &other };
    let epoch = in_sync(leader, &left, 0).await;
    assert_eq!(produce(leader).await, 0);
    panic(leader).await;
    in_sync(leader, &left, epoch + 1).await;
    // Whoever is preferred leads.
    until(|| offline(leader).is_none() && topic(leader).partition(0).is_ok()).await;
    assert_eq!(produce(leader).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_has_panicked_and_cannot_be_spared_is_opened_anew_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), 1, &[]).await;
    let two = start(folder.path(), 2, &[&one]).await;
    let (leader, epoch) = create(&one, 2, "2").await;
    let (leader, follower) = if leader == 1 { (&one, &two) } else { (&two, &one) };
    produce(leader).await;
    panic(follower).await;
    // The metadata stays as it is.
    until(|| offline(follower).is_none()).await;
    assert_eq!(produce(leader).await, 1);
    assert_eq!(in_sync(leader, &[1, 2], epoch).await, epoch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_opening_panics_is_offline_and_the_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), 1, &[]).await;
    create(&one, 1, "1").await;
    let (topic, replicas) = (topic(&one), Replicas::new(Arc::clone(&one.node)));
    let right = Role { isr: vec![1], ..wrong(1) };
    let open = vec![((topic.id, 7), wrong(1), false), ((topic.id, 8), right, false)];
    let mut opened = replicas.open_all(&topic, open).await;
    opened.sort_by_key(|(at, ..)| *at);
    assert!(matches!(&opened[..], [(_, _, (Served::Offline(_), false)), (_, _, (Served::Here(_), false))]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_gone_is_a_loss_to_whoever_counts_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), 1, &[]).await;
    create(&one, 1, "1").await;
    let (topic, mut replicas) = (topic(&one), Replicas::new(Arc::clone(&one.node)));
    let at = |number| (topic.id, number);
    let held_by = BTreeMap::from([(1, 0), (2, 0)]);
    let role =
        |isr: &[NodeId]| Role { leader: Some(2), replicas: held_by.clone(), isr: isr.to_vec(), ..wrong(1) };
    // Not in sync, but its leader was told.
    replicas.roles.insert(at(5), role(&[2]));
    let is_lost = async |number, role, held| {
        matches!(replicas.open(&topic, at(number), role, held).await, (Served::Offline(_), true))
    };
    assert!(is_lost(1, role(&[1, 2]), true).await);
    assert!(!is_lost(2, role(&[1, 2]), false).await, "it is new");
    assert!(!is_lost(3, role(&[2]), true).await, "it counts for nothing");
    assert!(!is_lost(4, role(&[1]), true).await, "there is nobody else");
    assert!(is_lost(5, role(&[2]), true).await);
}

#[test]
fn a_backup_is_for_what_is_damaged_and_nowhere_else() {
    let up = |up: &'static [NodeId]| move |node| up.contains(&node);
    let (failed, damaged) = (Fault::Failed("EIO".into()), Fault::Damaged("a wrong CRC".into()));
    for fault in [&failed, &damaged] {
        assert!(remedy(fault, &[1, 2, 3], 1, up(&[1, 3])).starts_with("another replica goes on"));
        let down = remedy(fault, &[1, 2, 3], 1, up(&[1]));
        assert!(down.contains("start its broker"), "{down}");
    }
    assert!(remedy(&damaged, &[1], 1, up(&[1, 2])).contains("from a backup"));
    let again = remedy(&failed, &[1], 1, up(&[1, 2]));
    assert!(!again.contains("backup") && again.contains("start the broker again"), "{again}");
}
