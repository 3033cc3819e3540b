//! What a log can be told.

use std::sync::Arc;

use bus_protocol::{Clock, TimestampType, TopicConfig};
use serde::{Deserialize, Serialize};

use crate::storage::Storage;
use crate::tail::TailBudget;

/// The settings of all logs on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The most that one log keeps of its newest batches in memory, in bytes.
    pub tail_bytes: usize,
    /// The most that all logs together keep so, in bytes.
    pub tail_budget_bytes: usize,
    /// Bytes of batches between two entries of an index.
    pub index_interval_bytes: u32,
    /// Bytes written after which a sync writes a recovery checkpoint too. After a crash, at most about this much
    /// is read again.
    pub checkpoint_bytes: u64,
    /// The most idempotent producers that one log remembers; of more, those idle longest are forgotten. Each takes 32
    /// bytes a remembered batch, at most about 2 KiB.
    pub producers_per_partition: usize,
    /// How long a producer that does not write is remembered, in milliseconds. It is forgotten when a segment is closed
    /// or retention runs, after that.
    pub producer_expiry_ms: u64,
    /// Whether large reads and writes go past the page cache, where the file system takes that (`O_DIRECT`). It
    /// saves a copy and a fresh page for each 4 KiB; without it, several readers of the same old data share the cache.
    pub direct_io: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tail_bytes: 8 << 20,
            tail_budget_bytes: 96 << 20,
            index_interval_bytes: 4096,
            checkpoint_bytes: 64 << 20,
            producers_per_partition: 10_000,
            producer_expiry_ms: 24 * 60 * 60 * 1000,
            direct_io: true,
        }
    }
}

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log option {name} is {value}: it must be at least {least}")]
pub struct InvalidOption {
    name: &'static str,
    value: u64,
    least: u64,
}

impl Options {
    /// Checks the ranges.
    pub fn validate(&self) -> Result<(), InvalidOption> {
        let interval = u64::from(self.index_interval_bytes);
        for (name, value, least) in [
            ("index_interval_bytes", interval, 512),
            ("checkpoint_bytes", self.checkpoint_bytes, 1 << 16),
            ("producers_per_partition", self.producers_per_partition as u64, 1),
            ("producer_expiry_ms", self.producer_expiry_ms, 60_000),
        ] {
            if value < least {
                return Err(InvalidOption { name, value, least });
            }
        }
        Ok(())
    }
}

/// What all logs on a disk share. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    /// The disk.
    pub storage: Arc<dyn Storage>,
    /// The time, for `LogAppendTime`, `segment.ms` and retention.
    pub clock: Arc<dyn Clock>,
    /// The settings.
    pub options: Options,
    /// The memory for hot tails.
    pub budget: Arc<TailBudget>,
}

impl Env {
    /// Logs on `storage` with `options`, which were validated.
    pub fn new(storage: Arc<dyn Storage>, clock: Arc<dyn Clock>, options: Options) -> Self {
        let budget = Arc::new(TailBudget::new(options.tail_budget_bytes));
        Self { storage, clock, options, budget }
    }
}

/// The settings of one log, from its topic's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The size at which a segment is closed, in bytes; at most 2 GiB.
    pub segment_bytes: u64,
    /// The age at which a segment is closed, in milliseconds.
    pub segment_ms: u64,
    /// How long a record is kept at the least, in milliseconds; `None` for ever.
    pub retention_ms: Option<u64>,
    /// What is kept at the least, in bytes; `None` without limit.
    pub retention_bytes: Option<u64>,
    /// Whose time a record bears.
    pub timestamp_type: TimestampType,
}

impl From<&TopicConfig> for LogConfig {
    fn from(topic: &TopicConfig) -> Self {
        Self {
            segment_bytes: topic.segment_bytes,
            segment_ms: topic.segment_ms,
            retention_ms: topic.retention_ms,
            retention_bytes: topic.retention_bytes,
            timestamp_type: topic.timestamp_type,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self::from(&TopicConfig::default())
    }
}
