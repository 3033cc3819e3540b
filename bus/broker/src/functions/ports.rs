//! What a processor reads from, emits to, and keeps its place in: this node's partitions and groups.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bus_function::{Emission, EmittedRecord, OffsetStore, PortError, Sink, SinkError, Source};
use bus_protocol::batch::{BatchBuilder, Compression, RecordBatch, split};
use bus_protocol::produce::Acks;
use bus_protocol::{ErrorCode, Offset, PartitionId, TopicPartition, WireError, partition_for_key};
use bus_replica::{Lane, Partition, Ticket};

use crate::handler::fetch;
use crate::ingest::ingest;
use crate::node::Node;
use crate::refusal::Refusal as _;
use crate::topics::Topic;

/// The node, unless it is gone: a processor must not keep a dropped broker alive.
fn up(node: &Weak<Node>) -> Result<Arc<Node>, PortError> {
    node.upgrade().ok_or_else(|| PortError::Closed("the broker has stopped".to_owned()))
}

/// The committed records of a partition that this node leads.
pub(super) struct PartitionSource {
    node: Weak<Node>,
    partition: Partition,
}

impl PartitionSource {
    pub(super) fn new(node: &Arc<Node>, partition: Partition) -> Self {
        Self { node: Arc::downgrade(node), partition }
    }
}

#[async_trait]
impl Source for PartitionSource {
    async fn start(&self) -> Result<Offset, PortError> {
        Ok(self.partition.reader().log_start())
    }

    async fn read(&self, from: Offset, max_bytes: usize) -> Result<Vec<RecordBatch>, PortError> {
        let end = self.partition.high_watermark();
        if from == end {
            return Ok(Vec::new());
        }
        let node = up(&self.node)?;
        match fetch::read(&node, self.partition.reader(), from, max_bytes, end).await {
            Ok(read) => read
                .chunks
                .into_iter()
                .flat_map(split)
                .collect::<Result<_, _>>()
                .map_err(|error| PortError::Transient(error.to_string())),
            Err(bus_log::Error::OffsetOutOfRange { start, .. }) => Err(PortError::OutOfRange { start, end }),
            Err(error) => Err(PortError::Transient(error.to_string())),
        }
    }

    async fn wait(&self, offset: Offset) -> Result<(), PortError> {
        let mut moved = self.partition.watch();
        match moved.wait_for(|high_watermark| *high_watermark > offset).await {
            Ok(_) => Ok(()),
            Err(_) => Err(PortError::Closed("the partition is not served here any more".to_owned())),
        }
    }
}

/// The topics that a function emits to. What it emits passes their transforms, as everything does.
pub(super) struct TopicSink {
    node: Weak<Node>,
    /// Where records without a key go next.
    turn: AtomicU32,
}

impl TopicSink {
    pub(super) fn new(node: &Arc<Node>) -> Self {
        Self { node: Arc::downgrade(node), turn: AtomicU32::new(0) }
    }

    /// Orders one topic's records; the tickets resolve at their commits.
    async fn order(&self, topic: &Topic, records: &[EmittedRecord]) -> Result<Vec<Ticket>, WireError> {
        let partitions = topic.partitions.load().len() as u32;
        // Half of what a batch may be: a record over that is refused on its own, not with its neighbours.
        let batch_bytes = topic.config.load().max_message_bytes as usize / 2;
        let keyless = self.turn.fetch_add(1, Ordering::Relaxed) % partitions.max(1);
        let mut building: BTreeMap<PartitionId, BatchBuilder> = BTreeMap::new();
        let mut tickets = Vec::new();
        for record in records {
            let number = record.key.as_deref().map_or(keyless, |key| partition_for_key(key, partitions));
            let batch = building.entry(number).or_insert_with(|| BatchBuilder::new(Compression::None));
            batch.push(record.timestamp, record.key.as_deref(), record.value.as_deref(), &record.headers);
            if batch.size_hint() >= batch_bytes
                && let Some(full) = building.remove(&number)
            {
                tickets.push(store(topic, number, full).await?);
            }
        }
        for (number, batch) in building {
            tickets.push(store(topic, number, batch).await?);
        }
        Ok(tickets)
    }

    async fn emit_all(&self, node: &Node, emissions: &[Emission]) -> Result<(), WireError> {
        let mut tickets = Vec::new();
        for emission in emissions {
            let topic = node.topics.get(&emission.topic)?;
            tickets.extend(self.order(&topic, &emission.records).await?);
        }
        for ticket in tickets {
            ticket.await.map_err(|error| error.refusal())?;
        }
        Ok(())
    }
}

async fn store(topic: &Topic, number: PartitionId, batch: BatchBuilder) -> Result<Ticket, WireError> {
    let batch = batch.build_batch().map_err(|error| error.refusal())?;
    ingest(topic, &topic.partition(number)?, batch, Acks::All, &Lane::default()).await
}

#[async_trait]
impl Sink for TopicSink {
    async fn emit(&self, emissions: &[Emission]) -> Result<(), SinkError> {
        let Some(node) = self.node.upgrade() else {
            return Err(SinkError::Closed("the broker has stopped".to_owned()));
        };
        self.emit_all(&node, emissions).await.map_err(|error| match error.code {
            ErrorCode::ShuttingDown => SinkError::Closed(error.message),
            code if code.is_retriable() => SinkError::Transient(error.message),
            _ => SinkError::Rejected(error.message),
        })
    }
}

/// The place of a function's group in its partitions.
pub(super) struct GroupOffsets {
    node: Weak<Node>,
}

impl GroupOffsets {
    pub(super) fn new(node: &Arc<Node>) -> Self {
        Self { node: Arc::downgrade(node) }
    }
}

#[async_trait]
impl OffsetStore for GroupOffsets {
    async fn load(&self, group: &str, partition: &TopicPartition) -> Result<Option<Offset>, PortError> {
        let node = up(&self.node)?;
        let offsets =
            node.groups.committed(&node, group).await.map_err(|error| PortError::Transient(error.message))?;
        let mut mine =
            offsets.into_iter().filter(|(t, p, _)| *t == partition.topic && *p == partition.partition);
        Ok(mine.next().map(|(_, _, offset)| offset))
    }

    async fn commit(&self, group: &str, partition: &TopicPartition, offset: Offset) -> Result<(), PortError> {
        let node = up(&self.node)?;
        let offsets = vec![(partition.topic.clone(), partition.partition, offset)];
        node.groups.commit(&node, group, offsets).await.map_err(|error| PortError::Transient(error.message))
    }
}
