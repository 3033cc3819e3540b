//! What holds for every image, whatever the commands, and what each command does.

use std::collections::BTreeMap;

use bus_protocol::request::CreateTopic;
use bus_protocol::{Attachment, BlobId, ErrorCode, FunctionSpec, TopicId, TopicName};
use proptest::prelude::*;

use super::MetadataImage;
use crate::{
    Applied, Command, Deployment, DirectoryId, Election, IsrChange, Registration, Rejected, controller,
    limits,
};

/// A command as it is drawn: numbers that are looked up in the image when it is its turn, so that most make sense.
#[derive(Clone, Debug)]
enum Step {
    Register { node: u64, rack: u8, directory: u8, clean: bool },
    Fence { node: u64, fenced: bool, stale: bool },
    Create { topic: u8, partitions: u32, replicas: u32, replicated: bool },
    Alter { topic: u8, partitions: u32 },
    Delete { topic: u8 },
    Isr { topic: u8, partition: u32, members: u8, stale: u8 },
    Elect { topic: u8, partition: u32, leader: u64, stale: bool },
    Control,
    Deploy { name: u8, topic: u8, consumer: bool },
    Pause { name: u8, paused: bool },
    DeleteFunction { name: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..5u64, 0..3u8, 0..2u8, any::<bool>())
            .prop_map(|(node, rack, directory, clean)| Step::Register { node, rack, directory, clean }),
        4 => (1..5u64, prop::bool::weighted(0.3), prop::bool::weighted(0.1))
            .prop_map(|(node, fenced, stale)| Step::Fence { node, fenced, stale }),
        3 => (0..4u8, 0..6u32, 0..5u32, any::<bool>()).prop_map(|(topic, partitions, replicas, replicated)| {
            Step::Create { topic, partitions, replicas, replicated }
        }),
        1 => (0..4u8, 0..8u32).prop_map(|(topic, partitions)| Step::Alter { topic, partitions }),
        1 => (0..4u8).prop_map(|topic| Step::Delete { topic }),
        4 => (0..4u8, 0..6u32, any::<u8>(), 0..8u8)
            .prop_map(|(topic, partition, members, stale)| Step::Isr { topic, partition, members, stale }),
        2 => (0..4u8, 0..6u32, 0..5u64, prop::bool::weighted(0.1))
            .prop_map(|(topic, partition, leader, stale)| Step::Elect { topic, partition, leader, stale }),
        2 => Just(Step::Control),
        2 => (0..3u8, 0..4u8, any::<bool>()).prop_map(|(name, topic, consumer)| Step::Deploy { name, topic, consumer }),
        1 => (0..3u8, any::<bool>()).prop_map(|(name, paused)| Step::Pause { name, paused }),
        1 => (0..3u8).prop_map(|name| Step::DeleteFunction { name }),
    ]
}

fn topic(number: u8) -> TopicName {
    TopicName::new(&format!("topic-{number}")).unwrap()
}

fn function(name: u8, on: u8, consumer: bool) -> Command {
    let attachment = if consumer {
        Attachment::Consumer { topics: vec![topic(on)], group: format!("group-{on}") }
    } else {
        Attachment::Transform { topic: topic(on) }
    };
    let spec = FunctionSpec {
        name: format!("function-{name}"),
        attachment,
        outputs: Vec::new(),
        config: BTreeMap::new(),
        memory_bytes: FunctionSpec::DEFAULT_MEMORY_BYTES,
        fuel: FunctionSpec::DEFAULT_FUEL,
        timeout_ms: FunctionSpec::DEFAULT_TIMEOUT_MS,
        retries: FunctionSpec::DEFAULT_RETRIES,
        dead_letter: None,
    };
    Command::DeployFunction(Deployment {
        spec,
        module: BlobId([name; 32]),
        interface: "flat".into(),
        timestamp: 1,
    })
}

fn register(node: u64) -> Command {
    Command::RegisterBroker(Registration {
        node,
        address: format!("host-{node}:9440"),
        rack: None,
        directory: DirectoryId([0; 16]),
        clean: true,
    })
}

fn create(topic: TopicName, partitions: u32, replicas: u32) -> Command {
    let config = BTreeMap::new();
    Command::CreateTopic(CreateTopic { topic, partitions, replicas, config, if_not_exists: false })
}

