//! Partitions that come up while a reader reads.

use std::sync::Arc;

use bus_protocol::fetch::Isolation;
use bus_protocol::request::Position;
use bus_protocol::{Offset, TopicId, TopicName};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::fetch::{Consumed, Fetcher};
use super::{Event, Source, Start};
use crate::{Client, Error};

type Events = mpsc::Sender<Result<Event, Error>>;

/// Makes fetchers: for the partitions there are, and for those that it finds.
pub(super) struct Discovery {
    client: Client,
    isolation: Isolation,
    /// Of each partition.
    window: u64,
    /// The next partition's place in the reader.
    next: usize,
}

impl Discovery {
    pub(super) fn new(client: Client, isolation: Isolation, window: u64) -> Self {
        Self { client, isolation, window, next: 0 }
    }

    /// The reader's part and the fetcher of the next partition.
    pub(super) fn source(&mut self, start: Start, events: Events) -> (Source, Fetcher) {
        let Start { topic, id, partition, from, until } = start;
        let consumed = Arc::new(Consumed::default());
        let fetcher = Fetcher {
            client: self.client.clone(),
            source: self.next,
            topic: topic.clone(),
            id,
            partition,
            isolation: self.isolation,
            next: from,
            until,
            window: self.window,
            consumed: consumed.clone(),
            fetched: events,
        };
        self.next += 1;
        (Source { topic, partition, from, until: until.unwrap_or(Offset::MAX), consumed }, fetcher)
    }

    /// Looks for new partitions of the topics, of which so many are known, as long as there are fetchers that may tell
    /// the reader anything: also that a topic is another one by now, whose partitions are none of the reader's. Those
    /// that it starts end with it.
    pub(super) async fn run(
        mut self,
        mut known: Vec<(TopicName, TopicId, u32)>,
        events: mpsc::WeakSender<Result<Event, Error>>,
    ) {
        let mut fetchers = JoinSet::new();
        let interval = self.client.metadata_interval();
        loop {
            tokio::time::sleep(interval).await;
            if events.strong_count() == 0 {
                return;
            }
            for (topic, id, count) in &mut known {
                let found = match self.client.refresh_within(topic, interval / 2).await {
                    Ok(info) if info.id != *id => continue,
                    Ok(info) => (0..).zip(&info.partitions).skip(*count as usize).map(|(it, _)| it).collect(),
                    Err(error) => {
                        tracing::debug!(%topic, %error, "whether it has new partitions is not known");
                        continue;
                    }
                };
                let partitions: Vec<u32> = found;
                if partitions.is_empty() {
                    continue;
                }
                // What was written before they were found is read, wherever the reader started.
                let Ok(starts) = self.client.list_offsets(topic, &partitions, Position::Start).await else {
                    continue;
                };
                let Some(events) = events.upgrade() else { return };
                for (partition, from) in starts {
                    let start = Start { topic: topic.clone(), id: *id, partition, from, until: None };
                    let (source, fetcher) = self.source(start, events.clone());
                    if events.send(Ok(Event::Found(source))).await.is_err() {
                        return;
                    }
                    fetchers.spawn(fetcher.run());
                    *count = partition + 1;
                }
            }
        }
    }
}
