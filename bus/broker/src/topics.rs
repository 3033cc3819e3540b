//! The topics that run on this node: what the reconciler keeps, and every handler looks up.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bus_function::Chain;
use bus_protocol::{ErrorCode, LeaderHint, PartitionId, TopicConfig, TopicId, TopicName, WireError};
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
    /// This node holds a replica; another leads it, or nobody.
    Follows(Partition, Option<LeaderHint>),
    /// This node holds a replica whose log does not open.
    Offline(String),
    /// This node holds no replica; who leads it, if anybody does.
    Elsewhere(Option<LeaderHint>),
}

impl Served {
    /// The replica that runs here, in whichever role.
    pub(crate) fn replica(&self) -> Option<&Partition> {
        match self {
            Self::Here(partition) | Self::Follows(partition, _) => Some(partition),
            Self::Offline(_) | Self::Elsewhere(_) => None,
        }
    }
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
    /// Refuses a client that means another topic of this name: an earlier one that was deleted, or a later one that this
    /// node has not heard of yet.
    pub(crate) fn is_meant(&self, id: Option<TopicId>) -> Result<(), WireError> {
        match id {
            Some(id) if id != self.id => {
                let Self { name, id: now, .. } = self;
                let message =
                    format!("topic {name} is not the one meant: here it has the id {now}, not {id}");
                Err(WireError::new(ErrorCode::UnknownTopic, message))
            }
            _ => Ok(()),
        }
    }

    /// The partition of that number, if this node leads it and it is online.
    pub(crate) fn partition(&self, partition: PartitionId) -> Result<Partition, WireError> {
        let partitions = self.partitions.load();
        match partitions.get(partition as usize) {
            Some(Served::Here(partition)) => Ok(partition.clone()),
            Some(Served::Offline(why)) => Err(WireError::new(
                ErrorCode::StorageFailed,
                format!("partition {}-{partition} is offline: {why}", self.name),
            )),
            Some(Served::Follows(_, leader) | Served::Elsewhere(leader)) => {
                let who =
                    leader.map_or("nobody does".to_owned(), |leader| format!("node {} does", leader.node));
                let message = format!("this broker does not lead partition {}-{partition}: {who}", self.name);
                Err(WireError { leader: *leader, ..WireError::new(ErrorCode::NotLeader, message) })
            }
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

    /// Adds to a refusal who leads the partition now, where another does.
    pub(crate) fn with_leader(&self, partition: PartitionId, refused: WireError) -> WireError {
        match (refused.code, self.partition(partition)) {
            (ErrorCode::NotLeader, Err(now)) if now.leader.is_some() => now,
            _ => refused,
        }
    }

    /// Whether all its replicas here run: the others are tried again at the next change.
    pub(crate) fn is_well(&self) -> bool {
        let online = |replica: &Partition| replica.offline().is_none();
        self.partitions.load().iter().all(|served| match served {
            Served::Here(replica) | Served::Follows(replica, _) => online(replica),
            Served::Offline(_) => false,
            Served::Elsewhere(_) => true,
        })
    }

    /// The replicas of it that run here, in whichever role.
    pub(crate) fn replicas(&self) -> Vec<Partition> {
        self.partitions.load().iter().filter_map(Served::replica).cloned().collect()
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
        format!(
            "topic {name} does not exist: `bus topic list` shows those that do, `bus topic create {name}` makes it"
        ),
    )
}
