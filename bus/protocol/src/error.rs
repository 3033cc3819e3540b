//! What a broker refuses with: a code for programs, a sentence for people.

use serde::{Deserialize, Serialize};

use crate::{Epoch, NodeId};

/// Why a request was refused. Variants are added at the end: their order is the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ErrorCode {
    /// A fault of the broker's own.
    Internal,
    /// The message makes no sense, or not here.
    InvalidRequest,
    /// The peer speaks another version.
    UnsupportedVersion,
    /// No such topic.
    UnknownTopic,
    /// The topic has fewer partitions.
    UnknownPartition,
    /// The topic exists already.
    TopicExists,
    /// A setting that does not exist, or a value it does not take.
    InvalidConfig,
    /// The batch's CRC or structure is wrong.
    CorruptBatch,
    /// The batch is larger than the topic's `max.message.bytes`.
    MessageTooLarge,
    /// The offset is below the log's start or above its end.
    OffsetOutOfRange,
    /// This broker does not lead the partition (any more).
    NotLeader,
    /// The request names an older epoch.
    FencedEpoch,
    /// Fewer replicas are in sync than `min.insync.replicas`.
    NotEnoughReplicas,
    /// A transform refused records of the batch.
    RecordRefused,
    /// A transform failed: it trapped, or ran over a limit.
    FunctionFailed,
    /// No such function.
    UnknownFunction,
    /// The module cannot be deployed.
    InvalidFunction,
    /// The disk is full. Nothing was stored; reads go on.
    StorageFull,
    /// The partition is offline: its storage failed or is damaged.
    StorageFailed,
    /// The request took longer than it may. Whether it was carried out is not known.
    TimedOut,
    /// The broker is stopping.
    ShuttingDown,
    /// More than the broker takes on at once.
    Busy,
    /// The peer may not do this.
    Unauthorized,
    /// Too few brokers for the wanted replicas, or for a majority.
    NotEnoughBrokers,
    /// The batch's sequence does not follow on the producer's last one in this partition: one before it is missing.
    OutOfOrderSequence,
    /// A newer epoch of the same producer has written to the partition.
    FencedProducer,
    /// No such broker, or it is gone.
    UnknownBroker,
}

impl ErrorCode {
    /// Whether the same request may succeed later without anybody changing it.
    pub fn is_retriable(self) -> bool {
        matches!(
            self,
            Self::NotLeader
                | Self::FencedEpoch
                | Self::NotEnoughReplicas
                | Self::StorageFull
                | Self::TimedOut
                | Self::ShuttingDown
                | Self::Busy
                | Self::FunctionFailed
                | Self::OutOfOrderSequence
        )
    }
}

/// Why one record of a batch was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordError {
    /// The record's place in its batch, from 0.
    pub index: u32,
    /// What the transform said of it.
    pub reason: String,
}

/// A refusal, as it travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what, why, and what to do, on one line, lower case.
    pub message: String,
    /// With [`ErrorCode::RecordRefused`]: the culprits, at most
    /// [`crate::limits::REPORTED_RECORD_ERRORS`] of them.
    pub records: Vec<RecordError>,
    /// With [`ErrorCode::NotLeader`]: who leads, as far as this broker knows.
    pub leader: Option<LeaderHint>,
}

/// Who leads a partition, as a broker that does not lead it knows (KIP-951). Whoever asked may know of a newer epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderHint {
    /// The leader.
    pub node: NodeId,
    /// In which leader epoch.
    pub epoch: Epoch,
}

impl WireError {
    /// A refusal with a code and a sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), records: Vec::new(), leader: None }
    }
}
