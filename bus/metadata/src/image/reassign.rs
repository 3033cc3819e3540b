//! Reassignment: other replicas for partitions.

use std::collections::BTreeSet;
use std::sync::Arc;

use bus_protocol::{NodeId, PartitionId, TopicId};

use super::topics::check_batch;
use super::{MetadataImage, Partition, Topic};
use crate::{Applied, Rejected, limits};

impl MetadataImage {
    pub(super) fn reassign(
        &mut self,
        changes: Vec<(TopicId, PartitionId, Vec<NodeId>)>,
        throttle: Option<u64>,
    ) -> Result<Applied, Rejected> {
        check_batch(changes.len())?;
        let mut named = BTreeSet::new();
        let (mut before, mut after) = (0, 0);
        for (id, number, wanted) in &changes {
            let (topic, partition) = self.find(*id, *number)?;
            self.check_wanted(topic, *number, wanted)?;
            if !named.insert((*id, *number)) {
                let why = "the partition is named twice: name it once";
                return Err(invalid(topic, *number, wanted, why));
            }
            let merged = merge(partition, wanted);
            if merged.len() > wanted.len() {
                self.check_up(topic, *number, wanted)?;
            }
            before += partition.replicas.len() as u64;
            after += merged.len() as u64;
        }
        if self.replicas - before + after > limits::REPLICAS as u64 {
            return Err(Rejected::Full { what: "replicas".into(), limit: limits::REPLICAS as u64 });
        }
        let mut moving = 0;
        for (id, number, wanted) in changes {
            let (_, partition) = self.find(id, number)?;
            let mut replicas = merge(partition, &wanted);
            // All are there already: only who is preferred changes, or a reassignment is cancelled.
            let target = if replicas.len() == wanted.len() {
                replicas = wanted;
                None
            } else {
                moving += 1;
                Some(wanted)
            };
            if partition.replicas != replicas || partition.target != target {
                let before = partition.replicas.len() as u64;
                self.replicas = self.replicas.saturating_sub(before) + replicas.len() as u64;
                self.change_partition(id, number, |partition| {
                    partition.replicas = replicas;
                    partition.target = target;
                })?;
            }
        }
        named.into_iter().map(|(topic, _)| topic).for_each(|topic| self.follow_replica_count(topic));
        self.replication_throttle = throttle.unwrap_or(self.replication_throttle);
        Ok(Applied::Reassigned { partitions: moving })
    }

    fn check_wanted(&self, topic: &Topic, number: PartitionId, wanted: &[NodeId]) -> Result<(), Rejected> {
        let most = limits::REPLICAS_PER_PARTITION as usize;
        if wanted.is_empty() || wanted.len() > most {
            return Err(invalid(topic, number, wanted, &format!("name 1 to {most} brokers")));
        }
        for (place, node) in wanted.iter().enumerate() {
            self.check_exists(*node)?;
            if wanted[..place].contains(node) {
                return Err(invalid(topic, number, wanted, &format!("broker {node} is named twice")));
            }
        }
        let least = topic.config.min_insync_replicas;
        if wanted.len() < least as usize {
            let why = format!("min.insync.replicas is {least}: name as many brokers, or lower it first");
            return Err(invalid(topic, number, wanted, &why));
        }
        Ok(())
    }

    /// Refuses to move a partition to where a broker is down: it would wait for that one, and hold the old replicas as
    /// long. Where nothing moves (another order, or a reassignment called off) nobody has to be up.
    fn check_up(&self, topic: &Topic, number: PartitionId, wanted: &[NodeId]) -> Result<(), Rejected> {
        match wanted.iter().find(|node| !self.is_available(**node)) {
            Some(down) => Err(invalid(
                topic,
                number,
                wanted,
                &format!("broker {down} is down: start it, or name another"),
            )),
            None => Ok(()),
        }
    }

    /// Partitions that are added to a topic get as many replicas as all the others have.
    pub(super) fn follow_replica_count(&mut self, id: TopicId) {
        let Some(topic) = self.topic_by_id(id) else { return };
        let count =
            |partition: &Arc<Partition>| partition.target.is_none().then_some(partition.replicas.len());
        let Some(replicas) = topic.partitions.first().and_then(count) else { return };
        let Ok(replicas_wanted) = u32::try_from(replicas) else { return };
        if topic.replicas == replicas_wanted
            || topic.partitions.iter().any(|partition| count(partition) != Some(replicas))
        {
            return;
        }
        let name = topic.name.clone();
        if let Some(topic) = Arc::make_mut(&mut self.topics).get_mut(&name) {
            Arc::make_mut(topic).replicas = replicas_wanted;
        }
    }
}

/// Who holds a partition while it is on its way to `wanted`: those who do, and the new ones. Whom only an earlier
/// reassignment wanted, and who is not in sync yet, is let go at once.
fn merge(partition: &Partition, wanted: &[NodeId]) -> Vec<NodeId> {
    let given_up = |node: &NodeId| {
        partition.target.as_ref().is_some_and(|target| target.contains(node))
            && !partition.isr.contains(node)
            && !wanted.contains(node)
    };
    let mut replicas: Vec<_> = partition.replicas.iter().copied().filter(|node| !given_up(node)).collect();
    replicas.extend(wanted.iter().copied().filter(|node| !partition.replicas.contains(node)));
    replicas
}

fn invalid(topic: &Topic, partition: PartitionId, wanted: &[NodeId], why: &str) -> Rejected {
    let replicas = wanted.iter().copied().take(limits::REPLICAS_PER_PARTITION as usize + 1).collect();
    Rejected::InvalidReplicas { topic: topic.name.clone(), partition, replicas, why: why.to_owned() }
}
