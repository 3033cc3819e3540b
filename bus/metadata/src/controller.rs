//! What the Raft leader does by itself.
//!
//! The rules are functions of the image: not "broker 3 has gone" but "this partition's leader is fenced". So it
//! makes no difference which event was missed, or who led before. Whoever leads the group asks [`decide`] after
//! each change, proposes what it answers, and is done when it answers nothing. Every choice is a compare-and-set
//! on the partition's epoch, so one made on an old image does no harm.

#[cfg(test)]
mod properties;

use bus_protocol::NodeId;

use crate::{Command, MetadataImage, Partition, PartitionChange, Topic, limits};

/// The next command that the image calls for, or `None` where all is well.
///
/// 1. A partition whose leader is missing or fenced gets the first of its replicas that is in the ISR and up, one
///    that is not drained if there is one. Where there is none it has no leader: nothing that was committed is given
///    up for being available, unless the topic's `unclean.leader.election.enable` says so; then the first replica
///    that is up leads, alone in the ISR. Fenced replicas leave the ISR as long as `min.insync.replicas` stay in it.
/// 2. A reassigned partition all of whose wanted replicas are in the ISR has those replicas, and no others.
/// 3. A partition that a drained broker leads is led by another that is in the ISR, up, and not drained.
/// 4. A partition whose preferred leader (its first replica) is in the ISR, up, and not drained, is led by it again.
///
/// What the first rule asks for comes before the rest. A command names at most
/// [`limits::PARTITIONS_PER_COMMAND`] partitions, each once; the rest come with the next one. Applied again and again
/// it comes to rest, and it chooses nothing twice.
pub fn decide(image: &MetadataImage) -> Option<Command> {
    let (mut urgent, mut rest) = (Vec::new(), Vec::new());
    'all: for topic in image.topics() {
        for (number, partition) in (0..).zip(&topic.partitions) {
            let Some(wanted) = wanted(image, topic, partition) else { continue };
            let held_up = !partition.leader.is_some_and(|leader| image.is_available(leader))
                || partition.isr.iter().any(|member| !image.is_available(*member));
            let changes = if held_up { &mut urgent } else { &mut rest };
            if changes.len() < limits::PARTITIONS_PER_COMMAND {
                let Wanted { leader, isr, replicas, target } = wanted;
                let (topic, partition_epoch) = (topic.id, partition.partition_epoch);
                changes.push(PartitionChange {
                    topic,
                    partition: number,
                    partition_epoch,
                    leader,
                    isr,
                    replicas,
                    target,
                });
            }
            if urgent.len() == limits::PARTITIONS_PER_COMMAND {
                break 'all;
            }
        }
    }
    let changes = if urgent.is_empty() { rest } else { urgent };
    (!changes.is_empty()).then_some(Command::ChangePartitions { changes })
}

/// How a partition should stand.
struct Wanted {
    leader: Option<NodeId>,
    isr: Vec<NodeId>,
    replicas: Vec<NodeId>,
    target: Option<Vec<NodeId>>,
}

/// How a partition should stand, if it does not.
fn wanted(image: &MetadataImage, topic: &Topic, partition: &Partition) -> Option<Wanted> {
    let up: Vec<NodeId> =
        partition.isr.iter().copied().filter(|member| image.is_available(*member)).collect();
    let keep = |leader: Option<NodeId>, isr: Vec<NodeId>| Wanted {
        leader,
        isr,
        replicas: partition.replicas.clone(),
        target: partition.target.clone(),
    };
    let wanted = if up.is_empty() {
        let mut alive: Vec<NodeId> =
            partition.replicas.iter().copied().filter(|node| image.is_available(*node)).collect();
        if !topic.config.unclean_leader_election {
            alive.clear();
        }
        match choose(image, &alive, &alive, None) {
            Some(leader) => keep(Some(leader), vec![leader]),
            None => keep(None, partition.isr.clone()),
        }
    } else {
        match &partition.target {
            Some(target) if target.iter().all(|node| up.contains(node)) => {
                let isr: Vec<_> = up.into_iter().filter(|node| target.contains(node)).collect();
                let leader = choose(image, target, &isr, partition.leader);
                Wanted { leader, isr, replicas: target.clone(), target: None }
            }
            _ => keep(
                choose(image, &partition.replicas, &up, partition.leader),
                staying(topic, partition, &up),
            ),
        }
    };
    let settled = wanted.leader == partition.leader
        && wanted.isr == partition.isr
        && wanted.replicas == partition.replicas
        && wanted.target == partition.target;
    (!settled).then_some(wanted)
}

/// Who stays in the ISR: those that are up, and of the others as many as `min.insync.replicas` wants. With fewer nothing
/// would be committed in any case, and so all of them have all that is committed: should the one that is up vanish,
/// another can be elected with nothing lost (what Kafka's KIP-966 keeps a list of its own for).
fn staying(topic: &Topic, partition: &Partition, up: &[NodeId]) -> Vec<NodeId> {
    let min = topic.config.min_insync_replicas as usize;
    let down = partition.isr.iter().filter(|member| !up.contains(member));
    let kept: Vec<NodeId> = down.take(min.saturating_sub(up.len())).copied().collect();
    partition.isr.iter().filter(|member| up.contains(member) || kept.contains(member)).copied().collect()
}

/// Who leads, of those `able` to: the preferred leader, or who does now, or the first; a drained one only where all
/// are drained.
fn choose(
    image: &MetadataImage,
    replicas: &[NodeId],
    able: &[NodeId],
    now: Option<NodeId>,
) -> Option<NodeId> {
    let all_drained = able.iter().all(|node| image.is_drained(*node));
    let fit = |node: &NodeId| able.contains(node) && (all_drained || !image.is_drained(*node));
    let preferred = replicas.first().copied().filter(fit);
    preferred.or(now.filter(fit)).or_else(|| replicas.iter().copied().find(fit))
}
