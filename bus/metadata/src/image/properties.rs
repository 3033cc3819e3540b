//! What holds for every image, whatever the commands, and what each command does.

use std::collections::BTreeMap;

use bus_protocol::request::CreateTopic;
use bus_protocol::{Attachment, ErrorCode, NodeId};
use proptest::prelude::*;

use super::MetadataImage;
use super::samples::*;
use crate::{Command, DirectoryId, IsrChange, PartitionChange, Registration, Rejected, controller, limits};

/// A command as it is drawn: numbers that are looked up in the image when it is its turn, so that most make sense.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Register { node: u64, rack: u8, directory: u8, clean: bool },
    Fence { node: u64, fenced: bool, stale: bool },
    Create { topic: u8, partitions: u32, replicas: u32, replicated: bool, unclean: bool },
    Alter { topic: u8, partitions: u32 },
    Delete { topic: u8 },
    Isr { topic: u8, partition: u32, members: u8, stale: u8 },
    Change { topic: u8, partition: u32, leader: u64, members: u8, replicas: u8, done: bool, stale: bool },
    Drain { node: u64, drained: bool },
    Reassign { topic: u8, partition: u32, wanted: Vec<u64>, throttle: Option<u64> },
    Lost { node: u64, topic: u8, partition: u32 },
    Full { node: u64, topic: u8, partition: u32 },
    ProducerIds { node: u64 },
    Control,
    Deploy { name: u8, topic: u8, consumer: bool },
    Pause { name: u8, paused: bool },
    DeleteFunction { name: u8 },
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..5u64, 0..3u8, 0..2u8, any::<bool>())
            .prop_map(|(node, rack, directory, clean)| Step::Register { node, rack, directory, clean }),
        4 => (1..5u64, prop::bool::weighted(0.3), prop::bool::weighted(0.1))
            .prop_map(|(node, fenced, stale)| Step::Fence { node, fenced, stale }),
        3 => (0..4u8, 0..6u32, 0..5u32, any::<bool>(), any::<bool>()).prop_map(
            |(topic, partitions, replicas, replicated, unclean)| {
                Step::Create { topic, partitions, replicas, replicated, unclean }
            }
        ),
        1 => (0..4u8, 0..8u32).prop_map(|(topic, partitions)| Step::Alter { topic, partitions }),
        1 => (0..4u8).prop_map(|topic| Step::Delete { topic }),
        4 => (0..4u8, 0..6u32, any::<u8>(), 0..8u8)
            .prop_map(|(topic, partition, members, stale)| Step::Isr { topic, partition, members, stale }),
        2 => (0..4u8, 0..6u32, 0..5u64, any::<u8>(), any::<u8>(), any::<bool>(), prop::bool::weighted(0.1)).prop_map(
            |(topic, partition, leader, members, replicas, done, stale)| {
                Step::Change { topic, partition, leader, members, replicas, done, stale }
            }
        ),
        1 => (0..6u64, any::<bool>()).prop_map(|(node, drained)| Step::Drain { node, drained }),
        3 => (0..4u8, 0..6u32, prop::collection::vec(1..6u64, 0..4), prop::option::of(0..3u64)).prop_map(
            |(topic, partition, wanted, throttle)| Step::Reassign { topic, partition, wanted, throttle }
        ),
        1 => (1..5u64, 0..4u8, 0..6u32)
            .prop_map(|(node, topic, partition)| Step::Lost { node, topic, partition }),
        1 => (1..5u64, 0..4u8, 0..6u32)
            .prop_map(|(node, topic, partition)| Step::Full { node, topic, partition }),
        1 => (1..6u64).prop_map(|node| Step::ProducerIds { node }),
        4 => Just(Step::Control),
        2 => (0..3u8, 0..4u8, any::<bool>()).prop_map(|(name, topic, consumer)| Step::Deploy { name, topic, consumer }),
        1 => (0..3u8, any::<bool>()).prop_map(|(name, paused)| Step::Pause { name, paused }),
        1 => (0..3u8).prop_map(|name| Step::DeleteFunction { name }),
    ]
}

