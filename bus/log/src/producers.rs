//! The idempotent producers of a partition: what each wrote last, so that a batch sent twice is stored once, and
//! none is stored out of order (KIP-98; raised epochs as in KIP-360).
//!
//! ```text
//!   producer id -> epoch, its last 64 batches: sequences, base offset, append time
//!
//!   first sequence is the next one due          New
//!   same first and last as a remembered batch   Duplicate: where that one is
//!   anything else                               OutOfOrder: one before it is missing, or it is an old duplicate that
//!                                               is not remembered any more (a producer has no more than 64 under way)
//!   an older epoch                              Fenced
//!   a newer epoch                               must begin at sequence 0
//!   a producer that is not known                New, whatever its sequence: it may have been forgotten
//! ```
//!
//! Sequences wrap from `i32::MAX` to 0. The table is bounded: with too many producers, those idle longest are
//! forgotten first, an eighth of them at once. No I/O, no clock.

use std::collections::{HashMap, VecDeque};

use bus_protocol::batch::BatchHeader;
use bus_protocol::limits::PRODUCER_BATCHES_REMEMBERED;
use bus_protocol::{Offset, Timestamp, TimestampType};

use crate::append::{Appended, SequenceError};

const MAGIC: &[u8; 4] = b"BPS1";
const NO_TIME: Timestamp = Timestamp::MIN;

/// What a leader does with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Write it: it was taken note of.
    New,
    /// It is there already.
    Duplicate(Appended),
    /// It must not be written.
    Refused(SequenceError),
}

/// A batch that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remembered {
    base_offset: Offset,
    append_time: Timestamp,
    first: i32,
    /// Last sequence less first; also last offset less base offset.
    delta: i32,
    epoch: i16,
}

#[derive(Debug, Default)]
struct Producer {
    /// Oldest first, never empty, those of the last one's epoch at the end; at the front may be some that are not
    /// remembered any more, for as long as the newer ones may yet be taken back.
    batches: VecDeque<Remembered>,
    /// When it last wrote, by this machine's clock: a record's own time may be anything.
    seen: Timestamp,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Producers {
    table: HashMap<i64, Producer>,
    /// Batches from here on may be taken back.
    end: Offset,
    limit: usize,
}

impl Producers {
    /// Knows nobody, of a log that ends at `end`; will know `limit` producers at most.
    pub(crate) fn new(end: Offset, limit: usize) -> Self {
        Self { table: HashMap::new(), end, limit }
    }

    /// As the leader: whether the batch may be written at `base_offset`. If so it is taken note of, and counts for
    /// those that are asked about after it; [`Producers::commit`] or [`Producers::undo`] must follow.
    pub(crate) fn admit(
        &mut self,
        header: &BatchHeader,
        base_offset: Offset,
        append_time: Option<Timestamp>,
        now: Timestamp,
    ) -> Verdict {
        if !is_numbered(header) {
            return Verdict::New;
        }
        let (id, batch) = (header.producer_id, Remembered::of(header, base_offset, append_time));
        if batch.first < 0 {
            let expected = self.table.get(&id).map_or(0, Producer::expected);
            return Verdict::Refused(SequenceError::OutOfOrder {
                producer: id,
                expected,
                found: batch.first,
            });
        }
        match self.table.get_mut(&id) {
            Some(producer) => {
                let verdict = producer.verdict(id, &batch);
                if verdict == Verdict::New {
                    producer.push(batch, self.end, now);
                }
                verdict
            }
            None if batch.epoch < 0 => {
                Verdict::Refused(SequenceError::Fenced { producer: id, current: 0, found: batch.epoch })
            }
            None => {
                self.table.entry(id).or_default().push(batch, self.end, now);
                Verdict::New
            }
        }
    }

    /// Takes note of a batch that a leader let pass, whatever this table would have said.
    pub(crate) fn note(&mut self, header: &BatchHeader, now: Timestamp) {
        if is_numbered(header) && header.base_sequence >= 0 && header.producer_epoch >= 0 {
            let stamped = header.timestamp_type() == TimestampType::LogAppendTime;
            let append_time = stamped.then_some(header.max_timestamp);
            let batch = Remembered::of(header, header.base_offset, append_time);
            self.table.entry(header.producer_id).or_default().push(batch, self.end, now);
        }
    }

    /// What was noted below `end` was written.
    pub(crate) fn commit(&mut self, end: Offset) {
        self.end = end;
        if self.table.len() > self.limit {
            self.evict();
        }
    }

