//! The handle that the broker holds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bus_protocol::NodeId;
use bytes::Bytes;
use openraft::error::{Fatal, InitializeError, RaftError};
use openraft::{BasicNode, Raft, ServerState, SnapshotPolicy};
use tokio::sync::{RwLock, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};

use crate::control::control;
use crate::liveness::Liveness;
use crate::messages::Identity;
use crate::network::{Network, Peers};
use crate::node::{Core, Session};
use crate::session::beat;
use crate::store::{self, Store, TypeConfig};
use crate::{
    Applied, Command, Error, Members, MetadataImage, Options, PeerClient, ProposeError, Quorum, Rejected,
    limits,
};

/// How long Raft may take to say why it has stopped.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// One node's metadata. A clone is another handle to the same.
#[derive(Clone, Debug)]
pub struct Metadata {
    inner: Arc<Inner>,
}

/// How far this node's Raft log has come, in log indices, for operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Raised at each election.
    pub term: u64,
    /// The last entry that this node has.
    pub last: Option<u64>,
    /// The last entry that it has applied.
    pub applied: Option<u64>,
    /// The last entry that its snapshot holds.
    pub snapshot: Option<u64>,
    /// The last entry that its log does not hold any more.
    pub purged: Option<u64>,
}

struct Inner {
    core: Arc<Core>,
    dir: PathBuf,
    /// `None` once it is shut down: the directory's lock goes with it.
    open: Mutex<Option<Open>>,
}

struct Open {
    store: Store,
    liveness: store::Liveness,
    running: JoinHandle<()>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metadata")
            .field("identity", &self.core.identity)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Metadata {
    /// Starts node `node`, reachable by the others at `address`, on the directory `dir`, which is made where it is
    /// missing.
    ///
    /// A new node belongs to no cluster until [`Self::enter`]. One that was there before goes on: when it is the only
    /// voter it leads, and has applied all of its log, when this returns. Must be called within a tokio runtime.
    pub async fn start(
        options: Options,
        node: NodeId,
        address: &str,
        dir: &Path,
        peers: Arc<dyn PeerClient>,
    ) -> Result<Self, Error> {
        options.validate()?;
        let (store, liveness, cluster_id) = Store::open(dir, node, options.cache_bytes).await?;
        let identity = Arc::new(Identity { node, cluster_id: OnceLock::new() });
        if let Some(cluster_id) = cluster_id {
            identity.cluster_id.get_or_init(|| cluster_id.into());
        }
        let (log, machine, image) = store.raft_storage().await.map_err(|why| storage(dir, why))?;
        let peers = Peers {
            identity: Arc::clone(&identity),
            client: peers,
            image: image.clone(),
            found: Arc::default(),
        };
        let config = Arc::new(raft_config(&options)?);
        let network = Network(peers.clone());
        let raft = Raft::new(node, config, network, log, machine).await.map_err(|why| storage(dir, why))?;
        let joined = raft.is_initialized().await.map_err(stopped)?;
        let (sender, leader) = watch::channel(None);
        let (session_timeout, heartbeat) = (options.session_timeout(), options.broker_heartbeat());
        let core = Arc::new(Core {
            identity,
            address: address.to_owned(),
            raft: raft.clone(),
            peers,
            image,
            leader,
            permits: Semaphore::new(options.proposals_in_flight),
            liveness: Mutex::new(Liveness::new(session_timeout, heartbeat, Instant::now())),
            answered: Mutex::default(),
            session: watch::Sender::new(Session::default()),
            left: watch::Sender::default(),
            writing: RwLock::default(),
            joined: AtomicBool::new(joined),
            first: OnceLock::new(),
            membership: tokio::sync::Mutex::new(()),
            options,
        });
        let running = tokio::spawn(run(Arc::clone(&core), sender));
        let open = Mutex::new(Some(Open { store, liveness, running }));
        let metadata = Self { inner: Arc::new(Inner { core, dir: dir.to_owned(), open }) };
        metadata.lead_alone().await?;
        Ok(metadata)
    }

    /// Makes this node the first and only voter of cluster `cluster_id`, and leads it when it returns. Where that
    /// has happened before it only checks that it is the same cluster.
    pub(crate) async fn bootstrap(&self, cluster_id: &str) -> Result<(), Error> {
        self.check_cluster_id(cluster_id)?;
        let core = self.core();
        let initialized = self.raft().is_initialized().await.map_err(stopped)?;
        if !initialized {
            let members = BTreeMap::from([(self.node(), BasicNode::new(&core.address))]);
            match self.raft().initialize(members).await {
                // Somebody was quicker: another call.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(RaftError::APIError(error)) => return Err(Error::Group(error.to_string())),
                Err(RaftError::Fatal(error)) => return Err(stopped(error)),
            }
        }
        // After the group: a node that stops in between finds itself a voter of a cluster to be named, and names it.
        self.note_cluster(cluster_id).await?;
        core.joined.store(true, Ordering::Release);
        self.lead_alone().await?;
        if self.image().cluster_id().is_some_and(|found| found == cluster_id) || !self.is_leader() {
            return Ok(());
        }
        match self.propose(Command::NameCluster { cluster_id: cluster_id.to_owned() }).await {
            Ok(_) => Ok(()),
            Err(ProposeError::Rejected(Rejected::OtherCluster { found, wanted })) => {
                Err(Error::OtherCluster { dir: self.inner.dir.clone(), found, wanted })
            }
            Err(ProposeError::Rejected(rejected)) => Err(rejected.into()),
            Err(ProposeError::NotLeader { node, leader }) => Err(Error::NotLeader { node, leader }),
            Err(ProposeError::TimedOut(ms)) => Err(Error::TimedOut(ms)),
            Err(error) => Err(Error::Group(error.to_string())),
        }
    }

    /// Has the group agree on a command, and applies it: on any node, which forwards it to the leader, and waits for
    /// one for at most [`Options::propose_timeout_ms`]. When this returns, the command is on the disks of a majority,
    /// and [`Self::image`] and [`Self::watch`] show what it did, also where it was rejected. After
    /// [`ProposeError::TimedOut`], which also answers what was under way when this node's metadata stopped, it is not
    /// known whether it was or will be applied; after any other error it was not.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        self.core().propose(command).await
    }

