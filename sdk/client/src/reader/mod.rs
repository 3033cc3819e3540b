//! The reader: a consumer without a group.
//!
//! ```text
//!   Fetcher: a task and a fetch stream a partition --(pushes, checked)--> Reader: batches -> records
//!        <----------------------------------(bytes consumed: credit)--------
//!   Discovery: a task a reader: a fetcher for each partition that a topic gets
//! ```

mod builder;
mod discovery;
mod fetch;

use std::sync::Arc;

use bus_protocol::batch::{self, RecordBatch, Records};
use bus_protocol::{Offset, PartitionId, TopicId, TopicName};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use builder::{From, ReaderBuilder};
use fetch::{Consumed, Fetched};

use crate::{ConsumerRecord, Error};

/// What the tasks tell the reader.
#[derive(Debug)]
enum Event {
    /// Batches of a partition.
    Fetched(Fetched),
    /// One more partition, whose place is behind the last.
    Found(Source),
}

/// Reads records of some partitions: in order within each, fairly between them. When a partition's leader changes, it
/// goes on at the next at the same offset; not in another topic of the same name, where each partition fails with
/// [`Error::TopicReplaced`]. Dropping it ends the fetches.
pub struct Reader {
    sources: Vec<Source>,
    fetched: mpsc::Receiver<Result<Event, Error>>,
    /// The rest of the push that is being read.
    push: Option<Push>,
    /// The rest of the batch that is being read.
    records: Option<Records>,
    _tasks: JoinSet<()>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("sources", &self.sources).finish_non_exhaustive()
    }
}

/// A partition that is read.
#[derive(Debug)]
struct Source {
    topic: TopicName,
    partition: PartitionId,
    from: Offset,
    until: Offset,
    consumed: Arc<Consumed>,
}

/// Where to start in a partition, and where to stop.
struct Start {
    topic: TopicName,
    /// Whose offsets these are.
    id: TopicId,
    partition: PartitionId,
    from: Offset,
    until: Option<Offset>,
}

struct Push {
    source: usize,
    batches: std::vec::IntoIter<RecordBatch>,
    bytes: u64,
}

/// A batch as it is stored; see [`Reader::next_batch`].
#[derive(Clone, Debug)]
pub struct FetchedBatch {
    /// The topic that it is in.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The batch. Its first records may lie before where the reader was told to start, and its last behind where it
    /// was told to stop.
    pub batch: RecordBatch,
    from: Offset,
    until: Offset,
}

impl FetchedBatch {
    /// Those of its records that the reader was told to read, in order.
    pub fn records(&self) -> Result<impl Iterator<Item = Result<batch::Record, Error>> + use<>, Error> {
        let (from, until) = (self.from, self.until);
        let wanted = move |record: &Result<batch::Record, _>| match record {
            Ok(record) => (from..until).contains(&record.offset),
            Err(_) => true,
        };
        let place = format!("{}-{}", self.topic, self.partition);
        let records = self.batch.records().map_err(|error| Error::Protocol(format!("{place}: {error}")))?;
        let failed = move |error| Error::Protocol(format!("{place}: {error}"));
        Ok(records.filter(wanted).map(move |record| record.map_err(&failed)))
    }
}

impl Reader {
    fn new(sources: Vec<Source>, fetched: mpsc::Receiver<Result<Event, Error>>, tasks: JoinSet<()>) -> Self {
        Self { sources, fetched, push: None, records: None, _tasks: tasks }
    }

    /// The next record. `None` where the reader was told to stop at the end, and is there (or where each of its
    /// partitions has failed). An error concerns one partition, or one batch of it; the others go on. Safe to cancel.
    pub async fn next(&mut self) -> Option<Result<ConsumerRecord, Error>> {
        loop {
            if let Some(record) = self.next_of_batch() {
                return Some(record);
            }
            match self.next_stored().await? {
                Ok((_, batch)) => match batch.records() {
                    Ok(records) => self.records = Some(records),
                    Err(error) => return Some(Err(self.damaged(&error))),
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The next batch, for those who decode it themselves, or pass it on. Do not mix with [`Reader::next`], which may
    /// be in the middle of one. Safe to cancel.
    pub async fn next_batch(&mut self) -> Option<Result<FetchedBatch, Error>> {
        Some(self.next_stored().await?.map(|(source, batch)| {
            let Source { topic, partition, from, until, .. } = &self.sources[source];
            FetchedBatch { topic: topic.clone(), partition: *partition, batch, from: *from, until: *until }
        }))
    }

    /// The next record of the batch that is being read.
    #[inline]
    fn next_of_batch(&mut self) -> Option<Result<ConsumerRecord, Error>> {
        let records = self.records.as_mut()?;
        let source = self.sources.get(self.push.as_ref()?.source)?;
        for record in records.by_ref() {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    self.records = None;
                    return Some(Err(self.damaged(&error)));
                }
            };
            if !(source.from..source.until).contains(&record.offset) {
                continue;
            }
            let batch::Record { offset, timestamp, key, value, headers } = record;
            let (topic, partition) = (source.topic.clone(), source.partition);
            return Some(Ok(ConsumerRecord { topic, partition, offset, timestamp, key, value, headers }));
        }
        self.records = None;
        None
    }

    /// The next batch with records for the program, and its source. Gives credit for what was read before.
    async fn next_stored(&mut self) -> Option<Result<(usize, RecordBatch), Error>> {
        loop {
            if let Some(push) = &mut self.push {
                // A control batch ends a transaction; its record is none of the program's.
                if let Some(batch) = push.batches.find(|batch| !batch.header().is_control()) {
                    return Some(Ok((push.source, batch)));
                }
                self.sources[push.source].consumed.add(push.bytes);
                self.push = None;
            }
            match self.fetched.recv().await? {
                Ok(Event::Fetched(Fetched { source, batches, bytes })) => {
                    self.push = Some(Push { source, batches: batches.into_iter(), bytes });
                }
                Ok(Event::Found(source)) => self.sources.push(source),
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn damaged(&self, error: &batch::BatchError) -> Error {
        match self.push.as_ref().and_then(|push| self.sources.get(push.source)) {
            Some(source) => Error::Protocol(format!("{}-{}: {error}", source.topic, source.partition)),
            None => Error::Protocol(error.to_string()),
        }
    }
}
