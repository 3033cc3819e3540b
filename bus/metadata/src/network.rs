//! Raft's messages, as bytes that somebody else carries.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bus_protocol::NodeId;
use bytes::Bytes;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, SnapshotMismatch, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, Raft};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::store::TypeConfig;
use crate::{MetadataImage, limits};

/// How a node reaches the others. The broker implements it over its transport.
#[async_trait]
pub trait PeerClient: Send + Sync + 'static {
    /// Carries `request`, at most [`limits::PEER_MESSAGE_BYTES`], to node `node`, which listened at `address` when
    /// it was last heard of, gives it to that node's [`Metadata::receive`](crate::Metadata::receive), and brings
    /// back what that answers.
    ///
    /// Raft sets the deadline: the future is dropped when it has passed. A message may arrive more than once, or
    /// late, or not at all; it must not arrive changed, and only members of the cluster may send one.
    async fn call(&self, node: NodeId, address: &str, request: Bytes) -> Result<Bytes, PeerError>;
}

/// Why a message has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection: it is tried again after a while.
    #[error("node {node} cannot be reached: {why}")]
    Unreachable {
        /// Whom.
        node: NodeId,
        /// Why not.
        why: String,
    },
    /// The connection failed on the way: it is tried again at once.
    #[error("the connection to node {node} failed: {why}")]
    Broken {
        /// Whose.
        node: NodeId,
        /// How.
        why: String,
    },
}

/// The version of [`Ask`] and [`Reply`]: the first byte of each message.
const VERSION: u8 = 1;
/// How long a peer that cannot be reached is left alone, in milliseconds: it has just started, or is gone.
const UNREACHABLE_BACKOFF_MS: u64 = 200;

#[derive(Serialize, Deserialize)]
struct Ask {
    cluster_id: Option<String>,
    from: NodeId,
    to: NodeId,
    question: Question,
}

#[derive(Serialize, Deserialize)]
enum Question {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<NodeId>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Append(AppendEntriesResponse<NodeId>),
    Vote(VoteResponse<NodeId>),
    Snapshot(InstallSnapshotResponse<NodeId>),
    /// The piece does not follow on the last one: the sender starts again.
    SnapshotMismatch(SnapshotMismatch),
    Refused(String),
}

/// What this node is called; shared by what it sends and what it receives.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) cluster_id: OnceLock<Arc<str>>,
}

/// What a message from a peer asks for before it is answered.
pub(crate) struct Received(Ask);

impl Received {
    /// Reads a message, or answers it with a refusal.
    pub(crate) fn read(identity: &Identity, bytes: &[u8]) -> Result<Self, Bytes> {
        let ask: Ask = decode(bytes).map_err(refuse)?;
        if ask.to != identity.node {
            return Err(refuse(format!("this is node {}, not {}", identity.node, ask.to)));
        }
        if let (Some(ours), Some(theirs)) = (identity.cluster_id.get(), &ask.cluster_id)
            && **ours != **theirs
        {
            return Err(refuse(format!("this node is of cluster {ours}, not {theirs}")));
        }
        // Raft makes room up to where a piece belongs.
        if let Question::Snapshot(piece) = &ask.question
            && piece.offset.saturating_add(piece.data.len() as u64) > limits::SNAPSHOT_BYTES
        {
            return Err(refuse(format!("a snapshot is at most {} bytes", limits::SNAPSHOT_BYTES)));
        }
        Ok(Self(ask))
    }

    /// The cluster that the sender is of.
    pub(crate) fn cluster_id(&self) -> Option<&str> {
        self.0.cluster_id.as_deref()
    }

    /// Gives the message to Raft, and answers with what that says.
    pub(crate) async fn answer(self, raft: &Raft<TypeConfig>) -> Bytes {
        let reply = match self.0.question {
            Question::Append(request) => raft.append_entries(request).await.map(Reply::Append).map_err(text),
            Question::Vote(request) => raft.vote(request).await.map(Reply::Vote).map_err(text),
            Question::Snapshot(request) => match raft.install_snapshot(request).await {
                Ok(response) => Ok(Reply::Snapshot(response)),
                Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => {
                    Ok(Reply::SnapshotMismatch(mismatch))
                }
                Err(error) => Err(text(error)),
            },
        };
        encode(&reply.unwrap_or_else(Reply::Refused)).map_or_else(refuse, Bytes::from)
    }
}

