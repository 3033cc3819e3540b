//! The topics that run on this node: what the reconciler keeps, and every handler looks up.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bus_function::Chain;
use bus_protocol::{ErrorCode, PartitionId, TopicConfig, TopicId, TopicName, WireError};
use bus_replica::Partition;

/// All topics that run here. Lookups are lock-free; only the reconciler writes.
/// Clones show the same.
#[derive(Clone, Default)]
pub(crate) struct Topics {
    running: Arc<ArcSwap<HashMap<TopicName, Arc<Topic>>>>,
}

/// One topic, as it runs here. Produce streams hold it over their life and see its parts change.
pub(crate) struct Topic {
    pub(crate) name: TopicName,
    pub(crate) id: TopicId,
    pub(crate) config: ArcSwap<TopicConfig>,
    pub(crate) partitions: ArcSwap<Vec<Served>>,
    /// The transforms on the topic's way in, or why they cannot run: then nothing may come in.
    pub(crate) chain: ArcSwap<Result<Chain, String>>,
    /// Held for reading by each batch from before it looks at the chain until it is ordered.
    pub(crate) passing: tokio::sync::RwLock<()>,
}

/// One partition of a topic, as seen from this node.
#[derive(Clone)]
pub(crate) enum Served {
    /// This node leads it.
    Here(Partition),
    /// This node should lead it, but its log does not open.
    Offline(String),
    /// Another node leads it, or nobody.
    Elsewhere,
}

impl Topics {
    /// The topic of that name.
    pub(crate) fn get(&self, name: &TopicName) -> Result<Arc<Topic>, WireError> {
        self.running.load().get(name).cloned().ok_or_else(|| unknown_topic(name))
    }

    /// The topic and the partition of it, if this node leads it and it is online.
    pub(crate) fn partition(
        &self,
        name: &TopicName,
        partition: PartitionId,
    ) -> Result<(Arc<Topic>, Partition), WireError> {
        let topic = self.get(name)?;
        let served = topic.partition(partition)?;
        Ok((topic, served))
    }

    /// Everything that runs here.
    pub(crate) fn all(&self) -> Arc<HashMap<TopicName, Arc<Topic>>> {
        self.running.load_full()
    }

    /// Replaces what runs here. For the reconciler.
    pub(crate) fn publish(&self, running: HashMap<TopicName, Arc<Topic>>) {
        self.running.store(Arc::new(running));
    }
}

impl Topic {
    /// The partition of that number, if this node leads it and it is online.
    pub(crate) fn partition(&self, partition: PartitionId) -> Result<Partition, WireError> {
        let partitions = self.partitions.load();
        match partitions.get(partition as usize) {
            Some(Served::Here(partition)) => Ok(partition.clone()),
            Some(Served::Offline(why)) => Err(WireError::new(
                ErrorCode::StorageFailed,
                format!("partition {}-{partition} is offline: {why}", self.name),
            )),
            Some(Served::Elsewhere) => Err(WireError::new(
                ErrorCode::NotLeader,
                format!("this broker does not lead partition {}-{partition}", self.name),
            )),
            None => Err(WireError::new(
                ErrorCode::UnknownPartition,
                format!(
                    "topic {} has no partition {partition}: it has {}, from 0",
                    self.name,
                    partitions.len()
                ),
            )),
        }
    }
}

impl Topic {
    /// Puts other transforms on the topic's way in. When it returns, no batch is under way through the old ones.
    pub(crate) async fn set_chain(&self, chain: Result<Chain, String>) {
        let before = self.chain.swap(Arc::new(chain));
        if !same(&before, &self.chain.load()) {
            drop(self.passing.write().await);
        }
    }

    /// The partitions of it that this node leads.
    pub(crate) fn led(&self) -> Vec<Partition> {
        let partitions = self.partitions.load();
        let led = partitions.iter().filter_map(|served| match served {
            Served::Here(partition) => Some(partition.clone()),
            Served::Offline(_) | Served::Elsewhere => None,
        });
        led.collect()
    }
}

fn same(before: &Result<Chain, String>, after: &Result<Chain, String>) -> bool {
    match (before, after) {
        (Ok(before), Ok(after)) => {
            let (before, after) = (before.functions(), after.functions());
            before.len() == after.len() && before.iter().zip(after).all(|(a, b)| Arc::ptr_eq(a, b))
        }
        _ => false,
    }
}

/// The refusal of a topic that does not exist.
pub(crate) fn unknown_topic(name: &TopicName) -> WireError {
    WireError::new(
        ErrorCode::UnknownTopic,
        format!("topic {name} does not exist: `bus topic create {name}` makes it"),
    )
}
