//! Why a command is refused, for programs and for people.

use bus_protocol::{Epoch, ErrorCode, NodeId, PartitionId, TopicId, TopicName};
use serde::{Deserialize, Serialize};

/// Why the metadata stays as it is. The sentences are for users: what, why, what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejected {
    /// The cluster has another name.
    #[error("this is cluster {found}, not {wanted}: check that the data directory belongs to this cluster")]
    OtherCluster {
        /// What it is called.
        found: String,
        /// What it was to be called.
        wanted: String,
    },
    /// A value that no command may hold.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// Which value.
        what: String,
        /// The rule that it breaks.
        why: String,
    },
    /// The metadata is full.
    #[error("there are too many {what}: the limit is {limit}")]
    Full {
        /// Of what.
        what: String,
        /// How many there may be.
        limit: u64,
    },
    /// No such broker.
    #[error("broker {node} is not registered")]
    UnknownBroker {
        /// The broker.
        node: NodeId,
    },
    /// The broker has registered again since.
    #[error("broker {node} has registered again, in epoch {current}: epoch {epoch} is over")]
    StaleBrokerEpoch {
        /// The broker.
        node: NodeId,
        /// The epoch that the command names.
        epoch: u64,
        /// The epoch it has.
        current: u64,
    },
    /// The broker has replicas, and comes without the directory that they lie in.
    #[error(
        "the topics of node {node} are not there: if their disk is not mounted, mount it; if they are lost, make the file `topics/lost` in its data directory, and start it again: then its replicas come anew from others, and what nobody else has in sync stays offline"
    )]
    TopicsGone {
        /// The broker.
        node: NodeId,
    },
    /// No such topic.
    #[error("topic {topic} does not exist: `bus topic list` shows those that do")]
    UnknownTopic {
        /// The topic.
        topic: TopicName,
    },
    /// No topic with this identity: it was deleted.
    #[error("topic with id {id} does not exist any more")]
    UnknownTopicId {
        /// The identity.
        id: TopicId,
    },
    /// The topic has fewer partitions.
    #[error("topic {topic} has no partition {partition}: it has {partitions}, numbered from 0")]
    UnknownPartition {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// How many there are.
        partitions: u32,
    },
    /// The topic is there already.
    #[error("topic {topic} exists already: choose another name, or pass --if-not-exists")]
    TopicExists {
        /// The topic.
        topic: TopicName,
    },
    /// No such broker to give something to.
    #[error("broker {node} does not exist: {}", registered(brokers))]
    NoSuchBroker {
        /// The broker.
        node: NodeId,
        /// Those that are registered.
        brokers: Vec<NodeId>,
    },
    /// Replicas that a partition cannot have.
    #[error("{topic}-{partition} cannot have replicas on brokers {}: {why}", list(replicas))]
    InvalidReplicas {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// What was asked for; the first of many.
        replicas: Vec<NodeId>,
        /// Why not, and what to do.
        why: String,
    },
    /// A number of partitions that cannot be.
    #[error("{partitions} partitions are out of range: 1 to {limit}")]
    PartitionCount {
        /// What was asked for.
        partitions: u32,
        /// The most there may be.
        limit: u32,
    },
    /// Partitions cannot be taken away: the records of a key would move.
    #[error(
        "topic {topic} has {current} partitions and cannot go down to {partitions}: partitions can only be added"
    )]
    FewerPartitions {
        /// The topic.
        topic: TopicName,
        /// How many it has.
        current: u32,
        /// What was asked for.
        partitions: u32,
    },
    /// Too few brokers for the wanted replicas.
    #[error(
        "{replicas} replicas need {replicas} brokers, and {brokers} can take one{}: ask for fewer, or see to it that more can",
        others(drained, down)
    )]
    TooFewBrokers {
        /// What was asked for.
        replicas: u32,
        /// The brokers that are unfenced and not drained.
        brokers: u32,
        /// The others that are up.
        drained: Vec<NodeId>,
        /// The others.
        down: Vec<NodeId>,
    },
    /// A setting that does not exist, or a value it does not take.
    #[error("{message}")]
    InvalidConfig {
        /// Which, and what it takes.
        message: String,
    },
    /// Functions name the topic.
    #[error("topic {topic} is in use by {}: delete {} first", names(functions), them(functions))]
    TopicInUse {
        /// The topic.
        topic: TopicName,
        /// The functions, by name.
        functions: Vec<String>,
    },
    /// Somebody else leads the partition, or nobody does.
    #[error("broker {node} does not lead {topic}-{partition}")]
    NotLeader {
        /// Who thought so.
        node: NodeId,
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// Who does.
        leader: Option<NodeId>,
    },
    /// The leader epoch is not the partition's.
    #[error("{topic}-{partition} is in leader epoch {current}, not {epoch}")]
    FencedLeaderEpoch {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// The epoch that the command names.
        epoch: Epoch,
        /// The epoch it is in.
        current: Epoch,
    },
    /// The partition has changed since the command was made.
    #[error("{topic}-{partition} has changed: its partition epoch is {current}, not {epoch}")]
    StalePartitionEpoch {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// The epoch that the command names.
        epoch: u32,
        /// The epoch it is in.
        current: u32,
    },
    /// A change of a partition that nobody may make.
    #[error("{topic}-{partition} cannot be changed so: {why}")]
    InvalidChange {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// The rule that it breaks.
        why: String,
    },
    /// The broker cannot be in the ISR, or cannot lead.
    #[error("broker {node} cannot be {wanted} {topic}-{partition}: {why}")]
    Ineligible {
        /// The broker.
        node: NodeId,
        /// `in the ISR of` or `the leader of`.
        wanted: String,
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// Why not.
        why: String,
    },
    /// The function's settings are out of range.
    #[error("{message}")]
    InvalidFunction {
        /// Which, and what they may be.
        message: String,
    },
    /// No such function.
    #[error("function {name} does not exist: `bus function list` shows those that do")]
    UnknownFunction {
        /// Its name.
        name: String,
    },
    /// Two functions would share one place in a topic, and each miss what the other reads.
    #[error("group {group} reads topic {topic} for function {function} already: choose another --group")]
    GroupInUse {
        /// The group.
        group: String,
        /// The topic.
        topic: TopicName,
        /// Who reads it.
        function: String,
    },
}

