//! Why an append fails, and why a replica takes none.

use bus_log::SequenceError;

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
    /// The batch does not follow on the last one of its producer.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// The disk is full: nothing was stored.
    #[error("the disk is full: nothing was stored; free space, or lower the topic's retention")]
    Full,
    /// A batch before it on the same stream was refused: nothing was stored.
    #[error("a batch before it on the same stream was refused: send both again, in order")]
    Behind,
    /// This replica does not lead, or leads anew since the stream began. Whether a batch that was ordered before is
    /// stored is not known.
    #[error("this broker does not lead the partition any more")]
    NotLeader,
    /// The replica takes nothing any more (see [`Fault`]). Whether this batch is stored is not known.
    #[error("the partition is offline: {0}")]
    Offline(String),
    /// The partition was closed or deleted.
    #[error("the partition is not served here any more")]
    Closed,
}

impl AppendError {
    /// How the log's failure looks to whoever appends.
    pub(crate) fn of(error: &bus_log::Error) -> Self {
        match error {
            bus_log::Error::Full { .. } => Self::Full,
            other => Self::Offline(other.to_string()),
        }
    }
}

/// Why a replica takes nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its storage failed. What is stored there is known when it has been opened anew, if it can be.
    #[error("{0}")]
    Failed(String),
    /// What it has stored is damaged, or not all there any more.
    #[error("{0}")]
    Damaged(String),
    /// Its task has panicked, by a mistake in the program. What it has stored is as it was.
    #[error("its task has panicked")]
    Panicked,
}

impl From<&bus_log::Error> for Fault {
    fn from(error: &bus_log::Error) -> Self {
        let cause = match error {
            bus_log::Error::Poisoned { source, .. } => source.as_ref(),
            other => other,
        };
        match cause {
            bus_log::Error::Damaged { .. } => Self::Damaged(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}
