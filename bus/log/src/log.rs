//! A log's one writer.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use arc_swap::ArcSwap;
use bus_protocol::batch::{BatchHeader, RecordBatch, assign};
use bus_protocol::{Epoch, Offset, Timestamp, TimestampType};
use bytes::Bytes;

use crate::checkpoint::{Closed, Place};
use crate::epochs::{EpochStart, Epochs};
use crate::index::IndexContents;
use crate::reader::LogReader;
use crate::recovery::{Recovery, recover};
use crate::segment::{Segment, log_path};
use crate::shared::{Saved, Shared, View};
use crate::sync::SyncJob;
use crate::tail::Tail;
use crate::{AppendBatch, Env, Error, LogConfig, PartialAppend};

/// Batches up to this size are copied together, so that a group of them is one write, and one entry of the tail
/// that holds no larger buffer in memory.
const SMALL_BATCH: usize = 4 << 10;
/// The most that is copied together.
const GROUP_BYTES: usize = 64 << 10;
/// A segment is closed for the spread of its timestamps only from this size on, or a producer's odd clock would make
/// a segment of each batch.
const MIN_SPREAD_BYTES: u64 = 1 << 20;

/// What an append gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The batch's first offset.
    pub base_offset: Offset,
    /// Its last offset.
    pub last_offset: Offset,
    /// With `LogAppendTime`: the time that its records bear.
    pub append_time: Option<Timestamp>,
}

/// One partition's log: the writer, owned by one task. Calls block on the disk, but for [`Log::begin_sync`];
/// readers ([`Log::reader`]) never wait for them.
///
/// Appended is not stored: what [`Log::append`] takes is in the system's page cache, can be read, and outlives the
/// process; it outlives a power cut once a sync that [`SyncJob::covers`] it has returned.
pub struct Log {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: LogConfig,
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) tail: Tail,
    pub(crate) epochs: Epochs,
    pub(crate) start: Offset,
    pub(crate) next: Offset,
    /// When the active segment was begun.
    opened: Timestamp,
    recovery: Recovery,
}

