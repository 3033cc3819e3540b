//! The plan is even, moves little, and leaves nothing to do.

use std::collections::{BTreeMap, BTreeSet};

use bus_protocol::NodeId;
use proptest::prelude::*;

use super::{Balance, balance};
use crate::image::samples::*;
use crate::{Applied, Command, IsrChange, MetadataImage, Partition, Registration, controller};

fn spread(counts: impl Iterator<Item = usize> + Clone) -> usize {
    counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0)
}

/// Replicas, and partitions led, of each broker that can take some; by what the partitions are on their way to.
fn load(image: &MetadataImage) -> BTreeMap<NodeId, (usize, usize)> {
    let able = image.brokers().filter(|broker| !broker.fenced && !broker.drained);
    let mut load: BTreeMap<_, _> = able.map(|broker| (broker.node, (0, 0))).collect();
    for partition in image.topics().flat_map(|topic| &topic.partitions) {
        for (place, node) in partition.wanted().iter().enumerate() {
            if let Some((held, led)) = load.get_mut(node) {
                *held += 1;
                *led += usize::from(place == 0);
            }
        }
    }
    load
}

/// Whether a move of the partition would wait for a broker that may be back soon, or has the only copy.
fn would_wait(image: &MetadataImage, partition: &Partition) -> bool {
    let up = |node: &NodeId| image.is_available(*node);
    let takers = image
        .brokers()
        .filter(|broker| !broker.fenced && !broker.drained && !partition.replicas.contains(&broker.node));
    partition.replicas.iter().any(|node| !up(node) && !image.is_drained(*node))
        || partition.replicas.iter().filter(|node| !up(node)).count() > takers.count()
        || !partition.isr.iter().any(up)
}

fn add(image: &mut MetadataImage, node: NodeId, rack: Option<u64>) {
    let rack = rack.map(|rack| format!("rack-{rack}"));
    let command = register(image, Registration { rack, ..registration(node) });
    let applied = apply(image, command);
    let Ok(Applied::Broker { epoch }) = applied else { panic!("{applied:?}") };
    apply(image, Command::UnfenceBroker { node, epoch }).unwrap();
}

/// The replicas that a plan moves, and whether it is well-formed.
fn moved(image: &MetadataImage, plan: &Balance) -> usize {
    plan.changes
        .iter()
        .map(|(topic, number, replicas)| {
            let partition = image.topic_by_id(*topic).unwrap().partition(*number).unwrap();
            let distinct: BTreeSet<_> = replicas.iter().collect();
            assert_eq!(distinct.len(), replicas.len());
            assert_eq!(partition.wanted().len(), replicas.len());
            let new: Vec<_> =
                replicas.iter().filter(|node| !partition.wanted().contains(node)).copied().collect();
            assert!(new.iter().all(|node| image.is_available(*node) && !image.is_drained(*node)));
            new.len()
        })
        .sum()
}

/// Lets the replicas move: every follower catches up, and the controller does its part.
fn carry_out(image: &mut MetadataImage) {
    loop {
        while let Some(decision) = controller::decide(image) {
            apply(image, decision).unwrap();
        }
        let mut changes = BTreeMap::<NodeId, Vec<IsrChange>>::new();
        for topic in image.topics() {
            for (number, partition) in (0..).zip(&topic.partitions) {
                let isr = partition.replicas.iter().filter(|node| image.is_available(**node));
                let isr: Vec<_> = isr.map(|node| (*node, image.broker(*node).unwrap().epoch)).collect();
                if let (Some(leader), true) = (partition.leader, isr.len() > partition.isr.len()) {
                    changes.entry(leader).or_default().push(IsrChange {
                        topic: topic.id,
                        partition: number,
                        leader_epoch: partition.leader_epoch,
                        partition_epoch: partition.partition_epoch,
                        isr,
                    });
                }
            }
        }
        if changes.is_empty() {
            return;
        }
        for (node, changes) in changes {
            let epoch = image.broker(node).unwrap().epoch;
            apply(image, Command::AlterPartitions { node, epoch, changes }).unwrap();
        }
    }
}

