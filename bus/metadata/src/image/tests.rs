//! What each command does, by example.

use std::collections::BTreeMap;

use bus_protocol::{ErrorCode, TopicId, TopicName};

use super::MetadataImage;
use super::samples::*;
use crate::{Applied, Command, DirectoryId, IsrChange, Registration, Rejected, controller, limits};

fn start(image: &mut MetadataImage, broker: Registration) -> Result<Applied, Rejected> {
    let command = register(image, broker);
    apply(image, command)
}

#[test]
fn replicas_are_spread_over_racks() {
    let mut image = MetadataImage::default();
    for node in 1..=6 {
        let broker = Registration { rack: Some(format!("rack-{}", node % 3)), ..registration(node) };
        let Ok(Applied::Broker { epoch }) = start(&mut image, broker) else { panic!("not registered") };
        apply(&mut image, Command::UnfenceBroker { node, epoch }).unwrap();
    }
    apply(&mut image, create(topic(0), 30, 3)).unwrap();
    for partition in &image.topic(&topic(0)).unwrap().partitions {
        let racks: std::collections::BTreeSet<_> = partition.replicas.iter().map(|node| node % 3).collect();
        assert_eq!(racks.len(), 3, "{:?}", partition.replicas);
    }
}

#[test]
fn refusals_say_what_to_do() {
    let mut image = cluster(1);
    let sentence = |image: &mut MetadataImage, command| apply(image, command).unwrap_err().to_string();
    assert_eq!(
        sentence(&mut image, create(topic(1), 1, 3)),
        "3 replicas need 3 brokers, and 1 can take one: ask for fewer, or see to it that more can"
    );
    let mut some = cluster(4);
    let epoch = some.broker(4).unwrap().epoch;
    apply(&mut some, Command::FenceBroker { node: 4, epoch }).unwrap();
    for node in [2, 3] {
        apply(&mut some, Command::DrainBroker { node, drained: true }).unwrap();
    }
    assert!(sentence(&mut some, create(topic(1), 1, 2)).contains(
        "1 can take one; brokers 2, 3 are drained (see `bus cluster add-back`); broker 4 is down: ask for fewer"
    ));
    assert_eq!(sentence(&mut image, create(topic(1), 0, 1)), "0 partitions are out of range: 1 to 10000");
    let mut misspelt = create(topic(1), 1, 1);
    if let Command::CreateTopic(wanted) = &mut misspelt {
        wanted.config.insert("retention.msec".into(), "1".into());
    }
    assert_eq!(
        sentence(&mut image, misspelt),
        "topic setting \"retention.msec\" does not exist: did you mean retention.ms?"
    );
    let mut strict = create(topic(1), 1, 1);
    if let Command::CreateTopic(wanted) = &mut strict {
        wanted.config.insert("min.insync.replicas".into(), "2".into());
    }
    assert!(sentence(&mut image, strict).contains("no record could be stored"));
    assert_eq!(
        sentence(&mut image, function(1, 1, false)),
        "topic topic-1 does not exist: `bus topic list` shows those that do"
    );
    apply(&mut image, create(topic(1), 2, 1)).unwrap();
    assert!(sentence(&mut image, create(topic(1), 1, 1)).contains("exists already"));
    let fewer = Command::AlterTopic { topic: topic(1), partitions: Some(1), config: BTreeMap::new() };
    assert!(sentence(&mut image, fewer).contains("partitions can only be added"));
    apply(&mut image, function(1, 1, false)).unwrap();
    apply(&mut image, function(2, 1, true)).unwrap();
    assert_eq!(
        sentence(&mut image, Command::DeleteTopic { topic: topic(1) }),
        "topic topic-1 is in use by functions function-1, function-2: delete them first"
    );
    assert!(
        sentence(&mut image, function(0, 1, true)).contains("reads topic topic-1 for function function-2")
    );
    assert!(sentence(&mut image, function(1, 1, true)).contains("delete it first"));
    apply(&mut image, Command::NameCluster { cluster_id: "a".into() }).unwrap();
    assert!(
        sentence(&mut image, Command::NameCluster { cluster_id: "b".into() }).contains("cluster a, not b")
    );
}

