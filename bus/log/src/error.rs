//! What a log answers instead of doing what it was asked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bus_protocol::batch::BatchError;
use bus_protocol::{Epoch, Offset};

/// Why a log refused or failed. Cheap to clone: all who waited for one sync get the same answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The disk is full, up to a reserve for what else the node keeps there. Nothing of the refused append was kept; the
    /// log works on, reads and all.
    #[error("disk is full: cannot {what} {}: free some space, or lower the retention", path.display())]
    Full {
        /// What was tried.
        what: &'static str,
        /// On which file or folder.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Bytes that were stored are not there any more, or not as they were written.
    #[error("{} is damaged at byte {position} (offset {offset}): {why}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in it the first wrong batch begins, in bytes.
        position: u64,
        /// The offset that was due there.
        offset: Offset,
        /// What is wrong.
        why: String,
    },
    /// An earlier sync failed, so what the log holds is not known: after a failed fsync the kernel may have
    /// dropped the pages (PostgreSQL's "fsyncgate"). Nothing is taken until the log is opened anew, which writes
    /// what is there again.
    #[error("log {} is offline since an earlier failure: {source}: restart the broker to recover it", dir.display())]
    Poisoned {
        /// The partition's folder.
        dir: PathBuf,
        /// The failure.
        source: Box<Error>,
    },
    /// There is no such offset here (any more, or yet).
    #[error("offset {offset} is out of range: the log holds {start} to {end}")]
    OffsetOutOfRange {
        /// The offset asked for.
        offset: Offset,
        /// The first offset.
        start: Offset,
        /// The log end offset: the next one to be written.
        end: Offset,
    },
    /// A follower's batch does not continue the log.
    #[error("batch begins at offset {found} where {expected} is due")]
    NotContiguous {
        /// The log end offset.
        expected: Offset,
        /// The batch's base offset.
        found: Offset,
    },
    /// A batch of an older leader epoch than the log's last.
    #[error("batch has leader epoch {found}, older than the log's last, {last}")]
    OldEpoch {
        /// The log's last.
        last: Epoch,
        /// The batch's.
        found: Epoch,
    },
    /// The bytes given are not a batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The log was deleted under its readers.
    #[error("log {} was deleted", .0.display())]
    Deleted(PathBuf),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { what, path },
            _ => Self::Io { what, path, source: Arc::new(source) },
        }
    }

    /// A sync that failed, for whatever reason: never `Full`, which promises that nothing was stored.
    pub(crate) fn failed_sync(path: &Path, source: io::Error) -> Self {
        Self::Io { what: "sync", path: path.to_owned(), source: Arc::new(source) }
    }

    pub(crate) fn damaged(file: &Path, position: u64, offset: Offset, why: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), position, offset, why: why.into() }
    }
}

/// Some of a group's batches were appended, the rest not.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{error} ({} batches of the group were answered before)", outcomes.len())]
pub struct PartialAppend {
    /// What became of the group's first batches.
    pub outcomes: Vec<crate::Outcome>,
    /// Why the next one was not appended.
    pub error: Error,
}
