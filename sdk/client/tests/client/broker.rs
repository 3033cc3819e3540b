//! Brokers for tests: real QUIC, records in memory, and faults on demand. Each runs on a thread of its own, so that it
//! can stop like a process that is killed: nobody is told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use bus_client::{Client, ClientBuilder, Trust};
use bus_protocol::batch::{BatchBuilder, BatchHeader, Compression, RecordBatch, assign};
use bus_protocol::fetch::{FetchCredit, FetchOpen, FetchPush};
use bus_protocol::produce::{Acks, ProduceAck, ProduceAnswer, ProduceOpen, ProduceOpened};
use bus_protocol::{
    Epoch, ErrorCode, LeaderHint, NodeId, Offset, RecordError, StreamKind, TopicId, WireError,
};
use bus_transport::{Connection, Endpoint, Error, Identity, Options, RecvStream, SendStream};
use bytes::{Bytes, BytesMut};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};

use crate::world::{Topic, World, verdict};

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
    pub(crate) address: String,
    identity: Arc<Identity>,
    pub(crate) state: Arc<State>,
    stop: Arc<Notify>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Blocks the broker's thread until it is dropped.
    frozen: Option<mpsc::Sender<()>>,
    runtime: tokio::runtime::Handle,
    _folder: Arc<TempDir>,
}

pub(crate) struct State {
    pub(crate) node: NodeId,
    pub(crate) world: Arc<World>,
    partitions: Vec<Mutex<Vec<RecordBatch>>>,
    pub(crate) faults: Mutex<VecDeque<Fault>>,
    /// While set, batches are read and stay unanswered.
    pub(crate) hold: Mutex<Option<watch::Receiver<bool>>>,
    /// While set, batches are stored and stay unanswered.
    pub(crate) mute: AtomicBool,
    /// Whether it takes itself for the leader, whatever metadata says; and whom it names if it does not.
    pub(crate) believes: Mutex<Option<Result<(), Option<LeaderHint>>>>,
    /// The topic as far as it has heard: all there is to hear, unless this is set.
    pub(crate) heard: Mutex<Option<Topic>>,
    /// What it refuses all batches with.
    pub(crate) refuses_batches: Mutex<Option<ErrorCode>>,
    /// What it answers all requests with.
    pub(crate) refuses: Mutex<Option<ErrorCode>>,
    grown: Notify,
    /// Bytes pushed to readers.
    pub(crate) pushed: watch::Sender<u64>,
    /// Batches that came in, stored or not.
    pub(crate) batches: watch::Sender<u64>,
    /// Produce streams that were opened, or refused.
    pub(crate) opened: watch::Sender<u64>,
    /// Fetch streams that were opened, or refused.
    pub(crate) fetches: watch::Sender<u64>,
    pub(crate) log_start: Offset,
}

pub(crate) const TOPIC: &str = "orders";
pub(crate) const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Partitions that a topic may grow to.
const MOST_PARTITIONS: usize = 8;

impl Broker {
    /// A cluster of one.
    pub(crate) fn start(partitions: usize) -> Self {
        Self::start_at(partitions, 0)
    }

    pub(crate) fn start_at(partitions: usize, log_start: Offset) -> Self {
        Self::join(&World::new(partitions), 1, log_start)
    }

    /// A cluster, whose first broker leads.
    pub(crate) fn cluster(nodes: u64, partitions: usize) -> Vec<Self> {
        let world = World::new(partitions);
        (1..=nodes).map(|node| Self::join(&world, node, 0)).collect()
    }

    fn join(world: &Arc<World>, node: NodeId, log_start: Offset) -> Self {
        let folder = world.folder.clone();
        let identity = Arc::new(Identity::load_or_create(folder.path(), node, &[]).unwrap());
        let state = Arc::new(State {
            node,
            world: world.clone(),
            partitions: (0..MOST_PARTITIONS).map(|_| Mutex::default()).collect(),
            faults: Mutex::default(),
            hold: Mutex::default(),
            mute: AtomicBool::default(),
            believes: Mutex::default(),
            heard: Mutex::default(),
            refuses_batches: Mutex::default(),
            refuses: Mutex::default(),
            grown: Notify::new(),
            pushed: watch::Sender::default(),
            batches: watch::Sender::default(),
            opened: watch::Sender::default(),
            fetches: watch::Sender::default(),
            log_start,
        });
        let (address, stop, thread, runtime) = run(&state, &identity, "127.0.0.1:0");
        world.register(node, &address);
        let thread = Some(thread);
        Self { address, identity, state, stop, thread, frozen: None, runtime, _folder: folder }
    }

