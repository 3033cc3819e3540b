//! Starts a node, and stops it.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bus_function::FunctionHost;
use bus_log::storage::DiskStorage;
use bus_metadata::{EnterError, Metadata, controller};
use bus_protocol::{Clock, SystemClock, limits};
use bus_transport::{Close, Endpoint, Identity, Listener, TrustStore};
use futures::StreamExt as _;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use crate::awaited::Awaited;
use crate::blobs::Blobs;
use crate::data_dir::DataDir;
use crate::failure::{Failure, StartError};
use crate::functions::Functions;
use crate::groups::Groups;
use crate::metrics::Metrics;
use crate::modules::Modules;
use crate::node::Node;
use crate::options::Options;
use crate::peers::Peers;
use crate::producer_ids::ProducerIds;
use crate::reconciler::Reconciler;
use crate::reopened::Reopened;
use crate::tasks::Tasks;
use crate::throttle::Throttle;
use crate::topics::Topic;
use crate::traces::Traces;
use crate::watermarks::Watermarks;
use crate::{authority, http, modules, reports, server};

/// Threads that partitions run on: they wait for the disk, so more than there are cores.
const DISK_THREADS: usize = 4;
/// Threads that wait for a disk with nothing else to do: syncs, cold reads, openings.
const DISK_WAITERS: usize = 64;
/// Of those, how many readers may take at once.
const DISK_READERS: usize = 32;
/// Open files that a node asks the operating system for.
const OPEN_FILES: u64 = 1 << 20;
/// Replicas that are closed at once: each waits for the disk.
const CLOSED_AT_ONCE: usize = 16;
/// How long a stopping broker waits for what is under way.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Ticks between two times that high watermarks are written down.
const WATERMARKS_EVERY: u32 = 4;

/// A running broker. Dropping it without [`Broker::shutdown`] is like killing it: nothing acknowledged is lost.
pub struct Broker {
    pub(crate) node: Arc<Node>,
    endpoint: Endpoint,
    http: Option<SocketAddr>,
    tasks: Tasks,
    /// Dropped last.
    _disk: DiskThreads,
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |error| StartError::Io { what, error }
}