#[test]
fn a_topic_of_an_old_name_is_another_topic() {
    let mut image = cluster(1);
    let Ok(Applied::Topic { id, created: true }) = apply(&mut image, create(topic(1), 1, 1)) else {
        panic!()
    };
    assert_eq!(id, TopicId(image.index()));
    apply(&mut image, Command::DeleteTopic { topic: topic(1) }).unwrap();
    assert_eq!(image.topic_by_id(id), None);
    let Ok(Applied::Topic { id: new, .. }) = apply(&mut image, create(topic(1), 1, 1)) else { panic!() };
    assert_ne!(id, new);
    let mut again = create(topic(1), 1, 1);
    if let Command::CreateTopic(wanted) = &mut again {
        wanted.if_not_exists = true;
    }
    assert_eq!(apply(&mut image, again), Ok(Applied::Topic { id: new, created: false }));
}

#[test]
fn a_broker_that_starts_again_leads_only_once_elected() {
    let mut image = cluster(3);
    apply(&mut image, create(topic(1), 3, 3)).unwrap();
    let led = |image: &MetadataImage, node| {
        image
            .topic(&topic(1))
            .unwrap()
            .partitions
            .iter()
            .filter(|partition| partition.leader == Some(node))
            .count()
    };
    assert_eq!(led(&image, 1), 1);
    let Ok(Applied::Broker { epoch }) = start(&mut image, registration(1)) else { panic!() };
    assert_eq!(led(&image, 1), 0);
    let decision = controller::decide(&image).unwrap();
    apply(&mut image, decision).unwrap();
    assert_eq!(led(&image, 1), 0, "another replica in sync leads");
    assert_eq!(controller::decide(&image), None);
    apply(&mut image, Command::UnfenceBroker { node: 1, epoch }).unwrap();
    assert_eq!(controller::decide(&image), None, "it left the ISR while it was away");
    alter(&mut image, &[1, 2, 3]);
    settle(&mut image);
    assert_eq!(led(&image, 1), 1, "the preferred leader is back");

    // With another directory it has lost its replicas, so it is not in sync any more.
    let emptied = Registration { directory: DirectoryId([1; 16]), ..registration(1) };
    let unmounted = start(&mut image, Registration { renewed: false, ..emptied.clone() });
    assert!(matches!(unmounted, Err(Rejected::TopicsGone { node: 1 })), "{unmounted:?}");
    start(&mut image, emptied).unwrap();
    assert!(image.topic(&topic(1)).unwrap().partitions.iter().all(|partition| !partition.isr.contains(&1)));
    let stale = Command::FenceBroker { node: 1, epoch };
    assert!(matches!(apply(&mut image, stale), Err(Rejected::StaleBrokerEpoch { .. })));
}

#[test]
fn versions_are_kept_and_bounded() {
    let mut image = cluster(1);
    apply(&mut image, create(topic(1), 1, 1)).unwrap();
    for version in 1..=15 {
        assert_eq!(apply(&mut image, function(1, 1, false)), Ok(Applied::Function { version }));
    }
    apply(&mut image, function(0, 1, false)).unwrap();
    apply(&mut image, Command::PauseFunction { name: "function-1".into() }).unwrap();
    apply(&mut image, function(1, 1, false)).unwrap();
    let kept = image.function("function-1").unwrap();
    assert!(kept.paused && kept.current.version == 16 && kept.previous.len() == limits::PREVIOUS_VERSIONS);
    assert_eq!(kept.previous[0].version, 15);
    let order: Vec<_> =
        image.transforms_of(&topic(1)).iter().map(|function| function.name.as_str()).collect();
    assert_eq!(order, ["function-1", "function-0"], "in order of their first deployment");
    assert_eq!(image.modules().len(), 2);
}

#[test]
fn many_topics_and_partitions_are_cheap() {
    let mut image = cluster(3);
    apply(&mut image, create(TopicName::new("wide").unwrap(), 1_000, 3)).unwrap();
    for number in 0..1_000 {
        let name = TopicName::new(&format!("narrow-{number}")).unwrap();
        apply(&mut image, create(name, 1, 1)).unwrap();
    }
    // A reader's copy shares all topics but the one that a command changes.
    let reader = image.clone();
    assert!(reader.same_topics(&image) && reader.same_brokers(&image));
    let wide = image.topic(&TopicName::new("wide").unwrap()).unwrap().clone();
    let leader = wide.partitions[7].leader.unwrap();
    let epoch = image.broker(leader).unwrap().epoch;
    let change = IsrChange {
        topic: wide.id,
        partition: 7,
        leader_epoch: 0,
        partition_epoch: 0,
        isr: vec![(leader, epoch)],
    };
    let applied = apply(&mut image, Command::AlterPartitions { node: leader, epoch, changes: vec![change] });
    assert_eq!(applied, Ok(Applied::Partitions(vec![Ok(1)])));
    let shared = reader.topics().zip(image.topics()).filter(|(a, b)| std::sync::Arc::ptr_eq(a, b)).count();
    assert_eq!(shared, 1_000);
    let decoded: MetadataImage = postcard::from_bytes(&postcard::to_stdvec(&image).unwrap()).unwrap();
    assert_eq!(decoded, image);
}

