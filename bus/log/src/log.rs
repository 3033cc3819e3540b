//! A log's one writer.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwap;
use bus_protocol::replicate::LogEnd;
use bus_protocol::{Epoch, Offset, Timestamp};

use crate::checkpoint::{Closed, Place};
use crate::epochs::{EpochStart, Epochs};
use crate::producers::Producers;
use crate::reader::LogReader;
use crate::recovery::{Recovery, recover};
use crate::segment::Segment;
use crate::shared::{Saved, Shared, View};
use crate::sync::SyncJob;
use crate::tail::Tail;
use crate::{Env, Error, LogConfig};

/// One partition's log: the writer, owned by one task. Calls block on the disk, but for [`Log::begin_sync`];
/// readers ([`Log::reader`]) never wait for them.
///
/// Appended is not stored: what [`Log::append_all`] takes is in the system's page cache, can be read, and outlives the
/// process; it outlives a power cut once a sync that [`SyncJob::covers`] it has returned.
pub struct Log {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: LogConfig,
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) tail: Tail,
    pub(crate) epochs: Epochs,
    pub(crate) producers: Producers,
    pub(crate) start: Offset,
    pub(crate) next: Offset,
    /// When the active segment was begun.
    pub(crate) opened: Timestamp,
    recovery: Recovery,
}

impl Log {
    /// Opens the log in `dir`, or begins an empty one there. It is recovered: checked from its last checkpoint on,
    /// with a torn tail cut (see [`Log::recovery`]); what it holds then is durable. [`Error::Damaged`] changes
    /// nothing on the disk. One process opens a log once; an empty one costs a folder and no sync (the first
    /// [`Log::sync`] makes the folder itself durable, but not those above its parent).
    pub fn open(env: &Env, dir: impl Into<PathBuf>, config: LogConfig) -> Result<Self, Error> {
        let dir = dir.into();
        let recovered = recover(env, &dir)?;
        let view = View { segments: [].into(), tail: [].into(), start: recovered.checkpoint.start };
        let epochs = Epochs::new(recovered.checkpoint.epochs.clone());
        let (start, reset) = (recovered.checkpoint.start, recovered.checkpoint.reset);
        let saved = Saved {
            checkpoint: recovered.checkpoint,
            snapshots: recovered.snapshots,
            mark: None,
            parent_synced: recovered.entry_known,
        };
        let shared = Arc::new(Shared {
            env: env.clone(),
            dir,
            view: ArcSwap::from_pointee(view),
            end: AtomicI64::new(recovered.end),
            stored: AtomicI64::new(recovered.end),
            truncations: AtomicU64::new(0),
            poison: OnceLock::new(),
            deleted: AtomicBool::new(false),
            // What is there may be from a process that died before it synced the folder.
            created: AtomicU64::new(1),
            created_synced: AtomicU64::new(u64::from(recovered.entry_known)),
            saved: Mutex::new(saved),
        });
        let tail = Tail::new(env.options.tail_bytes, env.budget.clone());
        let (segments, next, recovery) = (recovered.segments, recovered.end, recovered.report);
        let now = env.clock.timestamp();
        let began = segments.last().map_or(now, |last: &Arc<Segment>| last.first_timestamp());
        let opened = if (1..=now).contains(&began) { began } else { now };
        let mut producers = recovered.producers;
        producers.expire(now, env.options.producer_expiry_ms);
        let mut log =
            Self { shared, config, segments, tail, epochs, producers, start, next, opened, recovery };
        log.publish();
        log.settle(recovered.unsynced, recovered.save)?;
        if let Some(offset) = reset {
            log.reset_to(offset)?;
        }
        Ok(log)
    }

    /// Makes what recovery found durable, and spares the next one the work if it was much.
    fn settle(&self, unsynced: bool, save: bool) -> Result<(), Error> {
        let shared = &self.shared;
        if let Some(active) = self.segments.last().filter(|last| unsynced && last.is_active()) {
            // Closed ones were synced before they got a successor.
            shared.sync_files(Some((active.file(self.storage())?, &active.log)))?;
        }
        // What tells of the loss stays until something is appended: whoever opens the log again must hear of it too.
        if self.recovery.lost_stored.is_some() {
            return Ok(());
        }
        if unsynced {
            let _ = shared.write_mark(&mut shared.saved(), self.place(), false);
        }
        if save && let Err(error) = self.save_place(true) {
            tracing::warn!(dir = %shared.dir.display(), %error, "cannot write the checkpoint: recovery will take longer");
        }
        Ok(())
    }

    /// The log's end.
    fn place(&self) -> Place {
        match self.segments.last().filter(|last| last.is_active()) {
            Some(active) => Place { offset: self.next, segment: active.base, position: active.size() },
            None => Place { offset: self.next, segment: self.next, position: 0 },
        }
    }

    pub(crate) fn storage(&self) -> &dyn crate::storage::Storage {
        self.shared.env.storage.as_ref()
    }

    /// What opening it found.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// The partition's folder.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// A reader; any number, anywhere.
    pub fn reader(&self) -> LogReader {
        LogReader::new(self.shared.clone())
    }

    /// The first offset.
    pub fn log_start(&self) -> Offset {
        self.start
    }

    /// The log end offset (LEO): the next one to be written.
    pub fn log_end(&self) -> Offset {
        self.next
    }

    /// The offset below which all is durable.
    pub fn stored(&self) -> Offset {
        self.shared.stored.load(Ordering::Acquire)
    }