    /// Says that this node's broker serves: it is unfenced when this returns, and says so again by itself whenever it
    /// was fenced for its silence. After [`Self::enter`].
    pub async fn ready(&self) -> Result<(), ProposeError> {
        self.core().ready().await
    }

    /// Hands over what this node leads, before it stops: its broker is fenced, and stays so; when this returns, others
    /// lead its partitions, as far as they can, and the metadata group. Takes 2 s at most, and no time where all the
    /// others are stopping too. The node goes on serving until [`Self::shutdown`].
    pub async fn leave(&self) {
        self.core().leave().await;
    }

    /// What the group has agreed on, as far as this node has heard: a consistent view, kept as long as wanted.
    pub fn image(&self) -> Arc<MetadataImage> {
        self.core().image()
    }

    /// Every change of [`Self::image`]. A slow reader misses images between, never the last one.
    pub fn watch(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.core().image.clone()
    }

    /// Resolves if this node's metadata has stopped for good: with [`Error::Storage`] where its disk is full or fails,
    /// else with [`Error::Stopped`]. The node knows of no change any more then, and must not go on. Never after
    /// [`Self::shutdown`].
    pub async fn failed(&self) -> Error {
        let mut leader = self.core().leader.clone();
        let ended = async { while leader.changed().await.is_ok() {} };
        let error = tokio::select! {
            biased;
            error = self.raft_failed() => error,
            // What Raft has met may have ended it, and Raft says so a little later.
            () = ended => {
                let said = timeout(LAST_WORDS, self.raft_failed()).await;
                said.unwrap_or_else(|_| stopped("a task of it has ended"))
            }
        };
        let is_shut_down = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        if is_shut_down { std::future::pending().await } else { error }
    }

    /// Resolves when Raft has stopped, with why.
    async fn raft_failed(&self) -> Error {
        let mut metrics = self.raft().metrics();
        let Ok(last) = metrics.wait_for(|metrics| metrics.running_state.is_err()).await else {
            // Whoever panics says nothing, and is seen to be gone.
            return stopped("Raft's task has panicked");
        };
        match &last.running_state {
            Err(Fatal::StorageError(why)) => storage(&self.inner.dir, why),
            Err(fatal) => stopped(fatal),
            Ok(()) => unreachable!("it was waited for"),
        }
    }

