//! A produce stream: one partition, batches pipelined, answered in order.
//!
//! After [`ProduceOpen`] and the broker's `Result<ProduceOpened, WireError>`, each frame from the client has an
//! empty control part and one record batch as payload; each is answered by one frame whose control part is a
//! [`ProduceAnswer`], in the order of the batches. With [`Acks::None`] only refusals are answered, and the
//! stream ends with the first. The client ends by finishing its side; the broker answers what is left and finishes.

use serde::{Deserialize, Serialize};

use crate::{Offset, PartitionId, Timestamp, TopicId, TopicName, WireError};

/// When a batch counts as produced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acks {
    /// When it is sent.
    None,
    /// When the leader has stored it, by the topic's `durability`.
    Leader,
    /// When it is committed: all in-sync replicas have stored it, and there are at least `min.insync.replicas`.
    #[default]
    All,
}

/// What the client opens a produce stream with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProduceOpen {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// When batches are answered.
    pub acks: Acks,
    /// Which topic of that name is meant: a broker that knows another refuses. `None`: whichever has the name there.
    pub id: Option<TopicId>,
}

/// The broker's word that it leads the partition and takes batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProduceOpened {
    /// The largest batch that the topic takes, in bytes.
    pub max_message_bytes: u32,
}

/// A batch is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProduceAck {
    /// The offset of the batch's first record; record `i` of the batch has offset `base_offset + i`.
    pub base_offset: Offset,
    /// The time that the broker gave the records, where `message.timestamp.type` is `LogAppendTime`.
    pub append_time: Option<Timestamp>,
}

/// The answer to one batch.
pub type ProduceAnswer = Result<ProduceAck, WireError>;
