//! One partition's batches: the open one, those that are full, and those that are under way.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus_protocol::batch::{BatchBuilder, HEADER_BYTES, record_bytes_bound};
use bus_protocol::{PartitionId, Timestamp, TopicName, limits};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::credit::Credit;
use super::delivery::{BatchOutcome, Delivery};
use super::settings::Settings;
use crate::{Error, Record};

/// Memory is reserved in steps: an atomic operation a step, not a record.
const STEP: usize = 16 << 10;

/// One partition's batches. Senders hold the lock for a record, the partition's task for a batch.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) topic: TopicName,
    pub(crate) partition: PartitionId,
    /// The largest batch that the topic takes, as its leader said last.
    limit: AtomicUsize,
    gathered: Mutex<Gathered>,
    /// Something to do for the partition's task.
    pub(crate) work: Notify,
}

#[derive(Debug, Default)]
struct Gathered {
    open: Option<Open>,
    full: VecDeque<Open>,
    /// Batches that the task took and that are not settled: for [`Queue::outstanding`].
    under_way: VecDeque<Arc<BatchOutcome>>,
    started: bool,
    /// The open batch is to be sent as it is.
    urgent: bool,
    closed: bool,
}

/// A batch that is not built yet.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) builder: BatchBuilder,
    pub(crate) outcome: Arc<BatchOutcome>,
    /// Memory that is reserved for it.
    pub(crate) charged: usize,
    pub(crate) since: Instant,
}

/// What became of a push.
pub(crate) enum Push {
    /// It is in the open batch. `start`: the partition has no task yet, and the caller starts it.
    Queued { delivery: Delivery, start: bool },
    /// So much memory must be reserved first.
    NeedsMemory(usize),
    /// It would be the first of a new batch, which the caller wanted to know.
    NewBatch,
}

/// What there is to send.
pub(crate) enum Take {
    /// A batch.
    Batch(Open),
    /// Nothing yet; at this time, or when told.
    Wait(Option<Instant>),
    /// Nothing, ever.
    Closed,
}

impl Queue {
    pub(crate) fn new(topic: TopicName, partition: PartitionId, limit: usize) -> Self {
        let limit = AtomicUsize::new(limit);
        Self { topic, partition, limit, gathered: Mutex::default(), work: Notify::new() }
    }

    /// The largest batch is this from here on.
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record to the open batch. `credit` pays for the memory that it takes.
    #[inline]
    pub(crate) fn push(
        &self,
        record: &Record<'_>,
        timestamp: Timestamp,
        settings: &Settings,
        credit: &mut Credit<'_>,
        tell_of_new_batch: bool,
    ) -> Result<Push, Error> {
        let key = record.key.as_ref().map(|field| field.as_slice());
        let value = record.value.as_ref().map(|field| field.as_slice());
        let bound = record_bytes_bound(key, value, &record.headers);
        let limit = self.limit.load(Ordering::Relaxed).min(settings.buffer_memory);
        let mut gathered = self.lock();
        if gathered.closed {
            return Err(Error::Closed("producer"));
        }
        let full = |open: &Open| {
            open.builder.size_hint() + bound > settings.batch_bytes.min(limit)
                || open.builder.len() >= limits::RECORDS_PER_BATCH
        };
        if gathered.open.as_ref().is_some_and(full) {
            let sealed = gathered.open.take();
            gathered.full.extend(sealed);
            self.work.notify_one();
        }
        let Some(open) = &mut gathered.open else {
            if HEADER_BYTES + bound > limit {
                return Err(Error::RecordTooLarge {
                    bytes: bound,
                    limit: limit.saturating_sub(HEADER_BYTES),
                });
            }
            if tell_of_new_batch {
                return Ok(Push::NewBatch);
            }
            // The first reservation is for this record; a batch that grows reserves more.
            let charged = (HEADER_BYTES + bound).max(STEP).min(settings.buffer_memory);
            if !credit.spend(charged) {
                return Ok(Push::NeedsMemory(charged));
            }
            let outcome = Arc::new(BatchOutcome::new(self.partition));
            let mut builder = BatchBuilder::with_capacity(settings.compression, charged - HEADER_BYTES);
            let index = push(&mut builder, record, timestamp);
            let delivery = Delivery::new(outcome.clone(), index, timestamp);
            gathered.open = Some(Open { builder, outcome, charged, since: Instant::now() });
            let start = !std::mem::replace(&mut gathered.started, true);
            self.work.notify_one();
            return Ok(Push::Queued { delivery, start });
        };
        let size = open.builder.size_hint() + bound;
        if size > open.charged {
            // As the buffer grows: by doubling, up to the size of a batch.
            let wanted = (open.charged * 2).min(settings.batch_bytes).max(size);
            let more = wanted - open.charged;
            if !credit.spend(more) {
                return Ok(Push::NeedsMemory(more));
            }
            open.charged = wanted;
        }
        let index = push(&mut open.builder, record, timestamp);
        Ok(Push::Queued { delivery: Delivery::new(open.outcome.clone(), index, timestamp), start: false })
    }

