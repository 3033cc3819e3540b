//! The controller comes to rest, and leaves nothing undone.

use bus_protocol::NodeId;
use proptest::prelude::*;

use super::decide;
use crate::image::properties::{check_change, check_invariants, command, step};
use crate::image::samples::*;
use crate::{Applied, Command, MetadataImage, limits};

/// Applies what the controller decides until it decides nothing; answers how many times it decided.
fn settle(image: &mut MetadataImage) -> usize {
    let mut decided = 0;
    while let Some(decision) = decide(image) {
        decided += 1;
        assert!(decided < 20, "the controller does not settle");
        assert_eq!(decide(image).as_ref(), Some(&decision), "the same image, the same decision");
        let before = image.clone();
        let applied = apply(image, decision.clone());
        let Ok(Applied::Partitions(results)) = applied else { panic!("refused: {applied:?}") };
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        check_change(&before, image, &decision);
        check_invariants(image);
    }
    decided
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// From any image the controller comes to rest, without a choice of its own being refused, and then every
    /// partition that can have a leader has one that is up, the preferred one if that can.
    #[test]
    fn the_controller_settles(steps in prop::collection::vec(step(), 1..60)) {
        let mut image = MetadataImage::default();
        for (index, step) in (1..).zip(&steps) {
            if let Some(command) = command(&image, step) {
                image.apply(index, command).ok();
            }
        }
        // What is urgent, then the rest.
        prop_assert!(settle(&mut image) <= 2);
        for topic in image.topics() {
            for partition in &topic.partitions {
                let up = |node: &NodeId| image.is_available(*node);
                let able: Vec<_> =
                    partition.replicas.iter().filter(|node| partition.isr.contains(node) && up(node)).collect();
                let undrained = able.iter().any(|node| !image.is_drained(**node));
                match partition.leader {
                    Some(leader) => {
                        prop_assert!(able.contains(&&leader));
                        prop_assert!(!undrained || !image.is_drained(leader), "a drained broker leads nothing");
                        let preferred = partition.replicas[0];
                        let can = able.contains(&&preferred) && !(undrained && image.is_drained(preferred));
                        prop_assert!(!can || leader == preferred, "the preferred leader leads");
                        prop_assert!(partition.isr.iter().all(up), "who is silent is not in the ISR");
                    }
                    None => {
                        prop_assert!(able.is_empty());
                        prop_assert!(!topic.config.unclean_leader_election || !partition.replicas.iter().any(up));
                    }
                }
                if let Some(target) = &partition.target {
                    prop_assert!(!target.iter().all(|node| able.contains(&node)), "what has arrived is done");
                }
            }
        }
    }
}

#[test]
fn a_silent_broker_leaves_leadership_and_isr_in_one_change() {
    let mut image = cluster(3);
    apply(&mut image, create(topic(1), 1_500, 3)).unwrap();
    let epoch = image.broker(1).unwrap().epoch;
    apply(&mut image, Command::FenceBroker { node: 1, epoch }).unwrap();
    let Some(Command::ChangePartitions { changes }) = decide(&image) else { panic!() };
    assert_eq!(changes.len(), limits::PARTITIONS_PER_COMMAND);
    assert!(
        changes.iter().all(|change| !change.isr.contains(&1) && change.leader.is_some_and(|node| node != 1))
    );
    assert_eq!(settle(&mut image), 2);
    for partition in &image.topic(&topic(1)).unwrap().partitions {
        assert_eq!(partition.partition_epoch, 1);
        assert_eq!(
            partition.leader_epoch,
            i32::from(partition.replicas[0] == 1),
            "who led leads on in its epoch"
        );
    }
}

#[test]
fn the_last_in_sync_is_waited_for_unless_the_topic_says_otherwise() {
    for unclean in [false, true] {
        let mut image = cluster(2);
        let mut create = create(topic(1), 1, 2);
        if let Command::CreateTopic(wanted) = &mut create {
            wanted.config.insert("unclean.leader.election.enable".into(), unclean.to_string());
        }
        apply(&mut image, create).unwrap();
        for node in [2, 1] {
            let epoch = image.broker(node).unwrap().epoch;
            apply(&mut image, Command::FenceBroker { node, epoch }).unwrap();
            settle(&mut image);
        }
        let stand = |image: &MetadataImage| (*image.topic(&topic(1)).unwrap().partitions[0]).clone();
        assert_eq!((stand(&image).leader, stand(&image).isr), (None, vec![1]));
        let epoch = image.broker(2).unwrap().epoch;
        apply(&mut image, Command::UnfenceBroker { node: 2, epoch }).unwrap();
        settle(&mut image);
        let (leader, isr) = if unclean { (Some(2), vec![2]) } else { (None, vec![1]) };
        assert_eq!((stand(&image).leader, stand(&image).isr), (leader, isr));
    }
}
