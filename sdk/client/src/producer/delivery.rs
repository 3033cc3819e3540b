//! What becomes of a record: one state a batch, shared by the deliveries of its records.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use bus_protocol::produce::ProduceAck;
use bus_protocol::{ErrorCode, Offset, PartitionId, Timestamp, WireError};

use crate::Error;

/// What became of a batch: set once, seen by every [`Delivery`] of it.
#[derive(Debug)]
pub(crate) struct BatchOutcome {
    partition: PartitionId,
    outcome: OnceLock<Result<ProduceAck, Error>>,
    /// Of the deliveries that are awaited now: no more than the batch has records.
    wakers: Mutex<Vec<Waker>>,
}

/// The slot of a delivery that has no waker yet.
const NO_SLOT: u32 = u32::MAX;

impl BatchOutcome {
    pub(crate) fn new(partition: PartitionId) -> Self {
        Self { partition, outcome: OnceLock::new(), wakers: Mutex::default() }
    }

    /// Settles it. Only the first word counts.
    pub(crate) fn settle(&self, outcome: Result<ProduceAck, Error>) {
        let _ = self.outcome.set(outcome);
        // Whoever adds a waker looks at the outcome under this lock first: none is forgotten.
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }

    fn poll(&self, context: &Context<'_>, slot: &mut u32) -> Poll<&Result<ProduceAck, Error>> {
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = self.outcome.get() {
            return Poll::Ready(outcome);
        }
        match wakers.get_mut(*slot as usize) {
            Some(waker) => waker.clone_from(context.waker()),
            None => {
                *slot = u32::try_from(wakers.len()).unwrap_or(NO_SLOT);
                wakers.push(context.waker().clone());
            }
        }
        Poll::Pending
    }

    /// Waits until it is settled.
    pub(crate) async fn settled(&self) -> Result<(), Error> {
        let mut slot = NO_SLOT;
        std::future::poll_fn(|context| self.poll(context, &mut slot).map(|outcome| outcome.clone().map(drop)))
            .await
    }
}

/// The acknowledgement of a record, to be awaited. Costs nothing to drop, which does not take the record back.
#[derive(Debug)]
#[must_use = "a delivery that is not awaited does not tell whether its record is stored"]
pub struct Delivery {
    batch: Arc<BatchOutcome>,
    index: u32,
    slot: u32,
    timestamp: Timestamp,
}

/// Where a record is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The partition.
    pub partition: PartitionId,
    /// The record's offset; -1 with [`crate::Acks::None`], where it is not known.
    pub offset: Offset,
    /// The record's time: the broker's where the topic's `message.timestamp.type` is `LogAppendTime`.
    pub timestamp: Timestamp,
}

impl Delivery {
    pub(crate) fn new(batch: Arc<BatchOutcome>, index: u32, timestamp: Timestamp) -> Self {
        Self { batch, index, slot: NO_SLOT, timestamp }
    }

    fn ack(&self, ack: &ProduceAck) -> Ack {
        Ack {
            partition: self.batch.partition,
            offset: if ack.base_offset < 0 { -1 } else { ack.base_offset.saturating_add(self.index.into()) },
            timestamp: ack.append_time.unwrap_or(self.timestamp),
        }
    }

    fn error(&self, error: &Error) -> Error {
        match error {
            Error::Refused(refusal) if refusal.code == ErrorCode::RecordRefused => {
                self.refusal(refusal, error)
            }
            other => other.clone(),
        }
    }

    /// A batch is stored whole or not at all: the culprit gets its reason, its neighbours learn whose fault it is.
    fn refusal(&self, refusal: &WireError, error: &Error) -> Error {
        if let Some(own) = refusal.records.iter().find(|record| record.index == self.index) {
            return Error::RecordRefused { reason: own.reason.clone() };
        }
        match refusal.records.first() {
            Some(culprit) => Error::RefusedWithBatch { index: culprit.index, reason: culprit.reason.clone() },
            None => error.clone(),
        }
    }
}

impl Future for Delivery {
    type Output = Result<Ack, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match this.batch.poll(context, &mut this.slot) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(ack)) => Poll::Ready(Ok(this.ack(ack))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(this.error(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use bus_protocol::RecordError;

    use super::*;

    #[tokio::test]
    async fn all_deliveries_of_a_batch_learn_their_own_offset() {
        let batch = Arc::new(BatchOutcome::new(3));
        let deliveries: Vec<_> = (0..3).map(|index| Delivery::new(batch.clone(), index, 77)).collect();
        let waiting: Vec<_> = deliveries.into_iter().map(tokio::spawn).collect();
        tokio::task::yield_now().await;
        batch.settle(Ok(ProduceAck { base_offset: 100, append_time: None }));
        for (index, waiting) in (0..).zip(waiting) {
            let ack = waiting.await.unwrap().unwrap();
            assert_eq!(ack, Ack { partition: 3, offset: 100 + index, timestamp: 77 });
        }
    }

    #[tokio::test]
    async fn a_refused_record_is_told_apart_from_its_neighbours() {
        let batch = Arc::new(BatchOutcome::new(0));
        let mut refusal = WireError::new(ErrorCode::RecordRefused, "refused");
        refusal.records = vec![RecordError { index: 1, reason: "no id".into() }];
        let [mut neighbour, mut culprit] = [0, 1].map(|index| Delivery::new(batch.clone(), index, 0));
        batch.settle(Err(refusal.into()));
        assert!(matches!((&mut culprit).await, Err(Error::RecordRefused { reason }) if reason == "no id"));
        assert!(matches!((&mut neighbour).await, Err(Error::RefusedWithBatch { index: 1, .. })));
    }
}
