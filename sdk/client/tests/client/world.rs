//! What the brokers of a test agree on, and how they answer requests.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bus_protocol::batch::{BatchHeader, RecordBatch};
use bus_protocol::request::{
    Answer, BrokerInfo, ClusterInfo, FunctionInfo, LogLine, Moves, PartitionInfo, PartitionState, Position,
    Quorum, Request, Response, TopicInfo,
};
use bus_protocol::{
    Attachment, ErrorCode, FunctionSpec, LeaderHint, NodeId, Offset, TopicId, TopicName, WireError,
};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::broker::{MAX_MESSAGE_BYTES, State, TOPIC};

pub(crate) struct World {
    /// The cluster's CA, and the brokers' certificates.
    pub(crate) folder: Arc<TempDir>,
    brokers: Mutex<Vec<BrokerInfo>>,
    topic: Mutex<Topic>,
    next_id: AtomicI64,
    /// The voters that the brokers miss a majority for.
    pub(crate) silent: Mutex<Vec<NodeId>>,
    /// The majority is lost with the next drain, which is not confirmed.
    pub(crate) loses_the_next: AtomicBool,
    /// Requests for topics, of all brokers.
    pub(crate) asked: watch::Sender<u64>,
    /// Changes that were asked for, and by whom they were answered.
    pub(crate) changes: Mutex<Vec<(NodeId, Request)>>,
}

/// The one topic there is.
#[derive(Clone)]
pub(crate) struct Topic {
    id: TopicId,
    partitions: Vec<PartitionState>,
}

impl Topic {
    pub(crate) fn is_meant(&self, id: Option<TopicId>) -> bool {
        id.is_none_or(|id| id == self.id)
    }
}

fn led_by(leader: Option<NodeId>, epoch: i32) -> PartitionState {
    PartitionState { leader, epoch, replicas: vec![1, 2], isr: vec![1, 2], target: None }
}

impl World {
    pub(crate) fn new(partitions: usize) -> Arc<Self> {
        Arc::new(Self {
            folder: Arc::new(tempfile::tempdir().unwrap()),
            brokers: Mutex::default(),
            topic: Mutex::new(Topic { id: TopicId(1), partitions: vec![led_by(Some(1), 0); partitions] }),
            next_id: AtomicI64::new(1_000),
            silent: Mutex::default(),
            loses_the_next: AtomicBool::default(),
            asked: watch::Sender::default(),
            changes: Mutex::default(),
        })
    }

    pub(crate) fn register(&self, node: NodeId, address: &str) {
        self.brokers.lock().unwrap().push(BrokerInfo {
            node,
            address: address.to_owned(),
            fenced: false,
            drained: false,
            epoch: 1,
            rack: None,
            voter: true,
        });
    }

    pub(crate) fn elect(&self, partition: usize, leader: impl Into<Option<NodeId>>) {
        let state = &mut self.topic.lock().unwrap().partitions[partition];
        *state = led_by(leader.into(), state.epoch + 1);
    }

    pub(crate) fn topic(&self) -> Topic {
        self.topic.lock().unwrap().clone()
    }

    pub(crate) fn leader(&self, partition: usize) -> Option<LeaderHint> {
        let PartitionState { leader, epoch, .. } = *self.topic().partitions.get(partition)?;
        leader.map(|node| LeaderHint { node, epoch })
    }

    pub(crate) fn add_partition(&self, leader: NodeId) {
        self.topic.lock().unwrap().partitions.push(led_by(Some(leader), 0));
    }

    /// The topic is deleted, and another of its name created.
    pub(crate) fn create_anew(&self, partitions: usize, LeaderHint { node, epoch }: LeaderHint) {
        let mut topic = self.topic.lock().unwrap();
        let id = TopicId(topic.id.0 + 1);
        *topic = Topic { id, partitions: vec![led_by(Some(node), epoch); partitions] };
    }

    fn quorum(&self) -> Quorum {
        let silent = self.silent.lock().unwrap().clone();
        Quorum { held: silent.is_empty(), ago_ms: Some(5_000), silent }
    }

