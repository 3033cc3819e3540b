//! Why the client cannot do what it was asked to.

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::{ErrorCode, InvalidTopicName, Offset, PartitionId, TopicName, WireError};

use crate::{NoLeader, NoMajority};

/// Why the client cannot do what it was asked to. Cheap to clone: one cause may fail many records.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The broker said no.
    #[error("{0}")]
    Refused(Arc<WireError>),
    /// A setting of the client is wrong.
    #[error("{0}")]
    Invalid(String),
    /// No connection, or it was lost.
    #[error("{0}")]
    Transport(Arc<bus_transport::Error>),
    /// A request had no answer in time.
    #[error(
        "{request} had no answer within {after:?}: check that the brokers run, with `bus cluster status`"
    )]
    NoAnswer {
        /// What was asked.
        request: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// A change was asked for, and nobody says what came of it: whether it was made is not known, and it may still be.
    #[error(
        "{why}: whether the change was made is not known, and it may still be: look whether it is there, and only then try again"
    )]
    Unconfirmed {
        /// Why nobody says so.
        why: String,
    },
    /// The cluster has no majority of its voters. A change was certainly not made.
    #[error("{missing} ({last})")]
    NoMajority {
        /// A broker's word of it.
        missing: NoMajority,
        /// What happened last.
        last: String,
    },
    /// A record was not acknowledged within the delivery timeout.
    #[error("not acknowledged within {after:?}; whether it is stored is not known ({cause})")]
    NotAcknowledged {
        /// The delivery timeout.
        after: Duration,
        /// What happened last.
        cause: String,
    },
    /// A record was never sent: there was no leader to send it to within the delivery timeout.
    #[error("not sent within {after:?}, so not stored ({cause})")]
    NotSent {
        /// The delivery timeout.
        after: Duration,
        /// What happened last.
        cause: String,
    },
    /// A transform refused this record.
    #[error("record refused: {reason}")]
    RecordRefused {
        /// The transform's reason.
        reason: String,
    },
    /// A transform refused another record of the same batch, and a batch is stored whole or not at all.
    #[error("refused with its batch, as record {index} of it was refused: {reason}; send it again")]
    RefusedWithBatch {
        /// The culprit's place in the batch, from 0.
        index: u32,
        /// The transform's reason.
        reason: String,
    },
    /// A record larger than the topic, or any batch, takes.
    #[error(
        "record of {bytes} bytes is over the limit of {limit}: raise max.message.bytes of the topic, or send less at once"
    )]
    RecordTooLarge {
        /// The record.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The topic has fewer partitions.
    #[error("topic {topic} has {partitions} partitions: partition {partition} does not exist")]
    UnknownPartition {
        /// The topic.
        topic: TopicName,
        /// The partition asked for.
        partition: PartitionId,
        /// How many there are.
        partitions: u32,
    },
    /// A partition has no leader now.
    #[error("{0}")]
    NoLeader(NoLeader),
    /// The partition's leader does not have what the producer had sent before, though it was acknowledged (or has
    /// forgotten the producer half-way): its records were lost, by an unclean election or with a disk. This record was
    /// not stored; those that were sent after it are sent anew.
    #[error(
        "not stored: {topic}-{partition} does not continue where this producer stopped ({message}): records that it had taken are gone, check it, and send this one again"
    )]
    SequenceLost {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// What the broker said.
        message: String,
    },
    /// The topic that was read is deleted, and another has its name: offsets of the old one mean nothing there.
    #[error(
        "topic {topic} was deleted and created again: what was read of partition {partition}, up to offset {offset}, was of the old one; read the new one from its start"
    )]
    TopicReplaced {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// The next offset that was wanted of the old one.
        offset: Offset,
    },
    /// The offset asked for is not there.
    #[error("offset {offset} of {topic}-{partition} is out of range: the log holds {start} to {end}")]
    OffsetOutOfRange {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// The offset asked for.
        offset: Offset,
        /// The first offset that is kept.
        start: Offset,
        /// The offset behind the last that may be read.
        end: Offset,
    },
    /// What a broker sent makes no sense.
    #[error("the broker's answer cannot be used: {0}")]
    Protocol(String),
    /// The producer, reader or client is closed.
    #[error("the {0} is closed")]
    Closed(&'static str),
}

impl Error {
    /// Whether the same call may succeed later without anybody changing it.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.code.is_retriable(),
            // A connection that this side gave up; see `Client::close` for a client that is closed.
            Self::Transport(error) => {
                error.is_retriable() || matches!(**error, bus_transport::Error::LocallyClosed)
            }
            Self::NoAnswer { .. }
            | Self::Unconfirmed { .. }
            | Self::NoMajority { .. }
            | Self::NotAcknowledged { .. }
            | Self::NotSent { .. }
            | Self::NoLeader(_)
            | Self::RefusedWithBatch { .. } => true,
            _ => false,
        }
    }

    /// The broker's code, where a broker refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            Self::RecordRefused { .. } | Self::RefusedWithBatch { .. } => Some(ErrorCode::RecordRefused),
            Self::RecordTooLarge { .. } => Some(ErrorCode::MessageTooLarge),
            Self::OffsetOutOfRange { .. } => Some(ErrorCode::OffsetOutOfRange),
            Self::SequenceLost { .. } => Some(ErrorCode::OutOfOrderSequence),
            Self::UnknownPartition { .. } => Some(ErrorCode::UnknownPartition),
            _ => None,
        }
    }
}

impl From<WireError> for Error {
    fn from(refusal: WireError) -> Self {
        Self::Refused(Arc::new(refusal))
    }
}

impl From<bus_transport::Error> for Error {
    fn from(error: bus_transport::Error) -> Self {
        match error {
            bus_transport::Error::Refused(refusal) => refusal.into(),
            other => Self::Transport(Arc::new(other)),
        }
    }
}

impl From<InvalidTopicName> for Error {
    fn from(error: InvalidTopicName) -> Self {
        Self::Invalid(error.to_string())
    }
}