    /// What was noted from `end` on was not written.
    pub(crate) fn undo(&mut self, end: Offset) {
        self.table.retain(|_, producer| {
            while producer.batches.back().is_some_and(|batch| batch.base_offset >= end) {
                producer.batches.pop_back();
            }
            !producer.batches.is_empty()
        });
        self.commit(end);
    }

    /// Whether anybody wrote at `offset` or after it.
    pub(crate) fn reach(&self, offset: Offset) -> bool {
        self.table.values().any(|producer| producer.last_offset() >= offset)
    }

    /// Forgets who has not written for `expiry_ms` (KIP-854).
    pub(crate) fn expire(&mut self, now: Timestamp, expiry_ms: u64) {
        let expiry = i64::try_from(expiry_ms).unwrap_or(i64::MAX);
        self.table.retain(|_, producer| now.saturating_sub(producer.seen) < expiry);
    }

    /// How many producers are known.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    fn evict(&mut self) {
        let keep = self.limit - self.limit / 8;
        let mut last: Vec<(Offset, i64)> =
            self.table.iter().map(|(id, producer)| (producer.last_offset(), *id)).collect();
        let gone = last.len() - keep;
        if gone < last.len() {
            last.select_nth_unstable(gone);
        }
        for (_, id) in &last[..gone] {
            self.table.remove(id);
        }
    }

    /// The table of the log up to `offset`, which is not before what was last committed, as a snapshot's file holds
    /// it. (A segment may be closed half-way through a group.)
    ///
    /// ```text
    ///   "BPS1" | offset i64 | producers u32
    ///   producer: id i64 | seen i64 | epoch i16 | batches u16
    ///   batch: base offset i64 | append time i64 | first sequence i32 | delta i32
    ///   crc u32 of all before
    /// ```
    ///
    /// By rising ids: the same table is the same bytes.
    pub(crate) fn encode(&self, offset: Offset) -> Vec<u8> {
        let mut producers: Vec<(&i64, &Producer)> =
            self.table.iter().filter(|(_, producer)| producer.remembered(offset).next().is_some()).collect();
        producers.sort_unstable_by_key(|(id, _)| **id);
        let batches: usize = producers.iter().map(|(_, producer)| producer.batches.len()).sum();
        let mut out = Vec::with_capacity(20 + producers.len() * 20 + batches * 24);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&(producers.len() as u32).to_be_bytes());
        for (id, producer) in producers {
            let (mut count, mut epoch) = (0u16, 0);
            for batch in producer.remembered(offset) {
                (count, epoch) = (count + 1, batch.epoch);
            }
            out.extend_from_slice(&id.to_be_bytes());
            out.extend_from_slice(&producer.seen.to_be_bytes());
            out.extend_from_slice(&epoch.to_be_bytes());
            out.extend_from_slice(&count.to_be_bytes());
            for batch in producer.remembered(offset).rev() {
                out.extend_from_slice(&batch.base_offset.to_be_bytes());
                out.extend_from_slice(&batch.append_time.to_be_bytes());
                out.extend_from_slice(&batch.first.to_be_bytes());
                out.extend_from_slice(&batch.delta.to_be_bytes());
            }
        }
        let crc = crate::crc::of(&[&out]);
        out.extend_from_slice(&crc.to_be_bytes());
        out
    }

    /// The table from a snapshot's bytes; `None` if they are not exactly one of `offset`.
    pub(crate) fn decode(bytes: &[u8], offset: Offset, limit: usize) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        if u32::from_be_bytes(*crc) != crate::crc::of(&[body]) {
            return None;
        }
        let mut rest = body;
        let fits = take(&mut rest)? == *MAGIC && i64::from_be_bytes(take(&mut rest)?) == offset;
        if !fits {
            return None;
        }
        let mut producers = Self::new(offset, limit);
        for _ in 0..u32::from_be_bytes(take(&mut rest)?) {
            let id = i64::from_be_bytes(take(&mut rest)?);
            let seen = i64::from_be_bytes(take(&mut rest)?);
            let epoch = i16::from_be_bytes(take(&mut rest)?);
            let count = usize::from(u16::from_be_bytes(take(&mut rest)?));
            let mut batches = VecDeque::with_capacity(count);
            for _ in 0..count {
                batches.push_back(Remembered {
                    base_offset: i64::from_be_bytes(take(&mut rest)?),
                    append_time: i64::from_be_bytes(take(&mut rest)?),
                    first: i32::from_be_bytes(take(&mut rest)?),
                    delta: i32::from_be_bytes(take(&mut rest)?),
                    epoch,
                });
            }
            batches.back()?;
            producers.table.insert(id, Producer { batches, seen });
        }
        producers.commit(offset);
        rest.is_empty().then_some(producers)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// Whether the batch is an idempotent producer's. A transaction's marker bears a producer id, and no sequence.
