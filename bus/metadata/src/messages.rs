//! What the nodes of a group say to each other, as bytes.

use std::sync::{Arc, OnceLock};

use bus_protocol::{NodeId, Timestamp};
use bytes::Bytes;
use openraft::error::SnapshotMismatch;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::store::TypeConfig;
use crate::{Applied, Command, DirectoryId, ProposeError, Rejected, limits};

/// The version of [`Ask`] and [`Reply`]: the first byte of each message.
const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
pub(crate) struct Ask {
    /// The sender's cluster, once it belongs to one.
    pub(crate) cluster_id: Option<String>,
    pub(crate) from: NodeId,
    /// Whom it is for; `None` where only an address is known.
    pub(crate) to: Option<NodeId>,
    pub(crate) question: Question,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Question {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<NodeId>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
    /// Whoever leads proposes this; and what time it is at the sender's. -> [`Reply::Applied`], [`Reply::NotApplied`]
    Propose(Box<Command>, Timestamp),
    /// Who are you? -> [`Reply::Hello`]
    Hello,
    /// Whoever leads takes the sender, whose store is empty, into the group. -> [`Reply::Joined`],
    /// [`Reply::NotApplied`], [`Reply::IdTaken`]
    Join {
        address: String,
        directory: DirectoryId,
    },
    /// The sender is there, in this registration. -> [`Reply::Heard`]
    Heartbeat {
        epoch: u64,
    },
    /// The sender is stopping, in this registration: nothing is to be handed over to it. -> [`Reply::Done`]
    Leaving {
        epoch: u64,
    },
    /// -> [`Reply::Done`], once the image of that index is known.
    Await {
        index: u64,
    },
    /// Stand for election: the leader is leaving. -> [`Reply::Done`]
    Elect,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Reply {
    Append(AppendEntriesResponse<NodeId>),
    Vote(VoteResponse<NodeId>),
    Snapshot(InstallSnapshotResponse<NodeId>),
    /// The piece does not follow on the last one: the sender starts again.
    SnapshotMismatch(SnapshotMismatch),
    /// Nothing has come of the question.
    Refused(String),
    /// The command stands in the log.
    Applied {
        /// Where.
        index: u64,
        result: Result<Applied, Rejected>,
    },
    /// It does not, or is not known to.
    NotApplied {
        error: ProposeError,
        /// Where the leader is, if it is known who leads.
        leader: Option<String>,
    },
    Hello(Hello),
    Joined {
        cluster_id: String,
    },
    /// Another broker with the sender's id runs.
    IdTaken {
        address: String,
    },
    Heard {
        /// Whether whoever answers leads, and by its image the sender's registration is fenced.
        fenced: bool,
        /// Whether the sender's id has been registered again since.
        superseded: bool,
        /// How many milliseconds ago whoever answers had a majority behind it, if it leads.
        quorum_ms: Option<u64>,
    },
    Done,
}

/// Who somebody is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: NodeId,
    pub(crate) cluster_id: Option<String>,
    /// Who is to form the cluster by the list that it was started with, once it looks for one.
    pub(crate) first: Option<String>,
}

/// What this node is called; shared by what it sends and what it receives.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) cluster_id: OnceLock<Arc<str>>,
}

impl Identity {
    /// Reads a message to this node, or answers it with a refusal.
    pub(crate) fn read(&self, from: NodeId, bytes: &[u8]) -> Result<Ask, Bytes> {
        let ask: Ask = decode(bytes).map_err(refuse)?;
        let registers = match &ask.question {
            Question::Propose(command, _) => match &**command {
                Command::RegisterBroker { broker, .. } => broker.node,
                _ => from,
            },
            _ => from,
        };
        if ask.from != from || registers != from {
            return Err(refuse(format!("node {from} cannot speak for another node")));
        }
        if let Some(to) = ask.to
            && to != self.node
        {
            return Err(refuse(format!("this is node {}, not {to}", self.node)));
        }
        if let (Some(ours), Some(theirs)) = (self.cluster_id.get(), &ask.cluster_id)
            && **ours != **theirs
            // Who asks who this is learns it from the answer.
            && !matches!(ask.question, Question::Hello)
        {
            return Err(refuse(format!("this node is of cluster {ours}, not {theirs}")));
        }
        // Raft makes room up to where a piece belongs.
        if let Question::Snapshot(piece) = &ask.question
            && piece.offset.saturating_add(piece.data.len() as u64) > limits::SNAPSHOT_BYTES
        {
            return Err(refuse(format!("a snapshot is at most {} bytes", limits::SNAPSHOT_BYTES)));
        }
        Ok(ask)
    }

    /// A message from this node.
    pub(crate) fn ask(&self, to: Option<NodeId>, question: Question) -> Result<Bytes, String> {
        let cluster_id = self.cluster_id.get().map(|id| id.to_string());
        encode(&Ask { cluster_id, from: self.node, to, question }).map(Bytes::from)
    }
}

/// An answer's bytes.
pub(crate) fn reply(reply: &Reply) -> Bytes {
    encode(reply).map_or_else(refuse, Bytes::from)
}

/// The answer that nothing has come of the question.
pub(crate) fn refuse(why: String) -> Bytes {
    // Encoding a text cannot fail; if it did, the peer would take the empty answer for a broken connection.
    encode(&Reply::Refused(why)).unwrap_or_default().into()
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, String> {
    postcard::to_extend(message, vec![VERSION]).map_err(|error| error.to_string())
}

pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
    if bytes.len() > limits::PEER_MESSAGE_BYTES {
        return Err(format!("a message of {} bytes is over the limit", bytes.len()));
    }
    match bytes.split_first() {
        Some((&VERSION, message)) => {
            postcard::from_bytes(message).map_err(|error| format!("the message is not well-formed: {error}"))
        }
        Some((version, _)) => {
            Err(format!("message version {version} is not known: this node speaks {VERSION}"))
        }
        None => Err("the message is empty".to_owned()),
    }
}