    /// Stops like a process that is killed, or stopped: its peers hear nothing more.
    pub(crate) fn freeze(&mut self) {
        let (keep, dropped) = mpsc::channel::<()>();
        let (is_frozen, frozen) = mpsc::channel();
        self.runtime.spawn(async move {
            is_frozen.send(()).unwrap();
            let _ = dropped.recv();
        });
        frozen.recv().unwrap();
        self.frozen = Some(keep);
    }

    /// Is killed, and starts again, at the same address, with what it had stored.
    pub(crate) fn restart(&mut self) {
        self.end();
        let (_, stop, thread, runtime) = run(&self.state, &self.identity, &self.address);
        (self.stop, self.thread, self.runtime) = (stop, Some(thread), runtime);
    }

    fn end(&mut self) {
        self.stop.notify_one();
        self.frozen = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
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

    /// Takes over the first batches of another broker's log, as a follower has them, and leads.
    pub(crate) fn take_over(&self, from: &Broker, partition: usize, batches: usize) {
        let log = from.state.partitions[partition].lock().unwrap().clone();
        *self.state.partitions[partition].lock().unwrap() = log.into_iter().take(batches).collect();
        self.state.world.elect(partition, self.state.node);
    }

    /// Deletes the topic, and creates it again: led by one of them in this epoch, which has these values in partition 0.
    pub(crate) fn create_anew(
        brokers: &[Self],
        partitions: usize,
        (leader, epoch): (usize, Epoch),
        values: &[&str],
    ) {
        let hint = LeaderHint { node: brokers[leader].state.node, epoch };
        brokers[leader].state.world.create_anew(partitions, hint);
        let logs = brokers.iter().flat_map(|broker| &broker.state.partitions);
        logs.for_each(|log| log.lock().unwrap().clear());
        values.iter().for_each(|value| brokers[leader].store(0, &[value], 0));
        brokers.iter().for_each(|broker| broker.state.grown.notify_waiters());
    }

    /// Hears of no change from now on, and takes itself for the leader still: it is cut off from the other brokers.
    pub(crate) fn cut_off(&self) {
        *self.state.heard.lock().unwrap() = Some(self.state.world.topic());
        *self.state.believes.lock().unwrap() = Some(Ok(()));
    }

    /// Hears again what there is to hear.
    pub(crate) fn heal(&self) {
        *self.state.heard.lock().unwrap() = None;
        *self.state.believes.lock().unwrap() = None;
        *self.state.refuses_batches.lock().unwrap() = None;
        self.state.mute.store(false, Ordering::Relaxed);
    }

    /// The headers of what a partition holds.
    pub(crate) fn headers(&self, partition: usize) -> Vec<BatchHeader> {
        self.state.partitions[partition].lock().unwrap().iter().map(|batch| *batch.header()).collect()
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

impl Drop for Broker {
    fn drop(&mut self) {
        self.end();
    }
}

type Running = (String, Arc<Notify>, std::thread::JoinHandle<()>, tokio::runtime::Handle);

/// Serves on a thread of its own, until it is told to stop.
fn run(state: &Arc<State>, identity: &Arc<Identity>, listen: &str) -> Running {
    let (stop, told) = (Arc::new(Notify::new()), mpsc::channel());
    let (state, identity, stopped) = (state.clone(), identity.clone(), stop.clone());
    let listen = listen.parse().unwrap();
    let (tell, told) = told;
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let endpoint = Endpoint::server(listen, identity, &Options::default()).unwrap();
            let address = endpoint.local_addr().unwrap().to_string();
            tell.send((address, tokio::runtime::Handle::current())).unwrap();
            tokio::select! { () = serve(endpoint, state) => {} () = stopped.notified() => {} }
        });
    });
    let (address, runtime) = told.recv().unwrap();
    (address, stop, thread, runtime)
}

