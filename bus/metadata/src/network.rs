//! The way to the other nodes: bytes that somebody else carries.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bus_protocol::NodeId;
use bytes::Bytes;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, Raft};
use tokio::sync::watch;

use crate::MetadataImage;
use crate::messages::{Identity, Question, Reply, decode};
use crate::store::TypeConfig;

/// How a node reaches the others. The broker implements it over its transport.
#[async_trait]
pub trait PeerClient: Send + Sync + 'static {
    /// Carries `request`, at most [`limits::PEER_MESSAGE_BYTES`](crate::limits::PEER_MESSAGE_BYTES), to node `node`, which listened at `address` when
    /// it was last heard of, gives it to that node's [`Metadata::receive`](crate::Metadata::receive), and brings
    /// back what that answers.
    ///
    /// Whoever asks sets the deadline: the future is dropped when it has passed. A call to one node must not wait for
    /// one to another. A message may arrive more than once, or late, or not at all; it must not arrive changed, and
    /// only members of the cluster may send one.
    async fn call(&self, node: NodeId, address: &str, request: Bytes) -> Result<Bytes, PeerError>;

    /// The same, to whichever node of the cluster listens at `address`.
    async fn call_address(&self, address: &str, request: Bytes) -> Result<Bytes, PeerError>;
}

/// Why a message has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection, so that the message has certainly not arrived: it is tried again after a while.
    #[error("node {node} cannot be reached: {why}")]
    Unreachable {
        /// Whom.
        node: NodeId,
        /// Why not.
        why: String,
    },
    /// The connection failed on the way: the message may have arrived.
    #[error("the connection to node {node} failed: {why}")]
    Broken {
        /// Whose.
        node: NodeId,
        /// How.
        why: String,
    },
    /// Nobody answers at an address.
    #[error("nobody answers at {address}: {why}")]
    NoAnswer {
        /// Where.
        address: String,
        /// Why not.
        why: String,
    },
    /// Who answers, and this node, do not trust each other's certificates.
    #[error("{address} and this node do not trust each other's certificates: {why}")]
    Distrusted {
        /// Where.
        address: String,
        /// What is wrong.
        why: String,
    },
}

/// How long a peer that cannot be reached is left alone, in milliseconds: it has just started, or is gone.
const UNREACHABLE_BACKOFF_MS: u64 = 200;

/// For each node the epoch that its broker had, and an address.
type Found = BTreeMap<NodeId, (Option<u64>, String)>;

/// The way to the other nodes.
#[derive(Clone)]
pub(crate) struct Peers {
    pub(crate) identity: Arc<Identity>,
    pub(crate) client: Arc<dyn PeerClient>,
    pub(crate) image: watch::Receiver<Arc<MetadataImage>>,
    /// Where nodes have been found that had no leader to register with: the broker epoch that they had then, and the
    /// address. It holds until they have registered.
    pub(crate) found: Arc<Mutex<Found>>,
}

impl Peers {
    /// Notes where a node of this cluster listens, as it has said itself.
    pub(crate) fn note(&self, node: NodeId, address: &str) {
        let epoch = self.image.borrow().broker(node).map(|broker| broker.epoch);
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(node, (epoch, address.to_owned()));
    }

    /// Where a node is. One that came back elsewhere has said so when it registered, or when it was asked; the group
    /// still has the address it joined with.
    fn address(&self, node: NodeId, joined_at: &str) -> String {
        let image = self.image.borrow();
        let broker = image.broker(node);
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        match found.get(&node) {
            Some((epoch, address)) if *epoch == broker.map(|broker| broker.epoch) => address.clone(),
            _ => broker.map_or(joined_at, |broker| &broker.address).to_owned(),
        }
    }

    /// Asks a node, which joined the group at `joined_at`. [`PeerError::Unreachable`] says that it has not got the
    /// question, or has refused it.
    pub(crate) async fn ask(
        &self,
        node: NodeId,
        joined_at: &str,
        question: Question,
    ) -> Result<Reply, PeerError> {
        let broken = |why| PeerError::Broken { node, why };
        let request = self.identity.ask(Some(node), question).map_err(broken)?;
        let address = self.address(node, joined_at);
        let answer = self.client.call(node, &address, request).await?;
        match decode(&answer) {
            // Not a passing failure: the peer is another node or of another cluster, or its metadata has stopped.
            Ok(Reply::Refused(why)) => {
                let error = PeerError::Unreachable { node, why };
                tracing::debug!(%error, "a metadata peer refused a message");
                Err(error)
            }
            Ok(reply) => Ok(reply),
            Err(why) => Err(broken(why)),
        }
    }

    /// Asks whoever listens at an address.
    pub(crate) async fn ask_address(&self, address: &str, question: Question) -> Result<Reply, PeerError> {
        let failed = |why| PeerError::NoAnswer { address: address.to_owned(), why };
        let request = self.identity.ask(None, question).map_err(failed)?;
        let answer = self.client.call_address(address, request).await?;
        decode(&answer).map_err(failed)
    }
}

/// Gives one of Raft's messages to Raft, and answers with what that says.
pub(crate) async fn answer_raft(raft: &Raft<TypeConfig>, question: Question) -> Reply {
    let text = |error: &dyn std::fmt::Display| Reply::Refused(error.to_string());
    match question {
        Question::Append(request) => {
            raft.append_entries(request).await.map_or_else(|error| text(&error), Reply::Append)
        }
        Question::Vote(request) => raft.vote(request).await.map_or_else(|error| text(&error), Reply::Vote),
        Question::Snapshot(request) => match raft.install_snapshot(request).await {
            Ok(response) => Reply::Snapshot(response),
            Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => {
                Reply::SnapshotMismatch(mismatch)
            }
            Err(error) => text(&error),
        },
        _ => Reply::Refused("the question is not Raft's".to_owned()),
    }
}

/// Makes a [`Peer`] for each other node of the group.
pub(crate) struct Network(pub(crate) Peers);

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Peer {
        Peer { peers: self.0.clone(), node: target, joined_at: node.addr.clone() }
    }
}

/// Another node of the group.
pub(crate) struct Peer {
    peers: Peers,
    node: NodeId,
    joined_at: String,
}

impl Peer {
    async fn ask<E: std::error::Error>(
        &self,
        question: Question,
    ) -> Result<Reply, RPCError<NodeId, BasicNode, E>> {
        self.peers.ask(self.node, &self.joined_at, question).await.map_err(|error| match error {
            PeerError::Broken { .. } => RPCError::Network(NetworkError::new(&error)),
            error => RPCError::Unreachable(Unreachable::new(&error)),
        })
    }

    fn out_of_place<E: std::error::Error>(&self) -> RPCError<NodeId, BasicNode, E> {
        let why = "the answer is to another question".to_owned();
        RPCError::Network(NetworkError::new(&PeerError::Broken { node: self.node, why }))
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