fn image(brokers: u64, racks: u64, topics: &[(u32, u32)], more: u64) -> MetadataImage {
    let mut image = MetadataImage::default();
    let rack = |node: u64| (racks > 0).then(|| node % racks);
    (1..=brokers).for_each(|node| add(&mut image, node, rack(node)));
    for (number, (partitions, replicas)) in (0..).zip(topics) {
        apply(&mut image, create(topic(number), *partitions, (*replicas).min(brokers as u32))).unwrap();
    }
    (brokers + 1..=brokers + more).for_each(|node| add(&mut image, node, rack(node)));
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn all_is_even_after_brokers_came_and_went(
        brokers in 1..6u64,
        racks in prop_oneof![Just(0u64), 2..4u64],
        topics in prop::collection::vec((1..25u32, 1..4u32), 1..6),
        more in 0..4u64,
        drained in prop::collection::btree_set(1..9u64, 0..3),
        fenced in prop::option::of(1..9u64),
    ) {
        let mut image = image(brokers, racks, &topics, more);
        for node in &drained {
            apply(&mut image, Command::DrainBroker { node: *node, drained: true }).ok();
        }
        if let Some(broker) = fenced.and_then(|node| image.broker(node)).cloned() {
            apply(&mut image, Command::FenceBroker { node: broker.node, epoch: broker.epoch }).unwrap();
        }
        let before = load(&image);
        let plan = balance(&image);
        let moves = moved(&image, &plan);
        let stays: Vec<_> = image.topics().flat_map(|topic| topic.partitions.iter().map(|partition| (topic.id, partition)))
            .filter(|(_, partition)| would_wait(&image, partition))
            .collect();
        prop_assert_eq!((plan.under_way, plan.silent), (0, stays.len()));
        for (topic, number, _) in &plan.changes {
            let partition = image.topic_by_id(*topic).unwrap().partition(*number).unwrap();
            prop_assert!(!stays.contains(&(*topic, partition)), "it would wait for who is silent");
        }
        let all_may_move = stays.is_empty();
        if racks == 0 && drained.is_empty() && all_may_move {
            let mean = before.values().map(|load| load.0).sum::<usize>() / before.len().max(1);
            let over: usize = before.values().map(|load| load.0.saturating_sub(mean + 1)).sum();
            let under: usize = before.values().map(|load| mean.saturating_sub(load.0)).sum();
            prop_assert_eq!(moves, over.max(under), "no more than it takes: {:?}", before);
        }
        apply(&mut image, Command::Reassign { changes: plan.changes, throttle: Some(1) }).unwrap();
        prop_assert_eq!(image.replication_throttle(), Some(1));
        let under_way = balance(&image);
        prop_assert_eq!(under_way.changes, vec![], "what is under way is not planned again");
        let targets = image.topics().flat_map(|topic| &topic.partitions).filter(|partition| partition.target.is_some());
        prop_assert_eq!(under_way.under_way, targets.count());
        let after = load(&image);
        if racks == 0 && all_may_move {
            prop_assert!(spread(after.values().map(|load| load.0)) <= 1, "{after:?}");
        }
        for partition in image.topics().flat_map(|topic| &topic.partitions) {
            let held: Vec<_> = partition.wanted().iter().filter(|node| image.is_drained(**node)).collect();
            let could = after.keys().filter(|node| !partition.wanted().contains(node)).count();
            let stays = would_wait(&image, partition);
            prop_assert!(held.is_empty() || could == 0 || stays, "drained brokers give up what others can take");
            prop_assert!(stays || after.is_empty() || !image.is_drained(partition.wanted()[0])
                || !partition.wanted().iter().any(|node| after.contains_key(node)));
        }
        carry_out(&mut image);
        prop_assert_eq!(balance(&image).changes, vec![]);
        let arrived = |partition: &Partition| partition.target.is_none();
        prop_assert!(image.topics().flat_map(|topic| &topic.partitions).all(|partition| arrived(partition)), "nobody waits");
    }

    #[test]
    fn leaders_are_even_where_all_topics_have_as_many_replicas(
        brokers in 3..6u64,
        replicas in 2..4u32,
        partitions in prop::collection::vec(1..25u32, 1..6),
        more in 0..4u64,
    ) {
        let topics: Vec<_> = partitions.into_iter().map(|partitions| (partitions, replicas)).collect();
        let mut image = image(brokers, 0, &topics, more);
        let changes = balance(&image).changes;
        apply(&mut image, Command::Reassign { changes, throttle: None }).unwrap();
        let after = load(&image);
        prop_assert!(spread(after.values().map(|load| load.0)) <= 1, "{after:?}");
        prop_assert!(spread(after.values().map(|load| load.1)) <= 1, "{after:?}");
    }

    /// With as many racks as replicas, each partition stays in, or comes to, as many racks.
    #[test]
    fn racks_come_first(topics in prop::collection::vec((1..25u32, 3..4u32), 1..4), racked in 3..6u64, more in 0..4u64) {
        let mut image = image(racked, 0, &topics, more);
        // They restart with racks.
        for node in 1..=racked + more {
            add(&mut image, node, Some(node % 3));
        }
        carry_out(&mut image);
        let changes = balance(&image).changes;
        apply(&mut image, Command::Reassign { changes, throttle: None }).unwrap();
        for partition in image.topics().flat_map(|topic| &topic.partitions) {
            let racks: BTreeSet<_> = partition.wanted().iter().map(|node| node % 3).collect();
            prop_assert_eq!(racks.len(), 3, "{:?}", partition.wanted());
        }
    }
}