    pub(crate) fn answer(&self, broker: &State, request: Request) -> Answer {
        let Topic { id, partitions } = broker.topic();
        match request {
            Request::Cluster => Ok(Response::Cluster(ClusterInfo {
                cluster_id: "test".into(),
                node: broker.node,
                version: "0".into(),
                controller: Some(1),
                quorum: self.quorum(),
                throttle: None,
                brokers: self.brokers.lock().unwrap().clone(),
            })),
            Request::Topics { topics } => {
                self.asked.send_modify(|count| *count += 1);
                topic(topics, id, partitions)
            }
            Request::DescribePartitions { .. } => Ok(Response::Partitions(
                (0..partitions.len())
                    .filter(|partition| partitions[*partition].leader == Some(broker.node))
                    .map(|partition| PartitionInfo {
                        partition: partition as u32,
                        log_start: broker.log_start,
                        high_watermark: broker.end(partition),
                        log_end: broker.end(partition),
                        bytes: 0,
                        offline: None,
                        followers: vec![],
                    })
                    .collect(),
            )),
            Request::ListOffsets { partitions: wanted, position, .. } => {
                if wanted.iter().any(|number| partitions[*number as usize].leader != Some(broker.node)) {
                    return Err(WireError::new(ErrorCode::NotLeader, "this broker does not lead"));
                }
                let at = |partition| match position {
                    Position::Start => broker.log_start,
                    _ => broker.end(partition as usize),
                };
                Ok(Response::Offsets(wanted.into_iter().map(|number| (number, at(number))).collect()))
            }
            Request::InitProducer => {
                Ok(Response::Producer { id: self.next_id.fetch_add(1, Ordering::Relaxed) })
            }
            Request::ListFunctions { .. } => Ok(Response::Functions(vec![function(broker.node)])),
            Request::FunctionLogs { after, .. } => Ok(Response::FunctionLogs(log(broker.node, after))),
            Request::Reassign { .. } | Request::Rebalance { .. } => {
                self.changes.lock().unwrap().push((broker.node, request));
                Ok(Response::Reassigning(Moves { partitions: 3, ..Moves::default() }))
            }
            Request::DrainBroker { .. } if self.loses_the_next.swap(false, Ordering::Relaxed) => {
                *self.silent.lock().unwrap() = vec![2];
                Err(WireError::new(ErrorCode::TimedOut, "it may still be"))
            }
            Request::DrainBroker { .. } | Request::CommitOffsets { .. } => {
                self.changes.lock().unwrap().push((broker.node, request));
                Ok(Response::Done)
            }
            _ => Err(WireError::new(ErrorCode::InvalidRequest, "not here")),
        }
    }
}

fn topic(topics: Option<Vec<TopicName>>, id: TopicId, partitions: Vec<PartitionState>) -> Answer {
    let topic = TopicName::new(TOPIC).unwrap();
    if let Some(unknown) = topics.iter().flatten().find(|name| **name != topic) {
        return Err(WireError::new(ErrorCode::UnknownTopic, format!("topic {unknown} does not exist")));
    }
    Ok(Response::Topics(vec![TopicInfo {
        topic,
        id,
        config: [("max.message.bytes".to_owned(), MAX_MESSAGE_BYTES.to_string())].into(),
        functions: vec![],
        partitions,
    }]))
}

/// What a broker says of the one function there is.
fn function(node: NodeId) -> FunctionInfo {
    FunctionInfo {
        spec: FunctionSpec {
            name: "f".into(),
            attachment: Attachment::Transform { topic: TopicName::new(TOPIC).unwrap() },
            outputs: vec![],
            config: [].into(),
            memory_bytes: 1 << 20,
            fuel: 1,
            timeout_ms: 1,
            retries: 0,
            dead_letter: None,
        },
        version: 1,
        state: if node == 2 { "running".into() } else { "idle".into() },
        interface: "flat".into(),
        module: String::new(),
        records_in: node * 10,
        records_out: node,
        failed: 0,
        lag: 0,
        instances: 1,
        memory_bytes: 0,
        fuel: 0,
        last_error: Some((node as i64, format!("of {node}"))),
    }
}

/// Three lines a broker, one every `node` milliseconds.
fn log(node: NodeId, after: u64) -> Vec<LogLine> {
    let line = |sequence| LogLine {
        sequence,
        timestamp: (sequence * node) as i64,
        level: "info".into(),
        message: format!("{node}.{sequence}"),
    };
    (after + 1..=3).map(line).collect()
}

/// What a leader makes of a batch, as its log has it: to be stored (`None`), or the offset where it is.
pub(crate) fn verdict(log: &[RecordBatch], batch: &BatchHeader) -> Result<Option<Offset>, WireError> {
    if batch.producer_id < 0 {
        return Ok(None);
    }
    let mut theirs = log.iter().map(|batch| *batch.header()).filter(|it| it.producer_id == batch.producer_id);
    let Some(last) = theirs.clone().max_by_key(|it| (it.producer_epoch, it.base_offset)) else {
        return Ok(None);
    };
    let refused = |code| Err(WireError::new(code, format!("{code:?}: {batch:?} behind {last:?}")));
    if batch.producer_epoch < last.producer_epoch {
        return refused(ErrorCode::FencedProducer);
    }
    let known = theirs.find(|it| {
        (it.producer_epoch, it.base_sequence, it.last_offset_delta)
            == (batch.producer_epoch, batch.base_sequence, batch.last_offset_delta)
    });
    let expected = match batch.producer_epoch == last.producer_epoch {
        true => last.base_sequence + last.last_offset_delta + 1,
        false => 0,
    };
    match known {
        Some(known) => Ok(Some(known.base_offset)),
        None if batch.base_sequence == expected => Ok(None),
        None => refused(ErrorCode::OutOfOrderSequence),
    }
}
