//! The cluster's truth as a value.

mod brokers;
mod functions;
mod placement;
#[cfg(test)]
mod properties;
mod settings;
mod topics;

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_protocol::{NodeId, TopicId, TopicName};
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
            Command::RegisterBroker(registration) => self.register_broker(index, registration),
            Command::FenceBroker { node, epoch } => self.set_fenced(node, epoch, true),
            Command::UnfenceBroker { node, epoch } => self.set_fenced(node, epoch, false),
            Command::CreateTopic(wanted) => self.create_topic(index, wanted),
            Command::AlterTopic { topic, partitions, config } => {
                self.alter_topic(&topic, partitions, &config)
            }
            Command::DeleteTopic { topic } => self.delete_topic(&topic),
            Command::AlterPartitions { node, epoch, changes } => self.alter_partitions(node, epoch, changes),
            Command::ElectLeaders { elections } => self.elect_leaders(elections),
            Command::DeployFunction(deployment) => self.deploy_function(index, deployment),
            Command::PauseFunction { name } => self.set_paused(&name, true),
            Command::ResumeFunction { name } => self.set_paused(&name, false),
            Command::DeleteFunction { name } => self.delete_function(&name),
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
