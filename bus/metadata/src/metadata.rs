//! The handle that the broker holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bus_protocol::NodeId;
use bytes::Bytes;
use openraft::error::{ClientWriteError, InitializeError, RaftError};
use openraft::{BasicNode, ChangeMembers, Raft, ServerState, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::network::{Identity, Network, Received};
use crate::store::{Liveness, Store, TypeConfig};
use crate::{
    Applied, Command, Error, MetadataImage, Options, PeerClient, ProposeError, Rejected, controller, limits,
};

/// One node's metadata. A clone is another handle to the same.
#[derive(Clone, Debug)]
pub struct Metadata {
    inner: Arc<Inner>,
}

/// Who takes part in the Raft group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Those who vote, and where they were when they joined.
    pub voters: BTreeMap<NodeId, String>,
    /// Those who only learn.
    pub learners: BTreeMap<NodeId, String>,
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
    identity: Arc<Identity>,
    address: String,
    dir: PathBuf,
    proposer: Proposer,
    image: watch::Receiver<Arc<MetadataImage>>,
    /// `None` once it is shut down: the directory's lock goes with it.
    open: Mutex<Option<Open>>,
}

struct Open {
    store: Store,
    liveness: Liveness,
    tasks: Vec<JoinHandle<()>>,
    leader: watch::Receiver<Option<NodeId>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metadata")
            .field("identity", &self.identity)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Metadata {
    /// Starts node `node`, reachable by the others at `address`, on the directory `dir`, which is made where it is
    /// missing.
    ///
    /// A new node belongs to no cluster: it waits for [`Self::bootstrap`], or for a leader that takes it in with
    /// [`Self::add_learner`]. One that was there before goes on: when it is the only voter it leads, and has
    /// applied all of its log, when this returns. Must be called within a tokio runtime.
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
        let network = Network { identity: identity.clone(), client: peers, image: image.clone() };
        let config = Arc::new(raft_config(&options)?);
        let raft = Raft::new(node, config, network, log, machine).await.map_err(|why| storage(dir, why))?;
        let proposer = Proposer {
            node,
            raft: raft.clone(),
            permits: Arc::new(Semaphore::new(options.proposals_in_flight)),
            timeout: options.propose_timeout(),
        };
        let (sender, leader) = watch::channel(None);
        let tasks = vec![
            tokio::spawn(follow_leader(raft, sender)),
            tokio::spawn(control(proposer.clone(), image.clone(), leader.clone())),
        ];
        let open = Mutex::new(Some(Open { store, liveness, tasks, leader }));
        let (address, dir) = (address.to_owned(), dir.to_owned());
        let metadata = Self { inner: Arc::new(Inner { identity, address, dir, proposer, image, open }) };
        metadata.lead_alone().await?;
        Ok(metadata)
    }

    /// Makes this node the first and only voter of cluster `cluster_id`, and leads it when it returns. Where that
    /// has happened before it only checks that it is the same cluster.
    pub async fn bootstrap(&self, cluster_id: &str) -> Result<(), Error> {
        self.join_cluster(cluster_id).await?;
        let initialized = self.raft().is_initialized().await.map_err(stopped)?;
        if !initialized {
            let members = BTreeMap::from([(self.inner.identity.node, BasicNode::new(&self.inner.address))]);
            match self.raft().initialize(members).await {
                // Somebody was quicker, another call or a leader that took this node in.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(RaftError::APIError(error)) => return Err(Error::Group(error.to_string())),
                Err(RaftError::Fatal(error)) => return Err(stopped(error)),
            }
        }
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

    /// Has the group agree on a command, and applies it. When this returns, the command is on the disks of a
    /// majority, and [`Self::image`] and [`Self::watch`] show what it did on this node. Only the leader can; the
    /// caller forwards. After [`ProposeError::TimedOut`] it is not known whether it was or will be applied.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        self.inner.proposer.propose(command).await
    }

