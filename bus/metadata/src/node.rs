//! What the parts of a node's metadata share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bus_protocol::NodeId;
use bytes::Bytes;
use openraft::Raft;
use tokio::sync::{RwLock, Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::liveness::Liveness;
use crate::messages::{self, Hello, Identity, Question, Reply};
use crate::network::{Peers, answer_raft};
use crate::propose::millis;
use crate::quorum::Answered;
use crate::store::TypeConfig;
use crate::{MetadataImage, Options, ProposeError, Quorum};

/// Who takes part in the Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those who vote, and where they were when they joined. While the voters change, those who did and will.
    pub voters: BTreeMap<NodeId, String>,
    /// Those who only learn, or do not vote on all yet.
    pub learners: BTreeMap<NodeId, String>,
}

/// This node's broker, as far as it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Session {
    /// The epoch of its registration, once it has one.
    pub(crate) epoch: Option<u64>,
    /// Whether it serves: if it is fenced then, it says that it is there.
    pub(crate) ready: bool,
    /// Whether it is stopping: it stays fenced.
    pub(crate) leaving: bool,
    /// Whether its id has been registered by another since, which has been logged.
    pub(crate) superseded: bool,
}

/// One node's part in the group: what its handle and its tasks hold together. It holds nothing of the store.
pub(crate) struct Core {
    pub(crate) identity: Arc<Identity>,
    pub(crate) address: String,
    pub(crate) options: Options,
    pub(crate) raft: Raft<TypeConfig>,
    pub(crate) peers: Peers,
    pub(crate) image: watch::Receiver<Arc<MetadataImage>>,
    /// Closed once the node is shut down.
    pub(crate) leader: watch::Receiver<Option<NodeId>>,
    pub(crate) permits: Semaphore,
    pub(crate) liveness: Mutex<Liveness>,
    pub(crate) answered: Mutex<Answered>,
    pub(crate) session: watch::Sender<Session>,
    /// The registrations that have said that they are stopping, by node.
    pub(crate) left: watch::Sender<BTreeMap<NodeId, u64>>,
    /// Held by each write of this node as the leader; by a leader that hands over, for itself: what it wrote then its
    /// heir would lack, and could not be elected.
    pub(crate) writing: RwLock<()>,
    /// Whether the node takes Raft's messages. One whose store is empty does not until it has joined: it may have
    /// voted, and may have stored what was committed, in a former life that it does not remember.
    pub(crate) joined: AtomicBool,
    /// Who is to form the cluster, by the list that this node was started with.
    pub(crate) first: OnceLock<String>,
    /// Held while the membership changes: one change at a time.
    pub(crate) membership: tokio::sync::Mutex<()>,
}

impl Core {
    pub(crate) fn node(&self) -> NodeId {
        self.identity.node
    }

    /// Who leads; at once, where [`Self::leader`] follows a little later.
    pub(crate) fn current_leader(&self) -> Option<NodeId> {
        self.raft.server_metrics().borrow().current_leader
    }

    pub(crate) fn leads(&self) -> bool {
        self.current_leader() == Some(self.node())
    }

    pub(crate) fn image(&self) -> Arc<MetadataImage> {
        self.image.borrow().clone()
    }

    pub(crate) fn liveness(&self) -> MutexGuard<'_, Liveness> {
        self.liveness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn answered(&self) -> MutexGuard<'_, Answered> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago this node had a majority behind it, if it leads.
    pub(crate) fn quorum_ago(&self) -> Option<Duration> {
        if !self.leads() {
            return None;
        }
        let alone = self.members().voters.into_keys().eq([self.node()]);
        let ago = || self.raft.metrics().borrow().millis_since_quorum_ack.map(Duration::from_millis);
        if alone { Some(Duration::ZERO) } else { ago() }
    }

