//! Topics and their partitions.

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_protocol::request::CreateTopic;
use bus_protocol::{Epoch, NodeId, PartitionId, TopicConfig, TopicId, TopicName, limits as protocol};
use serde::{Deserialize, Serialize};

use super::{MetadataImage, Placement};
use crate::{Applied, Rejected, limits};

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topic {
    /// Its identity, which no other topic ever has.
    pub id: TopicId,
    /// Its name.
    pub name: TopicName,
    /// Its settings.
    #[serde(with = "super::settings")]
    pub config: TopicConfig,
    /// How many replicas each partition has that is added.
    pub replicas: u32,
    /// Its partitions, by number.
    pub partitions: Vec<Arc<Partition>>,
}

impl Topic {
    /// A partition.
    pub fn partition(&self, partition: PartitionId) -> Option<&Arc<Partition>> {
        self.partitions.get(usize::try_from(partition).ok()?)
    }
}

/// Where a partition stands. The leader is in the ISR, and the ISR within the replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Who holds it; the first is the preferred leader. The target's members stand among them.
    pub replicas: Vec<NodeId>,
    /// In which partition epoch each of them joined, or was found to have lost all that it had: what a replica stored
    /// before says nothing of what it has now.
    pub since: BTreeMap<NodeId, u32>,
    /// Who of them holds all that is committed, in no order that matters. Empty when the last of them lost its
    /// disk.
    pub isr: Vec<NodeId>,
    /// Who leads it; `None` while it is offline.
    pub leader: Option<NodeId>,
    /// Raised at each election.
    pub leader_epoch: Epoch,
    /// Raised at each change of anything else here.
    pub partition_epoch: u32,
    /// While the partition is being reassigned: who of the replicas will hold it, the next preferred leader first.
    /// The others go once all of these are in the ISR.
    pub target: Option<Vec<NodeId>>,
}

impl Partition {
    /// The replicas that it has, or will have once its reassignment is through.
    pub fn wanted(&self) -> &[NodeId] {
        self.target.as_deref().unwrap_or(&self.replicas)
    }

    /// Changes it, and raises its epoch, which is the one since when newcomers hold it, and those that `change` took out
    /// of `since`. The others hold it for as long as they did. Gives the new epoch.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Self)) -> u32 {
        change(self);
        self.partition_epoch += 1;
        let since = |node: &NodeId| (*node, self.since.get(node).copied().unwrap_or(self.partition_epoch));
        self.since = self.replicas.iter().map(since).collect();
        self.partition_epoch
    }
}

impl MetadataImage {
    pub(super) fn create_topic(&mut self, index: u64, wanted: CreateTopic) -> Result<Applied, Rejected> {
        if let Some(topic) = self.topics.get(&wanted.topic) {
            return if wanted.if_not_exists {
                Ok(Applied::Topic { id: topic.id, created: false })
            } else {
                Err(Rejected::TopicExists { topic: wanted.topic })
            };
        }
        if self.topics.len() >= limits::TOPICS {
            return Err(Rejected::Full { what: "topics".into(), limit: limits::TOPICS as u64 });
        }
        check_partition_count(wanted.partitions)?;
        let config = TopicConfig::parse(&wanted.config)
            .map_err(|error| Rejected::InvalidConfig { message: error.to_string() })?;
        check_in_sync(&config, wanted.replicas)?;
        let partitions = self.place(wanted.partitions, wanted.replicas)?;
        let id = TopicId(index);
        let topic = Topic { id, name: wanted.topic.clone(), config, replicas: wanted.replicas, partitions };
        Arc::make_mut(&mut self.topics).insert(wanted.topic.clone(), Arc::new(topic));
        Arc::make_mut(&mut self.topic_names).insert(id, wanted.topic);
        Ok(Applied::Topic { id, created: true })
    }

    pub(super) fn alter_topic(
        &mut self,
        name: &TopicName,
        partitions: Option<u32>,
        settings: &BTreeMap<String, String>,
    ) -> Result<Applied, Rejected> {
        let topic = self.topics.get(name).ok_or_else(|| Rejected::UnknownTopic { topic: name.clone() })?;
        let mut config = topic.config.clone();
        settings
            .iter()
            .try_for_each(|(key, value)| config.set(key, value))
            .map_err(|error| Rejected::InvalidConfig { message: error.to_string() })?;
        let wanted = |partition: &Arc<Partition>| partition.wanted().len();
        let fewest = topic.partitions.iter().map(wanted).min().unwrap_or_default();
        check_in_sync(&config, topic.replicas.min(u32::try_from(fewest).unwrap_or(u32::MAX)))?;
        let current = partition_count(topic);
        let added = match partitions {
            Some(partitions) if partitions < current => {
                return Err(Rejected::FewerPartitions { topic: name.clone(), current, partitions });
            }
            Some(partitions) if partitions > current => {
                check_partition_count(partitions)?;
                let replicas = topic.replicas;
                self.place(partitions - current, replicas)?
            }
            _ => Vec::new(),
        };
        if let Some(topic) = Arc::make_mut(&mut self.topics).get_mut(name) {
            let topic = Arc::make_mut(topic);
            topic.config = config;
            topic.partitions.extend(added);
        }
        Ok(Applied::Done)
    }

