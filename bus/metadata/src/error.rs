//! What can go wrong with a node's metadata.

use std::path::PathBuf;

use bus_protocol::{ErrorCode, NodeId};

use serde::{Deserialize, Serialize};

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

/// Why a node is not let into its cluster.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// None of the listed nodes can be reached.
    #[error("nobody answers at {tried} ({why}): check the --join list, and that those nodes run")]
    NobodyAnswers {
        /// The addresses.
        tried: String,
        /// Why one of them cannot be.
        why: String,
    },
    /// Some can be, and it is not enough.
    #[error("this node has waited {waits}: it gives up")]
    GaveUp {
        /// For what, at last.
        waits: String,
    },
    /// The directory is of another cluster than the listed nodes are.
    #[error(
        "{address} is of cluster {theirs}, and this node's directory of cluster {ours}: use another directory, or another --join list"
    )]
    OtherCluster {
        /// Who.
        address: String,
        /// Of which cluster.
        theirs: String,
        /// The directory's.
        ours: String,
    },
    /// The directory keeps topics, and nothing of the metadata that knows of them; nor is their cluster there.
    #[error(
        "the data directory holds topics of cluster {cluster_id}, and its metadata/ is lost: a cluster that is formed anew would delete them: restore metadata/ from a copy, pass a --join list with nodes of that cluster that run, or use an empty data directory"
    )]
    MetadataLost {
        /// The cluster of the topics.
        cluster_id: String,
    },
    /// The listed nodes are of two clusters.
    #[error("{at} is of cluster {one}, and {address} of cluster {other}: list the nodes of one cluster")]
    TwoClusters {
        /// One cluster.
        one: String,
        /// Who is of it.
        at: String,
        /// The other.
        other: String,
        /// Who is of that.
        address: String,
    },
    /// Another broker has the id, with another data directory.
    #[error("node id {node} is taken by the broker at {address}: give this node another id")]
    IdTaken {
        /// The id.
        node: NodeId,
        /// Where that broker is.
        address: String,
    },
    /// A listed node has the id; or it is this very node, under another address.
    #[error(
        "node id {node} is taken by the node at {address}: give each node an id of its own; or, if that is this very node, list it as {own}, as it is advertised"
    )]
    SameId {
        /// The id.
        node: NodeId,
        /// Where that node is.
        address: String,
        /// This node's address.
        own: String,
    },
    /// Two nodes would each form a cluster.
    #[error(
        "{address} was started with a --join list that begins with {theirs}, and this node's begins with {ours}: give all nodes the same list"
    )]
    Disagree {
        /// Who.
        address: String,
        /// What its list begins with.
        theirs: String,
        /// What this node's list begins with.
        ours: String,
    },
    /// The certificates are of different authorities.
    #[error("{address} and this node do not trust each other's certificates: {why}")]
    Distrusted {
        /// Who.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// The cluster has no majority, or none that this node can reach.
    #[error("the cluster had no leader for {waited_ms} ms: check that most of its voters run ({voters})")]
    NoLeader {
        /// How long it was waited for.
        waited_ms: u64,
        /// Who votes.
        voters: String,
    },
    /// The registration was refused.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// This node's metadata failed.
    #[error(transparent)]
    Metadata(#[from] Error),
}

/// Why a command was not applied. Variants are added at the end: their order is the wire's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProposeError {
    /// It was agreed on, and changed nothing.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Nobody leads, as far as can be reached: it certainly was not applied.
    #[error("node {node} does not lead the metadata group: {}", ask(*leader))]
    NotLeader {
        /// Who was asked.
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
    /// It took longer than it may, or this node's metadata has stopped meanwhile: it may have happened or not, or still
    /// happen.
    #[error(
        "after {0} ms a majority of the metadata group has not confirmed the change: whether it was made is not known, and it may still be: check that most voters run (`bus cluster status`), look whether it is there (`bus topic describe`, `bus function list`), and only then try again"
    )]
    TimedOut(u64),
    /// The metadata has stopped, before it proposed anything: it certainly was not applied.
    #[error("the node's metadata has stopped: {0}")]
    Stopped(String),
    /// Most voters have been silent for the session timeout: it certainly was not applied.
    #[error("{}: nothing was changed; start them, and try again", no_majority(*node, silent))]
    NoMajority {
        /// Who was asked.
        node: NodeId,
        /// The voters that do not answer it.
        silent: Vec<NodeId>,
    },
}

impl ProposeError {
    /// What a client's program is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Rejected(rejected) => rejected.code(),
            Self::NotLeader { .. } | Self::NoMajority { .. } => ErrorCode::NotLeader,
            Self::TooLarge { .. } => ErrorCode::InvalidRequest,
            Self::Busy => ErrorCode::Busy,
            Self::TimedOut(_) => ErrorCode::TimedOut,
            Self::Stopped(_) => ErrorCode::ShuttingDown,
        }
    }
}

fn ask(leader: Option<NodeId>) -> String {
    leader.map_or_else(
        || "nobody does at the moment; check that most of its voters run, and try again".to_owned(),
        |leader| format!("node {leader} does"),
    )
}

fn no_majority(node: NodeId, silent: &[NodeId]) -> String {
    let silent: Vec<_> = silent.iter().map(ToString::to_string).collect();
    match &silent[..] {
        [] => {
            format!("no majority: node {node} has heard of no controller with most of the voters behind it")
        }
        [one] => format!("no majority: voter {one} does not answer node {node}"),
        several => format!("no majority: voters {} do not answer node {node}", several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_still_happen_is_said_to_be_unknown() {
        let said = ProposeError::TimedOut(10_000).to_string();
        assert!(
            said.contains("whether it was made is not known") && said.contains("it may still be"),
            "{said}"
        );
    }
}