fn command(image: &MetadataImage, step: &Step) -> Option<Command> {
    let epoch = |node: u64| image.broker(node).map_or(0, |broker| broker.epoch);
    Some(match *step {
        Step::Register { node, rack, directory, clean } => Command::RegisterBroker(Registration {
            node,
            address: format!("host-{node}:9440"),
            rack: (rack > 0).then(|| format!("rack-{rack}")),
            directory: DirectoryId([directory; 16]),
            clean,
        }),
        Step::Fence { node, fenced, stale } => {
            let epoch = epoch(node) - u64::from(stale && epoch(node) > 0);
            if fenced { Command::FenceBroker { node, epoch } } else { Command::UnfenceBroker { node, epoch } }
        }
        Step::Create { topic: name, partitions, replicas, replicated } => {
            let mut config = BTreeMap::new();
            if replicated {
                config.insert("durability".into(), "replicated".into());
                config.insert("retention.ms".into(), "-1".into());
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
        Step::Isr { topic: name, partition: number, members, stale } => {
            let found = image.topic(&topic(name))?;
            let partition = found.partition(number)?;
            let node = partition.leader.unwrap_or(1);
            let isr =
                (1..5).filter(|node| members & (1 << node) != 0 || Some(*node) == partition.leader).collect();
            let change = IsrChange {
                topic: found.id,
                partition: number,
                leader_epoch: partition.leader_epoch - i32::from(stale == 1),
                partition_epoch: partition.partition_epoch.wrapping_sub(u32::from(stale == 2)),
                isr,
            };
            Command::AlterPartitions { node, epoch: epoch(node), changes: vec![change] }
        }
        Step::Elect { topic: name, partition: number, leader, stale } => {
            let found = image.topic(&topic(name))?;
            let partition_epoch = found.partition(number)?.partition_epoch.wrapping_sub(u32::from(stale));
            let leader = (leader > 0).then_some(leader);
            let election = Election { topic: found.id, partition: number, partition_epoch, leader };
            Command::ElectLeaders { elections: vec![election] }
        }
        Step::Control => controller::decide(image)?,
        Step::Deploy { name, topic, consumer } => function(name, topic, consumer),
        Step::Pause { name, paused: true } => Command::PauseFunction { name: format!("function-{name}") },
        Step::Pause { name, .. } => Command::ResumeFunction { name: format!("function-{name}") },
        Step::DeleteFunction { name } => Command::DeleteFunction { name: format!("function-{name}") },
    })
}

fn check_invariants(image: &MetadataImage) {
    let mut replicas = 0;
    for topic in image.topics() {
        assert_eq!(image.topic_by_id(topic.id), Some(topic));
        assert!(!topic.partitions.is_empty());
        for partition in &topic.partitions {
            replicas += partition.replicas.len() as u64;
            assert_eq!(partition.replicas.len(), topic.replicas as usize);
            for (list, what) in [(&partition.replicas, "replicas"), (&partition.isr, "isr")] {
                let distinct: std::collections::BTreeSet<_> = list.iter().collect();
                assert_eq!(distinct.len(), list.len(), "{what} are distinct");
            }
            assert!(
                partition.isr.iter().all(|node| partition.replicas.contains(node)),
                "the ISR is in the replicas"
            );
            assert!(
                partition.leader.is_none_or(|leader| partition.isr.contains(&leader)),
                "the leader is in the ISR"
            );
            assert!(partition.replicas.iter().all(|node| image.broker(*node).is_some()));
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

/// Epochs only rise, and a leader changes only with its epoch, unless it is lost.
fn check_change(before: &MetadataImage, after: &MetadataImage) {
    for old in before.topics() {
        let Some(new) = after.topic_by_id(old.id) else { continue };
        assert!(new.partitions.len() >= old.partitions.len());
        for (old, new) in old.partitions.iter().zip(&new.partitions) {
            assert!(new.leader_epoch >= old.leader_epoch && new.partition_epoch >= old.partition_epoch);
            assert!(old == new || new.partition_epoch > old.partition_epoch, "every change raises the epoch");
            let same_leader = new.leader == old.leader || new.leader.is_none();
            assert!(same_leader || new.leader_epoch > old.leader_epoch, "one leader an epoch");
        }
    }
    for old in before.brokers() {
        assert!(after.broker(old.node).is_some_and(|new| new.epoch >= old.epoch));
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
            check_change(&before, &image);
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
        let mut index = image.index();
        while let Some(decision) = controller::decide(&image) {
            index += 1;
            prop_assert!(index < steps.len() as u64 + 10, "the controller does not settle");
            let before = image.clone();
            let Ok(Applied::Partitions(results)) = image.apply(index, decision) else { panic!("refused") };
            prop_assert!(results.iter().all(Result::is_ok), "{results:?}");
            check_change(&before, &image);
        }
        for partition in image.topics().flat_map(|topic| &topic.partitions) {
            let able = |node: &u64| partition.isr.contains(node) && image.is_available(*node);
            prop_assert_eq!(partition.leader, partition.replicas.iter().copied().find(able));
        }
    }

    #[test]
    fn replicas_and_leaders_are_spread_evenly(brokers in 1..7u64, topics in prop::collection::vec((1..20u32, 1..4u32), 1..8)) {
        let mut image = cluster(brokers);
        for (number, (partitions, replicas)) in (0..).zip(topics) {
            let index = image.index() + 1;
            image.apply(index, create(topic(number), partitions, replicas.min(brokers as u32))).unwrap();
        }
        let (mut held, mut led) = (vec![0i64; brokers as usize], vec![0i64; brokers as usize]);
        for partition in image.topics().flat_map(|topic| &topic.partitions) {
            partition.replicas.iter().for_each(|node| held[*node as usize - 1] += 1);
            led[partition.leader.unwrap() as usize - 1] += 1;
        }
        let spread = |counts: &[i64]| counts.iter().max().unwrap() - counts.iter().min().unwrap();
        prop_assert!(spread(&held) <= 1, "{held:?}");
        prop_assert!(spread(&led) <= 2, "{led:?}");
    }
}

/// Brokers 1 to `brokers`, registered and up.
fn cluster(brokers: u64) -> MetadataImage {
    let mut image = MetadataImage::default();
    for node in 1..=brokers {
        let epoch = 2 * node - 1;
        image.apply(epoch, register(node)).unwrap();
        image.apply(epoch + 1, Command::UnfenceBroker { node, epoch }).unwrap();
    }
    image
}

fn apply(image: &mut MetadataImage, command: Command) -> Result<Applied, Rejected> {
    image.apply(image.index() + 1, command)
}

#[test]
fn replicas_are_spread_over_racks() {
    let mut image = MetadataImage::default();
    for node in 1..=6 {
        let Command::RegisterBroker(mut registration) = register(node) else { unreachable!() };
        registration.rack = Some(format!("rack-{}", node % 3));
        let Ok(Applied::Broker { epoch }) = apply(&mut image, Command::RegisterBroker(registration)) else {
            panic!("not registered")
        };
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
        "3 replicas need 3 brokers, and 1 can take one: ask for fewer, or start more brokers"
    );
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
        "topic topic-1 does not exist: create it with `bus topic create topic-1`"
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
    let Ok(Applied::Broker { epoch }) = apply(&mut image, register(1)) else { panic!() };
    assert_eq!(led(&image, 1), 0);
    let decision = controller::decide(&image).unwrap();
    apply(&mut image, decision).unwrap();
    assert_eq!(led(&image, 1), 0, "another replica in sync leads");
    assert_eq!(controller::decide(&image), None);
    apply(&mut image, Command::UnfenceBroker { node: 1, epoch }).unwrap();
    let decision = controller::decide(&image).unwrap();
    apply(&mut image, decision).unwrap();
    assert_eq!(led(&image, 1), 1, "the preferred leader is back");

    // With another directory it has lost its replicas, so it is not in sync any more.
    let Command::RegisterBroker(mut emptied) = register(1) else { unreachable!() };
    emptied.directory = DirectoryId([1; 16]);
    apply(&mut image, Command::RegisterBroker(emptied)).unwrap();
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
    let change =
        IsrChange { topic: wide.id, partition: 7, leader_epoch: 0, partition_epoch: 0, isr: vec![leader] };
    let applied = apply(&mut image, Command::AlterPartitions { node: leader, epoch, changes: vec![change] });
    assert_eq!(applied, Ok(Applied::Partitions(vec![Ok(1)])));
    let shared = reader.topics().zip(image.topics()).filter(|(a, b)| std::sync::Arc::ptr_eq(a, b)).count();
    assert_eq!(shared, 1_000);
    let decoded: MetadataImage = postcard::from_bytes(&postcard::to_stdvec(&image).unwrap()).unwrap();
    assert_eq!(decoded, image);
}