    /// What the group has agreed on, as far as this node has heard: a consistent view, kept as long as wanted.
    pub fn image(&self) -> Arc<MetadataImage> {
        self.inner.image.borrow().clone()
    }

    /// Every change of [`Self::image`]. A slow reader misses images between, never the last one.
    pub fn watch(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.inner.image.clone()
    }

    /// Who leads the group, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.raft().server_metrics().borrow().current_leader
    }

    /// Whether this node leads the group, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.leader() == Some(self.node())
    }

    /// Every change of [`Self::leader`].
    pub fn watch_leader(&self) -> watch::Receiver<Option<NodeId>> {
        let open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map_or_else(|| watch::channel(None).1, |open| open.leader.clone())
    }

    /// This node's id.
    pub fn node(&self) -> NodeId {
        self.inner.identity.node
    }

    /// The cluster that this node belongs to, once it does.
    pub fn cluster_id(&self) -> Option<Arc<str>> {
        self.inner.identity.cluster_id.get().cloned()
    }

    /// Who takes part in the group, as far as this node knows.
    pub fn members(&self) -> Members {
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<_> = membership.voter_ids().collect();
        let mut members = Members::default();
        for (node, at) in membership.nodes() {
            let side = if voters.contains(node) { &mut members.voters } else { &mut members.learners };
            side.insert(*node, at.addr.clone());
        }
        members
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

    /// Takes a node into the group that learns and does not vote, or changes its address. Only the leader can. It
    /// returns when the group knows the node, which then catches up.
    pub async fn add_learner(&self, node: NodeId, address: &str) -> Result<(), Error> {
        self.change(ChangeMembers::SetNodes(BTreeMap::from([(node, BasicNode::new(address))]))).await
    }

    /// Makes these nodes, which all take part already, the voters; who voted before learns from now on. Only the
    /// leader can; if it is not among them it steps down. It returns when the change holds.
    pub async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), Error> {
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Takes nodes that do not vote out of the group. Only the leader can.
    pub async fn remove_learners(&self, nodes: BTreeSet<NodeId>) -> Result<(), Error> {
        self.change(ChangeMembers::RemoveNodes(nodes)).await
    }

    /// Answers a message that another node's [`PeerClient`] has carried here. Any bytes get an answer.
    pub async fn receive(&self, request: Bytes) -> Bytes {
        let received = match Received::read(&self.inner.identity, &request) {
            Ok(received) => received,
            Err(refusal) => return refusal,
        };
        if let Some(cluster_id) = received.cluster_id()
            && self.inner.identity.cluster_id.get().is_none()
            && let Err(error) = self.join_cluster(cluster_id).await
        {
            tracing::error!(%error, cluster_id, "a new node cannot note which cluster it belongs to");
        }
        received.answer(self.raft()).await
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
            for task in std::mem::take(&mut open.tasks) {
                task.abort();
                // Waits until the task has let go of what it held; that it was aborted is no news.
                task.await.ok();
            }
            let Open { store, liveness, .. } = &mut open;
            if let Err(error) = store.flush().await {
                tracing::error!(%error, dir = %self.inner.dir.display(), "the metadata cannot be flushed");
            }
            let liveness = std::mem::replace(liveness, Liveness::over());
            drop(open);
            liveness.wait().await;
        }
    }

    fn raft(&self) -> &Raft<TypeConfig> {
        &self.inner.proposer.raft
    }

    /// Notes which cluster this node belongs to, on the disk too; refuses another than before.
    async fn join_cluster(&self, cluster_id: &str) -> Result<(), Error> {
        let other = |found: &str| Error::OtherCluster {
            dir: self.inner.dir.clone(),
            found: found.to_owned(),
            wanted: cluster_id.to_owned(),
        };
        if let Some(found) = self.inner.identity.cluster_id.get() {
            return if **found == *cluster_id { Ok(()) } else { Err(other(found)) };
        }
        if cluster_id.is_empty() || cluster_id.len() > limits::CLUSTER_ID_BYTES {
            let why = format!("it is not 1 to {} bytes long", limits::CLUSTER_ID_BYTES);
            return Err(Rejected::Invalid { what: "cluster id".into(), why }.into());
        }
        let store = {
            let open = self.inner.open.lock().unwrap_or_else(PoisonError::into_inner);
            let open = open.as_ref().ok_or_else(|| Error::Stopped("it was shut down".into()))?;
            open.store.clone()
        };
        store.set_cluster_id(self.node(), cluster_id).await.map_err(|why| storage(&self.inner.dir, why))?;
        let found = self.inner.identity.cluster_id.get_or_init(|| cluster_id.into());
        if **found == *cluster_id { Ok(()) } else { Err(other(found)) }
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
        let limit = self.inner.proposer.timeout;
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

    async fn change(&self, change: ChangeMembers<NodeId, BasicNode>) -> Result<(), Error> {
        let limit = self.inner.proposer.timeout;
        match timeout(limit, self.raft().change_membership(change, true)).await {
            Err(_) => Err(Error::TimedOut(millis(limit))),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(Error::NotLeader { node: self.node(), leader: forward.leader_id })
            }
            Ok(Err(RaftError::APIError(error))) => Err(Error::Group(error.to_string())),
            Ok(Err(RaftError::Fatal(error))) => Err(stopped(error)),
        }
    }
}

