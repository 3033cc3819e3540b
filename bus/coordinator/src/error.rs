//! Why a group's request is refused, or its log cannot be read.

use bus_protocol::ErrorCode;

/// What can go wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name cannot be a group's.
    #[error("group name {name:?} is not valid: {why}")]
    InvalidGroup {
        /// As it was given, cut where it is long.
        name: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// No record is there, or ever will be.
    #[error("offset {offset} of {partition} cannot be committed: offsets start at 0")]
    NegativeOffset {
        /// The partition.
        partition: bus_protocol::TopicPartition,
        /// As it was given.
        offset: bus_protocol::Offset,
    },
    /// One request with too much in it.
    #[error("{count} offsets in one commit are over the limit of {limit}: commit fewer at once")]
    CommitTooLarge {
        /// How many there are.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The coordinator is full.
    #[error("the coordinator holds {limit} {what} and takes no more: delete groups that are not in use")]
    Full {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// No such group.
    #[error("group {group:?} has committed nothing")]
    UnknownGroup {
        /// Its name, cut where it is long.
        group: String,
    },
    /// A later version wrote it.
    #[error(
        "a record of the groups' log has version {found}, and this broker knows {known}: use a newer version"
    )]
    Version {
        /// Its version.
        found: u8,
        /// The latest known here.
        known: u8,
    },
    /// The log does not hold what was written.
    #[error("a record of the groups' log is not well-formed: {0}")]
    Corrupt(String),
    /// An option is out of range.
    #[error("coordinator option is not valid: {0}")]
    Options(&'static str),
}

impl Error {
    /// What a client's program is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::InvalidGroup { .. }
            | Self::NegativeOffset { .. }
            | Self::CommitTooLarge { .. }
            | Self::UnknownGroup { .. }
            | Self::Options(_) => ErrorCode::InvalidRequest,
            Self::Full { .. } => ErrorCode::Busy,
            Self::Version { .. } | Self::Corrupt(_) => ErrorCode::StorageFailed,
        }
    }
}
