//! The producer: records in, batches out, acknowledgements back.
//!
//! ```text
//!   send -> partition by key, by number, or sticky -> Queue: the open batch, encoded in place
//!                                                       | full, due, or nothing is under way
//!   Delivery <- settle <- Sender: one task and one produce stream a partition, pipelined, resends in order
//!                           Flight: what is under way, and its numbers
//! ```

mod credit;
mod delivery;
mod flight;
mod give_up;
mod queue;
mod sender;
mod settings;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use bus_protocol::request::{Request, Response, TopicInfo};
use bus_protocol::{PartitionId, Timestamp, TopicId, TopicName, limits, partition_for_key};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use credit::Credit;
pub use delivery::{Ack, Delivery};
use queue::{Push, Queue};
pub use settings::ProducerBuilder;
use settings::Settings;

use crate::{Client, Error, Record};

/// How long [`Producer::close`] waits for the streams to end once all records are settled.
const CLOSE: Duration = Duration::from_secs(5);

/// Sends records. Cheap to clone; the clones share batches, memory and connections. Records of one partition keep the
/// order in which they were sent. When the last clone is dropped, what is queued is still sent while the runtime runs;
/// use [`Producer::close`] or [`Producer::flush`] to be sure of it.
///
/// A batch whose acknowledgement is lost, or whose leader is, is sent again, to whoever leads then, until the delivery
/// timeout; it is stored once, in its place, unless idempotence is switched off ([`ProducerBuilder::idempotent`]).
///
/// A topic is meant by its name: where it is deleted and created again, what is not acknowledged yet goes to the new one,
/// to the partition of the number that it was given; it fails where there are fewer.
#[derive(Clone, Debug)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// Ends the partitions' tasks when the last producer is dropped; the tasks themselves hold only what is within.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the producers and the partitions' tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    client: Client,
    settings: Settings,
    /// Bytes of `buffer_memory` that are free.
    memory: Semaphore,
    topics: RwLock<HashMap<Box<str>, Arc<Topic>>>,
    tasks: Mutex<JoinSet<()>>,
    /// The producer's id, once one was needed; locked while it is asked for.
    id: tokio::sync::Mutex<Option<i64>>,
    closed: AtomicBool,
    /// Told when it is closed.
    ended: Arc<Notify>,
    taken: AtomicU64,
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

/// A topic's partitions.
#[derive(Debug)]
struct Topic {
    name: TopicName,
    id: TopicId,
    /// How many there are.
    partitions: u32,
    /// Theirs; and behind them those of partitions that an earlier topic of the name had, which settle what they hold.
    queues: Vec<Arc<Queue>>,
    /// Where records without key go until the batch is sent.
    sticky: AtomicU32,
    /// The same topic with more partitions, or the next one of the name, once there is one.
    next: OnceLock<Arc<Topic>>,
}

/// What became of a producer's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Queued by `send`.
    pub sent: u64,
    /// Acknowledged (with [`crate::Acks::None`]: sent).
    pub acknowledged: u64,
    /// Failed for good.
    pub failed: u64,
}

impl Shared {
    pub(crate) fn new(client: Client, settings: Settings) -> Self {
        Self {
            client,
            settings,
            memory: Semaphore::new(settings.buffer_memory),
            topics: RwLock::default(),
            tasks: Mutex::default(),
            id: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            ended: Arc::default(),
            taken: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// A topic that is not known yet.
    async fn look_up(self: &Arc<Self>, name: &str) -> Result<Arc<Topic>, Error> {
        if let Some(topic) = self.topic(name) {
            return Ok(topic);
        }
        let info = self.client.topic(&TopicName::new(name)?).await?;
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed("producer"));
        }
        if topics.is_empty() {
            let look = look(Arc::downgrade(self), self.ended.clone(), self.client.metadata_interval());
            self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(look);
        }
        Ok(topics.entry(name.into()).or_insert_with(|| Arc::new(Topic::new(&info, None))).clone())
    }

    /// Takes over the partitions that a topic has got since; or those that it has, where it was created anew.
    pub(crate) fn follow(&self, info: &TopicInfo) {
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        let Some(topic) = topics.get_mut(info.topic.as_str()) else { return };
        if topic.is_followed_by(info) && !self.closed.load(Ordering::Acquire) {
            let next = Arc::new(Topic::new(info, Some(topic)));
            // Only here, under the lock: it is set once.
            let _ = topic.next.set(next.clone());
            *topic = next;
        }
    }

