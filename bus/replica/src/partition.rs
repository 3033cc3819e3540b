//! The handle of one partition on this node.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bus_log::{AppendBatch, Log, LogReader};
use bus_protocol::batch::RecordBatch;
use bus_protocol::produce::{Acks, ProduceAck};
use bus_protocol::{Clock, Epoch, NodeId, Offset, PartitionId, TopicConfig};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::AppendError;
use crate::owner::{Append, Event, Owner};

/// Events that wait for one partition's owner. Its bytes are bounded by [`Runtime::budget`] as well.
const QUEUE: usize = 1_024;

/// What all partitions of a node share.
#[derive(Clone)]
pub struct Runtime {
    /// Where owners run. They block on the disk, so this is no runtime that serves a network.
    pub disk: tokio::runtime::Handle,
    /// A permit for each byte that may be between [`Partition::append`] and its commit.
    pub budget: Arc<Semaphore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What metadata says of this replica.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// This node.
    pub node: NodeId,
    /// The leader epoch.
    pub epoch: Epoch,
    /// The in-sync replicas.
    pub isr: Vec<NodeId>,
    /// The topic's settings.
    pub config: TopicConfig,
}

/// One partition: appends go to its owner's queue, reads to its log at once. Cheap to clone; the owner ends when
/// it is told to, or when the last handle is gone.
#[derive(Clone)]
pub struct Partition {
    number: PartitionId,
    events: mpsc::Sender<Event>,
    reader: LogReader,
    high_watermark: watch::Receiver<Offset>,
    offline: Arc<OnceLock<String>>,
    budget: Arc<Semaphore>,
}

/// Appends that belong behind each other: a produce stream's. Once one of them is refused by the partition, so are
/// those behind it, until the stream begins anew: what is sent again must not come after what was sent later.
#[derive(Clone, Debug, Default)]
pub struct Lane(Arc<AtomicBool>);

impl Lane {
    pub(crate) fn is_broken(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Only the partition's owner does this, and only it asks: no other memory hangs on it.
    pub(crate) fn break_off(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The second stage of an append: resolves once the batch is committed as its `acks` wants, or failed. Dropping
/// it takes nothing back.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Result<ProduceAck, AppendError>>);

impl Future for Ticket {
    type Output = Result<ProduceAck, AppendError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // An owner that went without an answer was closed.
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or(Err(AppendError::Closed)))
    }
}

impl Partition {
    /// Starts the owner of `log` as the leader of its partition. Everything that the log recovered counts as
    /// stored; with one in-sync replica all of it is committed.
    pub fn lead(number: PartitionId, log: Log, role: Role, runtime: &Runtime) -> Self {
        let (events, queue) = mpsc::channel(QUEUE);
        let reader = log.reader();
        let offline = Arc::new(OnceLock::new());
        let (owner, high_watermark) = Owner::new(log, role, queue, Arc::clone(&offline), runtime.clone());
        runtime.disk.spawn(owner.run());
        Self { number, events, reader, high_watermark, offline, budget: Arc::clone(&runtime.budget) }
    }

    /// Orders a batch: appends are stored in the order in which this was called and awaited. Waits while the queue or the
    /// budget is full. The batch's base offset and leader epoch are set here, whatever they were.
    pub async fn append(&self, batch: RecordBatch, acks: Acks, lane: &Lane) -> Result<Ticket, AppendError> {
        let bytes = batch.bytes().len();
        // The budget is at least one of the largest batches, so this waits for others only.
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let permit =
            Arc::clone(&self.budget).acquire_many_owned(permits).await.map_err(|_| AppendError::Closed)?;
        let (answer, ticket) = oneshot::channel();
        let lane = lane.clone();
        let append = Append { batch: AppendBatch::from(batch), bytes, acks, lane, answer, permit };
        self.events.send(Event::Append(append)).await.map_err(|_| AppendError::Closed)?;
        Ok(Ticket(ticket))
    }

    /// Whether both are handles of the same running partition.
    pub fn same_as(&self, other: &Self) -> bool {
        self.events.same_channel(&other.events)
    }

    /// Its number within its topic.
    pub fn number(&self) -> PartitionId {
        self.number
    }

    /// The log, for readers; bound what they see by [`Partition::high_watermark`].
    pub fn reader(&self) -> &LogReader {
        &self.reader
    }

    /// Below it, all is committed, and readers see it.
    pub fn high_watermark(&self) -> Offset {
        *self.high_watermark.borrow()
    }

    /// Tells when the high watermark moves; its sender is gone when the partition is closed.
    pub fn watch(&self) -> watch::Receiver<Offset> {
        self.high_watermark.clone()
    }

    /// Why the partition takes no appends any more, if its storage failed.
    pub fn offline(&self) -> Option<&str> {
        self.offline.get().map(String::as_str)
    }

    /// Takes on what metadata says.
    pub async fn configure(&self, role: Role) -> Result<(), AppendError> {
        self.events.send(Event::Configure(role)).await.map_err(|_| AppendError::Closed)
    }

    /// Asks the owner to apply retention and to give back memory that nobody reads from. Skipped if it is busy.
    pub fn maintain(&self) {
        drop(self.events.try_send(Event::Maintain));
    }

    /// Drops what lies below `offset` from the log's start; whole segments go from the disk. Done when this returns.
    pub async fn delete_before(&self, offset: Offset) -> Result<(), AppendError> {
        self.ask(|done| Event::DeleteBefore(offset, done)).await?
    }

    /// Ends the owner: what was appended is synced, what is not yet committed is answered as closed. The folder
    /// is not used any more when this returns.
    pub async fn close(&self) -> Result<(), AppendError> {
        self.ask(|done| Event::Stop { delete: false, done }).await?
    }

    /// Ends the owner and removes the log from the disk.
    pub async fn delete(&self) -> Result<(), AppendError> {
        self.ask(|done| Event::Stop { delete: true, done }).await?
    }

    async fn ask<T>(&self, event: impl FnOnce(oneshot::Sender<T>) -> Event) -> Result<T, AppendError> {
        let (done, answer) = oneshot::channel();
        self.events.send(event(done)).await.map_err(|_| AppendError::Closed)?;
        answer.await.map_err(|_| AppendError::Closed)
    }
}
