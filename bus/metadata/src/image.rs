//! The cluster's truth as a value.

mod brokers;
mod functions;
mod partitions;
mod placement;
#[cfg(test)]
pub(crate) mod properties;
mod reassign;
#[cfg(test)]
pub(crate) mod samples;
mod settings;
#[cfg(test)]
mod tests;
mod topics;

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_protocol::{NodeId, TopicId, TopicName, limits as protocol};
use serde::{Deserialize, Serialize};

pub use brokers::Broker;
pub use functions::{Function, FunctionVersion};
pub(crate) use placement::Placement;
pub use topics::{Partition, Topic};

use crate::{Applied, Command, Rejected, limits};

/// All that the cluster has agreed on. A clone costs a few reference counts, so a reader takes one and keeps it
/// for as long as it needs a consistent view.
///
/// Two images that had the same commands applied, at the same indices and in the same order, are equal, on any
/// machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataImage {
    index: u64,
    cluster_id: Option<Arc<str>>,
    brokers: Arc<BTreeMap<NodeId, Arc<Broker>>>,
    topics: Arc<BTreeMap<TopicName, Arc<Topic>>>,
    /// The way from a topic's identity to its name, which [`Self::topics`] holds the other way round.
    topic_names: Arc<BTreeMap<TopicId, TopicName>>,
    functions: Arc<BTreeMap<String, Arc<Function>>>,
    /// Replicas of all partitions, counted so that the limit costs nothing to check.
    replicas: u64,
    /// Bytes a second; 0 is no limit.
    replication_throttle: u64,
    /// The first producer id that nobody has.
    next_producer_id: i64,
}

impl MetadataImage {
    /// Applies the command that stands at `index` of the log.
    ///
    /// A pure function of the image, the index and the command. Where it is rejected nothing has changed but
    /// [`Self::index`]. `index` is larger than that of any command before.
    pub fn apply(&mut self, index: u64, command: Command) -> Result<Applied, Rejected> {
        self.index = index;
        match command {
            Command::NameCluster { cluster_id } => self.name_cluster(&cluster_id),
            Command::RegisterBroker { broker, follows } => self.register_broker(index, broker, follows),
            Command::FenceBroker { node, epoch } => self.set_fenced(node, epoch, true),
            Command::UnfenceBroker { node, epoch } => self.set_fenced(node, epoch, false),
            Command::CreateTopic(wanted) => self.create_topic(index, wanted),
            Command::AlterTopic { topic, partitions, config } => {
                self.alter_topic(&topic, partitions, &config)
            }
            Command::DeleteTopic { topic } => self.delete_topic(&topic),
            Command::AlterPartitions { node, epoch, changes } => self.alter_partitions(node, epoch, changes),
            Command::ChangePartitions { changes } => self.change_partitions(changes),
            Command::DeployFunction(deployment) => self.deploy_function(index, deployment),
            Command::PauseFunction { name } => self.set_paused(&name, true),
            Command::ResumeFunction { name } => self.set_paused(&name, false),
            Command::DeleteFunction { name } => self.delete_function(&name),
            Command::DrainBroker { node, drained } => self.set_drained(node, drained),
            Command::Reassign { changes, throttle } => self.reassign(changes, throttle),
            Command::ReportLost { node, epoch, partitions } => self.report_lost(node, epoch, partitions),
            Command::ReportFull { node, epoch, partitions } => self.report_full(node, epoch, partitions),
            Command::AllocateProducerIds { node, epoch } => self.allocate_producer_ids(node, epoch),
        }
    }

    /// The log index of the last command applied: of two images of one cluster, the larger is the newer.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The cluster's id, once it has one.
    pub fn cluster_id(&self) -> Option<&str> {
        self.cluster_id.as_deref()
    }

    /// A broker.
    pub fn broker(&self, node: NodeId) -> Option<&Arc<Broker>> {
        self.brokers.get(&node)
    }

    /// All brokers, by id.
    pub fn brokers(&self) -> impl ExactSizeIterator<Item = &Arc<Broker>> {
        self.brokers.values()
    }

    /// A topic, by name.
    pub fn topic(&self, name: &TopicName) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    /// A topic, by identity.
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.topics.get(self.topic_names.get(&id)?)
    }

    /// All topics, by name.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// A function.
    pub fn function(&self, name: &str) -> Option<&Arc<Function>> {
        self.functions.get(name)
    }

    /// All functions, by name.
    pub fn functions(&self) -> impl ExactSizeIterator<Item = &Arc<Function>> {
        self.functions.values()
    }

    /// What a broker may send to replicas that are not in sync yet, in bytes a second; `None` is no limit.
    pub fn replication_throttle(&self) -> Option<u64> {
        (self.replication_throttle > 0).then_some(self.replication_throttle)
    }

    /// Whether both images hold the very same topics, so that a reconciler can skip what has not changed.
    pub fn same_topics(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.topics, &other.topics)
    }

    /// Whether both images hold the very same functions.
    pub fn same_functions(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.functions, &other.functions)
    }

    /// Whether both images hold the very same brokers.
    pub fn same_brokers(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.brokers, &other.brokers)
    }

    fn allocate_producer_ids(&mut self, node: NodeId, epoch: u64) -> Result<Applied, Rejected> {
        self.check_broker_epoch(node, epoch)?;
        let (first, count) = (self.next_producer_id, protocol::PRODUCER_ID_BLOCK);
        let next = i64::try_from(count).ok().and_then(|count| first.checked_add(count));
        let full = || Rejected::Full { what: "producer ids".into(), limit: i64::MAX as u64 };
        self.next_producer_id = next.ok_or_else(full)?;
        Ok(Applied::ProducerIds { first, count })
    }

    fn name_cluster(&mut self, wanted: &str) -> Result<Applied, Rejected> {
        check_text("cluster id", wanted, limits::CLUSTER_ID_BYTES)?;
        match &self.cluster_id {
            Some(found) if &**found != wanted => {
                Err(Rejected::OtherCluster { found: found.to_string(), wanted: wanted.to_owned() })
            }
            _ => {
                self.cluster_id = Some(wanted.into());
                Ok(Applied::Done)
            }
        }
    }
}

/// Refuses an empty text, one over `limit` bytes, and one with control characters (it is shown on terminals).
fn check_text(what: &str, text: &str, limit: usize) -> Result<(), Rejected> {
    let why = if text.is_empty() {
        "it is empty".to_owned()
    } else if text.len() > limit {
        format!("it is longer than {limit} bytes")
    } else if text.chars().any(char::is_control) {
        "it holds control characters".to_owned()
    } else {
        return Ok(());
    };
    Err(Rejected::Invalid { what: what.to_owned(), why })
}