    /// The next batch to send. `idle`: nothing is under way to the partition.
    pub(crate) fn take(&self, idle: bool, settings: &Settings) -> Take {
        let mut gathered = self.lock();
        if let Some(full) = gathered.full.pop_front() {
            gathered.under_way.push_back(full.outcome.clone());
            return Take::Batch(full);
        }
        let Some(open) = &gathered.open else {
            gathered.urgent = false;
            return if gathered.closed { Take::Closed } else { Take::Wait(None) };
        };
        let due = open.since + settings.linger;
        let send = if settings.linger.is_zero() { idle } else { due <= Instant::now() };
        if !(send || gathered.urgent || gathered.closed) {
            return Take::Wait((!settings.linger.is_zero()).then_some(due));
        }
        gathered.urgent = false;
        match gathered.open.take() {
            Some(open) => {
                gathered.under_way.push_back(open.outcome.clone());
                Take::Batch(open)
            }
            None => Take::Wait(None),
        }
    }

    /// A batch that was taken is settled; as a rule the oldest.
    pub(crate) fn settled(&self, outcome: &Arc<BatchOutcome>) {
        let mut gathered = self.lock();
        if let Some(place) = gathered.under_way.iter().position(|batch| Arc::ptr_eq(batch, outcome)) {
            gathered.under_way.remove(place);
        }
    }

    /// When the oldest batch that is not under way was opened.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        let gathered = self.lock();
        gathered.full.front().or(gathered.open.as_ref()).map(|open| open.since)
    }

    /// Has what is gathered sent without waiting for more.
    pub(crate) fn hurry(&self) {
        let mut gathered = self.lock();
        if gathered.open.is_some() {
            gathered.urgent = true;
            self.work.notify_one();
        }
    }

    /// All batches that are not settled, oldest first.
    pub(crate) fn outstanding(&self) -> Vec<Arc<BatchOutcome>> {
        let gathered = self.lock();
        let waiting = gathered.full.iter().chain(&gathered.open).map(|open| &open.outcome);
        gathered.under_way.iter().chain(waiting).cloned().collect()
    }

    /// Records that were pushed and not taken yet.
    pub(crate) fn waiting(&self) -> u64 {
        let gathered = self.lock();
        gathered.full.iter().chain(&gathered.open).map(|open| open.builder.len() as u64).sum()
    }

    /// Takes no more records; what there is is still sent.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }
}

#[inline]
fn push(builder: &mut BatchBuilder, record: &Record<'_>, timestamp: Timestamp) -> u32 {
    let key = record.key.as_ref().map(|field| field.as_slice());
    let value = record.value.as_ref().map(|field| field.as_slice());
    builder.push(timestamp, key, value, &record.headers)
}

/// A batch as it travels, until it is settled.
#[derive(Debug)]
pub(crate) struct Sealed {
    pub(crate) bytes: Bytes,
    pub(crate) outcome: Arc<BatchOutcome>,
    pub(crate) charged: usize,
    pub(crate) records: u64,
    pub(crate) deadline: Instant,
    /// Whether any of it may have reached a broker, under the number that it has now.
    pub(crate) sent: bool,
}