/// What [`Metadata::propose`] and the controller have in common.
#[derive(Clone)]
struct Proposer {
    node: NodeId,
    raft: Raft<TypeConfig>,
    permits: Arc<Semaphore>,
    timeout: Duration,
}

impl Proposer {
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let limit = limits::COMMAND_BYTES;
        match postcard::to_allocvec(&command).map(|encoded| encoded.len()) {
            Ok(size) if size > limit => return Err(ProposeError::TooLarge { size, limit }),
            Ok(_) => {}
            Err(error) => return Err(ProposeError::Stopped(error.to_string())),
        }
        let _permit = self.permits.try_acquire().map_err(|_| ProposeError::Busy)?;
        match timeout(self.timeout, self.raft.client_write(command)).await {
            Err(_) => Err(ProposeError::TimedOut(millis(self.timeout))),
            Ok(Ok(response)) => Ok(response.data?),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader { node: self.node, leader: forward.leader_id })
            }
            Ok(Err(error)) => Err(ProposeError::Stopped(error.to_string())),
        }
    }
}

/// Keeps [`Metadata::watch_leader`] up to date.
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

/// Does what the controller decides, while this node leads the group.
async fn control(
    proposer: Proposer,
    mut image: watch::Receiver<Arc<MetadataImage>>,
    mut leader: watch::Receiver<Option<NodeId>>,
) {
    let mut settled: Option<Arc<MetadataImage>> = None;
    loop {
        let leads = *leader.borrow_and_update() == Some(proposer.node);
        let now = image.borrow_and_update().clone();
        let seen = settled.as_ref().is_some_and(|then| then.same_topics(&now) && then.same_brokers(&now));
        if leads && !seen {
            match controller::decide(&now) {
                None => settled = Some(now),
                Some(command) => match proposer.propose(command).await {
                    // The image has moved, and is looked at again.
                    Ok(_) => continue,
                    Err(ProposeError::Stopped(_)) => return,
                    // Whoever leads next decides anew; so does this node, once something moves.
                    Err(error) => tracing::debug!(%error, "the controller's command was not applied"),
                },
            }
        }
        if !leads {
            settled = None;
        }
        tokio::select! {
            changed = image.changed() => if changed.is_err() { return },
            changed = leader.changed() => if changed.is_err() { return },
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

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn storage(dir: &Path, why: impl std::fmt::Display) -> Error {
    Error::Storage { dir: dir.to_owned(), why: why.to_string() }
}

fn stopped(why: impl std::fmt::Display) -> Error {
    Error::Stopped(why.to_string())
}
