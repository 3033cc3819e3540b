//! What a log's writer, its readers and its syncs hold in common.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use bus_protocol::Offset;

use crate::checkpoint::{Checkpoint, Place, STORED_NAME};
use crate::segment::Segment;
use crate::snapshot::Snapshots;
use crate::storage::File;
use crate::tail::TailView;
use crate::{Env, Error};

/// What readers read by: published whole, never changed.
pub(crate) struct View {
    pub(crate) segments: Arc<[Arc<Segment>]>,
    pub(crate) tail: TailView,
    pub(crate) start: Offset,
}

pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) dir: PathBuf,
    pub(crate) view: ArcSwap<View>,
    /// The log end offset; raised after what is below it can be read.
    pub(crate) end: AtomicI64,
    /// Below this, all is durable.
    pub(crate) stored: AtomicI64,
    /// Raised when offsets are taken back, once before (odd) and once after (even): a read that spans that begins
    /// anew, and a sync that was begun before takes no note.
    pub(crate) truncations: AtomicU64,
    pub(crate) poison: OnceLock<Error>,
    pub(crate) deleted: AtomicBool,
    /// Files that were created in the folder, and how many of them are known to be durable in it.
    pub(crate) created: AtomicU64,
    pub(crate) created_synced: AtomicU64,
    pub(crate) saved: Mutex<Saved>,
}

/// The checkpoint, the snapshots and the mark as they stand.
pub(crate) struct Saved {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) snapshots: Snapshots,
    pub(crate) mark: Option<Arc<dyn File>>,
    pub(crate) parent_synced: bool,
}

impl Shared {
    pub(crate) fn saved(&self) -> MutexGuard<'_, Saved> {
        // What it guards is written to disk whole each time; a panic cannot leave it half-way.
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn usable(&self) -> Result<(), Error> {
        match self.poison.get() {
            None => Ok(()),
            Some(error) => Err(Error::Poisoned { dir: self.dir.clone(), source: Box::new(error.clone()) }),
        }
    }

    /// Nothing is taken from here on. Gives the error back, but for [`Error::Full`]: that one promises that the log
    /// works on.
    pub(crate) fn poison(&self, error: Error) -> Error {
        tracing::error!(dir = %self.dir.display(), %error, "the log goes offline");
        let _ = self.poison.set(error.clone());
        match error {
            Error::Full { .. } => Error::Poisoned { dir: self.dir.clone(), source: Box::new(error) },
            error => error,
        }
    }

    /// Makes `file` and its entry in the folder durable. A failure takes the log offline.
    pub(crate) fn sync_files(&self, file: Option<(&Arc<dyn File>, &std::path::Path)>) -> Result<(), Error> {
        self.usable()?;
        let created = self.created.load(Ordering::Acquire);
        if let Some((file, path)) = file {
            file.sync_data().map_err(|error| self.poison(Error::failed_sync(path, error)))?;
        }
        if created > self.created_synced.load(Ordering::Acquire) {
            self.sync_folder().map_err(|error| self.poison(error))?;
            self.created_synced.fetch_max(created, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Makes the folder's entries durable, and, once, the folder itself.
    pub(crate) fn sync_folder(&self) -> Result<(), Error> {
        let storage = &self.env.storage;
        storage.sync_dir(&self.dir).map_err(|error| Error::failed_sync(&self.dir, error))?;
        let mut saved = self.saved();
        if let Some(parent) = self.dir.parent().filter(|_| !saved.parent_synced) {
            storage.sync_dir(parent).map_err(|error| Error::failed_sync(parent, error))?;
            saved.parent_synced = true;
        }
        Ok(())
    }

    /// Writes the mark that all before `place` is durable: a hint for recovery, so a failure is no more than
    /// a line in the log.
    pub(crate) fn write_mark(&self, saved: &mut Saved, place: Place, durable: bool) -> std::io::Result<()> {
        let path = self.dir.join(STORED_NAME);
        if saved.mark.is_none() {
            let storage = &self.env.storage;
            saved.mark = Some(storage.open(&path).or_else(|_| storage.create(&path))?);
        }
        let Some(mark) = &saved.mark else { return Ok(()) };
        mark.write_at(&[&place.encode()], 0)?;
        if durable { mark.sync_data() } else { Ok(()) }
    }
}