fn isr_change(image: &MetadataImage, isr: &[u64]) -> Command {
    let found = image.topic(&topic(1)).unwrap();
    let partition = &found.partitions[0];
    let epoch = |node: u64| image.broker(node).unwrap().epoch;
    let change = IsrChange {
        topic: found.id,
        partition: 0,
        leader_epoch: partition.leader_epoch,
        partition_epoch: partition.partition_epoch,
        isr: isr.iter().map(|node| (*node, epoch(*node))).collect(),
    };
    let node = partition.leader.unwrap();
    Command::AlterPartitions { node, epoch: epoch(node), changes: vec![change] }
}

fn alter(image: &mut MetadataImage, isr: &[u64]) {
    let change = isr_change(image, isr);
    apply(image, change).unwrap();
}

fn settle(image: &mut MetadataImage) {
    while let Some(decision) = controller::decide(image) {
        apply(image, decision).unwrap();
    }
}

fn stand(image: &MetadataImage) -> (Vec<u64>, Vec<u64>, Option<u64>, Option<Vec<u64>>) {
    let partition = &image.topic(&topic(1)).unwrap().partitions[0];
    (partition.replicas.clone(), partition.isr.clone(), partition.leader, partition.target.clone())
}

#[test]
fn a_registration_that_comes_late_takes_nobodys_place() {
    let mut image = MetadataImage::default();
    let first = register(&image, registration(1));
    apply(&mut image, first.clone()).unwrap();
    let late = register(&image, registration(1));
    let Ok(Applied::Broker { epoch }) = start(&mut image, registration(1)) else { panic!() };
    for stale in [first, late] {
        let refused = apply(&mut image, stale).unwrap_err();
        assert!(
            matches!(refused, Rejected::StaleBrokerEpoch { current, .. } if current == epoch),
            "{refused}"
        );
    }
    let unknown = Command::RegisterBroker { broker: registration(2), follows: Some(epoch) };
    assert!(matches!(apply(&mut image, unknown), Err(Rejected::UnknownBroker { node: 2 })));
    assert_eq!(image.broker(1).unwrap().epoch, epoch);
}

/// One partition on brokers 1 to 3, of five.
fn one_partition() -> (MetadataImage, TopicId) {
    let mut image = cluster(3);
    let Ok(Applied::Topic { id, .. }) = apply(&mut image, create(topic(1), 1, 3)) else { panic!() };
    for node in [4, 5] {
        let Ok(Applied::Broker { epoch }) = start(&mut image, registration(node)) else { panic!() };
        apply(&mut image, Command::UnfenceBroker { node, epoch }).unwrap();
    }
    (image, id)
}

fn reassign(image: &mut MetadataImage, topic: TopicId, to: &[u64]) -> Result<Applied, Rejected> {
    apply(image, Command::Reassign { changes: vec![(topic, 0, to.to_vec())], throttle: None })
}

#[test]
fn a_follower_that_started_again_is_not_in_sync_by_what_it_had() {
    let (mut image, id) = one_partition();
    alter(&mut image, &[1, 2]);
    let stale = isr_change(&image, &[1, 2, 3]);
    let Ok(Applied::Broker { epoch }) = start(&mut image, registration(3)) else { panic!() };
    apply(&mut image, Command::UnfenceBroker { node: 3, epoch }).unwrap();
    let Ok(Applied::Partitions(results)) = apply(&mut image, stale) else { panic!() };
    let sentence = results[0].clone().unwrap_err().to_string();
    assert!(sentence.contains("started again"), "{sentence}");
    alter(&mut image, &[1, 2, 3]);
    assert_eq!(stand(&image).1, [1, 2, 3]);

    // What was lost leaves the ISR and the leadership; the last one in the ISR stays.
    for (node, isr, leader) in [(1, vec![2, 3], Some(2)), (2, vec![3], Some(3)), (3, vec![3], Some(3))] {
        let epoch = image.broker(node).unwrap().epoch;
        apply(&mut image, Command::ReportLost { node, epoch, partitions: vec![(id, 0)] }).unwrap();
        settle(&mut image);
        assert_eq!(stand(&image), (vec![1, 2, 3], isr, leader, None));
    }
}