async fn serve(endpoint: Endpoint, state: Arc<State>) {
    while let Some(incoming) = endpoint.accept().await {
        let state = state.clone();
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
}

impl State {
    pub(crate) fn append(&self, partition: usize, batch: RecordBatch) -> Offset {
        let mut log = self.partitions[partition].lock().unwrap();
        let base = log.last().map_or(self.log_start, |last| last.header().next_offset());
        let mut bytes = BytesMut::from(&batch.into_bytes()[..]);
        assign::set_base_offset(&mut bytes, base);
        log.push(RecordBatch::parse(bytes.freeze()).unwrap());
        self.grown.notify_waiters();
        base
    }

    pub(crate) fn end(&self, partition: usize) -> Offset {
        self.partitions[partition]
            .lock()
            .unwrap()
            .last()
            .map_or(self.log_start, |last| last.header().next_offset())
    }

    pub(crate) fn topic(&self) -> Topic {
        self.heard.lock().unwrap().clone().unwrap_or_else(|| self.world.topic())
    }

    /// Whether it leads, and if not, who does; and whether the topic is the one meant.
    fn opens(&self, partition: usize, id: Option<TopicId>) -> Result<(), WireError> {
        self.leads(partition)?;
        match self.topic().is_meant(id) {
            true => Ok(()),
            false => Err(WireError::new(ErrorCode::UnknownTopic, "another topic")),
        }
    }

    /// The same, on a stream that was open before: to it, nobody leads a topic that is deleted.
    fn goes_on(&self, partition: usize, id: Option<TopicId>) -> Result<(), WireError> {
        self.opens(partition, id).map_err(|refusal| WireError { code: ErrorCode::NotLeader, ..refusal })
    }

    fn leads(&self, partition: usize) -> Result<(), WireError> {
        let leader = self.world.leader(partition);
        let leads = match *self.believes.lock().unwrap() {
            Some(believed) => believed,
            None if leader.is_some_and(|leader| leader.node == self.node) => Ok(()),
            None => Err(leader),
        };
        leads.map_err(|leader| {
            let mut refusal = WireError::new(ErrorCode::NotLeader, "this broker does not lead");
            refusal.leader = leader;
            refusal
        })
    }

    async fn request(&self, mut send: SendStream, mut recv: RecvStream) -> Result<(), Error> {
        let Some((request, _)) = recv.read_frame().await? else { return Ok(()) };
        let refused = *self.refuses.lock().unwrap();
        let answer = match refused {
            Some(code) => Err(WireError::new(code, "not now")),
            None => self.world.answer(self, request),
        };
        send.write_frame(&answer, &[]).await?;
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
        let answer = self.opens(partition, open.id).map(|()| opened);
        self.opened.send_modify(|count| *count += 1);
        send.write_frame(&answer, &[]).await?;
        if answer.is_err() {
            return send.finish();
        }
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
            let refused = *self.refuses_batches.lock().unwrap();
            let answer: ProduceAnswer = match fault.or(refused.map(Fault::Refuse)) {
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
                _ => self.goes_on(partition, open.id).and_then(|()| self.take(partition, batch)),
            };
            if self.mute.load(Ordering::Relaxed) {
                continue;
            }
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

    /// Stores a batch, unless it is there already or does not continue what is.
    fn take(&self, partition: usize, batch: RecordBatch) -> ProduceAnswer {
        let known = verdict(&self.partitions[partition].lock().unwrap(), batch.header())?;
        let base_offset = known.unwrap_or_else(|| self.append(partition, batch));
        Ok(ProduceAck { base_offset, append_time: None })
    }

    /// The batch that holds the offset, or follows it.
    fn batch_at(&self, partition: usize, offset: Offset) -> Option<RecordBatch> {
        let log = self.partitions[partition].lock().unwrap();
        log.iter().find(|batch| batch.header().next_offset() > offset).cloned()
    }

    async fn fetch(&self, mut send: SendStream, mut recv: RecvStream) -> Result<(), Error> {
        let Some((open, _)) = recv.read_frame::<FetchOpen>().await? else { return Ok(()) };
        let (partition, mut next, mut credit) = (open.partition as usize, open.from, open.credit as i64);
        let opened = self.opens(partition, open.id);
        self.fetches.send_modify(|count| *count += 1);
        if let Err(refusal) = opened {
            send.write_frame(&FetchPush::Error(refusal), &[]).await?;
            return send.finish();
        }
        if next < self.log_start || next > self.end(partition) {
            let refusal = WireError::new(ErrorCode::OffsetOutOfRange, "out of range");
            send.write_frame(&FetchPush::Error(refusal), &[]).await?;
            return send.finish();
        }
        loop {
            let grown = self.grown.notified();
            if !self.topic().is_meant(open.id) {
                let mut refusal = WireError::new(ErrorCode::NotLeader, "nobody leads a deleted topic");
                refusal.leader = self.world.leader(partition);
                send.write_frame(&FetchPush::Error(refusal), &[]).await?;
                return send.finish();
            }
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
