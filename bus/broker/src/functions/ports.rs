//! What a processor reads from, emits to, and keeps its place in: this node's partitions and groups.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bus_function::{
    ChainError, Emission, FailureKind, OffsetStore, PortError, Progress, Sink, SinkError, Source,
    TransformError,
};
use bus_protocol::batch::{BatchBuilder, Compression, RecordBatch, split};
use bus_protocol::produce::Acks;
use bus_protocol::request::Request;
use bus_protocol::{
    ErrorCode, LeaderHint, Offset, PartitionId, TopicPartition, WireError, partition_for_key,
};
use bus_replica::{Lane, Partition, Ticket};

use crate::feed;
use crate::ingest::{Refused, try_ingest};
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
        match feed::read(&node, &self.partition, from, max_bytes, end).await {
            Ok(read) => read
                .chunks
                .into_iter()
                .flat_map(split)
                .collect::<Result<_, _>>()
                .map_err(|error| PortError::Damaged(error.to_string())),
            Err(bus_log::Error::OffsetOutOfRange { start, .. }) => Err(PortError::OutOfRange { start, end }),
            Err(
                error @ (bus_log::Error::Damaged { .. }
                | bus_log::Error::Poisoned { .. }
                | bus_log::Error::Io { .. }
                | bus_log::Error::Batch(_)),
            ) => Err(PortError::Damaged(error.to_string())),
            Err(error) => Err(PortError::Transient(error.to_string())),
        }
    }

    async fn wait(&self, offset: Offset) -> Result<(), PortError> {
        let mut moved = self.partition.watch();
        match moved.wait_for(|now| now.high_watermark > offset || !now.leads).await.map(|now| now.leads) {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => {
                Err(PortError::Closed("the partition is not served here any more".to_owned()))
            }
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

    /// Packs those of one emission's records that are not committed, for their partitions; each partition's parcels
    /// in order.
    fn pack(&self, topic: &Topic, at: usize, emission: &Emission, progress: &Progress) -> Vec<Parcel> {
        let partitions = topic.partitions.load().len() as u32;
        // Half of what a batch may be: a record over that is refused on its own, not with its neighbours.
        let batch_bytes = topic.config.load().max_message_bytes as usize / 2;
        let keyless = self.turn.fetch_add(1, Ordering::Relaxed) % partitions.max(1);
        let mut filling: BTreeMap<PartitionId, Parcel> = BTreeMap::new();
        let mut parcels = Vec::new();
        for (index, record) in emission.records.iter().enumerate() {
            if progress.is_committed(at, index) {
                continue;
            }
            let number = record.key.as_deref().map_or(keyless, |key| partition_for_key(key, partitions));
            let parcel = filling.entry(number).or_insert_with(|| Parcel {
                number,
                batch: BatchBuilder::new(Compression::None),
                records: Vec::new(),
            });
            parcel.batch.push(
                record.timestamp,
                record.key.as_deref(),
                record.value.as_deref(),
                &record.headers,
            );
            parcel.records.push(index);
            if parcel.batch.size_hint() >= batch_bytes {
                parcels.extend(filling.remove(&number));
            }
        }
        parcels.extend(filling.into_values());
        parcels
    }

    /// Stores what it can of what is not committed. Where a partition refuses a batch, what follows it there waits
    /// for the next attempt; the other partitions go on.
    async fn store(
        &self,
        node: &Node,
        emissions: &[Emission],
        progress: &mut Progress,
    ) -> Result<(), SinkError> {
        let mut worst = None;
        let mut underway: Vec<(usize, Vec<usize>, Sent)> = Vec::new();
        for (at, emission) in emissions.iter().enumerate() {
            let topic = match node.topics.get(&emission.topic) {
                Ok(topic) => topic,
                Err(error) => {
                    note(&mut worst, verdict(error.into()));
                    continue;
                }
            };
            let mut lanes: BTreeMap<PartitionId, Lane> = BTreeMap::new();
            let mut closed: HashSet<PartitionId> = HashSet::new();
            for Parcel { number, batch, records } in self.pack(&topic, at, emission, progress) {
                if closed.contains(&number) {
                    continue;
                }
                match send(node, &topic, number, batch, &mut lanes).await {
                    Ok(ticket) => underway.push((at, records, ticket)),
                    Err(refused) => {
                        closed.insert(number);
                        note(&mut worst, verdict(refused));
                    }
                }
            }
        }
        for (at, records, ticket) in underway {
            match ticket.committed().await {
                Ok(()) => records.into_iter().for_each(|index| progress.commit(at, index)),
                Err(error) => note(&mut worst, verdict(error.into())),
            }
        }
        worst.map_or(Ok(()), Err)
    }
}

/// Records on their way to one partition, in one batch.
struct Parcel {
    number: PartitionId,
    batch: BatchBuilder,
    /// Their places in the emission.
    records: Vec<usize>,
}

/// A parcel that was sent.
enum Sent {
    /// Ordered in a partition that this node leads.
    Here(Ticket),
    /// Committed in a partition that another leads.
    Committed,
}

impl Sent {
    async fn committed(self) -> Result<(), WireError> {
        match self {
            Self::Here(ticket) => ticket.await.map(drop).map_err(|error| error.refusal()),
            Self::Committed => Ok(()),
        }
    }
}

/// Sends a parcel to its partition, wherever that is led; those of one partition in order.
async fn send(
    node: &Node,
    topic: &Topic,
    number: PartitionId,
    batch: BatchBuilder,
    lanes: &mut BTreeMap<PartitionId, Lane>,
) -> Result<Sent, Refused> {
    let batch = batch.build_batch().map_err(|error| error.refusal())?;
    match topic.partition(number) {
        Ok(partition) => {
            let lane = match lanes.entry(number) {
                Entry::Occupied(lane) => lane.into_mut(),
                Entry::Vacant(place) => place.insert(partition.lane().map_err(|error| error.refusal())?),
            };
            try_ingest(topic, &partition, batch, Acks::All, lane).await.map(Sent::Here)
        }
        Err(WireError {
            code: ErrorCode::NotLeader, leader: Some(LeaderHint { node: leader, .. }), ..
        }) => {
            let address = node.address_of(leader)?;
            let request = Request::Append { topic: topic.name.clone(), partition: number, acks: Acks::All };
            node.peers.request((leader, &address), &request, batch.into_bytes()).await?;
            Ok(Sent::Committed)
        }
        Err(error) => Err(error.into()),
    }
}

/// What a refusal means for the records: only what is said of the records themselves is held against them. That a
/// disk is full or broken, or a topic is gone, never makes the function skip its input.
fn verdict(refused: Refused) -> SinkError {
    match refused {
        Refused::Transform(told, ChainError { error, .. }) => match error {
            TransformError::Refused(_) => SinkError::Rejected(told.message),
            // The component's fault, whatever the records are.
            TransformError::Failed(failure) if failure.kind == FailureKind::Instantiate => {
                SinkError::Transient(told.message)
            }
            TransformError::Failed(_) => SinkError::Failed(told.message),
            TransformError::Backoff { .. } => SinkError::Transient(told.message),
            TransformError::Stopped => SinkError::Closed(told.message),
        },
        Refused::Other(told) => match told.code {
            ErrorCode::CorruptBatch
            | ErrorCode::MessageTooLarge
            | ErrorCode::RecordRefused
            | ErrorCode::InvalidRequest => SinkError::Rejected(told.message),
            ErrorCode::ShuttingDown => SinkError::Closed(told.message),
            _ => SinkError::Transient(told.message),
        },
    }
}

/// Keeps the verdict that decides: a refusal for good is acted on while the rest of the records wait.
fn note(worst: &mut Option<SinkError>, verdict: SinkError) {
    let weight = |error: &SinkError| match error {
        SinkError::Transient(_) => 0,
        SinkError::Failed(_) => 1,
        SinkError::Rejected(_) => 2,
        SinkError::Closed(_) => 3,
    };
    if worst.as_ref().is_none_or(|known| weight(known) < weight(&verdict)) {
        *worst = Some(verdict);
    }
}

#[async_trait]
impl Sink for TopicSink {
    async fn emit(&self, emissions: &[Emission], progress: &mut Progress) -> Result<(), SinkError> {
        let Some(node) = self.node.upgrade() else {
            return Err(SinkError::Closed("the broker has stopped".to_owned()));
        };
        self.store(&node, emissions, progress).await
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

#[cfg(test)]
mod tests {
    use bus_protocol::WireError;

    use super::*;

    #[test]
    fn only_what_is_said_of_the_records_is_held_against_them() {
        use ErrorCode::*;
        let of = |code| verdict(WireError::new(code, "why").into());
        for code in [CorruptBatch, MessageTooLarge, RecordRefused, InvalidRequest] {
            assert_eq!(of(code), SinkError::Rejected("why".into()), "{code:?}");
        }
        for code in [
            StorageFailed,
            StorageFull,
            Internal,
            UnknownTopic,
            UnknownPartition,
            NotLeader,
            NotEnoughReplicas,
            FunctionFailed,
            Unauthorized,
            Busy,
            TimedOut,
        ] {
            assert_eq!(of(code), SinkError::Transient("why".into()), "{code:?}");
        }
        assert_eq!(of(ShuttingDown), SinkError::Closed("why".into()));
    }

    #[test]
    fn a_transform_that_is_left_alone_is_waited_for_and_one_that_fails_is_not_for_ever() {
        let of = |error| {
            let told = WireError::new(ErrorCode::FunctionFailed, "why");
            verdict(Refused::Transform(told, ChainError { function: "t".into(), error }))
        };
        let failed = |kind| {
            let failure = bus_function::Failure { kind, message: String::new(), trace: String::new() };
            of(TransformError::Failed(failure))
        };
        assert_eq!(failed(FailureKind::Trap), SinkError::Failed("why".into()));
        assert_eq!(failed(FailureKind::Instantiate), SinkError::Transient("why".into()));
        let left_alone = TransformError::Backoff { retry_after: std::time::Duration::ZERO };
        assert_eq!(of(left_alone), SinkError::Transient("why".into()));
        assert_eq!(of(TransformError::Refused(vec![])), SinkError::Rejected("why".into()));
    }

    #[test]
    fn the_verdict_that_decides_is_kept() {
        let mut worst = None;
        for verdict in [
            SinkError::Transient("a".into()),
            SinkError::Rejected("b".into()),
            SinkError::Failed("c".into()),
            SinkError::Transient("d".into()),
        ] {
            note(&mut worst, verdict);
        }
        assert_eq!(worst, Some(SinkError::Rejected("b".into())));
    }
}
