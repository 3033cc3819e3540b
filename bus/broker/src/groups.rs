//! Committed offsets, kept in `__groups`: one coordinator task for each partition of it that this node leads.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bus_coordinator::{Commit, GROUPS_TOPIC, Record, partition_of};
use bus_protocol::batch::{BatchBuilder, Compression};
use bus_protocol::produce::Acks;
use bus_protocol::request::{Request, Response};
use bus_protocol::{
    Clock, Epoch, ErrorCode, LeaderHint, NodeId, Offset, PartitionId, Timestamp, TopicName, WireError,
};
use bus_replica::{Lane, Partition};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::handler::fetch::settled;
use crate::handler::topics::ensure;
use crate::node::Node;
use crate::refusal::Refusal as _;

/// Requests that wait for one coordinator.
const QUEUE: usize = 1_024;
/// Requests whose records share one append.
const GROUP: usize = 128;
/// Bytes of records after which an append goes on in another batch.
const BATCH_BYTES: usize = 1 << 20;
/// Bytes of log read at once while a coordinator is loaded.
const LOAD_BYTES: usize = 1 << 20;

/// What a group has committed, as it travels.
pub(crate) type Offsets = Vec<(TopicName, PartitionId, Offset)>;

/// The coordinators that run here, made when first asked for.
#[derive(Default)]
pub(crate) struct Groups {
    /// Each with the leader epoch in which it serves: what it knows is true in no other.
    coordinators: Mutex<HashMap<PartitionId, (Epoch, mpsc::Sender<Operation>)>>,
}

enum Operation {
    Commit { group: String, commits: Vec<Commit>, done: oneshot::Sender<Result<(), WireError>> },
    Committed { group: String, answer: oneshot::Sender<Offsets> },
}

impl Groups {
    /// Commits offsets, wherever the group's coordinator is; durable when this returns.
    pub(crate) async fn commit(&self, node: &Node, group: &str, offsets: Offsets) -> Result<(), WireError> {
        match self.commit_here(node, group, offsets.clone()).await {
            Err(WireError {
                code: ErrorCode::NotLeader,
                leader: Some(LeaderHint { node: leader, .. }),
                ..
            }) => {
                let request = Request::CommitOffsets { group: group.to_owned(), offsets };
                ask_coordinator(node, leader, &request).await.map(drop)
            }
            done => done,
        }
    }

    /// What the group has committed, for topics that still exist, wherever its coordinator is.
    pub(crate) async fn committed(&self, node: &Node, group: &str) -> Result<Offsets, WireError> {
        match self.committed_here(node, group).await {
            Err(WireError {
                code: ErrorCode::NotLeader,
                leader: Some(LeaderHint { node: leader, .. }),
                ..
            }) => {
                let request = Request::CommittedOffsets { group: group.to_owned() };
                match ask_coordinator(node, leader, &request).await? {
                    Response::CommittedOffsets(offsets) => Ok(offsets),
                    other => {
                        let message = format!("committed offsets were answered with {other:?}");
                        Err(WireError::new(ErrorCode::Internal, message))
                    }
                }
            }
            found => found,
        }
    }

    /// As [`Self::commit`], where the coordinator is on this node.
    pub(crate) async fn commit_here(
        &self,
        node: &Node,
        group: &str,
        offsets: Offsets,
    ) -> Result<(), WireError> {
        let commits = offsets
            .into_iter()
            .map(|(topic, partition, offset)| {
                let topic_id = node.topics.get(&topic)?.id;
                Ok(Commit { topic, topic_id, partition, offset })
            })
            .collect::<Result<_, WireError>>()?;
        self.ask(node, group, |done| Operation::Commit { group: group.to_owned(), commits, done }).await?
    }

    /// As [`Self::committed`], where the coordinator is on this node.
    pub(crate) async fn committed_here(&self, node: &Node, group: &str) -> Result<Offsets, WireError> {
        self.ask(node, group, |answer| Operation::Committed { group: group.to_owned(), answer }).await
    }

