//! A broker for tests: real QUIC, records in memory, and faults on demand.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bus_client::{Client, ClientBuilder, Trust};
use bus_protocol::batch::{BatchBuilder, BatchHeader, Compression, RecordBatch, assign};
use bus_protocol::fetch::{FetchCredit, FetchOpen, FetchPush};
use bus_protocol::produce::{Acks, ProduceAck, ProduceAnswer, ProduceOpen, ProduceOpened};
use bus_protocol::request::{
    Answer, BrokerInfo, ClusterInfo, PartitionInfo, PartitionState, Position, Request, Response, TopicInfo,
};
use bus_protocol::{ErrorCode, Offset, RecordError, StreamKind, TopicId, TopicName, WireError};
use bus_transport::{Connection, Endpoint, Error, Identity, Options, RecvStream, SendStream};
use bytes::{Bytes, BytesMut};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};

/// What the broker does with the next batch that it gets, instead of storing and acknowledging it.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Refuses it.
    Refuse(ErrorCode),
    /// Refuses record `index`, as a transform does.
    RefuseRecord(u32),
    /// Closes the connection, without having stored it.
    Drop,
    /// Stores it, and closes the connection.
    StoreAndDrop,
    /// Pushes a damaged copy of what is stored, on the next fetch.
    Damage,
}

pub(crate) struct Broker {
    _folder: TempDir,
    pub(crate) address: String,
    identity: Arc<Identity>,
    pub(crate) state: Arc<State>,
}

#[derive(Default)]
pub(crate) struct State {
    address: Mutex<String>,
    partitions: Vec<Mutex<Vec<RecordBatch>>>,
    pub(crate) faults: Mutex<VecDeque<Fault>>,
    /// While set, batches are read and stay unanswered.
    pub(crate) hold: Mutex<Option<watch::Receiver<bool>>>,
    grown: Notify,
    /// Bytes pushed to readers.
    pub(crate) pushed: watch::Sender<u64>,
    /// Batches that came in, stored or not.
    pub(crate) batches: watch::Sender<u64>,
    log_start: Offset,
}

pub(crate) const TOPIC: &str = "orders";
pub(crate) const MAX_MESSAGE_BYTES: usize = 1 << 20;

impl Broker {
    pub(crate) fn start(partitions: usize) -> Self {
        Self::start_at(partitions, 0)
    }

    pub(crate) fn start_at(partitions: usize, log_start: Offset) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = Arc::new(Identity::load_or_create(folder.path(), 1, &[]).unwrap());
        let endpoint =
            Endpoint::server("127.0.0.1:0".parse().unwrap(), identity.clone(), &Options::default()).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            address: Mutex::new(address.clone()),
            partitions: (0..partitions).map(|_| Mutex::default()).collect(),
            log_start,
            ..State::default()
        });
        let served = state.clone();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let state = served.clone();
                tokio::spawn(async move {
                    let Ok(connection) = incoming.accept().await else { return };
                    while let Ok(opening) = connection.accept().await {
                        let (state, connection) = (state.clone(), connection.clone());
                        tokio::spawn(async move {
                            let (kind, send, recv) = opening.accept().await?;
                            match kind {
                                StreamKind::Request => state.request(send, recv).await,
                                StreamKind::Produce => state.produce(connection, send, recv).await,
                                StreamKind::Fetch => state.fetch(send, recv).await,
                                _ => bus_transport::drain(send, recv).await.map(drop),
                            }
                        });
                    }
                });
            }
        });
        Self { _folder: folder, address, identity, state }
    }

    pub(crate) fn builder(&self) -> ClientBuilder {
        Client::builder().servers(&self.address).trust(Trust::Pem(self.identity.ca_pem().to_owned()))
    }

    pub(crate) async fn client(&self) -> Client {
        self.builder().connect().await.unwrap()
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.state.faults.lock().unwrap().push_back(fault);
    }

    /// All values of a partition, with their offsets.
    pub(crate) fn values(&self, partition: usize) -> Vec<(Offset, String)> {
        let batches = self.state.partitions[partition].lock().unwrap().clone();
        let records = batches.iter().flat_map(|batch| batch.records().unwrap());
        records
            .map(|record| record.unwrap())
            .map(|record| (record.offset, String::from_utf8(record.value.unwrap().to_vec()).unwrap()))
            .collect()
    }

    /// Stores a batch of these values, the last `dropped` of which were dropped on the way in.
    pub(crate) fn store(&self, partition: usize, values: &[&str], dropped: usize) {
        let mut builder = BatchBuilder::new(Compression::Zstd);
        for value in values {
            builder.push(1_000, None, Some(value.as_bytes()), &[]);
        }
        let whole = builder.build_batch().unwrap();
        let kept = values.len() - dropped;
        let mut records = BatchBuilder::new(Compression::None);
        for value in &values[..kept] {
            records.push(1_000, None, Some(value.as_bytes()), &[]);
        }
        let bytes =
            if kept == 0 { Bytes::new() } else { records.build_batch().unwrap().records_bytes().unwrap() };
        let batch = whole.with_records(&bytes, i32::try_from(kept).unwrap()).unwrap();
        self.state.append(partition, batch);
    }
}

