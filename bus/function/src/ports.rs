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
    /// What is stored cannot be read. Said once at error, shown as the function's last error, and asked again:
    /// nothing is skipped.
    #[error("{0}")]
    Damaged(String),
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
    /// It may work later, whatever the records are. The processor tries for ever.
    #[error("{0}")]
    Transient(String),
    /// A transform of a topic failed on the records: it may be theirs, or the machine's. The processor tries as
    /// often as its function is to be retried, and then takes it for `Rejected`.
    #[error("{0}")]
    Failed(String),
    /// These records will never be stored: too large, damaged, refused by a transform. The processor takes what
    /// it emitted apart, until it is down to the record whose output is refused.
    #[error("{0}")]
    Rejected(String),
    /// It is over. The processor ends.
    #[error("closed: {0}")]
    Closed(String),
}

/// Which records of some emissions are committed, over all attempts to store them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// By the place of the emission; false for whatever lies beyond.
    committed: Vec<Vec<bool>>,
    count: usize,
}

impl Progress {
    /// Whether the record at place `record` of the emission at place `emission` is committed.
    pub fn is_committed(&self, emission: usize, record: usize) -> bool {
        self.committed.get(emission).and_then(|records| records.get(record)).copied().unwrap_or(false)
    }

    /// Notes that this record is committed.
    pub fn commit(&mut self, emission: usize, record: usize) {
        if self.committed.len() <= emission {
            self.committed.resize_with(emission + 1, Vec::new);
        }
        let records = &mut self.committed[emission];
        if records.len() <= record {
            records.resize(record + 1, false);
        }
        if !std::mem::replace(&mut records[record], true) {
            self.count += 1;
        }
    }

    /// How many records are committed.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// Where emitted records go.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Stores the records that are not committed by `progress`, each topic's in their order (a partition by
    /// their keys), and returns once all are committed. After an error some may have been: `progress` says
    /// which, so that the next attempt does only the rest. What follows a record in its partition is not
    /// committed unless the record is.
    async fn emit(&self, emissions: &[Emission], progress: &mut Progress) -> Result<(), SinkError>;
}

/// Committed offsets of groups.
#[async_trait]
pub trait OffsetStore: Send + Sync + 'static {
    /// The next offset that the group reads in the partition, if it committed any.
    async fn load(&self, group: &str, partition: &TopicPartition) -> Result<Option<Offset>, PortError>;
    /// Stores the next offset to read; it is durable when this returns.
    async fn commit(&self, group: &str, partition: &TopicPartition, offset: Offset) -> Result<(), PortError>;
}