    async fn ask<T>(
        &self,
        node: &Node,
        group: &str,
        operation: impl FnOnce(oneshot::Sender<T>) -> Operation,
    ) -> Result<T, WireError> {
        let coordinator = self.coordinator(node, group)?;
        let (sender, answer) = oneshot::channel();
        let moved = || WireError::new(ErrorCode::NotLeader, "the group's coordinator moved: try again");
        coordinator.send(operation(sender)).await.map_err(|_| moved())?;
        answer.await.map_err(|_| moved())
    }

    /// Makes the internal topic where it is missing. Not for the reconciler, nor for what it waits for: the
    /// making waits for the reconciler.
    pub(crate) async fn ensure_topic(node: &Arc<Node>) -> Result<(), WireError> {
        ensure(node, &topic_name()?, node.options.groups_partitions).await
    }

    fn coordinator(&self, node: &Node, group: &str) -> Result<mpsc::Sender<Operation>, WireError> {
        let topic = node.topics.get(&topic_name()?)?;
        let partitions = topic.partitions.load().len() as u32;
        let number = partition_of(group, partitions);
        let partition = topic.partition(number)?;
        let epoch = partition.committed().epoch;
        let mut coordinators = self.coordinators.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((in_epoch, running)) = coordinators.get(&number)
            && *in_epoch == epoch
            && !running.is_closed()
        {
            return Ok(running.clone());
        }
        let (sender, operations) = mpsc::channel(QUEUE);
        let groups = bus_coordinator::Groups::new(node.options.groups.clone())
            .map_err(|error| WireError::new(error.code(), error.to_string()))?;
        let (clock, topics) = (Arc::clone(&node.clock), node.topics.clone());
        let lane = partition.lane().map_err(|error| error.refusal())?;
        let coordinator = Coordinator { partition, lane, groups, clock, topics, log_bytes: 0, operations };
        let disk = node.runtime.disk.clone();
        tokio::spawn(coordinator.run(disk));
        coordinators.insert(number, (epoch, sender.clone()));
        Ok(sender)
    }
}

async fn ask_coordinator(node: &Node, leader: NodeId, request: &Request) -> Result<Response, WireError> {
    let address = node.address_of(leader)?;
    node.peers.request((leader, &address), request, Bytes::new()).await.map(|(response, _)| response)
}

fn topic_name() -> Result<TopicName, WireError> {
    TopicName::new(GROUPS_TOPIC).map_err(|error| WireError::new(ErrorCode::Internal, error.to_string()))
}

/// One partition of `__groups`, and the state that its log spells.
struct Coordinator {
    partition: Partition,
    /// Of the leader epoch in which this coordinator serves.
    lane: Lane,
    groups: bus_coordinator::Groups,
    clock: Arc<dyn Clock>,
    topics: crate::topics::Topics,
    /// How much the log has grown since the last snapshot.
    log_bytes: u64,
    operations: mpsc::Receiver<Operation>,
}

impl Coordinator {
    /// Loads the state, then serves until the partition closes. Whoever asks while it fails is told to try again.
    async fn run(mut self, disk: tokio::runtime::Handle) {
        if let Err(error) = self.load(disk).await {
            tracing::error!(%error, "the groups' log cannot be read");
            return;
        }
        let mut operations = Vec::with_capacity(GROUP);
        while self.operations.recv_many(&mut operations, GROUP).await > 0 {
            if let Err(error) = self.serve(&mut operations).await {
                tracing::warn!(%error, "a group's coordinator ends");
                return;
            }
        }
    }

    async fn load(&mut self, disk: tokio::runtime::Handle) -> Result<(), WireError> {
        // All that coordinators before this one committed, and nothing that may yet be taken back.
        let end = settled(&self.partition).await?.high_watermark;
        let reader = self.partition.reader().clone();
        let mut from = reader.log_start();
        while from < end {
            let log = reader.clone();
            let read = disk.spawn_blocking(move || log.read(from, LOAD_BYTES, end)).await;
            let read = read.map_err(|error| WireError::new(ErrorCode::Internal, error.to_string()))?;
            let read = read.map_err(|error| error.refusal())?;
            for batch in read.chunks.into_iter().flat_map(bus_protocol::batch::split) {
                let batch = batch.map_err(|error| error.refusal())?;
                for record in batch.records().map_err(|error| error.refusal())? {
                    let record = record.map_err(|error| error.refusal())?;
                    let key = record.key.unwrap_or_default();
                    self.groups
                        .apply(&key, record.value.as_deref())
                        .map_err(|error| WireError::new(error.code(), error.to_string()))?;
                }
            }
            from = read.next_offset;
        }
        self.log_bytes = reader.size();
        Ok(())
    }

