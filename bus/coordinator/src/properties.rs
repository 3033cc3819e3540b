//! The state is what the log says: replayed, cut, snapshotted, or damaged.

use bus_protocol::{TopicId, TopicName, TopicPartition};
use proptest::prelude::*;

use crate::{Commit, Error, Groups, Options, Record, partition_of};

#[derive(Clone, Debug)]
enum Step {
    Commit { group: u8, offsets: Vec<(u8, u8, i64)> },
    DeleteGroup(u8),
    DeleteOffsets(u8, u8),
    DeleteTopic(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let offsets = prop::collection::vec((0..4u8, 0..3u8, 0..1_000i64), 0..5);
    prop_oneof![
        6 => (0..4u8, offsets).prop_map(|(group, offsets)| Step::Commit { group, offsets }),
        1 => (0..4u8).prop_map(Step::DeleteGroup),
        1 => (0..4u8, 0..4u8).prop_map(|(group, topic)| Step::DeleteOffsets(group, topic)),
        1 => (0..4u8).prop_map(Step::DeleteTopic),
    ]
}

fn topic(number: u8) -> TopicName {
    TopicName::new(&format!("topic-{number}")).unwrap()
}

fn id(topic: u8) -> TopicId {
    TopicId(u64::from(topic) + 7)
}

fn new() -> Groups {
    Groups::new(Options::default()).unwrap()
}

fn apply(groups: &mut Groups, records: &[Record]) {
    for record in records {
        groups.apply(&record.key, record.value.as_deref()).unwrap();
    }
}

fn records(groups: &Groups, step: &Step, now: i64) -> Vec<Record> {
    let name = |group: &u8| format!("group-{group}");
    match step {
        Step::Commit { group, offsets } => {
            let commits: Vec<_> = offsets
                .iter()
                .map(|(number, partition, offset)| Commit {
                    topic: topic(*number),
                    topic_id: id(*number),
                    partition: u32::from(*partition),
                    offset: *offset,
                })
                .collect();
            groups.commit(&name(group), &commits, now).unwrap()
        }
        Step::DeleteGroup(group) => groups.delete_group(&name(group)).unwrap_or_default(),
        Step::DeleteOffsets(group, number) => {
            groups.delete_offsets(&name(group), &topic(*number)).unwrap_or_default()
        }
        Step::DeleteTopic(number) => groups.delete_orphans(|name, _| *name != topic(*number)).unwrap(),
    }
}

fn snapshot(groups: &Groups) -> Vec<Record> {
    groups.snapshot().collect::<Result<_, _>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_log_alone_gives_the_state(steps in prop::collection::vec(step(), 0..40), at in 0..40usize, torn in 0..20usize) {
        let (mut groups, mut log, mut compacted) = (new(), Vec::new(), Vec::new());
        for (index, step) in steps.iter().enumerate() {
            if index == at {
                let taken = snapshot(&groups);
                // A crash in the middle of a snapshot leaves a part of it behind all that was there.
                let mut torn_log = log.clone();
                torn_log.extend_from_slice(&taken[..torn.min(taken.len())]);
                let mut replayed = new();
                apply(&mut replayed, &torn_log);
                prop_assert_eq!(&replayed, &groups);
                compacted = taken;
            }
            let new = records(&groups, step, index as i64);
            apply(&mut groups, &new);
            log.extend_from_slice(&new);
            compacted.extend_from_slice(&new);
        }
        let mut replayed = new();
        apply(&mut replayed, &log);
        prop_assert_eq!(&replayed, &groups);
        let mut replayed = new();
        apply(&mut replayed, &compacted);
        prop_assert_eq!(&replayed, &groups);

        let taken = snapshot(&groups);
        prop_assert_eq!(taken.len(), groups.len());
        let bytes: u64 = taken
            .iter()
            .map(|record| (record.key.len() + record.value.as_ref().unwrap().len()) as u64 + 24)
            .sum();
        let exact = Options { snapshot_min_bytes: 1, snapshot_growth: 1, ..Options::default() };
        let mut replayed = Groups::new(exact).unwrap();
        apply(&mut replayed, &taken);
        prop_assert!(replayed.wants_snapshot(bytes.max(1)) && !replayed.wants_snapshot(bytes.max(1) - 1));
    }

    #[test]
    fn damage_is_an_error_and_changes_nothing(
        key in prop::collection::vec(any::<u8>(), 0..40),
        value in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        byte in 0..40usize,
    ) {
        let mut groups = new();
        let good = records(&groups, &Step::Commit { group: 1, offsets: vec![(1, 1, 300)] }, 9);
        apply(&mut groups, &good);
        let before = groups.clone();
        if groups.apply(&key, value.as_deref()).is_err() {
            prop_assert_eq!(&groups, &before);
        }
        let cut = &good[0].key[..byte.min(good[0].key.len() - 1)];
        prop_assert!(groups.apply(cut, None).is_err());
        let value = good[0].value.as_ref().unwrap();
        prop_assert!(groups.apply(&good[0].key, Some(&value[..byte.min(value.len() - 1)])).is_err());
    }
}

#[test]
fn the_last_commit_holds_and_only_for_the_same_topic() {
    let mut groups = new();
    let orders = TopicPartition::new(topic(1), 0);
    for (now, offset) in [(1, 10), (2, 20), (3, 15)] {
        let commit = Commit { topic: topic(1), topic_id: id(1), partition: 0, offset };
        let records = groups.commit("billing", &[commit], now).unwrap();
        apply(&mut groups, &records);
    }
    assert_eq!(groups.committed_offset("billing", id(1), &orders), Some(15));
    assert_eq!(groups.committed_offset("billing", id(2), &orders), None);
    assert_eq!(groups.committed("billing").unwrap()[&orders].timestamp, 3);
    assert_eq!(groups.committed("nobody"), None);
    assert_eq!(groups.groups().collect::<Vec<_>>(), ["billing"]);

    let gone = groups.delete_group("billing").unwrap();
    apply(&mut groups, &gone);
    assert!(groups.is_empty() && groups.groups().len() == 0);
    assert_eq!(groups.delete_group("billing"), Err(Error::UnknownGroup { group: "billing".into() }));
}

#[test]
fn limits_are_kept() {
    let options = Options { groups: 1, offsets: 2, offsets_per_commit: 3, ..Options::default() };
    let mut groups = Groups::new(options).unwrap();
    let commit = |partition, offset| Commit { topic: topic(1), topic_id: id(1), partition, offset };
    for name in ["", &"x".repeat(256), "a\nb"] {
        assert!(matches!(groups.commit(name, &[], 0), Err(Error::InvalidGroup { .. })), "{name:?}");
    }
    assert!(groups.commit(&"x".repeat(255), &[commit(0, 0)], 0).is_ok());
    assert!(matches!(groups.commit("a", &[commit(0, -1)], 0), Err(Error::NegativeOffset { .. })));
    let four: Vec<_> = (0..4).map(|partition| commit(partition, 0)).collect();
    assert!(matches!(groups.commit("a", &four, 0), Err(Error::CommitTooLarge { .. })));
    assert!(matches!(groups.commit("a", &four[..3], 0), Err(Error::Full { .. })));
    let records = groups.commit("a", &four[..2], 0).unwrap();
    apply(&mut groups, &records);
    assert!(groups.commit("a", &four[..2], 0).is_ok(), "what is there can be committed anew");
    assert!(matches!(groups.commit("a", &four[2..3], 0), Err(Error::Full { .. })));
    assert!(matches!(groups.commit("b", &four[..1], 0), Err(Error::Full { .. })));
    assert!(Groups::new(Options { offsets: 0, ..Options::default() }).is_err());
}

#[test]
fn a_later_version_is_told_from_damage() {
    let mut groups = new();
    assert_eq!(groups.apply(&[9, 0], None), Err(Error::Version { found: 9, known: 1 }));
    assert!(matches!(groups.apply(&[], None), Err(Error::Corrupt(_))));
}

#[test]
fn a_group_stays_in_its_partition() {
    // These are on disks: the numbers must never change.
    assert_eq!(partition_of("billing", 0), 0);
    let places = ["billing", "audit", "", "größe"].map(|group| partition_of(group, 50));
    assert_eq!(places, [1, 42, 31, 34]);
}