#[test]
fn a_broker_whose_disk_is_full_goes_where_the_others_can_do_without_it() {
    let (mut image, id) = one_partition();
    let config = BTreeMap::from([("min.insync.replicas".to_owned(), "2".to_owned())]);
    apply(&mut image, Command::AlterTopic { topic: topic(1), partitions: None, config }).unwrap();
    let mut full = |node, isr: Vec<u64>, leader| {
        let epoch = image.broker(node).unwrap().epoch;
        apply(&mut image, Command::ReportFull { node, epoch, partitions: vec![(id, 0)] }).unwrap();
        settle(&mut image);
        assert_eq!(stand(&image), (vec![1, 2, 3], isr, Some(leader), None));
    };
    full(1, vec![2, 3], 2);
    // With fewer than the minimum nothing could be committed: those that are left stay, and refuse.
    full(2, vec![2, 3], 2);
    full(3, vec![2, 3], 2);
    full(1, vec![2, 3], 2);
    alter(&mut image, &[1, 2, 3]);
    settle(&mut image);
    // One that is down does not count, even before the controller has seen to it.
    let epoch = image.broker(2).unwrap().epoch;
    apply(&mut image, Command::FenceBroker { node: 2, epoch }).unwrap();
    assert!(!image.can_spare(1, id, 0) && !image.can_spare(3, id, 0) && image.can_spare(2, id, 0));
}

#[test]
fn a_reassignment_keeps_the_old_replicas_until_the_new_are_in_sync() {
    let (mut image, id) = one_partition();
    assert_eq!(reassign(&mut image, id, &[4, 5]), Ok(Applied::Reassigned { partitions: 1 }));
    assert_eq!(controller::decide(&image), None);
    assert_eq!(stand(&image), (vec![1, 2, 3, 4, 5], vec![1, 2, 3], Some(1), Some(vec![4, 5])));
    alter(&mut image, &[1, 2, 3, 4]);
    assert_eq!(controller::decide(&image), None);
    // Another takes its place: broker 5, which has nothing yet, goes at once, and 4 stays until it is not needed.
    assert_eq!(reassign(&mut image, id, &[2, 4]), Ok(Applied::Reassigned { partitions: 1 }));
    assert_eq!(stand(&image).0, [1, 2, 3, 4]);
    settle(&mut image);
    assert_eq!(stand(&image), (vec![2, 4], vec![2, 4], Some(2), None));
    assert_eq!(image.topic(&topic(1)).unwrap().replicas, 2, "partitions to come have as many");
    assert_eq!(image.replicas, 2);
    // Cancelled, and a mere change of who is preferred.
    reassign(&mut image, id, &[1, 3, 5]).unwrap();
    assert_eq!(reassign(&mut image, id, &[4, 2]), Ok(Applied::Reassigned { partitions: 0 }));
    settle(&mut image);
    assert_eq!(stand(&image), (vec![4, 2], vec![2, 4], Some(4), None));
}

#[test]
fn a_replica_that_comes_back_or_has_lost_what_it_had_is_another() {
    let (mut image, id) = one_partition();
    let held = |image: &MetadataImage| image.topic(&topic(1)).unwrap().partitions[0].clone();
    assert_eq!(held(&image).since, [(1, 0), (2, 0), (3, 0)].into());
    reassign(&mut image, id, &[1, 2]).unwrap();
    settle(&mut image);
    let seen_before = isr_change(&image, &[1, 2]);
    reassign(&mut image, id, &[1, 2, 3]).unwrap();
    let back = held(&image).partition_epoch;
    assert_eq!(held(&image).since, [(1, 0), (2, 0), (3, back)].into());
    let Ok(Applied::Partitions(results)) = apply(&mut image, seen_before) else { panic!() };
    assert!(results[0].is_err(), "what was asked for while it was away is not granted: {results:?}");
    alter(&mut image, &[1, 2, 3]);
    settle(&mut image);
    assert_eq!(held(&image).since[&3], back, "it stays as it catches up");

    // In the ISR or not; but not the last one in it.
    let epoch = |image: &MetadataImage, node| image.broker(node).unwrap().epoch;
    for _ in 0..2 {
        let lost = Command::ReportLost { node: 3, epoch: epoch(&image, 3), partitions: vec![(id, 0)] };
        apply(&mut image, lost).unwrap();
        assert_eq!(held(&image).since, [(1, 0), (2, 0), (3, held(&image).partition_epoch)].into());
    }
    alter(&mut image, &[1]);
    let lost = Command::ReportLost { node: 1, epoch: epoch(&image, 1), partitions: vec![(id, 0)] };
    apply(&mut image, lost).unwrap();
    assert_eq!(held(&image).since[&1], 0);
    let emptied = Registration { directory: DirectoryId([2; 16]), ..registration(2) };
    start(&mut image, emptied).unwrap();
    assert_eq!(held(&image).since[&2], held(&image).partition_epoch);
}