pub(crate) fn command(image: &MetadataImage, step: &Step) -> Option<Command> {
    let epoch = |node: u64| image.broker(node).map_or(0, |broker| broker.epoch);
    Some(match *step {
        Step::Register { node, rack, directory, clean } => register(
            image,
            Registration {
                node,
                address: format!("host-{node}:9440"),
                rack: (rack > 0).then(|| format!("rack-{rack}")),
                directory: DirectoryId([directory; 16]),
                clean,
                renewed: true,
            },
        ),
        Step::Fence { node, fenced, stale } => {
            let epoch = epoch(node) - u64::from(stale && epoch(node) > 0);
            if fenced { Command::FenceBroker { node, epoch } } else { Command::UnfenceBroker { node, epoch } }
        }
        Step::Create { topic: name, partitions, replicas, replicated, unclean } => {
            let mut config = BTreeMap::new();
            if replicated {
                config.insert("durability".into(), "replicated".into());
                config.insert("retention.ms".into(), "-1".into());
            }
            if unclean {
                config.insert("unclean.leader.election.enable".into(), "true".into());
            }
            Command::CreateTopic(CreateTopic {
                topic: topic(name),
                partitions,
                replicas,
                config,
                if_not_exists: replicated,
            })
        }
        Step::Alter { topic: name, partitions } => Command::AlterTopic {
            topic: topic(name),
            partitions: (partitions > 0).then_some(partitions),
            config: BTreeMap::new(),
        },
        Step::Delete { topic: name } => Command::DeleteTopic { topic: topic(name) },
        Step::Isr { .. } | Step::Change { .. } => return partition_command(image, step),
        Step::Drain { node, drained } => Command::DrainBroker { node, drained },
        Step::Reassign { topic: name, partition, ref wanted, throttle } => {
            let topic = image.topic(&topic(name))?.id;
            Command::Reassign { changes: vec![(topic, partition, wanted.clone())], throttle }
        }
        Step::Lost { node, topic: name, partition } => {
            let topic = image.topic(&topic(name))?.id;
            Command::ReportLost { node, epoch: epoch(node), partitions: vec![(topic, partition)] }
        }
        Step::Full { node, topic: name, partition } => {
            let topic = image.topic(&topic(name))?.id;
            Command::ReportFull { node, epoch: epoch(node), partitions: vec![(topic, partition)] }
        }
        Step::ProducerIds { node } => Command::AllocateProducerIds { node, epoch: epoch(node) },
        Step::Control => controller::decide(image)?,
        Step::Deploy { name, topic, consumer } => function(name, topic, consumer),
        Step::Pause { name, paused: true } => Command::PauseFunction { name: format!("function-{name}") },
        Step::Pause { name, .. } => Command::ResumeFunction { name: format!("function-{name}") },
        Step::DeleteFunction { name } => Command::DeleteFunction { name: format!("function-{name}") },
    })
}