/// A batch with its place, ready to be written.
struct Placed {
    header: BatchHeader,
    bytes: Bytes,
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
        let start = recovered.checkpoint.start;
        let saved =
            Saved { checkpoint: recovered.checkpoint, mark: None, parent_synced: recovered.entry_known };
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
        let log = Self { shared, config, segments, tail, epochs, start, next, opened, recovery };
        log.publish();
        log.settle(recovered.unsynced, recovered.save)?;
        Ok(log)
    }

    /// Makes what recovery found durable, and spares the next one the work if it was much.
    fn settle(&self, unsynced: bool, save: bool) -> Result<(), Error> {
        let shared = &self.shared;
        if let Some(active) = self.segments.last().filter(|last| unsynced && last.is_active()) {
            // Closed ones were synced before they got a successor.
            shared.sync_files(Some((active.file(self.storage())?, &active.log)))?;
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

    /// The leader epochs that the log holds, oldest first.
    pub fn epochs(&self) -> &[EpochStart] {
        self.epochs.all()
    }

    /// Where `epoch` ends in this log: the largest epoch here that is not larger, and the offset after its last
    /// (KIP-279). `None` if the log holds none so old.
    pub fn epoch_end_offset(&self, epoch: Epoch) -> Option<(Epoch, Offset)> {
        self.epochs.end_of(epoch, self.next)
    }

    /// Gives one batch its offset and appends it: see [`Log::append_all`].
    pub fn append(&mut self, batch: AppendBatch, epoch: Epoch) -> Result<Appended, Error> {
        match self.append_all(vec![batch], epoch) {
            Ok(appended) => appended.first().copied().ok_or_else(|| unreachable!("one batch, one answer")),
            Err(failed) => Err(failed.error),
        }
    }

    /// As the leader of `epoch`: gives the batches their offsets in order, the epoch, and with `LogAppendTime` the
    /// time, and appends them in few writes. On an error nothing of the batch it names, and of those after it,
    /// is kept; the log works on (unless [`Error::Poisoned`]). An answer for each batch.
    pub fn append_all(
        &mut self,
        batches: Vec<AppendBatch>,
        epoch: Epoch,
    ) -> Result<Vec<Appended>, PartialAppend> {
        let append_time = (self.config.timestamp_type == TimestampType::LogAppendTime)
            .then(|| self.shared.env.clock.timestamp());
        let mut next = self.next;
        let placed = batches.into_iter().map(|AppendBatch { mut header, mut bytes }| {
            header.base_offset = next;
            header.leader_epoch = epoch;
            assign::set_base_offset(&mut bytes, next);
            assign::set_leader_epoch(&mut bytes, epoch);
            if let Some(time) = append_time {
                assign::set_append_time(&mut bytes, time);
                // The time and the CRC changed.
                header = BatchHeader::decode(&bytes).unwrap_or(header);
            }
            next = header.next_offset();
            Placed { header, bytes: bytes.freeze() }
        });
        let placed = placed.collect();
        self.write(placed, append_time)
    }

    /// As a follower: appends batches whose offsets and epochs the leader has set. Each must begin where the log
    /// ends then.
    pub fn append_as_is(&mut self, batches: Vec<RecordBatch>) -> Result<Vec<Appended>, PartialAppend> {
        let placed = batches.into_iter();
        let placed = placed.map(|batch| Placed { header: *batch.header(), bytes: batch.into_bytes() });
        self.write(placed.collect(), None)
    }

    fn write(
        &mut self,
        batches: Vec<Placed>,
        append_time: Option<Timestamp>,
    ) -> Result<Vec<Appended>, PartialAppend> {
        let now = self.shared.env.clock.timestamp();
        let mut appended = Vec::with_capacity(batches.len());
        if let Err(error) = self.check_order(&batches) {
            return Err(PartialAppend { appended, error });
        }
        let mut rest = &batches[..];
        while !rest.is_empty() {
            let result = self.write_run(rest, now);
            let (run, later) = match result {
                Ok(count) => rest.split_at(count),
                Err(error) => return Err(PartialAppend { appended, error }),
            };
            appended.extend(run.iter().map(|batch| Appended {
                base_offset: batch.header.base_offset,
                last_offset: batch.header.last_offset(),
                append_time,
            }));
            rest = later;
        }
        Ok(appended)
    }

    /// That the batches continue the log and each other.
    fn check_order(&self, batches: &[Placed]) -> Result<(), Error> {
        let (mut next, mut epoch) = (self.next, self.epochs.last().unwrap_or(-1));
        for Placed { header, .. } in batches {
            if header.base_offset != next {
                return Err(Error::NotContiguous { expected: next, found: header.base_offset });
            }
            if header.leader_epoch < epoch {
                return Err(Error::OldEpoch { last: epoch, found: header.leader_epoch });
            }
            (next, epoch) = (header.next_offset(), header.leader_epoch);
        }
        Ok(())
    }

    /// Writes as many of `batches` as go to one segment together; at least one. All or nothing of them.
    fn write_run(&mut self, batches: &[Placed], now: Timestamp) -> Result<usize, Error> {
        self.shared.usable()?;
        if self.must_roll(&batches[0].header, now) {
            self.roll()?;
        }
        let segment = self.active(now)?;
        let mut size = segment.size();
        let fits = |batch: &&Placed| {
            let first = size == segment.size();
            let fits = first || size + batch.bytes.len() as u64 <= self.config.segment_bytes;
            size += batch.bytes.len() as u64;
            fits
        };
        let count = batches.iter().take_while(fits).count();
        self.write_to(&segment, &batches[..count])?;
        Ok(count)
    }

    fn must_roll(&self, first: &BatchHeader, now: Timestamp) -> bool {
        let Some(active) = self.segments.last().filter(|last| last.is_active() && last.size() > 0) else {
            return false;
        };
        let age = i64::try_from(self.config.segment_ms).unwrap_or(i64::MAX);
        let spread = first.max_timestamp.saturating_sub(active.first_timestamp().max(0));
        active.size() + first.size() as u64 > self.config.segment_bytes
            || now.saturating_sub(self.opened) >= age
            || (active.size() >= MIN_SPREAD_BYTES && spread >= age)
            || first.next_offset() - active.base > i64::from(i32::MAX)
    }

    /// The segment to write to; created if there is none.
    fn active(&mut self, now: Timestamp) -> Result<Arc<Segment>, Error> {
        if let Some(active) = self.segments.last().filter(|last| last.is_active()) {
            return Ok(active.clone());
        }
        let path = log_path(&self.shared.dir, self.next);
        let file = self.storage().create(&path).map_err(|error| Error::io("create", &path, error))?;
        self.shared.created.fetch_add(1, Ordering::AcqRel);
        let segment = Arc::new(Segment::active(&self.shared.dir, self.next, file, IndexContents::default()));
        self.segments.push(segment.clone());
        self.opened = now;
        self.publish();
        Ok(segment)
    }

    fn write_to(&mut self, segment: &Segment, batches: &[Placed]) -> Result<(), Error> {
        let groups = group(batches);
        let parts: Vec<&[u8]> = groups.iter().map(|(_, _, bytes)| &bytes[..]).collect();
        let before = segment.size();
        let file = segment.file(self.storage())?;
        if let Err(error) = file.write_at(&parts, before) {
            let error = Error::io("append to", &segment.log, error);
            // What was written of it goes again; if it will not, nobody knows what the file holds.
            file.truncate(before)
                .map_err(|error| self.shared.poison(Error::io("cut", &segment.log, error)))?;
            return Err(error);
        }
        let interval = u64::from(self.shared.env.options.index_interval_bytes);
        let mut position = before;
        let epoch = self.epochs.last();
        for batch in batches {
            segment.add(&batch.header, position, interval);
            self.epochs.note(batch.header.leader_epoch, batch.header.base_offset);
            position += batch.bytes.len() as u64;
            self.next = batch.header.next_offset();
        }
        if self.epochs.last() != epoch {
            self.shared.saved().checkpoint.epochs = self.epochs.all().to_vec();
        }
        segment.set_size(position);
        let mut changed = false;
        for (base, next, bytes) in groups {
            changed |= self.tail.push(base, next, bytes);
        }
        if changed {
            self.publish();
        }
        // Last, as readers look at it first.
        self.shared.end.store(self.next, Ordering::Release);
        Ok(())
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
        let place = Place { offset: self.next, segment: self.next, position: 0 };
        let mut saved = shared.saved();
        saved.checkpoint.closed.push(Closed {
            base_offset: closed.base,
            size: closed.size(),
            max_timestamp: closed.max_timestamp(),
        });
        saved.checkpoint.recovery = place;
        shared.stored.store(self.next, Ordering::Release);
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

    /// Begins a sync of all that was appended so far. Does not block.
    pub fn begin_sync(&self) -> SyncJob {
        let segment = self.segments.last().filter(|last| last.is_active()).cloned();
        let place = self.place();
        let file = segment.as_ref().and_then(|segment| {
            let file = segment.file(self.storage()).ok()?;
            Some((file.clone(), segment.log.clone()))
        });
        let generation = self.shared.truncations.load(Ordering::Acquire);
        SyncJob { shared: self.shared.clone(), file, segment, place, generation }
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

    /// Gives the memory of the hot tail back; the next append begins a new one.
    pub fn trim_tail(&mut self) {
        if !self.tail.is_empty() {
            self.tail.clear();
            self.publish();
        }
    }
}

/// Small neighbours together, large batches as they are, uncopied.
fn group(batches: &[Placed]) -> Vec<(Offset, Offset, Bytes)> {
    let mut groups = Vec::new();
    let mut rest = batches;
    while let Some((first, others)) = rest.split_first() {
        let base = first.header.base_offset;
        if first.bytes.len() > SMALL_BATCH {
            groups.push((base, first.header.next_offset(), first.bytes.clone()));
            rest = others;
            continue;
        }
        let mut size = 0;
        let small = |batch: &&Placed| {
            size += batch.bytes.len();
            batch.bytes.len() <= SMALL_BATCH && size <= GROUP_BYTES
        };
        let count = rest.iter().take_while(small).count().max(1);
        let (together, others) = rest.split_at(count);
        let mut bytes = Vec::with_capacity(together.iter().map(|batch| batch.bytes.len()).sum());
        together.iter().for_each(|batch| bytes.extend_from_slice(&batch.bytes));
        let next = together.last().map_or(base, |last| last.header.next_offset());
        groups.push((base, next, bytes.into()));
        rest = others;
    }
    groups
}