fn is_numbered(header: &BatchHeader) -> bool {
    header.producer_id >= 0 && !header.is_control()
}

impl Remembered {
    fn of(header: &BatchHeader, base_offset: Offset, append_time: Option<Timestamp>) -> Self {
        Self {
            base_offset,
            append_time: append_time.unwrap_or(NO_TIME),
            first: header.base_sequence,
            delta: header.last_offset_delta,
            epoch: header.producer_epoch,
        }
    }

    /// The sequence that is due after it.
    fn next(&self) -> i32 {
        // Both are within 31 bits, and so is what is left of their sum.
        ((i64::from(self.first) + i64::from(self.delta) + 1) & i64::from(i32::MAX)) as i32
    }

    fn appended(&self) -> Appended {
        Appended {
            base_offset: self.base_offset,
            last_offset: self.base_offset + i64::from(self.delta),
            append_time: (self.append_time != NO_TIME).then_some(self.append_time),
        }
    }
}

impl Producer {
    fn expected(&self) -> i32 {
        self.batches.back().map_or(0, Remembered::next)
    }

    fn last_offset(&self) -> Offset {
        self.batches.back().map_or(-1, |batch| batch.base_offset)
    }

    /// What is remembered of a log that ends at `end`, newest first: the last batches of the last epoch.
    fn remembered(&self, end: Offset) -> impl DoubleEndedIterator<Item = &Remembered> {
        let batches = &self.batches;
        let written = batches.partition_point(|batch| batch.base_offset < end);
        let epoch = written.checked_sub(1).and_then(|last| batches.get(last)).map(|last| last.epoch);
        let known = batches.range(..written).rev().take(PRODUCER_BATCHES_REMEMBERED);
        let count = known.take_while(|batch| Some(batch.epoch) == epoch).count();
        batches.range(written - count..written).rev()
    }

    fn verdict(&self, id: i64, batch: &Remembered) -> Verdict {
        let Some(last) = self.batches.back() else { return Verdict::New };
        if batch.epoch < last.epoch {
            let (current, found) = (last.epoch, batch.epoch);
            return Verdict::Refused(SequenceError::Fenced { producer: id, current, found });
        }
        let expected = if batch.epoch > last.epoch { 0 } else { last.next() };
        if batch.first == expected {
            return Verdict::New;
        }
        let same = |known: &&Remembered| known.first == batch.first && known.delta == batch.delta;
        match self.remembered(Offset::MAX).find(same) {
            Some(known) if known.epoch == batch.epoch => Verdict::Duplicate(known.appended()),
            _ => Verdict::Refused(SequenceError::OutOfOrder { producer: id, expected, found: batch.first }),
        }
    }

    /// `end`: what was written before it is there for good, and so what it replaced can go.
    fn push(&mut self, batch: Remembered, end: Offset, now: Timestamp) {
        let batches = &mut self.batches;
        while batches.get(PRODUCER_BATCHES_REMEMBERED).is_some_and(|newer| newer.base_offset < end) {
            batches.pop_front();
        }
        if batches.front().is_some_and(|first| first.epoch != batch.epoch) {
            let current = batches.iter().rfind(|known| known.base_offset < end).map(|known| known.epoch);
            let newest = |known: &Remembered| Some(known.epoch) == current;
            let old = batches.iter().rposition(|known| known.base_offset < end && !newest(known));
            batches.drain(..old.map_or(0, |old| old + 1));
        }
        // Most producers write few batches, and a busy one needs one place more than it remembers.
        if batches.len() == batches.capacity() && batches.len() <= PRODUCER_BATCHES_REMEMBERED {
            let room = PRODUCER_BATCHES_REMEMBERED + 1 - batches.len();
            batches.reserve_exact(batches.len().clamp(2, room.max(2)));
        }
        batches.push_back(batch);
        self.seen = self.seen.max(now);
    }
}

#[cfg(test)]
mod tests;