    /// Who leads the group, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.core().current_leader()
    }

    /// Whether the group has a majority, as far as this node has heard. Asks nobody; before [`Self::enter`] nothing is
    /// known.
    pub fn quorum(&self) -> Quorum {
        self.core().quorum()
    }

    /// Whether this node leads the group, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.node())
    }

    /// This node's id.
    pub fn node(&self) -> NodeId {
        self.core().node()
    }

    /// The cluster that this node belongs to, once it does.
    pub fn cluster_id(&self) -> Option<Arc<str>> {
        self.core().identity.cluster_id.get().cloned()
    }

    /// Who takes part in the group, as far as this node knows.
    pub fn members(&self) -> Members {
        self.core().members()
    }

    /// How far this node's Raft log has come.
    pub fn progress(&self) -> Progress {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow();
        Progress {
            term: metrics.current_term,
            last: metrics.last_log_index,
            applied: metrics.last_applied.map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
        }
    }

    /// Answers a message that the [`PeerClient`] of node `from`, by its certificate, has carried here; one that says
    /// another sender is refused. Any bytes get an answer.
    pub async fn receive(&self, from: NodeId, request: Bytes) -> Bytes {
        self.core().receive(from, request).await
    }

    /// Makes a snapshot now, rather than after [`Options::snapshot_entries`]; it is there some time later.
    pub async fn snapshot(&self) -> Result<(), Error> {
        self.raft().trigger().snapshot().await.map_err(stopped)
    }

    /// Stops, flushes, and lets go of the directory: it can be started again when this returns.
    pub async fn shutdown(&self) {
        let open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(error) = self.raft().shutdown().await {
            tracing::warn!(%error, "the metadata's task ended badly");
        }
        if let Some(mut open) = open {
            open.running.abort();
            // Waits until they have let go of what they held; that they were aborted is no news.
            (&mut open.running).await.ok();
            let Open { store, liveness, .. } = &mut open;
            if let Err(error) = store.flush().await {
                tracing::error!(%error, dir = %self.inner.dir.display(), "the metadata cannot be flushed");
            }
            let liveness = std::mem::replace(liveness, store::Liveness::over());
            drop(open);
            liveness.wait().await;
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.inner.core
    }

    fn raft(&self) -> &Raft<TypeConfig> {
        &self.inner.core.raft
    }

    /// Refuses another cluster than the one that this node belongs to, and an id that cannot be one.
    pub(crate) fn check_cluster_id(&self, cluster_id: &str) -> Result<(), Error> {
        match self.cluster_id() {
            Some(found) if *found == *cluster_id => Ok(()),
            Some(found) => Err(Error::OtherCluster {
                dir: self.inner.dir.clone(),
                found: found.to_string(),
                wanted: cluster_id.to_owned(),
            }),
            None if cluster_id.is_empty() || cluster_id.len() > limits::CLUSTER_ID_BYTES => {
                let why = format!("it is not 1 to {} bytes long", limits::CLUSTER_ID_BYTES);
                Err(Rejected::Invalid { what: "cluster id".into(), why }.into())
            }
            None => Ok(()),
        }
    }

    /// Notes which cluster this node belongs to, on the disk too; refuses another than before.
    pub(crate) async fn note_cluster(&self, cluster_id: &str) -> Result<(), Error> {
        self.check_cluster_id(cluster_id)?;
        if self.cluster_id().is_some() {
            return Ok(());
        }
        let store = {
            let open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
            let open = open.as_ref().ok_or_else(|| Error::Stopped("it was shut down".into()))?;
            open.store.clone()
        };
        store.set_cluster_id(self.node(), cluster_id).await.map_err(|why| storage(&self.inner.dir, why))?;
        self.core().identity.cluster_id.get_or_init(|| cluster_id.into());
        self.check_cluster_id(cluster_id)
    }

    /// Where this node is the only voter nobody else can be waited for: it stands for election at once, and waits
    /// until it has won and has applied its log.
    async fn lead_alone(&self) -> Result<(), Error> {
        let node = self.node();
        let (alone, leads) = self
            .raft()
            .with_raft_state(move |state| {
                let mut voters = state.membership_state.effective().voter_ids();
                let alone = voters.next() == Some(node) && voters.next().is_none();
                (alone, state.server_state == ServerState::Leader)
            })
            .await
            .map_err(stopped)?;
        if !alone {
            return Ok(());
        }
        if !leads {
            self.raft().trigger().elect().await.map_err(stopped)?;
        }
        let limit = self.core().options.propose_timeout();
        let wait = self.raft().wait(Some(limit));
        let ready = wait.metrics(
            |metrics| {
                metrics.current_leader == Some(node)
                    && metrics.last_applied.map(|id| id.index) >= metrics.last_log_index
            },
            "the only voter leads",
        );
        ready.await.map_err(|error| Error::Stopped(error.to_string()))?;
        Ok(())
    }
}