/// What a leader, or the controller, might want of one partition.
fn partition_command(image: &MetadataImage, step: &Step) -> Option<Command> {
    let epoch = |node: u64| image.broker(node).map_or(0, |broker| broker.epoch);
    Some(match *step {
        Step::Isr { topic: name, partition: number, members, stale } => {
            let found = image.topic(&topic(name))?;
            let partition = found.partition(number)?;
            let node = partition.leader.unwrap_or(1);
            // Half of the time everybody who can.
            let members = if members & 1 == 0 { members } else { u8::MAX };
            let held = |node: &NodeId| {
                members & (1 << node) != 0 && (stale == 3 || partition.replicas.contains(node))
            };
            let isr = (1..5)
                .filter(|node| held(node) || Some(*node) == partition.leader)
                .map(|node| (node, epoch(node) - u64::from(stale == 4 && epoch(node) > 0)))
                .collect();
            let change = IsrChange {
                topic: found.id,
                partition: number,
                leader_epoch: partition.leader_epoch - i32::from(stale == 1),
                partition_epoch: partition.partition_epoch.wrapping_sub(u32::from(stale == 2)),
                isr,
            };
            Command::AlterPartitions { node, epoch: epoch(node), changes: vec![change] }
        }
        Step::Change { topic: name, partition: number, leader, members, replicas, done, stale } => {
            let found = image.topic(&topic(name))?;
            let partition = found.partition(number)?;
            let target = partition.target.clone().filter(|_| !done);
            let held = if done { partition.wanted().to_vec() } else { partition.replicas.clone() };
            let change = PartitionChange {
                topic: found.id,
                partition: number,
                partition_epoch: partition.partition_epoch.wrapping_sub(u32::from(stale)),
                leader: (leader > 0).then_some(leader),
                isr: (1..6).filter(|node| members & (1 << node) != 0).collect(),
                replicas: if replicas < 32 {
                    (1..6).filter(|node| replicas & (1 << node) != 0).collect()
                } else {
                    held
                },
                target,
            };
            Command::ChangePartitions { changes: vec![change] }
        }
        _ => return None,
    })
}

pub(crate) fn check_invariants(image: &MetadataImage) {
    let mut replicas = 0;
    for topic in image.topics() {
        assert_eq!(image.topic_by_id(topic.id), Some(topic));
        assert!(!topic.partitions.is_empty());
        for partition in &topic.partitions {
            replicas += partition.replicas.len() as u64;
            assert!(!partition.wanted().is_empty());
            assert!(partition.wanted().len() >= topic.config.min_insync_replicas as usize);
            for (list, what) in [
                (&partition.replicas[..], "replicas"),
                (&partition.isr, "isr"),
                (partition.wanted(), "wanted"),
            ] {
                let distinct: std::collections::BTreeSet<_> = list.iter().collect();
                assert_eq!(distinct.len(), list.len(), "{what} are distinct");
            }
            assert!(
                partition.isr.iter().all(|node| partition.replicas.contains(node)),
                "the ISR is in the replicas"
            );
            if let Some(target) = &partition.target {
                assert!(
                    target.iter().all(|node| partition.replicas.contains(node)),
                    "who is wanted has a replica"
                );
                assert!(target.len() < partition.replicas.len(), "somebody is left to go");
            }
            assert!(
                partition.leader.is_none_or(|leader| partition.isr.contains(&leader)),
                "the leader is in the ISR"
            );
            assert!(partition.replicas.iter().all(|node| image.broker(*node).is_some()));
            let members: std::collections::BTreeSet<_> = partition.replicas.iter().collect();
            assert!(partition.since.keys().eq(members), "each replica is held since some epoch");
            assert!(partition.since.values().all(|since| *since <= partition.partition_epoch));
        }
    }
    assert_eq!(image.replicas, replicas);
    assert_eq!(image.topic_names.len(), image.topics.len());
    for function in image.functions() {
        assert!(function.previous.len() <= limits::PREVIOUS_VERSIONS);
        let newer = std::iter::once(&function.current).chain(&function.previous);
        assert!(newer.zip(&function.previous).all(|(newer, older)| newer.version == older.version + 1));
        let topics = match &function.spec().attachment {
            Attachment::Transform { topic } => std::slice::from_ref(topic),
            Attachment::Consumer { topics, .. } => topics,
        };
        assert!(topics.iter().all(|topic| image.topic(topic).is_some()), "a topic in use cannot go");
    }
}

