//! What a follower takes back: the end of its log that is not on its leader's history.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bus_protocol::replicate::LogEnd;
use bus_protocol::{Epoch, Offset};

use crate::checkpoint::{Checkpoint, Place};
use crate::epochs::Epochs;
use crate::index::IndexContents;
use crate::producers::Producers;
use crate::recovery::remove_segment;
use crate::replay::restore;
use crate::scan::{Scanner, Step};
use crate::segment::Segment;
use crate::{Error, Log};

impl Log {
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
        self.forget_after(cut, checkpoint, cut.offset)?;
        let result = self.cut_files(n, cut).and_then(|()| self.forget_producers());
        self.finish_truncation();
        // Half of it may be done: what the files hold is for recovery to say.
        result.map_err(|error| self.shared.poison(error))
    }

    /// As a follower whose leader says that in its log the largest epoch not above this log's last is `diverged_epoch`,
    /// and ends before `end`: takes back all that is not on the leader's history (KIP-279), which is what lies after
    /// the smaller of `end` and where this log's own batches of epochs up to `diverged_epoch` end; without an epoch,
    /// everything; so it does where the log starts above `end`, and goes on at `end` then. Durable when it returns.
    /// Gives where the log ends now, which may have to be told to the leader again.
    pub fn truncate_by(&mut self, diverged_epoch: Option<Epoch>, end: Offset) -> Result<LogEnd, Error> {
        if end < self.start {
            // At once: cut first, and then reset, it could be found cut after a crash, and look like one whose records
            // were deleted.
            self.reset_to(end)?;
            return Ok(self.end_with_epoch());
        }
        let mine = diverged_epoch.and_then(|epoch| self.epoch_end_offset(epoch));
        let mine = mine.map_or(self.start, |(_, end)| end);
        self.truncate_to(mine.min(end).max(self.start))?;
        Ok(self.end_with_epoch())
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
        // elsewhere. Empty where it ended it would look like one whose records were deleted: so where this fails, or
        // is cut short, it is done when the log is opened.
        let (place, checkpoint) = empty_at(self.next);
        let checkpoint = Checkpoint { reset: Some(offset), ..checkpoint };
        self.forget_after(place, checkpoint, -1)?;
        self.producers = Producers::new(offset, self.shared.env.options.producers_per_partition);
        let storage = self.shared.env.storage.clone();
        let mut done = Ok(());
        for segment in self.segments.drain(..) {
            // Whoever reads it now can finish.
            let _ = segment.file(storage.as_ref());
            done = done.and_then(|()| remove_segment(storage.as_ref(), &segment.log));
        }
        let (_, checkpoint) = empty_at(offset);
        let done = done.and_then(|()| self.shared.sync_folder()).and_then(|()| {
            let mut saved = self.shared.saved();
            let marked = self.shared.write_mark(&mut saved, checkpoint.recovery, true);
            marked.map_err(|error| Error::io("write the mark in", &self.shared.dir, error))?;
            checkpoint.write(storage.as_ref(), &self.shared.dir, true)?;
            saved.checkpoint = checkpoint;
            Ok(())
        });
        // Where it failed, the log is empty where it ended: that much is durable, and no more may be told.
        let end = if done.is_ok() { offset } else { self.next };
        if done.is_err() {
            // As far as the disk still takes it: a mark ahead of the log is taken for a loss when it is opened.
            let mut saved = self.shared.saved();
            self.shared.write_mark(&mut saved, empty_at(end).0, true).ok();
        }
        (self.start, self.next) = (end, end);
        self.shared.stored.store(end, Ordering::Release);
        self.finish_truncation();
        done.map_err(|error| self.shared.poison(error))
    }

    /// The batch boundary at `offset` or before it, in segment `n`.
    fn place_of(&self, n: usize, offset: Offset) -> Result<Place, Error> {
        let segment = &self.segments[n];
        let interval = u64::from(self.shared.env.options.index_interval_bytes);
        let (position, due) = segment.position_of(self.storage(), interval, offset)?;
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
    /// syncs that began before begin anew or say nothing. Snapshots of the producers above `snapshots_to` go first, so
    /// that none outlives what it was made of.
    fn forget_after(
        &mut self,
        cut: Place,
        checkpoint: Checkpoint,
        snapshots_to: Offset,
    ) -> Result<(), Error> {
        let shared = self.shared.clone();
        let mut saved = shared.saved();
        saved.snapshots.remove_above(self.storage(), &shared.dir, snapshots_to)?;
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
                remove_segment(storage.as_ref(), &last.log)?;
            }
            // One by one, from the end: whatever a power cut leaves is a log without a gap.
            sync().map_err(|error| Error::io("sync", &self.shared.dir, error))?;
        }
        let Some(last) = self.segments.pop() else { return Ok(()) };
        last.write_index(storage.as_ref(), last.size());
        let index = IndexContents::read(storage.as_ref(), &last.log).unwrap_or_default();
        // The index's file goes for good before what it tells of: a power cut must not bring it back when other batches
        // have taken their places.
        IndexContents::remove(storage.as_ref(), &last.log);
        sync().map_err(|error| Error::io("sync", &self.shared.dir, error))?;
        let file = last.file(storage.as_ref())?.clone();
        file.truncate(cut.position).map_err(|error| Error::io("cut", &last.log, error))?;
        file.sync_data().map_err(|error| Error::io("sync", &last.log, error))?;
        self.next = cut.offset;
        let interval = u64::from(self.shared.env.options.index_interval_bytes);
        let reopened = Segment::reopen(storage.as_ref(), &self.shared.dir, index, file, cut, interval)?;
        reopened.write_index(storage.as_ref(), cut.position);
        self.segments.push(Arc::new(reopened));
        Ok(())
    }

    /// The producers as if the log had never held more than it does now.
    fn forget_producers(&mut self) -> Result<(), Error> {
        if self.producers.reach(self.next) {
            let shared = self.shared.clone();
            let snapshots = &mut shared.saved().snapshots;
            self.producers = restore(&shared.env, &shared.dir, snapshots, &self.segments, self.next)?;
        }
        self.producers.commit(self.next);
        Ok(())
    }

    fn finish_truncation(&mut self) {
        self.publish();
        self.shared.end.store(self.next, Ordering::Release);
        self.shared.stored.fetch_min(self.next, Ordering::AcqRel);
        self.shared.truncations.fetch_add(1, Ordering::AcqRel);
    }
}
