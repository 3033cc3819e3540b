//! A replication stream: one partition, from its leader to one follower, as long as both keep their roles.
//!
//! ```text
//!   follower                                        leader
//!   Open { epoch, where my log ends }        ──▶    is that on my history?
//!                                            ◀──    Diverged { epoch, end }: cut there, say again where you end
//!   Position { where my log ends }           ──▶
//!                                            ◀──    Start
//!                                            ◀──    Batches { high watermark, log start } + payload, as they are appended
//!   Stored { end }                           ──▶    moves the high watermark
//! ```
//!
//! The leader pushes what it has appended, committed or not; it stops while more than
//! [`limits::REPLICA_BYTES_IN_FLIGHT`](crate::limits::REPLICA_BYTES_IN_FLIGHT) are pushed and not yet stored. A push
//! without payload carries a high watermark that has moved. Truncation follows KIP-101 and KIP-279: by leader epoch,
//! never by high watermark.

use serde::{Deserialize, Serialize};

use crate::{Epoch, NodeId, Offset, PartitionId, TopicId, WireError};

/// Where a follower's log ends, and who wrote its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEnd {
    /// The leader epoch of the last batch; `None` where the log holds no batch.
    pub epoch: Option<Epoch>,
    /// The log end offset: the next one to be written.
    pub end: Offset,
}

/// What a follower opens the stream with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicateOpen {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The follower; its certificate must say so too.
    pub node: NodeId,
    /// The epoch of the follower's registration: what it stored in an earlier life counts nothing (KIP-903).
    pub broker_epoch: u64,
    /// The partition epoch since which the follower holds its replica: the leader's word for it, or one of the two is
    /// behind. What it stored in an earlier stay counts nothing.
    pub since: u32,
    /// Rises with each stream that the follower opens in this registration: one that arrives late must not take the
    /// place of a newer one.
    pub stream: u64,
    /// The leader epoch that the follower follows in: the leader's, or one of the two is behind.
    pub leader_epoch: Epoch,
    /// Where the follower's log ends.
    pub log: LogEnd,
}

/// What a follower says after the opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FollowerFrame {
    /// It has truncated or reset its log, which ends here now.
    Position(LogEnd),
    /// It has stored, by the topic's durability, all below this offset.
    Stored {
        /// The offset.
        end: Offset,
    },
}

/// What a leader says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaderFrame {
    /// The follower's log is a prefix of the leader's: batches follow from its end on.
    Start,
    /// It is not: in the leader's log the largest epoch not above the follower's last is `epoch`, and ends before
    /// `end`. The follower cuts its log to the smaller of `end` and where its own batches of epochs up to `epoch`
    /// end, and answers with its [`FollowerFrame::Position`]. `epoch` is `None` where the leader holds no epoch so
    /// old: then nothing the follower has is on the leader's history.
    Diverged {
        /// The epoch.
        epoch: Option<Epoch>,
        /// Where it ends in the leader's log.
        end: Offset,
    },
    /// The leader's log starts behind the follower's end: the follower empties its log, goes on from here, and
    /// answers with its [`FollowerFrame::Position`].
    Reset {
        /// The leader's log start.
        log_start: Offset,
    },
    /// The payload holds whole batches that follow what was pushed before; maybe none.
    Batches {
        /// The leader's high watermark as the push left.
        high_watermark: Offset,
        /// The leader's log start: the follower may drop what lies before.
        log_start: Offset,
    },
    /// The stream ends here.
    Refused(WireError),
}