    pub(super) fn delete_topic(&mut self, name: &TopicName) -> Result<Applied, Rejected> {
        let topic = self.topics.get(name).ok_or_else(|| Rejected::UnknownTopic { topic: name.clone() })?;
        let functions = self.functions_naming(name);
        if !functions.is_empty() {
            return Err(Rejected::TopicInUse { topic: name.clone(), functions });
        }
        let id = topic.id;
        let replicas: usize = topic.partitions.iter().map(|partition| partition.replicas.len()).sum();
        self.replicas = self.replicas.saturating_sub(replicas as u64);
        Arc::make_mut(&mut self.topics).remove(name);
        Arc::make_mut(&mut self.topic_names).remove(&id);
        Ok(Applied::Done)
    }

    pub(super) fn find(&self, id: TopicId, number: PartitionId) -> Result<(&Topic, &Partition), Rejected> {
        let topic = self.topic_by_id(id).ok_or(Rejected::UnknownTopicId { id })?;
        let partition = topic.partition(number).ok_or_else(|| Rejected::UnknownPartition {
            topic: topic.name.clone(),
            partition: number,
            partitions: partition_count(topic),
        })?;
        Ok((topic, partition))
    }

    /// Changes a partition that [`Self::find`] has found, and raises its epoch.
    pub(super) fn change_partition(
        &mut self,
        id: TopicId,
        number: PartitionId,
        change: impl FnOnce(&mut Partition),
    ) -> Result<u32, Rejected> {
        let name = self.topic_names.get(&id).ok_or(Rejected::UnknownTopicId { id })?;
        let topic = Arc::make_mut(&mut self.topics).get_mut(name).ok_or(Rejected::UnknownTopicId { id })?;
        let topic = Arc::make_mut(topic);
        let (name, partitions) = (&topic.name, partition_count(topic));
        let partition = usize::try_from(number).ok().and_then(|number| topic.partitions.get_mut(number));
        let partition = Arc::make_mut(partition.ok_or_else(|| Rejected::UnknownPartition {
            topic: name.clone(),
            partition: number,
            partitions,
        })?);
        Ok(partition.change(change))
    }

    /// New partitions, each with its replicas, and counts them.
    fn place(&mut self, partitions: u32, replicas: u32) -> Result<Vec<Arc<Partition>>, Rejected> {
        let more = u64::from(partitions) * u64::from(replicas);
        if self.replicas + more > limits::REPLICAS as u64 {
            return Err(Rejected::Full { what: "replicas".into(), limit: limits::REPLICAS as u64 });
        }
        let mut placement = Placement::of(self);
        let placed = (0..partitions)
            .map(|_| {
                let replicas = placement.next(replicas)?;
                let (isr, leader) = (replicas.clone(), replicas.first().copied());
                let (leader_epoch, partition_epoch, target) = (0, 0, None);
                let since = replicas.iter().map(|node| (*node, partition_epoch)).collect();
                Ok(Arc::new(Partition {
                    replicas,
                    since,
                    isr,
                    leader,
                    leader_epoch,
                    partition_epoch,
                    target,
                }))
            })
            .collect::<Result<Vec<_>, Rejected>>()?;
        self.replicas += more;
        Ok(placed)
    }
}

fn partition_count(topic: &Topic) -> u32 {
    u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX)
}

fn check_partition_count(partitions: u32) -> Result<(), Rejected> {
    let limit = protocol::PARTITIONS_PER_TOPIC;
    if (1..=limit).contains(&partitions) {
        Ok(())
    } else {
        Err(Rejected::PartitionCount { partitions, limit })
    }
}

/// A topic that could never take a record with `acks=all` is a mistake.
fn check_in_sync(config: &TopicConfig, replicas: u32) -> Result<(), Rejected> {
    if config.min_insync_replicas > replicas.max(1) {
        return Err(Rejected::InvalidConfig {
            message: format!(
                "min.insync.replicas of {} is more than the topic's {replicas} replicas: no record could be stored",
                config.min_insync_replicas
            ),
        });
    }
    Ok(())
}

pub(super) fn check_batch(partitions: usize) -> Result<(), Rejected> {
    if partitions > limits::PARTITIONS_PER_COMMAND {
        let limit = limits::PARTITIONS_PER_COMMAND as u64;
        return Err(Rejected::Full { what: "partitions in one command".into(), limit });
    }
    Ok(())
}

pub(super) fn check_partition_epoch(
    topic: &Topic,
    number: PartitionId,
    partition: &Partition,
    epoch: u32,
) -> Result<(), Rejected> {
    if partition.partition_epoch != epoch {
        let (topic, current) = (topic.name.clone(), partition.partition_epoch);
        return Err(Rejected::StalePartitionEpoch { topic, partition: number, epoch, current });
    }
    Ok(())
}
