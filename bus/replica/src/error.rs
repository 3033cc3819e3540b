//! Why an append or an opening fails.

use bus_protocol::TopicPartition;

/// Why a batch was not committed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Fewer replicas are in sync than the topic wants.
    #[error("{in_sync} replicas are in sync, {wanted} are wanted by min.insync.replicas")]
    NotEnoughReplicas {
        /// In sync now.
        in_sync: usize,
        /// Wanted.
        wanted: usize,
    },
    /// The disk is full: nothing was stored.
    #[error("the disk is full: nothing was stored; free space, or lower the topic's retention")]
    Full,
    /// A batch before it on the same stream was refused: nothing was stored.
    #[error("a batch before it on the same stream was refused: send both again, in order")]
    Behind,
    /// The partition's storage failed. Whether this batch is stored is not known.
    #[error("the partition is offline: {0}")]
    Offline(String),
    /// The partition was closed or deleted, or leads no more.
    #[error("the partition is not served here any more")]
    Closed,
}

/// Why a partition cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("partition {partition}: {error}")]
pub struct OpenError {
    /// Which.
    pub partition: TopicPartition,
    /// Why.
    pub error: bus_log::Error,
}