    /// The producer's id, another than `spent`; asked for when it is needed first.
    pub(crate) async fn producer_id(&self, spent: Option<i64>) -> Result<i64, Error> {
        let mut id = self.id.lock().await;
        if let Some(id) = *id
            && Some(id) != spent
        {
            return Ok(id);
        }
        match self.client.read(Request::InitProducer).await? {
            Response::Producer { id: new } => Ok(*id.insert(new)),
            _ => Err(Error::Protocol("no producer id where one was asked for".to_owned())),
        }
    }

    /// Counts records that left the queue.
    pub(crate) fn count_taken(&self, records: u64) {
        self.taken.fetch_add(records, Ordering::AcqRel);
    }

    /// Counts records that are settled.
    pub(crate) fn count(&self, records: u64, acknowledged: bool) {
        let counter = if acknowledged { &self.acknowledged } else { &self.failed };
        counter.fetch_add(records, Ordering::AcqRel);
    }

    /// Frees the memory of a batch.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.memory.add_permits(bytes);
    }

    fn queues(&self) -> Vec<Arc<Queue>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.values().flat_map(|topic| topic.queues.iter().cloned()).collect()
    }

    fn close(&self) {
        {
            // Under the lock, so that no topic comes in behind.
            let _topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
            self.closed.store(true, Ordering::Release);
        }
        self.ended.notify_one();
        self.queues().iter().for_each(|queue| queue.close());
    }

    fn start(self: &Arc<Self>, queue: &Arc<Queue>) {
        let sender = sender::Sender::new(self.clone(), queue.clone());
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(sender.run());
    }

    /// Queues a record, and waits only for memory.
    #[inline]
    async fn append(self: &Arc<Self>, topic: &Topic, record: &Record<'_>) -> Result<Delivery, Error> {
        let topic = topic.latest();
        let timestamp = record.timestamp.unwrap_or_else(|| self.client.clock().timestamp());
        let mut credit = Credit::new(&self.memory);
        loop {
            match self.push(topic, record, timestamp, &mut credit)? {
                Ok(delivery) => return Ok(delivery),
                Err(bytes) => self.reserve(bytes, &mut credit).await?,
            }
        }
    }

    /// One attempt: a delivery, or the memory that is missing.
    #[inline]
    fn push(
        self: &Arc<Self>,
        topic: &Topic,
        record: &Record<'_>,
        timestamp: Timestamp,
        credit: &mut Credit<'_>,
    ) -> Result<Result<Delivery, usize>, Error> {
        let (mut partition, mut sticky) = topic.partition_of(record)?;
        loop {
            let queue = &topic.queues[partition as usize];
            match queue.push(record, timestamp, &self.settings, credit, sticky)? {
                Push::Queued { delivery, start } => {
                    if start {
                        self.start(queue);
                    }
                    return Ok(Ok(delivery));
                }
                Push::NeedsMemory(bytes) => return Ok(Err(bytes)),
                Push::NewBatch => {
                    sticky = false;
                    partition = (partition + 1) % topic.partitions;
                    topic.sticky.store(partition, Ordering::Relaxed);
                }
            }
        }
    }

    /// Waits for memory, and has everything sent that could free some.
    #[cold]
    async fn reserve(&self, bytes: usize, credit: &mut Credit<'_>) -> Result<(), Error> {
        self.queues().iter().for_each(|queue| queue.hurry());
        credit.wait_for(bytes).await
    }
}

/// Looks for new partitions until the producer is closed, or gone.
async fn look(shared: Weak<Shared>, ended: Arc<Notify>, interval: Duration) {
    loop {
        tokio::select! { () = tokio::time::sleep(interval) => {} () = ended.notified() => return }
        let Some(shared) = shared.upgrade() else { return };
        let topics: Vec<_> = {
            let topics = shared.topics.read().unwrap_or_else(PoisonError::into_inner);
            topics.values().map(|topic| topic.name.clone()).collect()
        };
        for topic in topics {
            tokio::select! {
                info = shared.client.refresh_within(&topic, interval / 2) => match info {
                    Ok(info) => shared.follow(&info),
                    Err(error) => tracing::debug!(%topic, %error, "whether it has new partitions is not known"),
                },
                () = ended.notified() => return,
            }
        }
    }
}

impl Topic {
    /// A topic as it is now, with the queues that there were before.
    fn new(info: &TopicInfo, before: Option<&Self>) -> Self {
        let limit = info.config.get("max.message.bytes").and_then(|bytes| bytes.parse().ok());
        let limit = limit.unwrap_or(limits::DEFAULT_MAX_MESSAGE_BYTES);
        let mut queues = before.map(|before| before.queues.clone()).unwrap_or_default();
        for number in (0..).zip(&info.partitions).map(|(number, _)| number).skip(queues.len()) {
            queues.push(Arc::new(Queue::new(info.topic.clone(), number, limit)));
        }
        let sticky = before.map_or(0, |before| before.sticky.load(Ordering::Relaxed));
        let sticky = AtomicU32::new(sticky);
        let partitions = u32::try_from(info.partitions.len()).unwrap_or(u32::MAX);
        Self { name: info.topic.clone(), id: info.id, partitions, queues, sticky, next: OnceLock::new() }
    }

