//! What goes: old segments, and whole logs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bus_protocol::{Offset, Timestamp};

use crate::checkpoint::Place;
use crate::index::IndexContents;
use crate::recovery::drop_segment;
use crate::segment::Segment;
use crate::storage::Storage;
use crate::{Error, Log};

const DELETED: &str = "deleted";

impl Log {
    /// Deletes the oldest segments that `retention.ms` (by a segment's latest timestamp, at `now`) or
    /// `retention.bytes` lets go, but none that reaches `committed` (the high watermark). The active segment is
    /// closed first when it is wholly expired. Gives how many went. What is remembered of idempotent producers stays,
    /// until it expires as well. Readers that are reading them finish.
    pub fn apply_retention(&mut self, now: Timestamp, committed: Offset) -> Result<usize, Error> {
        self.shared.usable()?;
        self.expire_producers(now);
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
            IndexContents::remove(storage.as_ref(), &segment.log);
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
            saved.snapshots.remove_below(storage.as_ref(), &self.shared.dir, first_kept);
            if gone > 0 && saved.snapshots.is_empty() {
                // Nothing else would know who wrote what goes now.
                let producers = self.producers.encode(self.next);
                saved.snapshots.write(storage.as_ref(), &self.shared.dir, self.next, &producers);
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
        removed.iter().for_each(|segment| drop_segment(storage.as_ref(), &segment.log));
        Ok(gone)
    }

    /// Deletes the log with all its files. The folder is renamed first, so that a crash half-way leaves what
    /// [`finish_deletions`] ends.
    pub fn delete(self) -> Result<(), Error> {
        let (storage, dir) = (self.shared.env.storage.clone(), self.shared.dir.clone());
        self.shared.deleted.store(true, Ordering::Release);
        let _ = self.shared.poison.set(Error::Deleted(dir.clone()));
        drop(self);
        discard(storage.as_ref(), &dir)
    }
}

/// Deletes whatever the partition's folder `dir` holds, and the folder, durably; fine if there is none. For a log
/// that is damaged ([`Error::Damaged`]) and can be had anew from another replica: nothing may have it open. A crash
/// leaves it as it was, or gone but for what [`finish_deletions`] ends.
pub fn discard(storage: &dyn Storage, dir: &Path) -> Result<(), Error> {
    let missing_is_fine = |result: std::io::Result<()>, what: &'static str, path: &Path| match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(what, path, error)),
        _ => Ok(()),
    };
    let doomed = doomed_name(dir);
    missing_is_fine(storage.remove_dir(&doomed), "remove", &doomed)?;
    missing_is_fine(storage.rename(dir, &doomed), "rename", dir)?;
    if let Some(parent) = dir.parent() {
        missing_is_fine(storage.sync_dir(parent), "sync", parent)?;
    }
    missing_is_fine(storage.remove_dir(&doomed), "remove", &doomed)
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
