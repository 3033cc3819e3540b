//! Requests and their answers, one of each a stream. Variants are added at the end: their order is the wire's.
//!
//! The answer to a [`Request`] is a frame whose control part is a `Result<Response, WireError>` ([`Answer`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::produce::{Acks, ProduceAck};
use crate::{
    BlobId, Epoch, FunctionSpec, NodeId, Offset, PartitionId, Timestamp, TopicId, TopicName, WireError,
};

/// What a client asks. The comment behind an arrow names the [`Response`] that answers it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// Which cluster is this, and who is in it? -> [`Response::Cluster`]
    Cluster,
    /// What stands where; of all topics where `topics` is `None`. -> [`Response::Topics`]
    Topics {
        /// The topics asked for; an unknown one refuses the request.
        topics: Option<Vec<TopicName>>,
    },
    /// A new topic, ready for producers when answered. -> [`Response::Done`]
    CreateTopic(CreateTopic),
    /// Changes settings, adds partitions, or both. -> [`Response::Done`]
    AlterTopic {
        /// The topic.
        topic: TopicName,
        /// The new number of partitions; more than now.
        partitions: Option<u32>,
        /// Settings to set; an empty value takes a setting back to its default.
        config: BTreeMap<String, String>,
    },
    /// Deletes a topic and its records. -> [`Response::Done`]
    DeleteTopic {
        /// The topic.
        topic: TopicName,
    },
    /// Where the partitions of a topic that this broker leads start and end. -> [`Response::Partitions`]
    DescribePartitions {
        /// The topic.
        topic: TopicName,
    },
    /// The offset at a position, for each partition named. -> [`Response::Offsets`]
    ListOffsets {
        /// The topic.
        topic: TopicName,
        /// The partitions; the broker asked must lead them.
        partitions: Vec<PartitionId>,
        /// The position.
        position: Position,
    },
    /// Deploys a function, or its next version; the frame's payload is the component. -> [`Response::Deployed`]
    DeployFunction(FunctionSpec),
    /// What is deployed, and how it does. -> [`Response::Functions`]
    ListFunctions {
        /// Only this one; unknown refuses the request.
        name: Option<String>,
    },
    /// Lines of a function's log. -> [`Response::FunctionLogs`]
    FunctionLogs {
        /// The function.
        name: String,
        /// Only lines after this sequence number; 0 for all that are kept.
        after: u64,
    },
    /// Deletes a function. -> [`Response::Done`]
    DeleteFunction {
        /// The function.
        name: String,
    },
    /// Commits offsets of a group. -> [`Response::Done`]
    CommitOffsets {
        /// The group.
        group: String,
        /// The next offset to read, for each partition.
        offsets: Vec<(TopicName, PartitionId, Offset)>,
    },
    /// The committed offsets of a group. -> [`Response::CommittedOffsets`]
    CommittedOffsets {
        /// The group.
        group: String,
    },
    /// A producer id that nobody else has. -> [`Response::Producer`]
    InitProducer,
    /// Moves leadership away from a broker, and gives it no new replicas; or takes that back. -> [`Response::Done`]
    /// once the cluster knows; leaders move after that.
    DrainBroker {
        /// The broker.
        node: NodeId,
        /// Whether to drain it, or to add it back.
        drained: bool,
    },
    /// Gives partitions of a topic other replicas, on brokers that are up. -> [`Response::Reassigning`] once the cluster knows; records move
    /// after that: a partition is done when its [`PartitionState::target`] is `None` again.
    Reassign {
        /// The topic.
        topic: TopicName,
        /// The replicas wanted, the preferred leader first, for each partition named.
        assignments: Vec<(PartitionId, Vec<NodeId>)>,
        /// Bytes a second that each broker may send to new replicas at most; `None` leaves it as it is, 0 is no limit.
        throttle: Option<u64>,
    },
    /// Spreads the replicas of all topics evenly over the brokers that are up and not drained. Partitions that are being
    /// reassigned, or whose move would wait for a broker that is down, stay as they are.
    /// -> [`Response::Reassigning`], as with [`Request::Reassign`].
    Rebalance {
        /// As in [`Request::Reassign`].
        throttle: Option<u64>,
    },
    /// Between brokers: answered once the asked runs what metadata index `index` asks for. -> [`Response::Done`]
    AwaitMetadata {
        /// The index.
        index: u64,
    },
    /// Between brokers: appends the batch in the payload to a partition that the asked leads, through the topic's
    /// transforms. -> [`Response::Appended`]
    Append {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// When it is answered.
        acks: Acks,
    },
    /// Between brokers: keeps the module in the payload. -> [`Response::Done`] once it is on the disk
    StoreModule,
    /// Between brokers: a module's bytes. -> [`Response::Module`]; the bytes are the answer's payload
    FetchModule {
        /// The module.
        module: BlobId,
    },
}

/// A topic to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateTopic {
    /// Its name.
    pub topic: TopicName,
    /// How many partitions: 1 to [`crate::limits::PARTITIONS_PER_TOPIC`].
    pub partitions: u32,
    /// How many replicas of each.
    pub replicas: u32,
    /// Settings that are not at their defaults.
    pub config: BTreeMap<String, String>,
    /// Whether a topic that exists already is fine.
    pub if_not_exists: bool,
}

/// A place in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Position {
    /// The first record that is kept.
    Start,
    /// Behind the last committed record.
    End,
    /// The first record at or after this time; the end where there is none.
    Timestamp(Timestamp),
}

/// The answer to a [`Request`], or why there is none.
pub type Answer = Result<Response, WireError>;