impl State {
    fn append(&self, partition: usize, batch: RecordBatch) -> Offset {
        let mut log = self.partitions[partition].lock().unwrap();
        let base = log.last().map_or(self.log_start, |last| last.header().next_offset());
        let mut bytes = BytesMut::from(&batch.into_bytes()[..]);
        assign::set_base_offset(&mut bytes, base);
        log.push(RecordBatch::parse(bytes.freeze()).unwrap());
        self.grown.notify_waiters();
        base
    }

    fn end(&self, partition: usize) -> Offset {
        self.partitions[partition]
            .lock()
            .unwrap()
            .last()
            .map_or(self.log_start, |last| last.header().next_offset())
    }

    fn answer(&self, request: Request) -> Answer {
        let topic = TopicName::new(TOPIC).unwrap();
        match request {
            Request::Cluster => Ok(Response::Cluster(ClusterInfo {
                cluster_id: "test".into(),
                node: 1,
                version: "0".into(),
                controller: Some(1),
                brokers: vec![BrokerInfo {
                    node: 1,
                    address: self.address.lock().unwrap().clone(),
                    fenced: false,
                }],
            })),
            Request::Topics { topics } => {
                if let Some(unknown) = topics.iter().flatten().find(|name| **name != topic) {
                    let why = format!("topic {unknown} does not exist");
                    return Err(WireError::new(ErrorCode::UnknownTopic, why));
                }
                let state = PartitionState { leader: Some(1), epoch: 0, replicas: vec![1], isr: vec![1] };
                Ok(Response::Topics(vec![TopicInfo {
                    topic,
                    id: TopicId(1),
                    config: [("max.message.bytes".to_owned(), MAX_MESSAGE_BYTES.to_string())].into(),
                    functions: vec![],
                    partitions: vec![state; self.partitions.len()],
                }]))
            }
            Request::DescribePartitions { .. } => Ok(Response::Partitions(
                (0..self.partitions.len())
                    .map(|partition| PartitionInfo {
                        partition: partition as u32,
                        log_start: self.log_start,
                        high_watermark: self.end(partition),
                        log_end: self.end(partition),
                        bytes: 0,
                        offline: None,
                    })
                    .collect(),
            )),
            Request::ListOffsets { partitions, position, .. } => {
                let at = |partition| match position {
                    Position::Start => self.log_start,
                    _ => self.end(partition as usize),
                };
                Ok(Response::Offsets(partitions.into_iter().map(|number| (number, at(number))).collect()))
            }
            _ => Err(WireError::new(ErrorCode::InvalidRequest, "not here")),
        }
    }

    async fn request(&self, mut send: SendStream, mut recv: RecvStream) -> Result<(), Error> {
        let Some((request, _)) = recv.read_frame().await? else { return Ok(()) };
        send.write_frame(&self.answer(request), &[]).await?;
        send.finish()
    }