/// Runs what a node does by itself. None of it ends before the node is shut down: if one does, all do, and
/// [`Core::leader`] is closed.
async fn run(core: Arc<Core>, leader: watch::Sender<Option<NodeId>>) {
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_leader(core.raft.clone(), leader));
    tasks.spawn(control(Arc::clone(&core)));
    tasks.spawn(beat(core));
    tasks.join_next().await;
    tasks.shutdown().await;
}

/// Keeps [`Core::leader`] up to date.
async fn follow_leader(raft: Raft<TypeConfig>, leader: watch::Sender<Option<NodeId>>) {
    let mut metrics = raft.server_metrics();
    loop {
        let now = metrics.borrow_and_update().current_leader;
        leader.send_if_modified(|before| std::mem::replace(before, now) != now);
        if metrics.changed().await.is_err() {
            leader.send_replace(None);
            return;
        }
    }
}

fn raft_config(options: &Options) -> Result<openraft::Config, Error> {
    let config = openraft::Config {
        cluster_name: "bus".to_owned(),
        heartbeat_interval: options.heartbeat_ms,
        election_timeout_min: options.election_timeout_min_ms,
        election_timeout_max: options.election_timeout_max_ms,
        install_snapshot_timeout: options.snapshot_piece_timeout_ms,
        snapshot_max_chunk_size: limits::SNAPSHOT_PIECE_BYTES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_entries),
        max_in_snapshot_log_to_keep: options.kept_entries,
        replication_lag_threshold: options.snapshot_entries.saturating_add(options.kept_entries),
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| Error::Options(error.to_string()))
}

fn storage(dir: &Path, why: impl std::fmt::Display) -> Error {
    Error::Storage { dir: dir.to_owned(), why: why.to_string() }
}

fn stopped(why: impl std::fmt::Display) -> Error {
    Error::Stopped(why.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::PeerError;

    /// Nobody else is there.
    struct Alone;

    #[async_trait::async_trait]
    impl PeerClient for Alone {
        async fn call(&self, node: NodeId, _: &str, _: Bytes) -> Result<Bytes, PeerError> {
            Err(PeerError::Unreachable { node, why: "nobody is there".into() })
        }

        async fn call_address(&self, address: &str, _: Bytes) -> Result<Bytes, PeerError> {
            Err(PeerError::NoAnswer { address: address.into(), why: "nobody is there".into() })
        }
    }

    pub(crate) async fn alone() -> (tempfile::TempDir, Metadata) {
        let dir = tempfile::tempdir().unwrap();
        let started = Metadata::start(Options::default(), 1, "node-1:1", dir.path(), Arc::new(Alone)).await;
        let metadata = started.unwrap();
        metadata.bootstrap("cluster-a").await.unwrap();
        (dir, metadata)
    }

    #[tokio::test]
    async fn that_a_task_panics_is_noticed() {
        let (_dir, metadata) = alone().await;
        let panicked = metadata.raft().with_raft_state(|_| panic!("as a bug in Raft does it")).await;
        assert!(panicked.is_err());
        let error = metadata.failed().await;
        assert!(matches!(error, Error::Stopped(_)), "{error}");
        metadata.shutdown().await;
    }

    #[tokio::test]
    async fn what_raft_has_met_is_said_rather_than_what_ended_by_it() {
        let (_dir, metadata) = alone().await;
        let mut failed = std::pin::pin!(metadata.failed());
        metadata.inner.open.lock().unwrap().as_ref().unwrap().running.abort();
        while metadata.core().leader.has_changed().is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(timeout(Duration::ZERO, &mut failed).await.is_err(), "Raft may have something to say");
        metadata.raft().with_raft_state(|_| panic!("as a bug in Raft does it")).await.unwrap_err();
        let error = failed.await.to_string();
        assert!(error.contains("panicked"), "{error}");
        metadata.shutdown().await;
    }

    #[tokio::test]
    async fn that_a_task_ends_is_noticed_and_a_shutdown_is_no_failure() {
        let (_dir, metadata) = alone().await;
        let failed = tokio::spawn({
            let metadata = metadata.clone();
            async move { metadata.failed().await }
        });
        metadata.inner.open.lock().unwrap().as_ref().unwrap().running.abort();
        let error = failed.await.unwrap();
        assert!(matches!(error, Error::Stopped(_)), "{error}");
        metadata.shutdown().await;
        let later = timeout(Duration::ZERO, metadata.failed());
        assert!(later.await.is_err(), "it was shut down");
    }
}
