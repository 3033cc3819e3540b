//! A reader's settings, and where it starts.

use bus_protocol::fetch::Isolation;
use bus_protocol::request::{Position, TopicInfo};
use bus_protocol::{Offset, PartitionId, Timestamp, TopicId, TopicName};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::discovery::Discovery;
use super::fetch::range;
use super::{Reader, Start};
use crate::{Client, Error};

/// Pushes that may wait for the program beside the limit on their bytes.
const PUSHES: usize = 64;
/// The least that a partition is given of the prefetch.
const LEAST_WINDOW: usize = 64 << 10;

/// Where a reader starts in each partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// At the first record that is kept.
    Start,
    /// Behind the last record there is.
    #[default]
    End,
    /// At this offset.
    Offset(Offset),
    /// At the first record at or after this time (milliseconds since the Unix epoch); behind the last where there is
    /// none.
    Timestamp(Timestamp),
}

/// A reader's settings.
#[derive(Clone, Debug)]
pub struct ReaderBuilder {
    client: Client,
    topics: Vec<String>,
    partitions: Option<Vec<PartitionId>>,
    from: From,
    isolation: Isolation,
    prefetch_bytes: usize,
    until_end: bool,
}

impl ReaderBuilder {
    pub(crate) fn new(client: Client, topics: Vec<String>) -> Self {
        Self {
            client,
            topics,
            partitions: None,
            from: From::End,
            isolation: Isolation::Committed,
            prefetch_bytes: 16 << 20,
            until_end: false,
        }
    }

    /// Only these partitions, of every topic. Default: all, and those that a topic gets later: those are read from their
    /// first record (not with `until_end`), and found within the client's metadata interval.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = PartitionId>) -> Self {
        self.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Where to start. Default: at the end.
    pub fn from(mut self, from: From) -> Self {
        self.from = from;
        self
    }

    /// Which records to see. Default: committed.
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Bytes fetched ahead of the program, shared evenly by the partitions (64 KiB each at least; a push of the broker
    /// may go over by its size). Default: 16 MiB.
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.prefetch_bytes = bytes;
        self
    }

    /// Stop at the end of each partition as it is now. Default: go on for ever.
    pub fn until_end(mut self, until_end: bool) -> Self {
        self.until_end = until_end;
        self
    }

    /// Looks up the topics and the offsets to start from, and starts to fetch. Fails where a topic or partition does
    /// not exist, or an offset is out of range.
    pub async fn build(self) -> Result<Reader, Error> {
        let mut starts = Vec::new();
        let mut known = Vec::new();
        for name in &self.topics {
            let topic = TopicName::new(name)?;
            let info = self.client.refresh(&topic).await?;
            let count = u32::try_from(info.partitions.len()).unwrap_or(u32::MAX);
            let partitions = self.partitions.clone().unwrap_or_else(|| (0..count).collect());
            if let Some(&partition) = partitions.iter().find(|&&partition| partition >= count) {
                return Err(Error::UnknownPartition { topic, partition, partitions: count });
            }
            starts.extend(self.starts(&info, &partitions).await?);
            known.push((topic, info.id, count));
        }
        if starts.is_empty() {
            return Err(Error::Invalid("a reader reads at least one partition".to_owned()));
        }
        Ok(self.start(starts, known))
    }

    /// Where to start, and to stop, in each partition.
    async fn starts(&self, info: &TopicInfo, partitions: &[PartitionId]) -> Result<Vec<Start>, Error> {
        let topic = &info.topic;
        let at = |position| self.client.list_offsets(topic, partitions, position);
        // The end first: what comes in between is read rather than missed.
        let ends = match self.until_end {
            true => Some(at(Position::End).await?),
            false => None,
        };
        let from = match self.from {
            From::Start => at(Position::Start).await?,
            From::End => match &ends {
                Some(ends) => ends.clone(),
                None => at(Position::End).await?,
            },
            From::Timestamp(timestamp) => at(Position::Timestamp(timestamp)).await?,
            From::Offset(offset) => {
                for &partition in partitions {
                    let (start, end) = range(&self.client, topic, partition).await?;
                    if !(start..=end).contains(&offset) {
                        let topic = topic.clone();
                        return Err(Error::OffsetOutOfRange { topic, partition, offset, start, end });
                    }
                }
                partitions.iter().map(|&partition| (partition, offset)).collect()
            }
        };
        let until = |index: usize| ends.as_ref().and_then(|ends| ends.get(index)).map(|(_, end)| *end);
        let starts = from.into_iter().enumerate();
        Ok(starts
            .map(|(index, (partition, from))| Start {
                topic: topic.clone(),
                id: info.id,
                partition,
                from,
                until: until(index),
            })
            .collect())
    }

    fn start(self, starts: Vec<Start>, known: Vec<(TopicName, TopicId, u32)>) -> Reader {
        let window = (self.prefetch_bytes / starts.len()).max(LEAST_WINDOW) as u64;
        let (sender, fetched) = mpsc::channel(PUSHES);
        let finds_more = self.partitions.is_none() && !self.until_end;
        let mut discovery = Discovery::new(self.client, self.isolation, window);
        let mut tasks = JoinSet::new();
        let mut sources = Vec::with_capacity(starts.len());
        for start in starts {
            let (source, fetcher) = discovery.source(start, sender.clone());
            tasks.spawn(fetcher.run());
            sources.push(source);
        }
        if finds_more {
            tasks.spawn(discovery.run(known, sender.downgrade()));
        }
        Reader::new(sources, fetched, tasks)
    }
}
