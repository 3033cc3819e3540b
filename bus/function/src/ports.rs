//! What the broker lends to a processor.

use async_trait::async_trait;
use bus_protocol::batch::RecordBatch;
use bus_protocol::{Offset, TopicPartition};

use crate::Emission;

/// Why a port did not do it. The processor tries again, with growing pauses, unless it is `Closed`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// It may work later.
    #[error("{0}")]
    Transient(String),
    /// The offset is not in the log (any more).
    #[error("offset is out of range: the log starts at {start} and ends at {end}")]
    OutOfRange {
        /// The first offset that is kept.
        start: Offset,
        /// The high watermark.
        end: Offset,
    },
    /// It is over: the partition moved or the broker stops. The processor ends.
    #[error("closed: {0}")]
    Closed(String),
}

/// The committed records of the one partition that a processor reads.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// The first offset that is kept.
    async fn start(&self) -> Result<Offset, PortError>;
    /// Committed batches in order, the first of which holds `from` or is the first one after it; about
    /// `max_bytes`, but at least one batch. None at the high watermark.
    async fn read(&self, from: Offset, max_bytes: usize) -> Result<Vec<RecordBatch>, PortError>;
    /// Returns once the high watermark is past `offset`: once there is a record to read there. May be dropped.
    async fn wait(&self, offset: Offset) -> Result<(), PortError>;
}

/// Why records were not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It may work later. The processor tries for ever.
    #[error("{0}")]
    Transient(String),
    /// These records will never be stored: too large, refused by a transform, no such topic. The processor
    /// treats it as a failure of the function's call.
    #[error("{0}")]
    Rejected(String),
    /// It is over. The processor ends.
    #[error("closed: {0}")]
    Closed(String),
}

/// Where emitted records go.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Stores records, each topic's in their order (a partition by their keys), and returns once all are
    /// committed. After an error some may have been stored.
    async fn emit(&self, emissions: &[Emission]) -> Result<(), SinkError>;
}

/// Committed offsets of groups.
#[async_trait]
pub trait OffsetStore: Send + Sync + 'static {
    /// The next offset that the group reads in the partition, if it committed any.
    async fn load(&self, group: &str, partition: &TopicPartition) -> Result<Option<Offset>, PortError>;
    /// Stores the next offset to read; it is durable when this returns.
    async fn commit(&self, group: &str, partition: &TopicPartition, offset: Offset) -> Result<(), PortError>;
}
