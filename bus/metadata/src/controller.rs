//! What the Raft leader does by itself.
//!
//! The rules are functions of the image: not "broker 3 has gone" but "this partition's leader is fenced". So it
//! makes no difference which event was missed, or who led before. Whoever leads the group asks [`decide`] after
//! each change, proposes what it answers, and is done when it answers nothing. Every choice is a compare-and-set
//! on the partition's epoch, so one made on an old image does no harm.

use bus_protocol::NodeId;

use crate::{Command, Election, MetadataImage, Partition, limits};

/// The next command that the image calls for, or `None` where all is well. In this order:
///
/// 1. A partition whose leader is missing or fenced gets the first of its replicas that is in the ISR and up.
///    Where there is none it has no leader: nothing that was committed is given up for being available.
/// 2. A partition whose preferred leader (its first replica) is in the ISR and up, and does not lead, is led by
///    it again.
///
/// A command names at most [`limits::PARTITIONS_PER_COMMAND`] partitions; the rest come with the next one.
pub fn decide(image: &MetadataImage) -> Option<Command> {
    let mut elections = elections(image, |partition| {
        let led = partition.leader.is_some_and(|leader| eligible(image, partition, leader));
        (!led).then(|| partition.replicas.iter().copied().find(|node| eligible(image, partition, *node)))
    });
    if elections.is_empty() {
        elections = self::elections(image, |partition| {
            let preferred = *partition.replicas.first()?;
            eligible(image, partition, preferred).then_some(Some(preferred))
        });
    }
    (!elections.is_empty()).then_some(Command::ElectLeaders { elections })
}

/// The partitions whose leader is not the one that `choose` wants; its `None` leaves a partition as it is.
fn elections(image: &MetadataImage, choose: impl Fn(&Partition) -> Option<Option<NodeId>>) -> Vec<Election> {
    let mut found = Vec::new();
    for topic in image.topics() {
        for (number, partition) in (0..).zip(&topic.partitions) {
            match choose(partition) {
                Some(leader) if leader != partition.leader => {
                    let partition_epoch = partition.partition_epoch;
                    found.push(Election { topic: topic.id, partition: number, partition_epoch, leader });
                    if found.len() == limits::PARTITIONS_PER_COMMAND {
                        return found;
                    }
                }
                _ => {}
            }
        }
    }
    found
}

fn eligible(image: &MetadataImage, partition: &Partition, node: NodeId) -> bool {
    partition.isr.contains(&node) && image.is_available(node)
}
