//! Appending: batches get their places and are written, as few writes as can be.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bus_protocol::batch::{BatchHeader, RecordBatch, assign};
use bus_protocol::{Epoch, Offset, Timestamp, TimestampType};
use bytes::Bytes;

use crate::index::IndexContents;
use crate::producers::Verdict;
use crate::segment::{Segment, log_path};
use crate::{AppendBatch, Error, Log, PartialAppend};

/// Batches up to this size are copied together, so that a group of them is one write, and one entry of the tail
/// that holds no larger buffer in memory.
const SMALL_BATCH: usize = 4 << 10;
/// The most that is copied together.
const GROUP_BYTES: usize = 64 << 10;
/// A segment is closed for the spread of its timestamps only from this size on, or a producer's odd clock would make
/// a segment of each batch.
const MIN_SPREAD_BYTES: u64 = 1 << 20;

/// Where a batch is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The batch's first offset.
    pub base_offset: Offset,
    /// Its last offset.
    pub last_offset: Offset,
    /// With `LogAppendTime`: the time that its records bear.
    pub append_time: Option<Timestamp>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was appended.
    Appended(Appended),
    /// Its producer sent it before: it is here already, and took no offset. Like one that was appended, it is stored
    /// or committed only once the log is so up to its last offset.
    Duplicate(Appended),
    /// It was refused, took no offset, and changed nothing.
    Refused(SequenceError),
}

impl Outcome {
    /// Where the batch is, since now or since before; or why it is not.
    pub fn place(self) -> Result<Appended, SequenceError> {
        match self {
            Self::Appended(appended) | Self::Duplicate(appended) => Ok(appended),
            Self::Refused(error) => Err(error),
        }
    }
}

/// Why a batch of an idempotent producer was refused (KIP-98).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// A batch before it is missing here, or it is an old one that was sent again after too many others.
    #[error(
        "producer {producer} sent sequence {found} where {expected} is due: a batch before it was not stored"
    )]
    OutOfOrder {
        /// The producer's id.
        producer: i64,
        /// The first sequence that would have been taken.
        expected: i32,
        /// The batch's.
        found: i32,
    },
    /// The same producer has written in a newer epoch.
    #[error(
        "producer {producer} sent epoch {found} and has written here in epoch {current}: a newer one took its place"
    )]
    Fenced {
        /// The producer's id.
        producer: i64,
        /// The epoch that it last wrote in.
        current: i16,
        /// The batch's.
        found: i16,
    },
}

/// A batch with its place, ready to be written.
struct Placed {
    header: BatchHeader,
    bytes: Bytes,
}

impl Log {
    /// Gives one batch its offset and appends it: see [`Log::append_all`].
    pub fn append(&mut self, batch: AppendBatch, epoch: Epoch) -> Result<Outcome, Error> {
        match self.append_all(vec![batch], epoch) {
            Ok(outcomes) => outcomes.first().copied().ok_or_else(|| unreachable!("one batch, one answer")),
            Err(failed) => Err(failed.error),
        }
    }

    /// As the leader of `epoch`: gives the batches their offsets in order, the epoch, and with `LogAppendTime` the
    /// time, and appends them in few writes. An answer for each batch.
    ///
    /// A batch of an idempotent producer is appended only if its sequence is the one due, after what the log holds of
    /// that producer and after the batches before it here; one that was sent before, or is out of order, takes no
    /// offset and is not written. So after a refused batch the producer's later ones are refused as well.
    ///
    /// On an error nothing of the batch it names, and of those after it, is kept; the log works on (unless
    /// [`Error::Poisoned`]).
    pub fn append_all(
        &mut self,
        batches: Vec<AppendBatch>,
        epoch: Epoch,
    ) -> Result<Vec<Outcome>, PartialAppend> {
        let mut outcomes = Vec::with_capacity(batches.len());
        if let Err(error) = self.shared.usable() {
            // Where a duplicate is cannot be known here any more.
            return Err(PartialAppend { outcomes, error });
        }
        let now = self.shared.env.clock.timestamp();
        let append_time = (self.config.timestamp_type == TimestampType::LogAppendTime).then_some(now);
        let mut placed = Vec::with_capacity(batches.len());
        let mut next = self.next;
        for AppendBatch { mut header, mut bytes } in batches {
            match self.producers.admit(&header, next, append_time, now) {
                Verdict::New => {}
                Verdict::Duplicate(appended) => {
                    outcomes.push(Outcome::Duplicate(appended));
                    continue;
                }
                Verdict::Refused(error) => {
                    outcomes.push(Outcome::Refused(error));
                    continue;
                }
            }
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
            let last_offset = header.last_offset();
            outcomes.push(Outcome::Appended(Appended {
                base_offset: header.base_offset,
                last_offset,
                append_time,
            }));
            placed.push(Placed { header, bytes: bytes.freeze() });
        }
        self.write_noted(&placed, outcomes, now)
    }

    /// As a follower: appends batches whose offsets and epochs the leader has set. Each must begin where the log
    /// ends then. Sequences are taken note of, not checked: the leader did.
    pub fn append_as_is(&mut self, batches: Vec<RecordBatch>) -> Result<Vec<Appended>, PartialAppend> {
        let now = self.shared.env.clock.timestamp();
        let (mut placed, mut outcomes) =
            (Vec::with_capacity(batches.len()), Vec::with_capacity(batches.len()));
        for batch in batches {
            let header = *batch.header();
            outcomes.push(Outcome::Appended(Appended {
                base_offset: header.base_offset,
                last_offset: header.last_offset(),
                append_time: None,
            }));
            placed.push(Placed { header, bytes: batch.into_bytes() });
        }
        // Only what continues the log is noted: a table that heard of other offsets could not take them back.
        if let Err(error) = self.check_order(&placed) {
            return Err(PartialAppend { outcomes: Vec::new(), error });
        }
        placed.iter().for_each(|batch| self.producers.note(&batch.header, now));
        let outcomes = self.write_noted(&placed, outcomes, now)?;
        Ok(outcomes.into_iter().filter_map(|outcome| outcome.place().ok()).collect())
    }

    /// Writes batches that the producers' table has noted; gives the answers of those that it could write, and of
    /// those between them.
    fn write_noted(
        &mut self,
        batches: &[Placed],
        mut outcomes: Vec<Outcome>,
        now: Timestamp,
    ) -> Result<Vec<Outcome>, PartialAppend> {
        match self.write(batches, now) {
            Ok(()) => {
                self.producers.commit(self.next);
                Ok(outcomes)
            }
            Err(error) => {
                self.producers.undo(self.next);
                let lost = |outcome: &Outcome| matches!(outcome, Outcome::Appended(appended) if appended.base_offset >= self.next);
                let written = outcomes.iter().position(lost).unwrap_or(outcomes.len());
                outcomes.truncate(written);
                Err(PartialAppend { outcomes, error })
            }
        }
    }

    fn write(&mut self, batches: &[Placed], now: Timestamp) -> Result<(), Error> {
        self.check_order(batches)?;
        let mut rest = batches;
        while !rest.is_empty() {
            let count = self.write_run(rest, now)?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// That the batches continue the log and each other.
    fn check_order(&self, batches: &[Placed]) -> Result<(), Error> {
        // Who wrote what is deleted binds nobody: see `Epochs::begin`.
        let last = if self.next > self.start { self.epochs.last() } else { None };
        let (mut next, mut epoch) = (self.next, last.unwrap_or(-1));
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
        self.check_room(&segment.log, parts.iter().map(|part| part.len() as u64).sum())?;
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
            if self.next == self.start {
                self.epochs.begin(batch.header.leader_epoch);
            }
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
