//! What happens to a partition's leader and ISR.

use std::collections::BTreeSet;

use bus_protocol::{NodeId, PartitionId, TopicId};

use super::topics::{check_batch, check_partition_epoch};
use super::{MetadataImage, Partition, Topic};
use crate::{Applied, IsrChange, PartitionChange, Rejected};

impl MetadataImage {
    pub(super) fn alter_partitions(
        &mut self,
        node: NodeId,
        epoch: u64,
        changes: Vec<IsrChange>,
    ) -> Result<Applied, Rejected> {
        self.check_broker_epoch(node, epoch)?;
        check_batch(changes.len())?;
        Ok(Applied::Partitions(changes.into_iter().map(|change| self.alter_isr(node, change)).collect()))
    }

    fn alter_isr(&mut self, node: NodeId, change: IsrChange) -> Result<u32, Rejected> {
        let (topic, partition) = self.find(change.topic, change.partition)?;
        if partition.leader != Some(node) {
            let (topic, leader) = (topic.name.clone(), partition.leader);
            return Err(Rejected::NotLeader { node, topic, partition: change.partition, leader });
        }
        if partition.leader_epoch != change.leader_epoch {
            return Err(Rejected::FencedLeaderEpoch {
                topic: topic.name.clone(),
                partition: change.partition,
                epoch: change.leader_epoch,
                current: partition.leader_epoch,
            });
        }
        check_partition_epoch(topic, change.partition, partition, change.partition_epoch)?;
        let ineligible = |member: NodeId, why: &str| Rejected::Ineligible {
            node: member,
            wanted: "in the ISR of".into(),
            topic: topic.name.clone(),
            partition: change.partition,
            why: why.into(),
        };
        let isr: Vec<NodeId> = change.isr.iter().map(|(member, _)| *member).collect();
        if !isr.contains(&node) {
            return Err(ineligible(node, "the leader cannot leave its own ISR"));
        }
        for (place, (member, epoch)) in change.isr.iter().enumerate() {
            if isr[..place].contains(member) {
                return Err(ineligible(*member, "it is named twice"));
            }
            if !partition.replicas.contains(member) {
                return Err(ineligible(*member, "it holds no replica"));
            }
            if partition.isr.contains(member) {
                continue;
            }
            match self.brokers.get(member) {
                Some(broker) if broker.epoch != *epoch => {
                    return Err(ineligible(*member, "it has started again since it was seen in sync"));
                }
                Some(broker) if !broker.fenced => {}
                _ => return Err(ineligible(*member, "it is fenced")),
            }
        }
        if isr == partition.isr {
            return Ok(partition.partition_epoch);
        }
        self.change_partition(change.topic, change.partition, |partition| partition.isr = isr)
    }

    pub(super) fn change_partitions(&mut self, changes: Vec<PartitionChange>) -> Result<Applied, Rejected> {
        check_batch(changes.len())?;
        let topics: BTreeSet<TopicId> = changes.iter().map(|change| change.topic).collect();
        let results = changes.into_iter().map(|change| self.change(change)).collect();
        topics.into_iter().for_each(|topic| self.follow_replica_count(topic));
        Ok(Applied::Partitions(results))
    }

    fn change(&mut self, change: PartitionChange) -> Result<u32, Rejected> {
        let (topic, partition) = self.find(change.topic, change.partition)?;
        check_partition_epoch(topic, change.partition, partition, change.partition_epoch)?;
        check_replicas(topic, partition, &change)?;
        self.check_isr(topic, partition, &change)?;
        let PartitionChange { topic, partition: number, leader, isr, replicas, target, .. } = change;
        if (leader, &isr, &replicas, &target)
            == (partition.leader, &partition.isr, &partition.replicas, &partition.target)
        {
            return Ok(partition.partition_epoch);
        }
        let (before, after) = (partition.replicas.len() as u64, replicas.len() as u64);
        self.replicas = self.replicas.saturating_sub(before) + after;
        self.change_partition(topic, number, |partition| {
            if partition.leader != leader {
                partition.leader_epoch += 1;
            }
            (partition.replicas, partition.isr) = (replicas, isr);
            (partition.leader, partition.target) = (leader, target);
        })
    }