impl Broker {
    /// Starts a node. When it returns, clients are served, and every partition is open or known to be offline. Where it
    /// fails before the node belongs to a cluster, all is as it was.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        options.validate().map_err(StartError::Options)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let data = DataDir::open(&options.data, options.node_id, uuid::Uuid::new_v4)?;
        // Holds the folder's lock until what failed has been taken away.
        let mut traces = data.traces();
        let started = Self::start_in(data, options, clock, &mut traces).await;
        if started.is_err() {
            traces.remove();
        }
        started
    }

    async fn start_in(
        data: DataDir,
        options: Options,
        clock: Arc<dyn Clock>,
        traces: &mut Traces,
    ) -> Result<Self, StartError> {
        // Refused limits are the operator's choice; opening files will say so where it matters.
        if let Err(error) = rlimit::increase_nofile_limit(OPEN_FILES) {
            tracing::warn!(%error, "the limit on open files could not be raised");
        }
        let listener = Listener::bind(options.listen, &options.transport)?;
        let http = match options.http {
            Some(wanted) => {
                Some(http::bind(wanted).await.map_err(|error| StartError::Http { address: wanted, error })?)
            }
            None => None,
        };
        let listened = listen(listener, &options, &data, traces)?;
        let disk = DiskThreads::start()?;
        let peers = Peers::new(listened.endpoint.clone());
        let metadata = Metadata::start(
            options.metadata.clone(),
            options.node_id,
            &listened.address,
            &data.metadata(),
            Arc::new(peers.clone()),
        )
        .await?;
        let Listened { endpoint, address, identity, store } = listened;
        let (reports, reported) = mpsc::channel(reports::QUEUE);
        let runtime = Disk { handle: disk.handle(), reports };
        let node = Arc::new(build((options, address), data, clock, (metadata, peers), runtime)?);
        // From here on a start that fails ends what it has started.
        let tasks = Tasks::new(node.stop.subscribe());
        let mut broker = Self { node, endpoint, http: None, tasks, _disk: disk };
        if let Err(error) = broker.enter(reported).await {
            broker.abandon(&error, traces).await;
            return Err(error);
        }
        authority::publish(&store, broker.address(), &identity).unwrap_or_else(|error| {
            tracing::warn!(%error, "the CA could not be left for this user's clients: pass them --ca");
        });
        if let Some((listener, address)) = http {
            broker.http = Some(address);
            broker.spawn("metrics endpoint", |node| http::serve(listener, node));
        }
        broker.spawn("retention", maintain);
        broker.spawn("timer", tick);
        broker.node.ready.store(true, Ordering::Release);
        Ok(broker)
    }

    /// Enters the cluster, and runs what it has for this node. A part that ends meanwhile ends it.
    async fn enter(&mut self, reported: mpsc::Receiver<bus_replica::Report>) -> Result<(), StartError> {
        // The others must reach this node before it can enter; users are let in when it is ready.
        let endpoint = self.endpoint.clone();
        self.spawn("server", |node| server::serve(endpoint, node));
        let node = Arc::clone(&self.node);
        self.unless_failed(enter(&node)).await?;
        sweep_blobs(&self.node);
        self.spawn("reconciler", |node| Reconciler::new(node).run());
        self.spawn("reporter", |node| reports::run(node, reported));
        self.spawn("fetcher of modules", modules::fetch);
        self.unless_failed(say_ready(&node)).await
    }

    /// A step of the start, as long as the broker can go on.
    async fn unless_failed(
        &self,
        step: impl Future<Output = Result<(), StartError>>,
    ) -> Result<(), StartError> {
        tokio::select! {
            biased;
            failure = self.failed() => Err(failure.into()),
            done = step => done,
        }
    }

    /// Ends a start that has failed, so that nothing of it uses the data folder any more.
    async fn abandon(self, error: &StartError, traces: &mut Traces) {
        if self.node.metadata.cluster_id().is_some() {
            traces.keep();
        }
        if self.node.epoch() != 0 {
            traces.keep_unmarked();
        }
        // Whoever else answered has the same CA.
        if !matches!(
            error,
            StartError::Enter(EnterError::NobodyAnswers { .. } | EnterError::Distrusted { .. })
        ) {
            traces.keep_authority();
        }
        self.node.metadata.shutdown().await;
    }

    /// Runs what the broker cannot be without.
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &'static str,
        task: impl FnOnce(Arc<Node>) -> F,
    ) {
        self.tasks.spawn(name, task(Arc::clone(&self.node)));
    }

    /// `HOST:PORT`, as clients are told.
    pub fn address(&self) -> &str {
        &self.node.address
    }

    /// Where metrics are served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Resolves, with why, when the broker cannot go on. It is to be [shut down](Self::shutdown) then; the others of its
    /// cluster take over.
    pub async fn failed(&self) -> Failure {
        let failure = tokio::select! {
            biased;
            error = self.node.metadata.failed() => Failure::from(error),
            name = self.tasks.lost() => match self.node.metadata.watch().has_changed() {
                Ok(_) => Failure::Task(name),
                // What hangs on the metadata ends with it, and may be quicker than what that has to say.
                Err(_) => Failure::from(self.node.metadata.failed().await),
            },
        };
        tracing::error!(error = %failure, "the broker cannot go on");
        failure
    }

    /// Stops: no new streams, functions commit their place, partitions sync and close. What was acknowledged is on
    /// the disk in any case; what is not yet is answered or left unknown.
    pub async fn shutdown(mut self) {
        // Others take over first, while this node still answers: a producer waits for a moment and no more.
        self.node.metadata.leave().await;
        self.node.ready.store(false, Ordering::Release);
        self.node.functions.stop_all().await;
        self.node.stop.send_replace(true);
        if !self.tasks.ended(STOP_WITHIN).await {
            tracing::warn!("not all tasks of the broker ended in time");
        }
        let clean = self.close_replicas().await;
        if let Err(error) = self.node.watermarks.save(&self.node.topics) {
            tracing::warn!(%error, "what is committed was not written down");
        }
        self.node.metadata.shutdown().await;
        self.endpoint.close(Close::ShuttingDown);
        self.endpoint.wait_idle().await;
        if clean && let Err(error) = self.node.data.mark_clean() {
            tracing::warn!(%error, "the clean stop could not be marked");
        }
    }
}

