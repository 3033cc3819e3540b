//! The two kinds of streams, with what is under way on them.

use std::collections::BTreeMap;

use bus_protocol::batch::RecordBatch;
use bus_protocol::produce::{Acks, ProduceAck};
use bus_protocol::replicate::{LeaderFrame, LogEnd};
use bus_protocol::{Epoch, Offset};
use bus_replica::AppendError;
use bytes::Bytes;

use crate::client::Content;
use crate::clock::Time;
use crate::invariants::Place;
use crate::pipe::Pipe;

/// What a follower sends.
#[derive(Debug)]
pub(crate) enum ToLeader {
    /// Its opening, and each position after a cut.
    Position(LogEnd),
    Stored(Offset),
    End,
}

/// What a leader sends.
#[derive(Debug)]
pub(crate) enum ToFollower {
    Frame(LeaderFrame, Bytes),
    End,
}

/// A replication stream.
#[derive(Debug)]
pub(crate) struct Replication {
    pub(crate) place: Place,
    /// Node and life.
    pub(crate) follower: (usize, u64),
    pub(crate) leader: (usize, u64),
    pub(crate) broker_epoch: u64,
    /// Since which partition epoch the follower holds its replica.
    pub(crate) since: u32,
    pub(crate) epoch: Epoch,
    pub(crate) to_leader: Pipe<ToLeader>,
    /// Until then nothing arrives at the leader.
    pub(crate) held: Time,
    pub(crate) to_follower: Pipe<ToFollower>,
    /// At the leader: the next offset to send, once the logs agree.
    pub(crate) next: Option<Offset>,
    /// At the leader: what was said last of high watermark and log start.
    pub(crate) told: (Offset, Offset),
    /// At the follower: whether the logs agree.
    pub(crate) settled: bool,
    pub(crate) leader_done: bool,
    pub(crate) follower_done: bool,
}

/// What a client sends.
#[derive(Debug)]
pub(crate) enum ToBroker {
    Batch { content: Content, batch: RecordBatch, acks: Acks },
    End,
}

/// What a broker sends.
#[derive(Debug)]
pub(crate) enum ToClient {
    Answer(Result<ProduceAck, AppendError>),
    End,
}

/// A produce stream.
#[derive(Debug)]
pub(crate) struct Produce {
    pub(crate) producer: usize,
    pub(crate) lane: usize,
    pub(crate) place: Place,
    /// Node and life.
    pub(crate) broker: (usize, u64),
    pub(crate) to_broker: Pipe<ToBroker>,
    pub(crate) to_client: Pipe<ToClient>,
    /// At the broker: the leader epoch that it was opened in.
    pub(crate) epoch: Option<Epoch>,
    pub(crate) broken: bool,
    /// Batches taken from it.
    pub(crate) taken: u64,
    /// Answers that wait for those before them, and the next one's number.
    pub(crate) answers: BTreeMap<u64, Result<ProduceAck, AppendError>>,
    pub(crate) answered: u64,
}
