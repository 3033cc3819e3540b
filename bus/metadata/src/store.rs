//! Raft's log, vote and snapshots, and whose they are, in sled.
//!
//! ```text
//!   tree     key               value (a format byte, then postcard)
//!   log      index, u64 BE     Entry
//!   state    vote              Vote                 flushed before it is answered
//!            committed         LogId                flushed with what comes next: it only saves work at a start
//!            purged            LogId                flushed before the entries go
//!            snapshot          SnapshotMeta, MetadataImage
//!            identity          node id, cluster id
//! ```
//!
//! sled's own timer is off: nothing is on the disk until a flush, and a flush is what an answer waits for.

mod log;
mod machine;
#[cfg(test)]
mod suite;

use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bus_protocol::NodeId;
use openraft::{AnyError, LogId, StorageError, StorageIOError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

pub(crate) use log::LogStore;
pub(crate) use machine::StateMachine;

use crate::{Applied, Command, Error, MetadataImage, Rejected};

openraft::declare_raft_types!(
    /// What Raft is about here.
    pub(crate) TypeConfig:
        D = Command,
        R = Result<Applied, Rejected>,
        NodeId = NodeId,
        Node = openraft::BasicNode,
        SnapshotData = Cursor<Vec<u8>>,
);

/// The format of all values: their first byte.
const FORMAT: u8 = 1;
/// How long a directory may stay locked by what was just shut down.
const LET_GO: Duration = Duration::from_secs(10);
/// How long sled's own threads may hold the lock when the last handle is gone; and how often it is tried again.
const LOCKED: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(20);

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT: &str = "snapshot";
const IDENTITY: &str = "identity";

/// What can go wrong below Raft.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(transparent)]
    Sled(#[from] sled::Error),
    #[error("a stored value is not well-formed: {0}")]
    Codec(#[from] postcard::Error),
    #[error("a stored value has format {0}, and this version knows {FORMAT}: use a newer version")]
    Format(u8),
    #[error("a stored value is empty")]
    Empty,
    #[error("the write was given up: the node is stopping")]
    Stopping,
}

/// The directory's contents. A clone is another handle.
#[derive(Clone)]
pub(crate) struct Store {
    db: sled::Db,
    log: sled::Tree,
    state: sled::Tree,
    /// The last log id of the snapshot that is stored, so that no older one takes its place.
    newest: Arc<Mutex<Option<LogId<NodeId>>>>,
    /// Closes when the last handle is gone, and the directory's lock with it. The last field: dropped last.
    _alive: mpsc::Sender<()>,
}

/// Tells when all handles to a store are gone.
pub(crate) struct Liveness(mpsc::Receiver<()>);

impl Liveness {
    /// Of a store that is gone.
    pub(crate) fn over() -> Self {
        Self(mpsc::channel(1).1)
    }

    /// Returns when no handle is left; or after a while, when a reader holds on to one.
    pub(crate) async fn wait(mut self) {
        if tokio::time::timeout(LET_GO, self.0.recv()).await.is_err() {
            tracing::warn!("the metadata's directory is still held after its shutdown");
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    node: NodeId,
    cluster_id: Option<String>,
}

impl Store {
    /// Opens the directory of `node`, or makes it, and answers with the cluster that it belongs to. One that another
    /// process has is refused after a second.
    pub(crate) async fn open(
        dir: &Path,
        node: NodeId,
        cache_bytes: u64,
    ) -> Result<(Self, Liveness, Option<String>), Error> {
        let began = Instant::now();
        loop {
            let path = dir.to_owned();
            let opened = blocking(move || Ok(Self::open_blocking(&path, node, cache_bytes))).await;
            match opened.map_err(|error| Error::Stopped(error.to_string()))? {
                Err(Error::InUse { .. }) if began.elapsed() < LOCKED => tokio::time::sleep(AGAIN).await,
                opened => return opened,
            }
        }
    }

    fn open_blocking(
        dir: &Path,
        node: NodeId,
        cache_bytes: u64,
    ) -> Result<(Self, Liveness, Option<String>), Error> {
        let failed = |error: StoreError| match error {
            StoreError::Sled(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") =>
            {
                Error::InUse { dir: dir.to_owned() }
            }
            StoreError::Format(found) => Error::Format { dir: dir.to_owned(), found, known: FORMAT },
            error => Error::Storage { dir: dir.to_owned(), why: error.to_string() },
        };
        let open = || {
            let db = sled::Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None).open()?;
            let (alive, dead) = mpsc::channel(1);
            let (log, state) = (db.open_tree("log")?, db.open_tree("state")?);
            let store = Self { db, log, state, newest: Arc::default(), _alive: alive };
            let found: Option<StoredIdentity> = store.get(IDENTITY)?;
            if found.is_none() {
                store.put(IDENTITY, &StoredIdentity { node, cluster_id: None })?;
                store.db.flush()?;
            }
            Ok((store, Liveness(dead), found))
        };
        let (store, liveness, found) = open().map_err(failed)?;
        match found {
            Some(found) if found.node != node => {
                Err(Error::OtherNode { dir: dir.to_owned(), found: found.node, wanted: node })
            }
            found => Ok((store, liveness, found.and_then(|found| found.cluster_id))),
        }
    }

    /// Notes the cluster that the directory belongs to; on the disk when it returns.
    pub(crate) async fn set_cluster_id(&self, node: NodeId, cluster_id: &str) -> Result<(), StoreError> {
        let (store, cluster_id) = (self.clone(), Some(cluster_id.to_owned()));
        blocking(move || {
            store.put(IDENTITY, &StoredIdentity { node, cluster_id })?;
            store.db.flush()?;
            Ok(())
        })
        .await
    }

    /// What Raft runs on, and where the state machine publishes its image.
    pub(crate) async fn raft_storage(
        &self,
    ) -> Result<(LogStore, StateMachine, watch::Receiver<Arc<MetadataImage>>), StoreError> {
        let store = self.clone();
        let machine = blocking(move || StateMachine::load(store)).await?;
        let image = machine.subscribe();
        Ok((LogStore::new(self.clone()), machine, image))
    }

    /// Returns when all that was written before is on the disk.
    pub(crate) async fn flush(&self) -> Result<(), StoreError> {
        let db = self.db.clone();
        blocking(move || Ok(db.flush().map(drop)?)).await
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        self.state.get(key)?.map(|value| decode(&value)).transpose()
    }

    fn put<T: Serialize>(&self, key: &str, value: &T) -> Result<(), StoreError> {
        self.state.insert(key, encode(value)?)?;
        Ok(())
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    Ok(postcard::to_extend(value, vec![FORMAT])?)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    match bytes.split_first() {
        Some((&FORMAT, value)) => Ok(postcard::from_bytes(value)?),
        Some((format, _)) => Err(StoreError::Format(*format)),
        None => Err(StoreError::Empty),
    }
}

/// Runs what waits for the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(StoreError::Stopping))
}

/// What Raft calls the error of a store that failed while it did `what`.
fn failed(what: fn(AnyError) -> StorageIOError<NodeId>) -> impl Fn(StoreError) -> StorageError<NodeId> {
    move |error| what(AnyError::new(&error)).into()
}