    async fn produce(
        &self,
        connection: Connection,
        mut send: SendStream,
        mut recv: RecvStream,
    ) -> Result<(), Error> {
        let Some((open, _)) = recv.read_frame::<ProduceOpen>().await? else { return Ok(()) };
        let partition = open.partition as usize;
        let opened = ProduceOpened { max_message_bytes: MAX_MESSAGE_BYTES as u32 };
        send.write_frame(&Ok::<_, WireError>(opened), &[]).await?;
        while let Some(((), payload)) = recv.read_frame().await? {
            self.batches.send_modify(|count| *count += 1);
            let hold = self.hold.lock().unwrap().clone();
            if let Some(mut hold) = hold {
                let _ = hold.wait_for(|held| !held).await;
            }
            let batch = RecordBatch::parse(payload).unwrap();
            batch.validate().unwrap();
            let fault = {
                let mut faults = self.faults.lock().unwrap();
                match faults.front() {
                    Some(Fault::Damage) | None => None,
                    Some(_) => faults.pop_front(),
                }
            };
            let answer: ProduceAnswer = match fault {
                Some(Fault::Refuse(code)) => Err(WireError::new(code, "not now")),
                Some(Fault::RefuseRecord(index)) => {
                    let mut refusal = WireError::new(ErrorCode::RecordRefused, "a record was refused");
                    refusal.records = vec![RecordError { index, reason: "it is blue".into() }];
                    Err(refusal)
                }
                Some(Fault::Drop) => {
                    connection.close(bus_transport::Close::Done);
                    return Ok(());
                }
                Some(Fault::StoreAndDrop) => {
                    self.append(partition, batch);
                    connection.close(bus_transport::Close::Done);
                    return Ok(());
                }
                _ => Ok(ProduceAck { base_offset: self.append(partition, batch), append_time: None }),
            };
            let unanswered = open.acks == Acks::None;
            let ends = answer.as_ref().is_err_and(|refusal| unanswered || refusal.code.is_retriable());
            if answer.is_err() || !unanswered {
                send.write_frame(&answer, &[]).await?;
            }
            if ends {
                return send.finish();
            }
        }
        send.finish()
    }

    /// The batch that holds the offset, or follows it.
    fn batch_at(&self, partition: usize, offset: Offset) -> Option<RecordBatch> {
        let log = self.partitions[partition].lock().unwrap();
        log.iter().find(|batch| batch.header().next_offset() > offset).cloned()
    }

    async fn fetch(&self, mut send: SendStream, mut recv: RecvStream) -> Result<(), Error> {
        let Some((open, _)) = recv.read_frame::<FetchOpen>().await? else { return Ok(()) };
        let (partition, mut next, mut credit) = (open.partition as usize, open.from, open.credit as i64);
        if next < self.log_start || next > self.end(partition) {
            let refusal = WireError::new(ErrorCode::OffsetOutOfRange, "out of range");
            send.write_frame(&FetchPush::Error(refusal), &[]).await?;
            return send.finish();
        }
        loop {
            let grown = self.grown.notified();
            let batch = if credit > 0 { self.batch_at(partition, next) } else { None };
            if let Some(batch) = batch {
                let fault = self.faults.lock().unwrap().pop_front();
                let mut bytes = BytesMut::from(&batch.bytes()[..]);
                match fault {
                    Some(Fault::Drop) => {
                        send.reset(7);
                        return Ok(());
                    }
                    Some(Fault::Damage) => bytes[HEADER] ^= 1,
                    _ => {}
                }
                let header: BatchHeader = *batch.header();
                next = header.next_offset();
                credit -= bytes.len() as i64;
                self.pushed.send_modify(|pushed| *pushed += bytes.len() as u64);
                let push = FetchPush::Batches { high_watermark: self.end(partition) };
                send.write_frame(&push, &[bytes.freeze()]).await?;
                continue;
            }
            tokio::select! {
                () = grown => {}
                frame = recv.read_frame::<FetchCredit>() => match frame? {
                    Some((more, _)) => credit += more.bytes as i64,
                    None => return send.finish(),
                },
            }
        }
    }
}

/// The first byte behind a batch's header.
const HEADER: usize = bus_protocol::batch::HEADER_BYTES;