#[test]
fn nothing_moves_where_all_is_even() {
    assert_eq!(balance(&MetadataImage::default()), Balance::default());
    assert_eq!(balance(&image(3, 0, &[(3, 3), (30, 2), (7, 1)], 0)), Balance::default());
}

#[test]
fn a_new_broker_gets_its_share_of_a_large_cluster() {
    let image = image(6, 3, &[(5_000, 3)], 3);
    let plan = balance(&image);
    assert!((4_998..=5_001).contains(&moved(&image, &plan)));
}

/// A plan made while a reassignment is on its way leaves that alone, and so does one beside a broker that is down.
#[test]
fn what_is_under_way_and_what_would_wait_stay() {
    let mut image = image(3, 0, &[(6, 2)], 1);
    let topic = image.topic(&topic(0)).unwrap().id;
    let on_its_way = vec![(topic, 0, vec![4, 3])];
    apply(&mut image, Command::Reassign { changes: on_its_way, throttle: None }).unwrap();
    let plan = balance(&image);
    assert!(!plan.changes.is_empty() && plan.changes.iter().all(|(_, number, _)| *number != 0), "{plan:?}");
    assert_eq!((plan.under_way, plan.silent), (1, 0));
    let epoch = image.broker(2).unwrap().epoch;
    apply(&mut image, Command::FenceBroker { node: 2, epoch }).unwrap();
    let plan = balance(&image);
    assert!(
        plan.silent > 0 && plan.changes.iter().all(|(_, _, replicas)| !replicas.contains(&2)),
        "{plan:?}"
    );
}

/// Broker 1 is down and drained, and nobody can take its place where broker 2 holds the other replica already, or takes
/// that of broker 3: the rest of the plan is not refused for it.
#[test]
fn a_drained_broker_that_is_down_is_left_first_or_not_at_all() {
    let mut image = image(3, 0, &[(6, 2)], 0);
    let epoch = image.broker(1).unwrap().epoch;
    for node in [1, 3] {
        apply(&mut image, Command::DrainBroker { node, drained: true }).unwrap();
    }
    apply(&mut image, Command::FenceBroker { node: 1, epoch }).unwrap();
    let plan = balance(&image);
    assert!(!plan.changes.is_empty() && plan.silent > 0, "{plan:?}");
    assert!(plan.changes.iter().all(|(_, _, replicas)| !replicas.contains(&1)), "{plan:?}");
    apply(&mut image, Command::Reassign { changes: plan.changes, throttle: None }).unwrap();
}