    /// The topic as it was heard of last.
    #[inline]
    fn latest(&self) -> &Self {
        let mut topic = self;
        while let Some(next) = topic.next.get() {
            topic = next;
        }
        topic
    }

    /// Whether it has other partitions now: an earlier topic's are none of its own, and none goes away.
    fn is_followed_by(&self, now: &TopicInfo) -> bool {
        now.id > self.id || now.id == self.id && now.partitions.len() > self.partitions as usize
    }

    /// The record's partition, and whether it may go to another when it starts a new batch.
    fn partition_of(&self, record: &Record<'_>) -> Result<(PartitionId, bool), Error> {
        let partitions = self.partitions;
        match (record.partition, &record.key) {
            (Some(partition), _) if partition < partitions => Ok((partition, false)),
            (Some(partition), _) => {
                Err(Error::UnknownPartition { topic: self.name.clone(), partition, partitions })
            }
            _ if partitions == 0 => Err(Error::Protocol(format!("topic {} without partitions", self.name))),
            (None, Some(key)) => Ok((partition_for_key(key.as_slice(), partitions), false)),
            (None, None) => Ok((self.sticky.load(Ordering::Relaxed) % partitions, partitions > 1)),
        }
    }
}

impl Producer {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { handle: Arc::new(Handle(Arc::new(shared))) }
    }

    /// Queues a record, in order, and returns its [`Delivery`]. Waits only for a topic's first metadata, and while
    /// `buffer_memory` is used up. A record that is too large, or for no partition that exists, is refused here.
    /// When this is cancelled, the record is not queued.
    pub async fn send(&self, record: Record<'_>) -> Result<Delivery, Error> {
        let shared = &self.handle.0;
        let topic = match shared.topic(record.topic) {
            Some(topic) => topic,
            None => shared.look_up(record.topic).await?,
        };
        shared.append(&topic, &record).await
    }

    /// A producer for one topic: its `send` saves the look-up by name. Fails where the topic does not exist.
    pub async fn topic(&self, topic: &str) -> Result<TopicProducer, Error> {
        let topic = self.handle.0.look_up(topic).await?;
        Ok(TopicProducer { handle: self.handle.clone(), topic })
    }

    /// Sends what is queued and waits until every record sent before this call is acknowledged or has failed.
    /// The error is that of the first batch that failed among those that were still under way.
    pub async fn flush(&self) -> Result<(), Error> {
        let queues = self.handle.0.queues();
        let outstanding: Vec<_> = queues
            .iter()
            .flat_map(|queue| {
                let outstanding = queue.outstanding();
                queue.hurry();
                outstanding
            })
            .collect();
        let mut result = Ok(());
        for batch in outstanding {
            result = result.and(batch.settled().await);
        }
        result
    }

    /// Flushes, and ends the streams. `send` fails from now on, on every clone.
    pub async fn close(&self) -> Result<(), Error> {
        let flushed = self.flush().await;
        let shared = &self.handle.0;
        shared.close();
        let mut tasks = std::mem::take(&mut *shared.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE, ended).await.is_err() {
            tracing::debug!("a produce stream did not end in time");
        }
        flushed
    }

    /// What became of the records so far.
    pub fn counts(&self) -> Counts {
        let shared = &self.handle.0;
        // In this order, so that no record counts as done before it counts as sent.
        let (acknowledged, failed) =
            (shared.acknowledged.load(Ordering::Acquire), shared.failed.load(Ordering::Acquire));
        let waiting: u64 = shared.queues().iter().map(|queue| queue.waiting()).sum();
        Counts { sent: shared.taken.load(Ordering::Acquire) + waiting, acknowledged, failed }
    }
}

/// A [`Producer`] for one topic.
#[derive(Clone, Debug)]
pub struct TopicProducer {
    handle: Arc<Handle>,
    topic: Arc<Topic>,
}

impl TopicProducer {
    /// As [`Producer::send`]; the record's own topic does not matter.
    pub async fn send(&self, record: Record<'_>) -> Result<Delivery, Error> {
        self.handle.0.append(&self.topic, &record).await
    }

    /// How many partitions the topic has, as far as this producer has heard.
    pub fn partitions(&self) -> u32 {
        self.topic.latest().partitions
    }
}