/// Makes a [`Peer`] for each other node of the group.
pub(crate) struct Network {
    pub(crate) identity: Arc<Identity>,
    pub(crate) client: Arc<dyn PeerClient>,
    pub(crate) image: watch::Receiver<Arc<MetadataImage>>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Peer {
        Peer {
            identity: self.identity.clone(),
            client: self.client.clone(),
            image: self.image.clone(),
            node: target,
            joined_at: node.addr.clone(),
        }
    }
}

/// Another node of the group.
pub(crate) struct Peer {
    identity: Arc<Identity>,
    client: Arc<dyn PeerClient>,
    image: watch::Receiver<Arc<MetadataImage>>,
    node: NodeId,
    joined_at: String,
}

impl Peer {
    async fn ask<E: std::error::Error>(
        &self,
        question: Question,
    ) -> Result<Reply, RPCError<NodeId, BasicNode, E>> {
        let ask = Ask {
            cluster_id: self.identity.cluster_id.get().map(|id| id.to_string()),
            from: self.identity.node,
            to: self.node,
            question,
        };
        let request = encode(&ask).map_err(|why| network_error(self.node, why))?;
        // A broker that came back elsewhere has said so when it registered; the group still has the address it
        // joined with.
        let registered = self.image.borrow().broker(self.node).map(|broker| broker.address.clone());
        let address = registered.unwrap_or_else(|| self.joined_at.clone());
        let reply =
            self.client.call(self.node, &address, request.into()).await.map_err(|error| match error {
                PeerError::Unreachable { .. } => RPCError::Unreachable(Unreachable::new(&error)),
                PeerError::Broken { .. } => RPCError::Network(NetworkError::new(&error)),
            })?;
        match decode(&reply) {
            // Not a passing failure: the peer is another node or of another cluster, or its metadata has stopped.
            Ok(Reply::Refused(why)) => {
                let error = PeerError::Unreachable { node: self.node, why };
                tracing::debug!(%error, "a metadata peer refused a message");
                Err(RPCError::Unreachable(Unreachable::new(&error)))
            }
            Ok(reply) => Ok(reply),
            Err(why) => Err(network_error(self.node, why)),
        }
    }

    fn out_of_place<E: std::error::Error>(&self) -> RPCError<NodeId, BasicNode, E> {
        network_error(self.node, "the answer is to another question".to_owned())
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, BasicNode, RaftError<NodeId>>> {
        match self.ask(Question::Append(request)).await? {
            Reply::Append(response) => Ok(response),
            _ => Err(self.out_of_place()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        _option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, BasicNode, RaftError<NodeId>>> {
        match self.ask(Question::Vote(request)).await? {
            Reply::Vote(response) => Ok(response),
            _ => Err(self.out_of_place()),
        }
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<NodeId>,
        RPCError<NodeId, BasicNode, RaftError<NodeId, InstallSnapshotError>>,
    > {
        match self.ask(Question::Snapshot(request)).await? {
            Reply::Snapshot(response) => Ok(response),
            Reply::SnapshotMismatch(mismatch) => {
                let error = RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch));
                Err(RPCError::RemoteError(RemoteError::new(self.node, error)))
            }
            _ => Err(self.out_of_place()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(std::time::Duration::from_millis(UNREACHABLE_BACKOFF_MS)))
    }
}

fn network_error<E: std::error::Error>(node: NodeId, why: String) -> RPCError<NodeId, BasicNode, E> {
    RPCError::Network(NetworkError::new(&PeerError::Broken { node, why }))
}

fn refuse(why: String) -> Bytes {
    // Encoding a text cannot fail; if it did, the peer would take the empty answer for a broken connection.
    encode(&Reply::Refused(why)).unwrap_or_default().into()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, String> {
    postcard::to_extend(message, vec![VERSION]).map_err(text)
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, String> {
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