/// Epochs only rise, a leader changes only with its epoch unless it is lost, and what is in sync is not given up.
pub(crate) fn check_change(before: &MetadataImage, after: &MetadataImage, command: &Command) {
    let emptied = |node: NodeId| match command {
        Command::RegisterBroker { broker: new, .. } => {
            new.node == node && before.broker(node).is_some_and(|old| old.directory != new.directory)
        }
        _ => false,
    };
    let by_leader = matches!(command, Command::AlterPartitions { .. });
    for old_topic in before.topics() {
        let Some(new_topic) = after.topic_by_id(old_topic.id) else { continue };
        assert!(new_topic.partitions.len() >= old_topic.partitions.len());
        for (old, new) in old_topic.partitions.iter().zip(&new_topic.partitions) {
            assert!(new.leader_epoch >= old.leader_epoch && new.partition_epoch >= old.partition_epoch);
            assert!(old == new || new.partition_epoch > old.partition_epoch, "every change raises the epoch");
            let same_leader = new.leader == old.leader || new.leader.is_none();
            assert!(same_leader || new.leader_epoch > old.leader_epoch, "one leader an epoch");
            assert!(new.leader != old.leader || new.leader_epoch == old.leader_epoch, "the leader goes on");
            for (node, since) in &new.since {
                let lost = emptied(*node)
                    || matches!(command, Command::ReportLost { node: loser, .. } if loser == node && new.isr != [*node]);
                let fresh = !old.replicas.contains(node) || (lost && old != new);
                let expected = if fresh { Some(&new.partition_epoch) } else { old.since.get(node) };
                assert_eq!(Some(since), expected, "who joins, or has lost what it had, holds it since then");
            }
            let newcomer = new.isr.iter().find(|member| !old.isr.contains(member));
            let unclean = old_topic.config.unclean_leader_election
                && new.isr.len() == 1
                && new.leader == newcomer.copied()
                && !old.isr.iter().any(|member| before.is_available(*member));
            assert!(newcomer.is_none() || by_leader || unclean, "only a leader takes somebody into the ISR");
            if let (true, Some(newcomer)) = (by_leader, newcomer) {
                assert!(before.is_available(*newcomer));
            }
            let kept =
                old.isr.is_empty() || !new.isr.is_empty() || old.isr.iter().all(|member| emptied(*member));
            assert!(kept, "the last one in sync stays, unless its disk is gone");
            let least = (old_topic.config.min_insync_replicas as usize).max(1);
            let full = matches!(command, Command::ReportFull { .. }) && old != new;
            assert!(!full || new.isr.iter().filter(|member| after.is_available(**member)).count() >= least);
            let gone = old.replicas.iter().any(|node| !new.replicas.contains(node));
            let arrived = new.wanted().iter().all(|node| new.isr.contains(node)) && new.target.is_none();
            assert!(!gone || arrived || matches!(command, Command::Reassign { .. }));
        }
    }
    for old in before.brokers() {
        assert!(after.broker(old.node).is_some_and(|new| {
            new.epoch >= old.epoch
                && (new.drained == old.drained || matches!(command, Command::DrainBroker { .. }))
        }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_commands_keep_the_invariants(steps in prop::collection::vec(step(), 1..80), restart in 0..80usize) {
        let (mut image, mut twin) = (MetadataImage::default(), MetadataImage::default());
        for (number, step) in steps.iter().enumerate() {
            let index = number as u64 + 1;
            let Some(command) = command(&image, step) else { continue };
            // Through postcard, as in the log.
            let stored: Command = postcard::from_bytes(&postcard::to_stdvec(&command).unwrap()).unwrap();
            prop_assert_eq!(&stored, &command);
            let before = image.clone();
            let result = image.apply(index, command);
            check_invariants(&image);
            check_change(&before, &image, &stored);
            if let Err(rejected) = &result {
                let mut untouched = before;
                untouched.index = index;
                prop_assert_eq!(&untouched, &image, "a rejected command changes nothing");
                let sentence = rejected.to_string();
                prop_assert!(!sentence.is_empty() && !sentence.contains('\n'));
                prop_assert!(rejected.code() != ErrorCode::Internal);
                let sent: Rejected = postcard::from_bytes(&postcard::to_stdvec(rejected).unwrap()).unwrap();
                prop_assert_eq!(&sent, rejected);
            }
            prop_assert_eq!(twin.apply(index, stored), result);
            if number == restart {
                twin = postcard::from_bytes(&postcard::to_stdvec(&twin).unwrap()).unwrap();
            }
            prop_assert_eq!(&twin, &image);
        }
    }
}
