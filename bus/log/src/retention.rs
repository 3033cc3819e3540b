//! What goes: old segments, a follower's diverging end, and whole logs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bus_protocol::{Offset, Timestamp};

use crate::checkpoint::{Checkpoint, Place};
use crate::epochs::Epochs;
use crate::recovery::remove_segment;
use crate::scan::{Scanner, Step};
use crate::segment::Segment;
use crate::storage::Storage;
use crate::{Error, Log};

const DELETED: &str = "deleted";

impl Log {
    /// Deletes the oldest segments that `retention.ms` (by a segment's latest timestamp, at `now`) or
    /// `retention.bytes` lets go, but none that reaches `committed` (the high watermark). The active segment is
    /// closed first when it is wholly expired. Gives how many went. Readers that are reading them finish.
    pub fn apply_retention(&mut self, now: Timestamp, committed: Offset) -> Result<usize, Error> {
        self.shared.usable()?;
        let oldest_kept = self.config.retention_ms.map(|ms| now.saturating_sub_unsigned(ms));
        let mut size = self.size();
        let mut count = 0;
        for (n, segment) in self.segments.iter().enumerate() {
            let expired =
                segment.size() > 0 && oldest_kept.is_some_and(|oldest| segment.max_timestamp() < oldest);
            let over = !segment.is_active()
                && self.config.retention_bytes.is_some_and(|keep| size - segment.size() >= keep);
            let below = self.end_of(n) <= committed;
            if !below || !(expired || over || self.end_of(n) <= self.start && !segment.is_active()) {
                break;
            }
            size -= segment.size();
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        if self.segments[count - 1].is_active() {
            self.roll()?;
        }
        self.raise_start(self.end_of(count - 1))
    }

    /// Raises the log's start to `offset` (at most its end): what is below cannot be read any more, and segments
    /// that hold nothing else are deleted. Durable when it returns. Gives how many segments went.
    pub fn delete_before(&mut self, offset: Offset) -> Result<usize, Error> {
        self.shared.usable()?;
        if offset > self.next {
            return Err(Error::OffsetOutOfRange { offset, start: self.start, end: self.next });
        }
        if offset <= self.start { Ok(0) } else { self.raise_start(offset) }
    }

    /// The offset after segment `n`.
    fn end_of(&self, n: usize) -> Offset {
        self.segments.get(n + 1).map_or(self.next, |next| next.base)
    }

    fn raise_start(&mut self, start: Offset) -> Result<usize, Error> {
        let gone = (0..self.segments.len())
            .take_while(|n| self.end_of(*n) <= start && !self.segments[*n].is_active())
            .count();
        let storage = self.shared.env.storage.clone();
        // Who reads them now must have them open before they go. The indexes go first: on a full disk that makes
        // the room that the checkpoint needs.
        for segment in &self.segments[..gone] {
            segment.file(storage.as_ref())?;
            for extension in ["index", "timeindex"] {
                let _ = storage.remove_file(&segment.log.with_extension(extension));
            }
        }
        let mut epochs = self.epochs.clone();
        epochs.raise(start);
        {
            let mut saved = self.shared.saved();
            let mut checkpoint = saved.checkpoint.clone();
            checkpoint.start = start;
            checkpoint.epochs = epochs.all().to_vec();
            let first_kept = self.segments.get(gone).map_or(self.next, |segment| segment.base);
            checkpoint.closed.retain(|closed| closed.base_offset >= first_kept);
            if checkpoint.recovery.segment < first_kept {
                checkpoint.recovery = Place { offset: first_kept, segment: first_kept, position: 0 };
            }
            checkpoint.write(storage.as_ref(), &self.shared.dir, true)?;
            saved.checkpoint = checkpoint;
        }
        self.epochs = epochs;
        self.start = start;
        let removed: Vec<Arc<Segment>> = self.segments.drain(..gone).collect();
        if self.segments.is_empty() {
            self.tail.clear();
        }
        self.publish();
        removed.iter().for_each(|segment| remove_segment(storage.as_ref(), &segment.log));
        Ok(gone)
    }

    /// As a follower: takes back what is at `offset` and after, so that the log ends there (at the start of the batch
    /// that holds `offset`, if it lies within one). Durable when it returns. `offset` lies within the log.
    pub fn truncate_to(&mut self, offset: Offset) -> Result<(), Error> {
        self.shared.usable()?;
        if offset >= self.next {
            return Ok(());
        }
        if offset < self.start {
            return Err(Error::OffsetOutOfRange { offset, start: self.start, end: self.next });
        }
        let n = self.segments.partition_point(|segment| segment.base <= offset).saturating_sub(1);
        let cut = self.place_of(n, offset)?;
        let mut checkpoint = self.shared.saved().checkpoint.clone();
        let mut epochs = self.epochs.clone();
        epochs.cut(cut.offset);
        checkpoint.epochs = epochs.all().to_vec();
        checkpoint.start = self.start.min(cut.offset);
        checkpoint.closed.retain(|closed| closed.base_offset < cut.segment);
        if checkpoint.recovery.offset > cut.offset || checkpoint.recovery.segment > cut.segment {
            checkpoint.recovery = cut;
        }
        self.start = checkpoint.start;
        self.forget_after(cut, checkpoint)?;
        let result = self.cut_files(n, cut);
        self.finish_truncation();
        // Half of it may be done: what the files hold is for recovery to say.
        result.map_err(|error| self.shared.poison(error))
    }

    /// As a follower whose log the leader's no longer reaches back to: drops all, and goes on at `offset`. Durable
    /// when it returns.
    pub fn reset_to(&mut self, offset: Offset) -> Result<(), Error> {
        self.shared.usable()?;
        let empty_at = |offset: Offset| {
            let place = Place { offset, segment: offset, position: 0 };
            (place, Checkpoint { start: offset, recovery: place, ..Checkpoint::default() })
        };
        // First empty where it ends, which makes all its files leftovers, whatever a crash leaves of them; only then
        // elsewhere.
        let (place, checkpoint) = empty_at(self.next);
        self.forget_after(place, checkpoint)?;
        let storage = self.shared.env.storage.clone();
        for segment in self.segments.drain(..) {
            // Whoever reads it now can finish.
            let _ = segment.file(storage.as_ref());
            remove_segment(storage.as_ref(), &segment.log);
        }
        (self.start, self.next) = (offset, offset);
        let (_, checkpoint) = empty_at(offset);
        let synced = storage.sync_dir(&self.shared.dir);
        let done = synced.map_err(|error| Error::io("sync", &self.shared.dir, error)).and_then(|()| {
            let mut saved = self.shared.saved();
            let marked = self.shared.write_mark(&mut saved, checkpoint.recovery, true);
            marked.map_err(|error| Error::io("write the mark in", &self.shared.dir, error))?;
            checkpoint.write(storage.as_ref(), &self.shared.dir, true)?;
            saved.checkpoint = checkpoint;
            Ok(())
        });
        self.shared.stored.store(offset, Ordering::Release);
        self.finish_truncation();
        done.map_err(|error| self.shared.poison(error))
    }

    /// The batch boundary at `offset` or before it, in segment `n`.
    fn place_of(&self, n: usize, offset: Offset) -> Result<Place, Error> {
        let segment = &self.segments[n];
        let interval = u64::from(self.shared.env.options.index_interval_bytes);
        let position = segment.position_of(self.storage(), interval, offset)?;
        let due = segment.offset_at(self.storage(), position)?;
        let mut scanner = Scanner::new(segment, self.storage(), position, due, segment.size())?;
        loop {
            let place =
                Place { offset: scanner.offset(), segment: segment.base, position: scanner.position() };
            match scanner.step()? {
                Step::Batch(header, _) if header.next_offset() <= offset => {}
                Step::Bad(why) => {
                    return Err(Error::damaged(&segment.log, place.position, place.offset, why));
                }
                _ => return Ok(place),
            }
        }
    }

    /// Takes back, durably, what the checkpoint and the mark say of what is after `cut`; from here on readers and
    /// syncs that began before begin anew or say nothing.
    fn forget_after(&mut self, cut: Place, checkpoint: Checkpoint) -> Result<(), Error> {
        let shared = self.shared.clone();
        let mut saved = shared.saved();
        if self.stored() > cut.offset {
            let marked = shared.write_mark(&mut saved, cut, true);
            marked.map_err(|error| Error::io("write the mark in", &shared.dir, error))?;
        }
        checkpoint.write(self.storage(), &shared.dir, true)?;
        self.epochs = Epochs::new(checkpoint.epochs.clone());
        saved.checkpoint = checkpoint;
        // A reader that sees the count odd sees this end, below which nothing changes.
        shared.end.store(cut.offset, Ordering::Release);
        shared.truncations.fetch_add(1, Ordering::AcqRel);
        shared.stored.fetch_min(cut.offset, Ordering::AcqRel);
        self.tail.clear();
        Ok(())
    }

    fn cut_files(&mut self, n: usize, cut: Place) -> Result<(), Error> {
        let storage = self.shared.env.storage.clone();
        let sync = || storage.sync_dir(&self.shared.dir);
        while self.segments.len() > n + 1 {
            if let Some(last) = self.segments.pop() {
                remove_segment(storage.as_ref(), &last.log);
            }
            // One by one, from the end: whatever a power cut leaves is a log without a gap.
            sync().map_err(|error| Error::io("sync", &self.shared.dir, error))?;
        }
        let Some(last) = self.segments.pop() else { return Ok(()) };
        last.write_index(storage.as_ref(), last.size());
        let file = last.file(storage.as_ref())?.clone();
        file.truncate(cut.position).map_err(|error| Error::io("cut", &last.log, error))?;
        file.sync_data().map_err(|error| Error::io("sync", &last.log, error))?;
        self.next = cut.offset;
        let interval = u64::from(self.shared.env.options.index_interval_bytes);
        let reopened = Segment::reopen(storage.as_ref(), &self.shared.dir, last.base, file, cut, interval)?;
        self.segments.push(Arc::new(reopened));
        Ok(())
    }

    fn finish_truncation(&mut self) {
        self.publish();
        self.shared.end.store(self.next, Ordering::Release);
        self.shared.stored.fetch_min(self.next, Ordering::AcqRel);
        self.shared.truncations.fetch_add(1, Ordering::AcqRel);
    }

    /// Deletes the log with all its files. The folder is renamed first, so that a crash half-way leaves what
    /// [`finish_deletions`] ends.
    pub fn delete(self) -> Result<(), Error> {
        let (storage, dir) = (self.shared.env.storage.clone(), self.shared.dir.clone());
        self.shared.deleted.store(true, Ordering::Release);
        let _ = self.shared.poison.set(Error::Deleted(dir.clone()));
        drop(self);
        let doomed = doomed_name(&dir);
        if let Err(error) = storage.remove_dir(&doomed)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Error::io("remove", &doomed, error));
        }
        storage.rename(&dir, &doomed).map_err(|error| Error::io("rename", &dir, error))?;
        if let Some(parent) = dir.parent() {
            storage.sync_dir(parent).map_err(|error| Error::io("sync", parent, error))?;
        }
        storage.remove_dir(&doomed).map_err(|error| Error::io("remove", &doomed, error))
    }
}

fn doomed_name(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().map(OsString::from).unwrap_or_default();
    name.push(".");
    name.push(DELETED);
    dir.with_file_name(name)
}

/// Removes what deletions in `parent` (the folder that holds the logs' folders) left behind at a crash. To be called
/// before logs are opened there.
pub fn finish_deletions(storage: &dyn Storage, parent: &Path) -> Result<(), Error> {
    let names = match storage.list(parent) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("list", parent, error)),
    };
    for name in names.iter().filter(|name| Path::new(name).extension().is_some_and(|end| end == DELETED)) {
        let dir = parent.join(name);
        storage.remove_dir(&dir).map_err(|error| Error::io("remove", &dir, error))?;
    }
    Ok(())
}
