//! The handle of one replica on this node.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bus_log::{AppendBatch, Log, LogReader};
use bus_protocol::batch::RecordBatch;
use bus_protocol::produce::{Acks, ProduceAck};
use bus_protocol::replicate::{LeaderFrame, ReplicateOpen};
use bus_protocol::{Clock, Epoch, NodeId, Offset, PartitionId, TopicId};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::event::{Event, Queued};
use crate::following::Following;
use crate::leader::IsrProposal;
use crate::owner::Owner;
use crate::replica::{Append, Role};
use crate::{AppendError, Fault, FollowError};

/// Events that wait for one replica's owner. Its bytes are bounded by [`Runtime::budget`] as well, and by what a
/// leader pushes to a follower.
const QUEUE: usize = 1_024;

/// What all replicas of a node share.
#[derive(Clone)]
pub struct Runtime {
    /// Where owners run. They block on the disk, so this is no runtime that serves a network.
    pub disk: tokio::runtime::Handle,
    /// A permit for each byte that may be between [`Partition::append`] and the log.
    pub budget: Arc<Semaphore>,
    /// A permit for each byte that came from a leader and is not appended yet. Apart from `budget`, whose bytes wait
    /// for other nodes: those would wait for these, and these for those.
    pub replicating: Arc<Semaphore>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where owners leave what metadata must hear. One that finds it full tries again later.
    pub reports: mpsc::Sender<Report>,
    /// How long a member of the ISR may lack something before it leaves (Kafka's `replica.lag.time.max.ms`).
    pub lag: Duration,
}

/// What an owner has to say to metadata.
#[derive(Clone, Debug)]
pub struct Report {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// What.
    pub matter: Matter,
}

/// See [`Report`].
#[derive(Clone, Debug)]
pub enum Matter {
    /// The ISR is to change. To be answered by a new [`Role`], or by [`Partition::proposal_refused`].
    Isr(IsrProposal),
    /// This replica takes nothing any more, until it is opened anew.
    Offline(Fault),
    /// The disk had no room for what was to be stored: others should go on without this replica. What it has stored
    /// counts.
    Full,
}

/// How far a partition is committed, as seen from this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The leader epoch.
    pub epoch: Epoch,
    /// Whether this replica leads in it.
    pub leads: bool,
    /// Whether the high watermark covers all that earlier leaders may have told readers of (KIP-207).
    pub settled: bool,
    /// Below it all is committed.
    pub high_watermark: Offset,
}

/// One replica: appends go to its owner's queue, reads to its log at once. Cheap to clone; the owner ends when it is
/// told to, or when the last handle is gone.
#[derive(Clone)]
pub struct Partition {
    number: PartitionId,
    pub(crate) events: mpsc::Sender<Event>,
    reader: LogReader,
    pub(crate) shown: Shown,
    budget: Arc<Semaphore>,
    pub(crate) replicating: Arc<Semaphore>,
}

/// What the owner shows of its replica.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) committed: watch::Receiver<Committed>,
    pub(crate) appended: watch::Receiver<Offset>,
    pub(crate) stored: watch::Receiver<(Epoch, Offset)>,
    pub(crate) offline: Arc<OnceLock<Fault>>,
    /// Whether time passing can call for something.
    pub(crate) waiting: Arc<AtomicBool>,
}

/// Appends that belong behind each other, in one leader epoch: a produce stream's. Once one of them is refused by the
/// partition, so are those behind it, until the stream begins anew: what is sent again must not come after what was
/// sent later.
#[derive(Clone, Debug)]
pub struct Lane {
    epoch: Epoch,
    broken: Arc<AtomicBool>,
}