    pub(crate) fn quorum(&self) -> Quorum {
        let others = self.members().voters.into_keys().filter(|voter| *voter != self.node());
        let own = self.quorum_ago();
        self.answered().quorum(others, own, self.options.session_timeout(), Instant::now())
    }

    pub(crate) fn members(&self) -> Members {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let votes = |node: &NodeId| membership.get_joint_config().iter().all(|voters| voters.contains(node));
        let mut members = Members::default();
        for (node, at) in membership.nodes() {
            let side = if votes(node) { &mut members.voters } else { &mut members.learners };
            side.insert(*node, at.addr.clone());
        }
        members
    }

    /// Who will vote once a change of the voters is through, if one is under way. Until then nothing goes without a
    /// majority of the old voters and one of the new.
    pub(crate) fn voters_to_be(&self) -> Option<BTreeSet<NodeId>> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow();
        let configs = metrics.membership_config.membership().get_joint_config();
        configs.last().filter(|_| configs.len() > 1).cloned()
    }

    /// Where a node is, by its registration, or by the group.
    pub(crate) fn address_of(&self, node: NodeId) -> Option<String> {
        if let Some(broker) = self.image.borrow().broker(node) {
            return Some(broker.address.clone());
        }
        let members = self.members();
        members.voters.get(&node).or_else(|| members.learners.get(&node)).cloned()
    }

    /// Answers a message from another node.
    pub(crate) async fn receive(&self, from: NodeId, request: Bytes) -> Bytes {
        let ask = match self.identity.read(from, &request) {
            Ok(ask) => ask,
            Err(refusal) => return refusal,
        };
        let reply = match ask.question {
            Question::Hello => Reply::Hello(Hello {
                node: self.node(),
                cluster_id: self.identity.cluster_id.get().map(|id| id.to_string()),
                first: self.first.get().cloned(),
            }),
            Question::Join { address, directory } => self.take_in(ask.from, &address, directory).await,
            _ if !self.joined.load(Ordering::Acquire) => {
                Reply::Refused("this node has not joined its cluster yet".to_owned())
            }
            Question::Propose(command, clock) => match self.propose_for(ask.from, *command, clock).await {
                Ok((index, result)) => Reply::Applied { index, result },
                Err(error) => self.not_applied(error),
            },
            Question::Heartbeat { epoch } => self.hear(ask.from, epoch),
            Question::Leaving { epoch } => {
                self.left.send_modify(|left| {
                    left.insert(ask.from, epoch);
                });
                Reply::Done
            }
            Question::Await { index } => {
                let mut image = self.image.clone();
                let known = image.wait_for(|image| image.index() >= index);
                match timeout(self.options.propose_timeout(), known).await {
                    Ok(Ok(_)) => Reply::Done,
                    Ok(Err(_)) => Reply::Refused("this node is stopping".to_owned()),
                    Err(_) => Reply::Refused("this node has not heard of it yet".to_owned()),
                }
            }
            Question::Elect => match self.raft.trigger().elect().await {
                Ok(()) => Reply::Done,
                Err(error) => Reply::Refused(error.to_string()),
            },
            question => answer_raft(&self.raft, question).await,
        };
        messages::reply(&reply)
    }

    fn hear(&self, node: NodeId, epoch: u64) -> Reply {
        self.liveness().heard(node, epoch, Instant::now());
        let image = self.image.borrow();
        let broker = image.broker(node);
        Reply::Heard {
            fenced: self.leads() && broker.is_some_and(|broker| broker.epoch == epoch && broker.fenced),
            superseded: broker.is_some_and(|broker| broker.epoch > epoch),
            quorum_ms: self.quorum_ago().map(millis),
        }
    }

    /// The answer that a proposal, or a wish to join, is not fulfilled, and where to go with it.
    pub(crate) fn not_applied(&self, error: ProposeError) -> Reply {
        let leader = self.current_leader().filter(|leader| *leader != self.node());
        Reply::NotApplied { error, leader: leader.and_then(|leader| self.address_of(leader)) }
    }
}