impl Broker {
    /// Closes all replicas; whether all of them closed cleanly.
    async fn close_replicas(&self) -> bool {
        let topics = self.node.topics.all();
        let of = |topic: &Arc<Topic>| {
            let topic = Arc::clone(topic);
            topic.replicas().into_iter().map(move |replica| (Arc::clone(&topic), replica))
        };
        let replicas: Vec<_> = topics.values().flat_map(of).collect();
        let closed = futures::stream::iter(replicas).map(|(topic, replica)| async move {
            let closed = replica.close().await;
            closed.inspect_err(|error| {
                tracing::warn!(topic = %topic.name, partition = replica.number(), %error, "not closed cleanly");
            })
        });
        let closed: Vec<_> = closed.buffer_unordered(CLOSED_AT_ONCE).collect().await;
        closed.iter().all(Result::is_ok)
    }
}

/// The threads that replicas run on.
struct DiskThreads(Option<tokio::runtime::Runtime>);

impl DiskThreads {
    fn start() -> Result<Self, StartError> {
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(DISK_THREADS)
            .max_blocking_threads(DISK_WAITERS)
            .thread_name("bus-disk")
            .enable_time()
            .build();
        threads.map(|threads| Self(Some(threads))).map_err(io("the disk's threads"))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        match &self.0 {
            Some(threads) => threads.handle().clone(),
            None => unreachable!("taken when it is dropped"),
        }
    }
}

impl Drop for DiskThreads {
    fn drop(&mut self) {
        if let Some(threads) = self.0.take() {
            // Not a wait: a runtime may not be waited for from within another.
            threads.shutdown_background();
        }
    }
}

struct Listened {
    endpoint: Endpoint,
    address: String,
    identity: Arc<Identity>,
    store: TrustStore,
}

fn listen(
    listener: Listener,
    options: &Options,
    data: &DataDir,
    traces: &mut Traces,
) -> Result<Listened, StartError> {
    let host = |address: &str| address.rsplit_once(':').map_or(address, |(host, _)| host).to_owned();
    let mut hosts = vec![options.listen.ip().to_string()];
    hosts.extend(options.advertise.as_deref().map(host));
    let store = options.trust.clone().map_or_else(TrustStore::user, TrustStore::at);
    let bound = listener.local_addr()?;
    let address = options.advertise.clone().unwrap_or_else(|| bound.to_string());
    let (node, tls) = ((options.node_id, address.as_str()), data.tls());
    let identity = Arc::new(authority::identity(&store, &tls, node, &hosts, &options.join, traces)?);
    let endpoint = Endpoint::serve(listener, Arc::clone(&identity), &options.transport)?;
    Ok(Listened { endpoint, address, identity, store })
}

/// Where replicas run, and where they leave what metadata must hear.
struct Disk {
    handle: tokio::runtime::Handle,
    reports: mpsc::Sender<bus_replica::Report>,
}