impl Rejected {
    /// What a client's program is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::OtherCluster { .. }
            | Self::Invalid { .. }
            | Self::Ineligible { .. }
            | Self::InvalidReplicas { .. }
            | Self::InvalidChange { .. }
            | Self::Full { .. } => ErrorCode::InvalidRequest,
            Self::UnknownBroker { .. } | Self::StaleBrokerEpoch { .. } => ErrorCode::FencedEpoch,
            Self::NoSuchBroker { .. } => ErrorCode::UnknownBroker,
            Self::UnknownTopic { .. } | Self::UnknownTopicId { .. } => ErrorCode::UnknownTopic,
            Self::UnknownPartition { .. } => ErrorCode::UnknownPartition,
            Self::TopicExists { .. } => ErrorCode::TopicExists,
            Self::PartitionCount { .. } | Self::FewerPartitions { .. } | Self::InvalidConfig { .. } => {
                ErrorCode::InvalidConfig
            }
            Self::TooFewBrokers { .. } => ErrorCode::NotEnoughBrokers,
            Self::TopicInUse { .. } | Self::TopicsGone { .. } => ErrorCode::InvalidRequest,
            Self::NotLeader { .. } => ErrorCode::NotLeader,
            Self::FencedLeaderEpoch { .. } | Self::StalePartitionEpoch { .. } => ErrorCode::FencedEpoch,
            Self::InvalidFunction { .. } | Self::GroupInUse { .. } => ErrorCode::InvalidFunction,
            Self::UnknownFunction { .. } => ErrorCode::UnknownFunction,
        }
    }
}

/// The first few names, and how many more there are.
fn names(functions: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = if functions.len() == 1 { "function " } else { "functions " }.to_owned();
    text.push_str(&functions.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", "));
    if let Some(more @ 1..) = functions.len().checked_sub(SHOWN) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

fn list(nodes: &[NodeId]) -> String {
    if nodes.is_empty() {
        return "(none)".to_owned();
    }
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Who takes no replicas, and why.
fn others(drained: &[NodeId], down: &[NodeId]) -> String {
    let some = [(drained, "drained (see `bus cluster add-back`)"), (down, "down")];
    let some = some.into_iter().filter(|(nodes, _)| !nodes.is_empty()).map(|(nodes, why)| {
        let (brokers, are) = if nodes.len() == 1 { ("broker", "is") } else { ("brokers", "are") };
        format!("; {brokers} {} {are} {why}", list(nodes))
    });
    some.collect()
}

fn registered(brokers: &[NodeId]) -> String {
    match brokers {
        [] => "the cluster has none yet".to_owned(),
        [one] => format!("the cluster has broker {one}"),
        several => format!("the cluster has brokers {}", list(several)),
    }
}

fn them(functions: &[String]) -> &'static str {
    if functions.len() == 1 { "it" } else { "them" }
}
