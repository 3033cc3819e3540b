//! What comes to the task that owns a replica.

use bus_protocol::produce::ProduceAck;
use bus_protocol::replicate::{LeaderFrame, LogEnd, ReplicateOpen};
use bus_protocol::{Epoch, NodeId, Offset};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::following::Failure;
use crate::leader::IsrProposal;
use crate::partition::Lane;
use crate::replica::{Append, Role};
use crate::{AppendError, Fault, FollowError};

pub(crate) type Done = oneshot::Sender<Result<(), AppendError>>;

pub(crate) enum Event {
    Append {
        append: Append<Queued>,
        permit: OwnedSemaphorePermit,
    },
    Configure(Role, oneshot::Sender<()>),
    ProposalRefused(IsrProposal),
    Tick,
    Maintain,
    Fault(Fault),
    FollowerOpened {
        open: ReplicateOpen,
        answer: oneshot::Sender<LeaderFrame>,
    },
    FollowerStored {
        follower: (NodeId, u64),
        stream: u64,
        epoch: Epoch,
        end: Offset,
    },
    FollowerGone {
        follower: (NodeId, u64),
        stream: u64,
    },
    Followers(oneshot::Sender<Vec<(NodeId, Offset)>>),
    Position(Epoch, oneshot::Sender<Result<LogEnd, FollowError>>),
    Settle(Epoch, LeaderFrame, oneshot::Sender<Result<Option<LogEnd>, FollowError>>),
    Replicate {
        epoch: Epoch,
        frame: LeaderFrame,
        payload: Bytes,
        failure: Failure,
        permit: OwnedSemaphorePermit,
    },
    DeleteBefore(Offset, Done),
    Stop {
        delete: bool,
        done: Done,
    },
}

/// Whom an append's answer goes to, and by which lane it came.
pub(crate) struct Queued {
    pub(crate) answer: oneshot::Sender<Result<ProduceAck, AppendError>>,
    pub(crate) lane: Lane,
}
