//! What every part of a running broker shares.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bus_metadata::{Applied, Command, Metadata, Registration};
use bus_protocol::request::Request;
use bus_protocol::{Clock, ErrorCode, NodeId, PartitionId, TopicId, WireError};
use bus_replica::{Fault, Partition};
use bytes::Bytes;
use tokio::sync::{Notify, Semaphore, watch};

use crate::awaited::Awaited;
use crate::blobs::Blobs;
use crate::data_dir::DataDir;
use crate::functions::Functions;
use crate::groups::Groups;
use crate::metrics::Metrics;
use crate::modules::Modules;
use crate::options::Options;
use crate::peers::Peers;
use crate::producer_ids::ProducerIds;
use crate::refusal::Refusal as _;
use crate::reopened::Reopened;
use crate::throttle::Throttle;
use crate::topics::{Served, Topics};
use crate::watermarks::Watermarks;

/// How long the others may take to run a change before it is answered all the same.
pub(crate) const SETTLE: Duration = Duration::from_secs(5);

const TAKES_OVER: &str = "another replica takes over";

/// A running broker's parts. Handlers hold it by `Arc`; what changes in it changes behind locks of its own.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// `HOST:PORT`, as others are told.
    pub(crate) address: String,
    pub(crate) options: Options,
    pub(crate) data: DataDir,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metadata: Metadata,
    pub(crate) topics: Topics,
    pub(crate) functions: Functions,
    pub(crate) groups: Groups,
    pub(crate) blobs: Blobs,
    pub(crate) modules: Modules,
    pub(crate) metrics: Metrics,
    pub(crate) peers: Peers,
    pub(crate) producer_ids: ProducerIds,
    pub(crate) watermarks: Watermarks,
    /// Replicas that were opened anew after a panic.
    pub(crate) reopened: Reopened,
    /// What holds records back that go to replicas which a reassignment adds.
    pub(crate) catch_up: Throttle,
    /// What tells those who catch up to give way.
    pub(crate) awaited: Awaited,
    /// A place for each push that is read ahead.
    pub(crate) read_ahead: Arc<Semaphore>,
    /// A turn for each read from the disk: what is written must not wait behind what is read.
    pub(crate) cold_reads: Arc<Semaphore>,
    /// The epoch of this broker's registration; 0 before.
    pub(crate) broker_epoch: AtomicU64,
    /// Where partitions run; they block on the disk.
    pub(crate) runtime: bus_replica::Runtime,
    /// What all logs of this node share.
    pub(crate) logs: bus_log::Env,
    /// The index of the image that this node runs: everything it asks for is started, or said to be offline.
    pub(crate) reconciled: watch::Sender<u64>,
    /// Has the reconciler look again though the image has not changed.
    pub(crate) nudge: Notify,
    /// A place for each module that is taken in and compiled at once.
    pub(crate) uploads: Semaphore,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) ready: AtomicBool,
}

impl Node {
    /// Changes the metadata; when it returns, this node runs what the change asks for, or is stopping.
    pub(crate) async fn change(&self, command: Command) -> Result<Applied, WireError> {
        let applied = self.metadata.propose(command).await.map_err(|error| error.refusal())?;
        // A refusal would say that nothing was changed.
        if let Err(error) = self.await_metadata(self.metadata.image().index()).await {
            tracing::debug!(%error, "a change is made, and this broker does not run it");
        }
        Ok(applied)
    }

    /// As [`Self::change`]; and so do the other brokers that are up, or [`SETTLE`] has passed.
    pub(crate) async fn change_everywhere(&self, command: Command) -> Result<Applied, WireError> {
        let applied = self.change(command).await?;
        let image = self.metadata.image();
        let request = Request::AwaitMetadata { index: image.index() };
        let others = image.brokers().filter(|broker| broker.node != self.id && !broker.fenced);
        let asked = others.map(|broker| {
            let asked = (broker.node, broker.address.as_str());
            self.peers.request_within(SETTLE, asked, &request, Bytes::new())
        });
        for answer in futures::future::join_all(asked).await {
            // It will run it before it serves anybody who knows of it.
            if let Err(error) = answer {
                tracing::warn!(%error, "a broker does not say that it runs a change");
            }
        }
        Ok(applied)
    }