#[test]
fn reassignments_that_cannot_be_are_refused_as_a_whole() {
    let (mut image, id) = one_partition();
    let config = BTreeMap::from([("min.insync.replicas".to_owned(), "2".to_owned())]);
    apply(&mut image, Command::AlterTopic { topic: topic(1), partitions: None, config }).unwrap();
    let sentence = |image: &mut MetadataImage, to: &[u64]| {
        let rejected = reassign(image, id, to).unwrap_err();
        (rejected.code(), rejected.to_string())
    };
    assert_eq!(
        sentence(&mut image, &[1, 9]),
        (
            ErrorCode::UnknownBroker,
            "broker 9 does not exist: the cluster has brokers 1, 2, 3, 4, 5".to_owned()
        )
    );
    assert_eq!(
        sentence(&mut image, &[1, 1]).1,
        "topic-1-0 cannot have replicas on brokers 1, 1: broker 1 is named twice"
    );
    assert!(sentence(&mut image, &[4]).1.contains("min.insync.replicas is 2"));
    assert!(sentence(&mut image, &[]).1.contains("name 1 to 16 brokers"));
    // Nobody is waited for who is down; what needs no move does not need him either.
    reassign(&mut image, id, &[1, 4]).unwrap();
    for (node, down) in [(4, true), (3, true), (4, false)] {
        let epoch = image.broker(node).unwrap().epoch;
        let change =
            if down { Command::FenceBroker { node, epoch } } else { Command::UnfenceBroker { node, epoch } };
        apply(&mut image, change).unwrap();
        if (node, down) == (4, true) {
            let down =
                "topic-1-0 cannot have replicas on brokers 1, 4: broker 4 is down: start it, or name another";
            assert_eq!(sentence(&mut image, &[1, 4]).1, down);
        }
    }
    assert_eq!(reassign(&mut image, id, &[2, 1, 3]), Ok(Applied::Reassigned { partitions: 0 }), "called off");
    let before = image.clone();
    let changes = vec![(id, 0, vec![2, 4]), (id, 1, vec![2, 4])];
    let rejected = apply(&mut image, Command::Reassign { changes, throttle: Some(5) }).unwrap_err();
    assert_eq!(rejected.code(), ErrorCode::UnknownPartition);
    assert_eq!((image.replication_throttle(), image.topics), (None, before.topics));
}

#[test]
fn a_drained_broker_leads_nothing_and_gets_nothing() {
    let (mut image, _) = one_partition();
    apply(&mut image, Command::DrainBroker { node: 1, drained: true }).unwrap();
    settle(&mut image);
    assert_eq!(stand(&image), (vec![1, 2, 3], vec![1, 2, 3], Some(2), None));
    apply(&mut image, create(topic(2), 8, 4)).unwrap();
    assert!(
        image.topic(&topic(2)).unwrap().partitions.iter().all(|partition| !partition.replicas.contains(&1))
    );
    assert!(apply(&mut image, create(topic(3), 1, 5)).unwrap_err().to_string().contains("4 can take one"));
    let Ok(Applied::Broker { epoch }) = start(&mut image, registration(1)) else { panic!() };
    settle(&mut image);
    assert!(image.is_drained(1), "a restart does not add it back");
    apply(&mut image, Command::UnfenceBroker { node: 1, epoch }).unwrap();
    apply(&mut image, Command::DrainBroker { node: 1, drained: false }).unwrap();
    settle(&mut image);
    assert_eq!(stand(&image).2, Some(2), "it left the ISR while it was away");
    alter(&mut image, &[1, 2, 3]);
    settle(&mut image);
    assert_eq!(stand(&image).2, Some(1));
    let nobody = apply(&mut image, Command::DrainBroker { node: 9, drained: true });
    assert_eq!(nobody.unwrap_err().code(), ErrorCode::UnknownBroker);
}

#[test]
fn producer_ids_are_given_once() {
    let mut image = cluster(2);
    let mut next = 0;
    for node in [1, 2, 1] {
        let epoch = image.broker(node).unwrap().epoch;
        let applied = apply(&mut image, Command::AllocateProducerIds { node, epoch });
        let Ok(Applied::ProducerIds { first, count }) = applied else { panic!("{applied:?}") };
        assert_eq!(first, next);
        next += count as i64;
    }
}
