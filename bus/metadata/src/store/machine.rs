//! The state machine: the image, and its snapshots.

use std::io::Cursor;
use std::sync::{Arc, PoisonError};

use bus_protocol::NodeId;
use bytes::Bytes;
use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, BasicNode, Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{SNAPSHOT, Store, StoreError, TypeConfig, blocking, decode, encode, failed};
use crate::{Applied, MetadataImage, Rejected};

type Meta = SnapshotMeta<NodeId, BasicNode>;

#[derive(Serialize, Deserialize)]
struct StoredSnapshot {
    meta: Meta,
    /// The image, encoded with a format byte of its own: what a peer is sent.
    image: Bytes,
}

/// The image in memory, rebuilt at a start from the last snapshot and the log behind it.
pub(crate) struct StateMachine {
    store: Store,
    applied: Option<LogId<NodeId>>,
    membership: StoredMembership<NodeId, BasicNode>,
    image: MetadataImage,
    publish: watch::Sender<Arc<MetadataImage>>,
}

impl StateMachine {
    pub(super) fn load(store: Store) -> Result<Self, StoreError> {
        let (publish, _) = watch::channel(Arc::default());
        let mut machine = Self {
            store,
            applied: None,
            membership: StoredMembership::default(),
            image: MetadataImage::default(),
            publish,
        };
        if let Some(snapshot) = machine.store.get::<StoredSnapshot>(SNAPSHOT)? {
            *machine.store.newest.lock().unwrap_or_else(PoisonError::into_inner) = snapshot.meta.last_log_id;
            machine.restore(&snapshot.meta, decode(&snapshot.image)?);
        }
        Ok(machine)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<MetadataImage>> {
        self.publish.subscribe()
    }

    fn restore(&mut self, meta: &Meta, image: MetadataImage) {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.image = image;
        self.publish();
    }

    fn publish(&self) {
        self.publish.send_replace(Arc::new(self.image.clone()));
    }
}

impl Store {
    /// Puts a snapshot on the disk, unless a newer one is there: one that a leader sent may overtake one that this
    /// node was making.
    fn put_snapshot(&self, snapshot: &StoredSnapshot) -> Result<(), StoreError> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshot.meta.last_log_id >= *newest {
            self.put(SNAPSHOT, snapshot)?;
            self.db.flush()?;
            *newest = snapshot.meta.last_log_id;
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<NodeId>>, StoredMembership<NodeId, BasicNode>), StorageError<NodeId>> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Result<Applied, Rejected>>, StorageError<NodeId>>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let before = self.image.index();
        let mut results = Vec::new();
        for entry in entries {
            self.applied = Some(entry.log_id);
            results.push(match entry.payload {
                EntryPayload::Blank => Ok(Applied::Done),
                EntryPayload::Normal(command) => self.image.apply(entry.log_id.index, command),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Ok(Applied::Done)
                }
            });
        }
        // Before the results, so that whoever proposed sees what came of it.
        if self.image.index() != before {
            self.publish();
        }
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            store: self.store.clone(),
            applied: self.applied,
            membership: self.membership.clone(),
            image: self.image.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError<NodeId>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<NodeId>> {
        let (store, snapshot) =
            (self.store.clone(), StoredSnapshot { meta: meta.clone(), image: snapshot.into_inner().into() });
        let install = move || {
            let image = decode(&snapshot.image)?;
            store.put_snapshot(&snapshot)?;
            Ok(image)
        };
        let signature = meta.signature();
        let image = blocking(install).await.map_err(|error| -> StorageError<NodeId> {
            StorageIOError::write_snapshot(Some(signature), AnyError::new(&error)).into()
        })?;
        self.restore(meta, image);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError<NodeId>> {
        let store = self.store.clone();
        let stored = blocking(move || store.get::<StoredSnapshot>(SNAPSHOT))
            .await
            .map_err(failed(|error| StorageIOError::read_snapshot(None, error)))?;
        Ok(stored.map(|StoredSnapshot { meta, image }| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(Vec::from(image))),
        }))
    }
}

/// Makes a snapshot of the image as it was when it was asked for, while commands go on being applied.
pub(crate) struct SnapshotBuilder {
    store: Store,
    pub(super) applied: Option<LogId<NodeId>>,
    membership: StoredMembership<NodeId, BasicNode>,
    image: MetadataImage,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError<NodeId>> {
        // Two snapshots of one log position are the same bytes, so the position is name enough.
        let snapshot_id = self.applied.map_or_else(|| "empty".to_owned(), |applied| applied.to_string());
        let meta = Meta { last_log_id: self.applied, last_membership: self.membership.clone(), snapshot_id };
        let (store, image) = (self.store.clone(), self.image.clone());
        let build = move || {
            let snapshot = StoredSnapshot { meta, image: encode(&image)?.into() };
            store.put_snapshot(&snapshot)?;
            Ok(snapshot)
        };
        let StoredSnapshot { meta, image } =
            blocking(build).await.map_err(failed(|error| StorageIOError::write_snapshot(None, error)))?;
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(Vec::from(image))) })
    }
}