fn build(
    (options, address): (Options, String),
    data: DataDir,
    clock: Arc<dyn Clock>,
    (metadata, peers): (Metadata, Peers),
    disk: Disk,
) -> Result<Node, StartError> {
    let cached = bus_function::Options { cache: Some(data.compiled()), ..options.functions.clone() };
    let host = FunctionHost::new(cached, Arc::clone(&clock))?;
    let blobs = Blobs::new(data.blobs());
    let runtime = bus_replica::Runtime {
        disk: disk.handle,
        budget: Arc::new(Semaphore::new(options.produce_memory_bytes)),
        replicating: Arc::new(Semaphore::new(options.replication_memory_bytes)),
        clock: Arc::clone(&clock),
        reports: disk.reports,
        lag: Duration::from_millis(options.replica_lag_time_max_ms),
    };
    Ok(Node {
        id: options.node_id,
        address,
        functions: Functions::new(host, blobs.clone()),
        groups: Groups::default(),
        blobs,
        modules: Modules::default(),
        metadata,
        metrics: Metrics::new(),
        peers,
        producer_ids: ProducerIds::default(),
        watermarks: Watermarks::load(data.watermarks()),
        reopened: Reopened::default(),
        catch_up: Throttle::default(),
        awaited: Awaited::default(),
        read_ahead: Arc::new(Semaphore::new(limits::PUSHES_READ_AHEAD)),
        cold_reads: Arc::new(Semaphore::new(DISK_READERS)),
        broker_epoch: AtomicU64::new(0),
        topics: crate::topics::Topics::default(),
        runtime,
        logs: bus_log::Env::new(
            Arc::new(DiskStorage::new(options.log.direct_io)),
            Arc::clone(&clock),
            options.log.clone(),
        ),
        clock,
        data,
        reconciled: watch::Sender::new(0),
        nudge: Notify::new(),
        uploads: Semaphore::new(limits::UPLOADS),
        stop: watch::Sender::new(false),
        ready: AtomicBool::new(false),
        options,
    })
}

/// Makes this node a broker of its cluster, which it forms, joins, or comes back to, with a new epoch.
async fn enter(node: &Node) -> Result<(), StartError> {
    let (join, keeps) = (&node.options.join, node.data.keeps()?);
    let registration = node.registration(node.data.was_clean());
    let epoch = Box::pin(node.metadata.enter(&node.address, join, keeps, registration)).await?;
    node.broker_epoch.store(epoch, Ordering::Release);
    if let Some(cluster_id) = node.metadata.cluster_id() {
        node.data.note_cluster(&cluster_id)?;
    }
    Ok(())
}

/// Says that this node is up, once its replicas run: until then it is fenced, and nobody waits for it.
async fn say_ready(node: &Node) -> Result<(), StartError> {
    // Nobody stops it before it has started.
    node.await_metadata(node.metadata.image().index()).await.ok();
    node.metadata.ready().await?;
    wait_until_served(node).await;
    Ok(())
}

/// Removes the modules that no function is made of any more: leftovers of deleted functions and refused deployments.
fn sweep_blobs(node: &Node) {
    let kept: BTreeSet<String> = node.metadata.image().modules().iter().map(ToString::to_string).collect();
    if let Err(error) = node.blobs.sweep(|name| kept.contains(name)) {
        tracing::warn!(%error, "modules that are not in use were not removed");
    }
}

/// Waits until the reconciler has seen an image in which nothing is left to elect.
async fn wait_until_served(node: &Node) {
    let mut reconciled = node.reconciled.subscribe();
    loop {
        let image = node.metadata.image();
        if controller::decide(&image).is_none() {
            // A gone sender means a broker that stops: nothing to wait for.
            drop(reconciled.wait_for(|running| *running >= image.index()).await);
            return;
        }
        if reconciled.changed().await.is_err() {
            return;
        }
    }
}

/// Retention, on all partitions, from time to time.
async fn maintain(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(node.options.retention_check_seconds));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stopping = node.stopping();
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            _ = ticks.tick() => node.topics.all().values().flat_map(|topic| topic.replicas()).for_each(|replica| replica.maintain()),
            () = &mut stopping => return,
        }
    }
}

/// Lets time pass for replicas that wait for others, and writes down now and then what is committed.
async fn tick(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(node.runtime.lag / 4);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let stopping = node.stopping();
    tokio::pin!(stopping);
    let mut count = 0u32;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = &mut stopping => return,
        }
        node.topics.all().values().flat_map(|topic| topic.replicas()).for_each(|replica| replica.tick());
        count = count.wrapping_add(1);
        if count.is_multiple_of(WATERMARKS_EVERY) {
            let saving = Arc::clone(&node);
            if let Err(error) = node.blocking(move || saving.watermarks.save(&saving.topics)).await {
                tracing::warn!(%error, "what is committed was not written down");
            }
        }
    }
}

#[cfg(test)]
mod tests;