impl Lane {
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Only the partition's owner does this, and only it asks: no other memory hangs on it.
    pub(crate) fn break_off(&self) {
        self.broken.store(true, Ordering::Relaxed);
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
    /// Starts the owner of the replica that `log` holds. What the log recovered counts as stored; below `committed` it is
    /// known to be committed (0 where nothing is known).
    pub fn open(
        (topic, number): (TopicId, PartitionId),
        log: Log,
        role: Role,
        committed: Offset,
        runtime: &Runtime,
    ) -> Self {
        let (events, queue) = mpsc::channel(QUEUE);
        let reader = log.reader();
        let (owner, shown) = Owner::new((topic, number), log, (role, committed), queue, runtime.clone());
        runtime.disk.spawn(owner.run());
        let (budget, replicating) = (Arc::clone(&runtime.budget), Arc::clone(&runtime.replicating));
        Self { number, events, reader, shown, budget, replicating }
    }

    /// A way in for appends in the present leader epoch; refused where this replica does not lead.
    pub fn lane(&self) -> Result<Lane, AppendError> {
        let Committed { epoch, leads, .. } = self.committed();
        if leads { Ok(Lane { epoch, broken: Arc::default() }) } else { Err(AppendError::NotLeader) }
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
        let queued = Queued { answer, lane: lane.clone() };
        let append = Append { batch: AppendBatch::from(batch), acks, ticket: queued };
        self.events.send(Event::Append { append, permit }).await.map_err(|_| AppendError::Closed)?;
        Ok(Ticket(ticket))
    }

    /// Whether both are handles of the same running replica.
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

    /// How far it is committed.
    pub fn committed(&self) -> Committed {
        *self.shown.committed.borrow()
    }

    /// Below it, all is committed, and readers see it.
    pub fn high_watermark(&self) -> Offset {
        self.committed().high_watermark
    }

    /// Tells when [`Partition::committed`] changes; its sender is gone when the partition is closed.
    pub fn watch(&self) -> watch::Receiver<Committed> {
        self.shown.committed.clone()
    }

    /// Tells when the log end moves.
    pub fn watch_end(&self) -> watch::Receiver<Offset> {
        self.shown.appended.clone()
    }

    /// Why the replica takes nothing any more, if that is so.
    pub fn offline(&self) -> Option<&Fault> {
        self.shown.offline.get()
    }

    /// Takes on what metadata says; [`Partition::committed`] shows it when this returns.
    pub async fn configure(&self, role: Role) -> Result<(), AppendError> {
        self.ask(|done| Event::Configure(role, done)).await
    }

    /// The controller has refused the change of the ISR, for sure.
    pub async fn proposal_refused(&self, proposal: IsrProposal) -> Result<(), AppendError> {
        self.send(Event::ProposalRefused(proposal)).await
    }

    /// Asks the owner to apply retention and to give back memory that nobody reads from. Skipped if it is busy.
    pub fn maintain(&self) {
        drop(self.events.try_send(Event::Maintain));
    }

    /// Lets time pass: to be called a few times in [`Runtime::lag`]. Costs nothing where nobody waits.
    pub fn tick(&self) {
        if self.shown.waiting.load(Ordering::Relaxed) {
            drop(self.events.try_send(Event::Tick));
        }
    }

    /// A reader found the log damaged: the replica takes nothing any more, and says so to metadata.
    pub async fn damaged(&self, error: &bus_log::Error) {
        // One that is closed already is not served any more either.
        self.send(Event::Fault(Fault::from(error))).await.ok();
    }

    /// As the leader, to a follower that opens its stream or has cut its log: see
    /// [`Replica::follower_opened`](crate::Replica::follower_opened).
    pub async fn follower_opened(&self, open: ReplicateOpen) -> Result<LeaderFrame, AppendError> {
        self.ask(|answer| Event::FollowerOpened { open, answer }).await
    }

    /// As the leader of `epoch`: the follower, in its registration and on this stream, has stored all below `end`.
    pub async fn follower_stored(
        &self,
        follower: (NodeId, u64),
        stream: u64,
        epoch: Epoch,
        end: Offset,
    ) -> Result<(), AppendError> {
        self.send(Event::FollowerStored { follower, stream, epoch, end }).await
    }

    /// As the leader: the follower's stream has ended. Where the queue is full nobody is told: then the follower
    /// counts as there, with what it had.
    pub fn follower_gone(&self, follower: (NodeId, u64), stream: u64) {
        drop(self.events.try_send(Event::FollowerGone { follower, stream }));
    }

    /// As the leader: what the followers that replicate now have stored.
    pub async fn followers(&self) -> Result<Vec<(NodeId, Offset)>, AppendError> {
        self.ask(Event::Followers).await
    }

    /// As a follower of the leader of `epoch`: begins a stream.
    pub async fn follow(&self, epoch: Epoch) -> Result<Following, FollowError> {
        Following::begin(self.clone(), epoch).await
    }

    /// Drops what lies below `offset` from the log's start. Done when this returns.
    pub async fn delete_before(&self, offset: Offset) -> Result<(), AppendError> {
        self.ask(|done| Event::DeleteBefore(offset, done)).await?
    }

    /// Ends the owner: what was appended is synced, what is not yet committed is answered as closed. The folder
    /// is not used any more when this returns, whether it succeeds or not.
    pub async fn close(&self) -> Result<(), AppendError> {
        self.ask(|done| Event::Stop { delete: false, done }).await?
    }

    /// Ends the owner and removes the log from the disk.
    pub async fn delete(&self) -> Result<(), AppendError> {
        self.ask(|done| Event::Stop { delete: true, done }).await?
    }

    pub(crate) async fn send(&self, event: Event) -> Result<(), AppendError> {
        self.events.send(event).await.map_err(|_| AppendError::Closed)
    }

    pub(crate) async fn ask<T>(
        &self,
        event: impl FnOnce(oneshot::Sender<T>) -> Event,
    ) -> Result<T, AppendError> {
        let (done, answer) = oneshot::channel();
        self.send(event(done)).await?;
        answer.await.map_err(|_| AppendError::Closed)
    }
}
