//! Making what was appended durable, apart from appending.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bus_protocol::Offset;

use crate::Error;
use crate::checkpoint::Place;
use crate::segment::Segment;
use crate::shared::Shared;
use crate::storage::File;

/// A sync that was begun: makes durable what the log held at that moment. Can be carried to another thread and
/// run there while the owner appends on. One that is dropped instead of run leaves nothing undone but itself.
pub struct SyncJob {
    pub(crate) shared: Arc<Shared>,
    pub(crate) file: Option<(Arc<dyn File>, PathBuf)>,
    pub(crate) segment: Option<Arc<Segment>>,
    pub(crate) place: Place,
    pub(crate) generation: u64,
    /// The producers' table at `place`, where a recovery checkpoint is due.
    pub(crate) checkpoint: Option<Vec<u8>>,
}

impl SyncJob {
    /// The log end offset that this sync covers.
    pub fn covers(&self) -> Offset {
        self.place.offset
    }

    /// Blocks until all that it covers is durable; many appends share this one fdatasync. Gives the offset below
    /// which all is durable then. After a failure the log takes nothing until it is opened anew.
    pub fn run(self) -> Result<Offset, Error> {
        let shared = &self.shared;
        shared.usable()?;
        if self.place.offset > shared.stored.load(Ordering::Acquire) {
            shared.sync_files(self.file.as_ref().map(|(file, path)| (file, path.as_path())))?;
            self.take_note();
        }
        Ok(shared.stored.load(Ordering::Acquire))
    }

    fn take_note(&self) {
        let shared = &self.shared;
        let mut saved = shared.saved();
        // A truncation since took back some of what was covered.
        if shared.truncations.load(Ordering::Acquire) != self.generation
            || self.place.offset <= shared.stored.load(Ordering::Acquire)
        {
            return;
        }
        shared.stored.store(self.place.offset, Ordering::Release);
        if let Err(error) = shared.write_mark(&mut saved, self.place, false) {
            tracing::debug!(dir = %shared.dir.display(), %error, "cannot write the mark of what is stored");
        }
        let Some(producers) = &self.checkpoint else { return };
        let storage = shared.env.storage.as_ref();
        if let Some(segment) = &self.segment {
            segment.write_index(storage, self.place.position);
        }
        saved.snapshots.write(storage, &shared.dir, self.place.offset, producers);
        saved.checkpoint.recovery = self.place;
        // The old one may come back after a power cut: then more is read again, no more than that.
        if let Err(error) = saved.checkpoint.write(storage, &shared.dir, false) {
            tracing::warn!(dir = %shared.dir.display(), %error, "cannot write the checkpoint: recovery will take longer");
        }
    }
}
