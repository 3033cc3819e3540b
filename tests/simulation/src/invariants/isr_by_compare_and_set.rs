//! DESIGN §6.5: a partition changes by compare-and-set on its partition epoch, and a newcomer to the ISR is the one
//! that the leader has seen, in that registration (KIP-903), with the log that it has seen: all that is committed is in
//! it.

use bus_metadata::{Applied, Command, MetadataImage, Partition, Rejected};
use bus_protocol::{NodeId, Offset, PartitionId, TopicId};

use super::{Check, Place, violated};

const NAME: &str = "isr_by_compare_and_set";

/// `command` is what was asked for; `before` and `after` are the metadata around it.
pub(crate) fn check(
    command: &Command,
    applied: &Result<Applied, Rejected>,
    before: &MetadataImage,
    after: &MetadataImage,
) -> Check {
    for topic in after.topics() {
        for (number, partition) in (0..).zip(&topic.partitions) {
            let Some(was) = find(before, topic.id, number) else { continue };
            let same = (was.leader, &was.isr, &was.replicas)
                == (partition.leader, &partition.isr, &partition.replicas);
            if !same && partition.partition_epoch <= was.partition_epoch {
                let what =
                    format!("{}-{number} changes in partition epoch {}", topic.name, was.partition_epoch);
                return violated(NAME, what);
            }
        }
    }
    for (_, member, epoch) in newcomers(command, applied, before) {
        let registered = before.broker(member).map(|broker| broker.epoch);
        if registered != Some(epoch) {
            let what = format!(
                "node {member} joins in registration {registered:?}, and was seen in sync in {epoch}"
            );
            return violated(NAME, what);
        }
    }
    let Ok(Applied::Partitions(results)) = applied else { return Ok(()) };
    match command {
        Command::AlterPartitions { changes, .. } => {
            for (change, result) in changes.iter().zip(results) {
                if let Some(was) = find(before, change.topic, change.partition).filter(|_| result.is_ok()) {
                    check_epochs(change.partition_epoch, was)?;
                }
            }
        }
        Command::ChangePartitions { changes } => {
            for (change, result) in changes.iter().zip(results) {
                if let Some(was) = find(before, change.topic, change.partition).filter(|_| result.is_ok()) {
                    check_epochs(change.partition_epoch, was)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whom a command has joined to the ISR, each with the registration in which it was seen in sync.
pub(crate) fn newcomers(
    command: &Command,
    applied: &Result<Applied, Rejected>,
    before: &MetadataImage,
) -> Vec<(Place, NodeId, u64)> {
    let (Command::AlterPartitions { changes, .. }, Ok(Applied::Partitions(results))) = (command, applied)
    else {
        return Vec::new();
    };
    let granted = changes.iter().zip(results).filter(|(_, result)| result.is_ok());
    let joined = granted.flat_map(|(change, _)| {
        let was = find(before, change.topic, change.partition);
        let joins = move |member| was.is_some_and(|was| !was.isr.contains(member));
        let joined = change.isr.iter().filter(move |(member, _)| joins(member));
        joined.map(|(member, epoch)| ((change.topic, change.partition), *member, *epoch))
    });
    joined.collect()
}

/// A replica that has joined the ISR, and of which `kept` would be left; `None` where it has no log at all.
pub(crate) fn check_newcomer(
    (node, place): (NodeId, Place),
    kept: Option<Offset>,
    committed: Offset,
) -> Check {
    if kept.is_some_and(|kept| kept >= committed) {
        return Ok(());
    }
    let what = format!("node {node} joins {place:?} with {kept:?} stored, and {committed} is committed");
    violated(NAME, what)
}

fn find(image: &MetadataImage, topic: TopicId, number: PartitionId) -> Option<&Partition> {
    image.topic_by_id(topic)?.partition(number).map(|partition| &**partition)
}

fn check_epochs(made_on: u32, was: &Partition) -> Check {
    if made_on == was.partition_epoch {
        return Ok(());
    }
    let what = format!("a change made on partition epoch {made_on} is applied to {}", was.partition_epoch);
    violated(NAME, what)
}
