//! A fetch stream: one partition, batches pushed as they commit, under credit.
//!
//! After [`FetchOpen`] the broker answers frames whose control part is a [`FetchPush`]; a push's payload is
//! whole record batches, end to end. The first may begin before the wanted offset: the client skips. A push takes
//! its payload's length from the credit; the broker pushes while credit is left (and may overdraw it by one
//! push), the client tops it up with [`FetchCredit`] frames as it consumes. Finishing its side, or
//! resetting the stream, ends the fetch.

use serde::{Deserialize, Serialize};

use crate::{Offset, PartitionId, TopicId, TopicName, WireError};

/// What a reader may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// Records below the last stable offset.
    #[default]
    Committed,
    /// Records below the high watermark.
    Uncommitted,
}

/// What the client opens a fetch stream with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchOpen {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The first offset wanted: from the log's start to its end.
    pub from: Offset,
    /// What the reader may see.
    pub isolation: Isolation,
    /// Bytes that may be pushed at first.
    pub credit: u64,
    /// Whose offset `from` is: a broker that knows another topic of that name refuses. `None`: whichever has the name
    /// there.
    pub id: Option<TopicId>,
}

/// More credit: bytes that may be pushed in addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchCredit {
    /// How many.
    pub bytes: u64,
}

/// What the broker pushes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchPush {
    /// The payload holds whole batches, in order, that follow what was pushed before.
    Batches {
        /// The partition's high watermark as the push left.
        high_watermark: Offset,
    },
    /// The fetch ends here.
    Error(WireError),
}
