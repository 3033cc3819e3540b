//! Raft's log and vote.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};

use bus_protocol::NodeId;
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{Entry, LogId, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote};

use super::{COMMITTED, PURGED, Store, StoreError, TypeConfig, VOTE, blocking, decode, encode, failed};
use crate::limits;

/// The log, as Raft writes and reads it.
#[derive(Clone)]
pub(crate) struct LogStore {
    store: Store,
}

impl LogStore {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }

    /// The entries of a range, in order; where they get large, the first few.
    fn entries(
        &self,
        range: (Bound<u64>, Bound<u64>),
        limit_bytes: usize,
    ) -> Result<Vec<Entry<TypeConfig>>, StoreError> {
        let key = |bound: Bound<u64>| bound.map(u64::to_be_bytes);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        // sled refuses a range that ends before it starts with a panic.
        if is_empty(range) {
            return Ok(entries);
        }
        for item in self.store.log.range((key(range.0), key(range.1))) {
            let (_, value) = item?;
            bytes += value.len();
            entries.push(decode(&value)?);
            if bytes >= limit_bytes {
                break;
            }
        }
        Ok(entries)
    }

    /// Takes a range of entries out at once, so that no hole is left by a crash.
    fn remove(&self, range: (Bound<u64>, Bound<u64>)) -> Result<(), StoreError> {
        let key = |bound: Bound<u64>| bound.map(u64::to_be_bytes);
        let mut batch = sled::Batch::default();
        for item in self.store.log.range((key(range.0), key(range.1))).keys() {
            batch.remove(item?);
        }
        self.store.log.apply_batch(batch)?;
        self.store.db.flush()?;
        Ok(())
    }

    fn state(&self) -> Result<LogState<TypeConfig>, StoreError> {
        let purged: Option<LogId<NodeId>> = self.store.get(PURGED)?;
        let last = match self.store.log.last()? {
            Some((_, value)) => Some(decode::<Entry<TypeConfig>>(&value)?.log_id),
            None => None,
        };
        // After a crash between the two steps of a purge the last entry may be one that is purged.
        Ok(LogState { last_purged_log_id: purged, last_log_id: last.max(purged) })
    }
}

fn is_empty(range: (Bound<u64>, Bound<u64>)) -> bool {
    let start = match range.0 {
        Bound::Included(start) => start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match range.1 {
        Bound::Included(end) => end < start,
        Bound::Excluded(end) => end <= start,
        Bound::Unbounded => false,
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<NodeId>> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let log = self.clone();
        blocking(move || log.entries(range, usize::MAX)).await.map_err(failed(StorageIOError::read_logs))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<NodeId>> {
        let range = (Bound::Included(start), Bound::Excluded(end));
        let log = self.clone();
        blocking(move || log.entries(range, limits::PEER_ENTRIES_BYTES))
            .await
            .map_err(failed(StorageIOError::read_logs))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError<NodeId>> {
        self.state().map_err(failed(StorageIOError::read_logs))
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), StorageError<NodeId>> {
        let (store, vote) = (self.store.clone(), *vote);
        let save = move || {
            store.put(VOTE, &vote)?;
            store.db.flush()?;
            Ok(())
        };
        blocking(save).await.map_err(failed(StorageIOError::write_vote))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, StorageError<NodeId>> {
        self.store.get(VOTE).map_err(failed(StorageIOError::read_vote))
    }

    async fn save_committed(&mut self, committed: Option<LogId<NodeId>>) -> Result<(), StorageError<NodeId>> {
        self.store.put(COMMITTED, &committed).map_err(failed(StorageIOError::write_logs))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<NodeId>>, StorageError<NodeId>> {
        let committed: Option<Option<LogId<NodeId>>> =
            self.store.get(COMMITTED).map_err(failed(StorageIOError::read_logs))?;
        Ok(committed.flatten())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError<NodeId>>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = sled::Batch::default();
        for entry in entries {
            let value = encode(&entry).map_err(failed(StorageIOError::write_logs))?;
            batch.insert(&entry.log_id.index.to_be_bytes(), value);
        }
        let store = self.store.clone();
        let write = move || {
            store.log.apply_batch(batch)?;
            store.db.flush()?;
            Ok(())
        };
        // Raft waits for the callback before it writes again, so there is nothing to gain from returning earlier.
        let written = blocking(write).await;
        let result = written.as_ref().copied().map_err(|error| std::io::Error::other(error.to_string()));
        callback.log_io_completed(result);
        written.map_err(failed(StorageIOError::write_logs))
    }

    async fn truncate(&mut self, log_id: LogId<NodeId>) -> Result<(), StorageError<NodeId>> {
        let log = self.clone();
        blocking(move || log.remove((Bound::Included(log_id.index), Bound::Unbounded)))
            .await
            .map_err(failed(StorageIOError::write_logs))
    }

    async fn purge(&mut self, log_id: LogId<NodeId>) -> Result<(), StorageError<NodeId>> {
        let log = self.clone();
        let purge = move || {
            // First what is gone, then that it goes: the other way round a crash would leave a hole.
            log.store.put(PURGED, &log_id)?;
            log.store.db.flush()?;
            log.remove((Bound::Unbounded, Bound::Included(log_id.index)))
        };
        blocking(purge).await.map_err(failed(StorageIOError::write_logs))
    }
}