    /// Waits until this node runs what the image of that index asks for.
    pub(crate) async fn await_metadata(&self, index: u64) -> Result<(), WireError> {
        let mut reconciled = self.reconciled.subscribe();
        tokio::select! {
            biased;
            Ok(_) = reconciled.wait_for(|running| *running >= index) => Ok(()),
            // Whoever would run it may be gone.
            () = self.stopping() => Err(WireError::new(ErrorCode::ShuttingDown, "the broker is stopping")),
        }
    }

    /// How this broker registers; `clean` if it may have lost nothing since it last did.
    pub(crate) fn registration(&self, clean: bool) -> Registration {
        Registration {
            node: self.id,
            address: self.address.clone(),
            rack: self.options.rack.clone(),
            directory: self.data.directory(),
            clean,
            renewed: !self.data.topics_are_gone(),
        }
    }

    /// The epoch of this broker's registration.
    pub(crate) fn epoch(&self) -> u64 {
        self.broker_epoch.load(Ordering::Acquire)
    }

    /// The refusal of whoever met this node's failed or full storage, or its panic: where others go on without it, one of
    /// them takes over, and where it is opened anew it leads anew. To a client either is a change of leader.
    pub(crate) fn moved_on(&self, topic: TopicId, number: PartitionId, refused: WireError) -> WireError {
        let image = self.metadata.image();
        let partition = image.topic_by_id(topic).and_then(|topic| topic.partition(number));
        let in_isr = partition.is_none_or(|partition| partition.isr.contains(&self.id));
        let spared = || !in_isr || image.can_spare(self.id, topic, number);
        let goes_on = match refused.code {
            ErrorCode::StorageFailed if self.has_panicked(topic, number) => {
                let led_anew = self.reopened.may((topic, number), self.clock.monotonic());
                spared().then_some(TAKES_OVER).or(led_anew.then_some("it is opened anew"))
            }
            // Whoever else is in sync leads once it is up; it may be on its way.
            ErrorCode::StorageFailed => {
                let mut isr = partition.iter().flat_map(|partition| &partition.isr);
                isr.any(|member| *member != self.id).then_some(TAKES_OVER)
            }
            ErrorCode::StorageFull => spared().then_some(TAKES_OVER),
            _ => None,
        };
        match goes_on {
            Some(how) => WireError::new(ErrorCode::NotLeader, format!("{}; {how}", refused.message)),
            None => refused,
        }
    }

    /// Whether the task of a replica of this node has panicked, and it was not opened anew since.
    fn has_panicked(&self, topic: TopicId, number: PartitionId) -> bool {
        let topics = self.topics.all();
        let topic = topics.values().find(|running| running.id == topic);
        let partitions = topic.map(|topic| topic.partitions.load_full()).unwrap_or_default();
        let replica = partitions.get(number as usize).and_then(Served::replica);
        replica.and_then(Partition::offline) == Some(&Fault::Panicked)
    }

    /// The address of a broker that may be asked.
    pub(crate) fn address_of(&self, node: NodeId) -> Result<String, WireError> {
        let image = self.metadata.image();
        let broker = image.broker(node).filter(|broker| !broker.fenced);
        broker.map(|broker| broker.address.clone()).ok_or_else(|| {
            WireError::new(ErrorCode::NotLeader, format!("node {node} is not up: another takes over"))
        })
    }

    /// What a topic is called, for logs: its identity where the image does not hold it (any more).
    pub(crate) fn called(&self, topic: TopicId) -> String {
        let image = self.metadata.image();
        image.topic_by_id(topic).map_or_else(|| topic.to_string(), |topic| topic.name.to_string())
    }

    /// Lets time pass; an error when the broker begins to stop.
    pub(crate) async fn pause(&self, time: Duration) -> Result<(), ()> {
        match tokio::time::timeout(time, self.stopping()).await {
            Ok(()) => Err(()),
            Err(_) => Ok(()),
        }
    }

    /// Runs something that waits for the disk, on a thread that may.
    pub(crate) async fn blocking<T: Send + 'static, E: crate::refusal::Refusal + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, WireError> {
        match self.runtime.disk.spawn_blocking(work).await {
            Ok(done) => done.map_err(|error| error.refusal()),
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(WireError::new(ErrorCode::ShuttingDown, "the broker is stopping")),
            },
        }
    }

    /// Whether clients are served.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Resolves when the broker begins to stop.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stop = self.stop.subscribe();
        async move {
            // A sender that is gone has stopped too.
            drop(stop.wait_for(|stop| *stop).await);
        }
    }
}