/// What a broker answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Response {
    /// It is done, and will still be after a crash.
    Done,
    /// The cluster.
    Cluster(ClusterInfo),
    /// Topics.
    Topics(Vec<TopicInfo>),
    /// Partitions that the broker leads.
    Partitions(Vec<PartitionInfo>),
    /// An offset for each partition asked.
    Offsets(Vec<(PartitionId, Offset)>),
    /// The version that was deployed.
    Deployed {
        /// From 1.
        version: u32,
    },
    /// Functions.
    Functions(Vec<FunctionInfo>),
    /// Lines of a log.
    FunctionLogs(Vec<LogLine>),
    /// The next offset to read, for each partition that the group ever committed.
    CommittedOffsets(Vec<(TopicName, PartitionId, Offset)>),
    /// A new producer, in its epoch 0.
    Producer {
        /// Its id.
        id: i64,
    },
    /// Replicas will move.
    Reassigning(Moves),
    /// The batch is appended.
    Appended(ProduceAck),
    /// The module is in the payload.
    Module,
}

/// What a reassignment or a rebalance will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moves {
    /// Partitions whose replicas will move; 0 where all is as it should be.
    pub partitions: u32,
    /// Partitions that a rebalance leaves as they are, since they are being reassigned.
    pub under_way: u32,
    /// Partitions that a rebalance leaves as they are, since a move would wait for a broker that is down.
    pub silent: u32,
}

/// Whether the cluster has a majority, by what the broker that answers has heard. Without one the rest of what it says may
/// be old, and nothing can be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quorum {
    /// Whether a controller had most of the voters behind it a moment ago.
    pub held: bool,
    /// How many milliseconds ago one had; `None` where the broker has not heard of that since it started.
    pub ago_ms: Option<u64>,
    /// The voters that do not answer the broker.
    pub silent: Vec<NodeId>,
}

/// A cluster and its brokers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterInfo {
    /// Made at the cluster's first start.
    pub cluster_id: String,
    /// The broker that answers.
    pub node: NodeId,
    /// Its version, as `bus --version` prints it.
    pub version: String,
    /// The broker that decides for the cluster; nobody does without a majority.
    pub controller: Option<NodeId>,
    /// Whether there is a majority.
    pub quorum: Quorum,
    /// Bytes a second that each broker sends at most to replicas that are being added; `None` is no limit.
    pub throttle: Option<u64>,
    /// All brokers.
    pub brokers: Vec<BrokerInfo>,
}

/// A broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerInfo {
    /// Its id.
    pub node: NodeId,
    /// Where clients reach it: `HOST:PORT`.
    pub address: String,
    /// Whether it is fenced: registered, but silent.
    pub fenced: bool,
    /// Whether it is drained: it leads nothing where another can, and gets no new replicas.
    pub drained: bool,
    /// The epoch of its registration: raised at each start.
    pub epoch: u64,
    /// Where it stands, if its operator said.
    pub rack: Option<String>,
    /// Whether it votes on the cluster's metadata.
    pub voter: bool,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicInfo {
    /// Its name.
    pub topic: TopicName,
    /// Its identity.
    pub id: TopicId,
    /// All settings, those at their defaults too.
    pub config: BTreeMap<String, String>,
    /// The functions that stand on it, in order.
    pub functions: Vec<String>,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionState>,
}

/// Where a partition stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// Who leads it, if anybody does.
    pub leader: Option<NodeId>,
    /// The leader epoch.
    pub epoch: Epoch,
    /// Who holds it.
    pub replicas: Vec<NodeId>,
    /// Who of them is in sync.
    pub isr: Vec<NodeId>,
    /// The replicas that it is on its way to, if it is being reassigned.
    pub target: Option<Vec<NodeId>>,
}

/// What a partition holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInfo {
    /// Its number.
    pub partition: PartitionId,
    /// The first offset that is kept.
    pub log_start: Offset,
    /// Readers see below it.
    pub high_watermark: Offset,
    /// The next offset.
    pub log_end: Offset,
    /// On this broker's disk.
    pub bytes: u64,
    /// Why it is offline, if it is.
    pub offline: Option<String>,
    /// How far the followers are that replicate from it now: what each has stored.
    pub followers: Vec<(NodeId, Offset)>,
}

/// A function, and how it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionInfo {
    /// Its settings.
    pub spec: FunctionSpec,
    /// Its version, from 1.
    pub version: u32,
    /// `running`, `idle`, `failing`, `paused`.
    pub state: String,
    /// `typed` or `flat`.
    pub interface: String,
    /// SHA-256 of the component, in hex.
    pub module: String,
    /// Records that came in since the broker started.
    pub records_in: u64,
    /// Records that went out.
    pub records_out: u64,
    /// Records that it dropped, refused or failed on.
    pub failed: u64,
    /// Records behind the end, over all partitions. 0 for a transform.
    pub lag: u64,
    /// Instances held.
    pub instances: u32,
    /// Linear memory of those instances, in bytes.
    pub memory_bytes: u64,
    /// Fuel burnt since the broker started.
    pub fuel: u64,
    /// What it last failed with, and when.
    pub last_error: Option<(Timestamp, String)>,
}

/// A line of a function's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Raised by one a line; gaps where lines were dropped.
    pub sequence: u64,
    /// When.
    pub timestamp: Timestamp,
    /// `error`, `warn`, `info`, `debug`, `trace`, `stdout` or `stderr`.
    pub level: String,
    /// What.
    pub message: String,
}
