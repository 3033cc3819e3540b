//! A follower's side of one replication stream.

use std::sync::{Arc, OnceLock};

use bus_protocol::replicate::{LeaderFrame, LogEnd};
use bus_protocol::{Epoch, Offset};
use bytes::Bytes;
use tokio::sync::Notify;

use crate::event::Event;
use crate::{FollowError, Partition};

/// One stream from the leader of one epoch to this replica. Frames are taken in order, batches without waiting
/// for them to be appended; a failure is told by [`Following::failed`], and ends the stream.
pub struct Following {
    partition: Partition,
    epoch: Epoch,
    begin: LogEnd,
    failure: Failure,
}

/// Where the owner leaves why it took no batch.
#[derive(Clone, Default)]
pub(crate) struct Failure(Arc<(OnceLock<String>, Notify)>);

impl Failure {
    /// Only the first counts: the others follow from it.
    pub(crate) fn set(&self, error: &FollowError) {
        if self.0.0.set(error.to_string()).is_ok() {
            self.0.1.notify_one();
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.0.get().is_some()
    }
}

impl Following {
    pub(crate) async fn begin(partition: Partition, epoch: Epoch) -> Result<Self, FollowError> {
        let begin = partition.ask(|answer| Event::Position(epoch, answer)).await;
        let begin = begin.map_err(|_| FollowError::Closed)??;
        Ok(Self { partition, epoch, begin, failure: Failure::default() })
    }

    /// Where the log ends: what the stream is opened with.
    pub fn begin_at(&self) -> LogEnd {
        self.begin
    }

    /// Takes the leader's answer to where the log ends; what is to be sent back, or `None` when batches follow.
    pub async fn settle(&self, frame: LeaderFrame) -> Result<Option<LogEnd>, FollowError> {
        let answer = self.partition.ask(|answer| Event::Settle(self.epoch, frame, answer)).await;
        answer.map_err(|_| FollowError::Closed)?
    }

    /// Takes a frame of batches. Waits while the owner's queue, or the memory for what is replicated, is full.
    pub async fn replicate(&self, frame: LeaderFrame, payload: Bytes) -> Result<(), FollowError> {
        // The memory is at least one of the largest frames, so this waits for others only.
        let permits = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.partition.replicating).acquire_many_owned(permits).await;
        let permit = permit.map_err(|_| FollowError::Closed)?;
        let event =
            Event::Replicate { epoch: self.epoch, frame, payload, failure: self.failure.clone(), permit };
        self.partition.send(event).await.map_err(|_| FollowError::Closed)
    }

    /// Resolves, with why, when a batch could not be taken.
    pub async fn failed(&self) -> String {
        loop {
            if let Some(why) = self.failure.0.0.get() {
                return why.clone();
            }
            self.failure.0.1.notified().await;
        }
    }

    /// How far this replica has stored, once that is another offset than `told`. An error when the replica has taken on
    /// another role: what it stores from then on is not on the history of this stream's leader, who must not hear of it.
    pub async fn stored(&self, told: Option<Offset>) -> Result<Offset, FollowError> {
        let mut stored = self.partition.shown.stored.clone();
        let news = |(epoch, end): &(Epoch, Offset)| *epoch != self.epoch || Some(*end) != told;
        match stored.wait_for(news).await.map(|now| *now) {
            Ok((epoch, end)) if epoch == self.epoch => Ok(end),
            Ok(_) => Err(FollowError::Stale(self.epoch)),
            Err(_) => Err(FollowError::Closed),
        }
    }
}
