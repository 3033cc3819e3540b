//! What can go wrong with a node's metadata.

use std::path::PathBuf;

use bus_protocol::{ErrorCode, NodeId};

use crate::Rejected;

/// Why a node's metadata cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is out of range.
    #[error("metadata option is not valid: {0}")]
    Options(String),
    /// Another process holds the directory.
    #[error("metadata directory {dir} is in use by another process: stop it, or use another directory")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory is another node's.
    #[error(
        "metadata directory {dir} belongs to node {found}, not {wanted}: use that node id, or another directory"
    )]
    OtherNode {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Whose it was to be.
        wanted: NodeId,
    },
    /// The directory is another cluster's.
    #[error("metadata directory {dir} belongs to cluster {found}, not {wanted}: use another directory")]
    OtherCluster {
        /// The directory.
        dir: PathBuf,
        /// Which it belongs to.
        found: String,
        /// Which it was to belong to.
        wanted: String,
    },
    /// The directory was written by a later version.
    #[error(
        "metadata directory {dir} has format {found}, and this version knows {known}: use a newer version"
    )]
    Format {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u8,
        /// The latest that is known here.
        known: u8,
    },
    /// The store cannot be read or written.
    #[error("metadata in {dir} cannot be read or written: {why}")]
    Storage {
        /// The directory.
        dir: PathBuf,
        /// What failed.
        why: String,
    },
    /// The group of voters cannot be changed, or cannot be reached.
    #[error("the metadata group cannot be changed: {0}")]
    Group(String),
    /// This node is not the group's leader.
    #[error("node {node} does not lead the metadata group: {}", ask(*leader))]
    NotLeader {
        /// This node.
        node: NodeId,
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// The metadata has stopped, by [`Metadata::shutdown`](crate::Metadata::shutdown) or by a failure that was
    /// logged.
    #[error("the node's metadata has stopped: {0}")]
    Stopped(String),
    /// It took longer than it may; it may have happened or not, or still happen.
    #[error("no majority of the metadata group answered within {0} ms: check that its nodes run")]
    TimedOut(u64),
    /// The cluster has another name.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

/// Why a command was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was agreed on, and changed nothing.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Ask the leader.
    #[error("node {node} does not lead the metadata group: {}", ask(*leader))]
    NotLeader {
        /// This node.
        node: NodeId,
        /// Who leads, as far as is known.
        leader: Option<NodeId>,
    },
    /// The command is larger than [`limits::COMMAND_BYTES`](crate::limits::COMMAND_BYTES).
    #[error("a command of {size} bytes is over the limit of {limit}: ask for less at once")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// More proposals are under way than [`Options::proposals_in_flight`](crate::Options::proposals_in_flight).
    #[error("too many changes of the metadata are under way: try again")]
    Busy,
    /// It took longer than it may; it may have happened or not, or still happen.
    #[error("no majority of the metadata group answered within {0} ms: check that its nodes run")]
    TimedOut(u64),
    /// The metadata has stopped.
    #[error("the node's metadata has stopped: {0}")]
    Stopped(String),
}

impl ProposeError {
    /// What a client's program is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Rejected(rejected) => rejected.code(),
            Self::NotLeader { .. } => ErrorCode::NotLeader,
            Self::TooLarge { .. } => ErrorCode::InvalidRequest,
            Self::Busy => ErrorCode::Busy,
            Self::TimedOut(_) => ErrorCode::TimedOut,
            Self::Stopped(_) => ErrorCode::ShuttingDown,
        }
    }
}

fn ask(leader: Option<NodeId>) -> String {
    leader.map_or_else(
        || "nobody does at the moment, try again".to_owned(),
        |leader| format!("node {leader} does"),
    )
}