    /// Bytes of all segments.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|segment| segment.size()).sum()
    }

    /// Other settings, from now on.
    pub fn set_config(&mut self, config: LogConfig) {
        self.config = config;
    }

    /// The leader epochs that the log holds, oldest first. The first may have begun below the log's start; of an
    /// empty log, that is who wrote what was deleted last.
    pub fn epochs(&self) -> &[EpochStart] {
        self.epochs.all()
    }

    /// What a follower tells its leader: the log end offset, and the epoch of the last batch. No epoch if the log holds
    /// no batch, though others may have been there before its start.
    pub fn end_with_epoch(&self) -> LogEnd {
        let epoch = if self.next > self.start { self.epochs.last() } else { None };
        LogEnd { epoch, end: self.next }
    }

    /// Where `epoch` ends in this log: the largest epoch here that is not larger, and the offset after its last
    /// (KIP-279). `None` if the log holds none so old.
    pub fn epoch_end_offset(&self, epoch: Epoch) -> Option<(Epoch, Offset)> {
        self.epochs.end_of(epoch, self.next)
    }

    /// Closes the active segment: it is synced first, so that what has a successor is whole. Blocks for as long
    /// as that takes.
    pub(crate) fn roll(&mut self) -> Result<(), Error> {
        let Some(active) = self.segments.last().filter(|last| last.is_active()).cloned() else {
            return Ok(());
        };
        let shared = self.shared.clone();
        shared.sync_files(Some((active.file(self.storage())?, &active.log)))?;
        active.write_index(self.storage(), active.size());
        let closed = Arc::new(active.close(&shared.dir));
        self.expire_producers(shared.env.clock.timestamp());
        let place = Place { offset: self.next, segment: self.next, position: 0 };
        let mut saved = shared.saved();
        saved.checkpoint.closed.push(Closed {
            base_offset: closed.base,
            size: closed.size(),
            max_timestamp: closed.max_timestamp(),
        });
        saved.checkpoint.recovery = place;
        shared.stored.store(self.next, Ordering::Release);
        saved.snapshots.write(self.storage(), &shared.dir, self.next, &self.producers.encode(self.next));
        if let Err(error) = saved.checkpoint.write(self.storage(), &shared.dir, false) {
            tracing::warn!(dir = %shared.dir.display(), %error, "cannot write the checkpoint: recovery will take longer");
        }
        drop(saved);
        self.segments.pop();
        self.segments.push(closed);
        self.publish();
        Ok(())
    }

    /// Publishes the segments and the tail as they are.
    pub(crate) fn publish(&self) {
        let segments = self.segments.iter().cloned().collect();
        self.shared.view.store(Arc::new(View { segments, tail: self.tail.view(), start: self.start }));
    }

    /// Forgets producers that have not written for too long at `now`.
    pub(crate) fn expire_producers(&mut self, now: Timestamp) {
        self.producers.expire(now, self.shared.env.options.producer_expiry_ms);
    }

    /// Begins a sync of all that was appended so far. Does not block.
    pub fn begin_sync(&self) -> SyncJob {
        let segment = self.segments.last().filter(|last| last.is_active()).cloned();
        let place = self.place();
        let file = segment.as_ref().and_then(|segment| {
            let file = segment.file(self.storage()).ok()?;
            Some((file.clone(), segment.log.clone()))
        });
        let generation = self.shared.truncations.load(Ordering::Acquire);
        // A checkpoint that is due takes the producers along, as they are at this place.
        let due = |saved: &Saved| {
            place.since(saved.checkpoint.recovery) >= self.shared.env.options.checkpoint_bytes
        };
        let due = self.shared.saved.try_lock().is_ok_and(|saved| due(&saved));
        let checkpoint = due.then(|| self.producers.encode(place.offset));
        SyncJob { shared: self.shared.clone(), file, segment, place, generation, checkpoint }
    }

    /// Makes durable all that was appended; gives the offset below which all is.
    pub fn sync(&mut self) -> Result<Offset, Error> {
        self.begin_sync().run()
    }

    /// Writes the index and the checkpoint for the log's end, up to which it was synced.
    pub(crate) fn save_place(&self, durable: bool) -> Result<(), Error> {
        let place = self.place();
        if let Some(active) = self.segments.last() {
            active.write_index(self.storage(), active.size());
        }
        let mut saved = self.shared.saved();
        let snapshot = self.producers.encode(self.next);
        saved.snapshots.write(self.storage(), &self.shared.dir, self.next, &snapshot);
        saved.checkpoint.recovery = place;
        // A mark that is higher tells of what is not there.
        if saved.mark.is_some() || self.recovery.lost_stored.is_some() {
            let written = self.shared.write_mark(&mut saved, place, durable);
            written.map_err(|error| Error::io("write the mark in", &self.shared.dir, error))?;
        }
        saved.checkpoint.write(self.storage(), &self.shared.dir, durable)
    }

    /// Syncs, and leaves a checkpoint of the end, so that the next start has nothing to check. A log that is dropped
    /// without is as after a crash of the process.
    pub fn close(mut self) -> Result<(), Error> {
        self.sync()?;
        if self.segments.is_empty() && self.next == 0 {
            return Ok(());
        }
        self.save_place(true)
    }

    /// How many idempotent producers the log remembers.
    pub fn producers(&self) -> usize {
        self.producers.len()
    }

    /// Gives the memory of the hot tail back; the next append begins a new one.
    pub fn trim_tail(&mut self) {
        if !self.tail.is_empty() {
            self.tail.clear();
            self.publish();
        }
    }
}