    /// The rules of a change's leader and ISR: nobody comes into the ISR, somebody stays in it, and the leader is in
    /// it and up; or the election is unclean, and the topic allows that.
    fn check_isr(
        &self,
        topic: &Topic,
        partition: &Partition,
        change: &PartitionChange,
    ) -> Result<(), Rejected> {
        let ineligible = |node: NodeId, wanted: &str, why: &str| Rejected::Ineligible {
            node,
            wanted: wanted.into(),
            topic: topic.name.clone(),
            partition: change.partition,
            why: why.into(),
        };
        if let Some(leader) = change.leader {
            let why = if !change.isr.contains(&leader) {
                "it is not in sync"
            } else if self.is_available(leader) {
                ""
            } else {
                "it is fenced"
            };
            if !why.is_empty() {
                return Err(ineligible(leader, "the leader of", why));
            }
        }
        for (place, member) in change.isr.iter().enumerate() {
            if change.isr[..place].contains(member) {
                return Err(ineligible(*member, "in the ISR of", "it is named twice"));
            }
            if !change.replicas.contains(member) {
                return Err(ineligible(*member, "in the ISR of", "it holds no replica"));
            }
        }
        if let Some(outsider) = change.isr.iter().find(|member| !partition.isr.contains(member)) {
            let why = if !topic.config.unclean_leader_election {
                "it is not in sync, and unclean.leader.election.enable is false"
            } else if partition.isr.iter().any(|member| self.is_available(*member)) {
                "it is not in sync, and another replica is"
            } else if change.isr.len() > 1 || change.leader.is_none() {
                "after an unclean election the leader is alone in the ISR"
            } else {
                return Ok(());
            };
            return Err(ineligible(*outsider, "in the ISR of", why));
        }
        if change.isr.is_empty() && !partition.isr.is_empty() {
            return Err(invalid(topic, change.partition, "the last replica in sync stays in the ISR"));
        }
        Ok(())
    }

    pub(super) fn report_lost(
        &mut self,
        node: NodeId,
        epoch: u64,
        partitions: Vec<(TopicId, PartitionId)>,
    ) -> Result<Applied, Rejected> {
        self.check_broker_epoch(node, epoch)?;
        check_batch(partitions.len())?;
        let lost = partitions.into_iter().map(|(topic, number)| self.lose(node, topic, number));
        Ok(Applied::Partitions(lost.collect()))
    }

    fn lose(&mut self, node: NodeId, id: TopicId, number: PartitionId) -> Result<u32, Rejected> {
        let (topic, partition) = self.find(id, number)?;
        if !partition.replicas.contains(&node) {
            let why = format!("broker {node} holds no replica that it could lose");
            return Err(invalid(topic, number, &why));
        }
        // What the last one in the ISR has left is the most that there is: it is for an operator to give it up.
        if partition.isr == [node] {
            return Ok(partition.partition_epoch);
        }
        self.change_partition(id, number, |partition| {
            leave_isr(partition, node);
            partition.since.remove(&node);
        })
    }

    pub(super) fn report_full(
        &mut self,
        node: NodeId,
        epoch: u64,
        partitions: Vec<(TopicId, PartitionId)>,
    ) -> Result<Applied, Rejected> {
        self.check_broker_epoch(node, epoch)?;
        check_batch(partitions.len())?;
        let spare = |(topic, number)| {
            let partition = self.find(topic, number)?.1.partition_epoch;
            if self.can_spare(node, topic, number) {
                self.change_partition(topic, number, |partition| leave_isr(partition, node))
            } else {
                Ok(partition)
            }
        };
        Ok(Applied::Partitions(partitions.into_iter().map(spare).collect()))
    }

    /// Whether a partition can do without a broker in its ISR, which that is in: as many of the others are in it, and
    /// up, as `min.insync.replicas` wants, and at least one, who can lead.
    pub fn can_spare(&self, node: NodeId, topic: TopicId, number: PartitionId) -> bool {
        let Ok((topic, partition)) = self.find(topic, number) else { return false };
        let others = partition.isr.iter().filter(|member| **member != node && self.is_available(**member));
        partition.isr.contains(&node) && others.count() >= (topic.config.min_insync_replicas as usize).max(1)
    }
}

fn leave_isr(partition: &mut Partition, node: NodeId) {
    partition.isr.retain(|member| *member != node);
    // Whoever leads next does so in a new leader epoch.
    partition.leader = partition.leader.filter(|leader| *leader != node);
}

/// The rules of a change's replicas: they stay, or become the target once that is in sync.
fn check_replicas(topic: &Topic, partition: &Partition, change: &PartitionChange) -> Result<(), Rejected> {
    let why = match (&partition.target, &change.target) {
        (before, after) if before == after && partition.replicas == change.replicas => return Ok(()),
        (Some(wanted), None) if *wanted == change.replicas => {
            if wanted.iter().all(|node| change.isr.contains(node)) {
                return Ok(());
            }
            "not all of the replicas wanted are in sync"
        }
        _ => "replicas change only to those that a reassignment wants",
    };
    Err(invalid(topic, change.partition, why))
}

fn invalid(topic: &Topic, partition: PartitionId, why: &str) -> Rejected {
    Rejected::InvalidChange { topic: topic.name.clone(), partition, why: why.to_owned() }
}