    async fn serve(&mut self, operations: &mut Vec<Operation>) -> Result<(), WireError> {
        let now = self.clock.timestamp();
        let mut records = Vec::new();
        let mut committed = Vec::new();
        let mut asked = Vec::new();
        for operation in operations.drain(..) {
            match operation {
                Operation::Commit { group, commits, done } => match self.groups.commit(&group, &commits, now)
                {
                    Ok(more) => {
                        records.extend(more);
                        committed.push(done);
                    }
                    // Whoever asked may be gone; the same below.
                    Err(error) => drop(done.send(Err(WireError::new(error.code(), error.to_string())))),
                },
                Operation::Committed { group, answer } => asked.push((group, answer)),
            }
        }
        let appended = self.append(&records, now).await;
        for done in committed {
            drop(done.send(appended.clone().map(drop)));
        }
        // Commits that came before a question in the queue are seen by it.
        for (group, answer) in asked {
            drop(answer.send(self.committed(&group)));
        }
        appended?;
        if self.groups.wants_snapshot(self.log_bytes) {
            self.snapshot(now).await?;
        }
        Ok(())
    }

    fn committed(&self, group: &str) -> Offsets {
        let Some(offsets) = self.groups.committed(group) else { return Vec::new() };
        let exists = |topic: &TopicName, id| self.topics.get(topic).is_ok_and(|topic| topic.id == id);
        offsets
            .iter()
            .filter(|(partition, committed)| exists(&partition.topic, committed.topic_id))
            .map(|(partition, committed)| (partition.topic.clone(), partition.partition, committed.offset))
            .collect()
    }

    /// Appends records, in batches of a bounded size, and applies what is committed. Answers with the offset of the
    /// first.
    async fn append(&mut self, records: &[Record], now: Timestamp) -> Result<Offset, WireError> {
        let mut first = None;
        let mut rest = records;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |record: &&Record| {
                bytes += record.key.len() + record.value.as_ref().map_or(0, |value| value.len());
                bytes <= BATCH_BYTES
            };
            let (now_appended, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            let base_offset = self.append_batch(now_appended, now).await?;
            first.get_or_insert(base_offset);
            rest = later;
        }
        Ok(first.unwrap_or_else(|| self.partition.high_watermark()))
    }

    async fn append_batch(&mut self, records: &[Record], now: Timestamp) -> Result<Offset, WireError> {
        let mut batch = BatchBuilder::new(Compression::None);
        for record in records {
            batch.push(now, Some(&record.key), record.value.as_deref(), &[]);
        }
        let batch = batch.build_batch().map_err(|error| error.refusal())?;
        self.log_bytes += batch.bytes().len() as u64;
        let ticket = self.partition.append(batch, Acks::All, &self.lane).await;
        let ack = ticket.map_err(|error| error.refusal())?.await.map_err(|error| error.refusal())?;
        for record in records {
            self.groups
                .apply(&record.key, record.value.as_deref())
                .map_err(|error| WireError::new(error.code(), error.to_string()))?;
        }
        Ok(ack.base_offset)
    }

    /// Writes the whole state again, and drops what lies before it: the log holds no more than the state needs.
    async fn snapshot(&mut self, now: Timestamp) -> Result<(), WireError> {
        let topics = self.topics.clone();
        let orphans = self
            .groups
            .delete_orphans(|topic, id| topics.get(topic).is_ok_and(|topic| topic.id == id))
            .map_err(|error| WireError::new(error.code(), error.to_string()))?;
        self.append(&orphans, now).await?;
        let all: Vec<Record> = self
            .groups
            .snapshot()
            .collect::<Result<_, _>>()
            .map_err(|error| WireError::new(error.code(), error.to_string()))?;
        self.log_bytes = 0;
        let keep_from = self.append(&all, now).await?;
        self.partition.delete_before(keep_from).await.map_err(|error| error.refusal())
    }
}
