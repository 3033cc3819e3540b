//! Reading a log: beside its writer, without a lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bus_protocol::batch::{BatchHeader, RecordBatch};
use bus_protocol::{Offset, Timestamp};
use bytes::Bytes;

use crate::Error;
use crate::scan::{Scanner, Step};
use crate::segment::Segment;
use crate::shared::{Shared, View};
use crate::tail::groups_from;

/// How often a read that a truncation crossed is begun anew.
const ATTEMPTS: usize = 8;

/// What a read gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Whole batches end to end: each chunk one or more. The first may begin before the offset asked for.
    pub chunks: Vec<Bytes>,
    /// Where to read on.
    pub next_offset: Offset,
}

impl Read {
    /// Bytes in all chunks.
    pub fn size(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }
}

/// What the hot tail answers: the batches from `from` on, or that there is nothing to read; `None` where it does
/// not reach back that far.
fn hot(
    view: &View,
    end: Offset,
    from: Offset,
    max_bytes: usize,
    below: Offset,
) -> Result<Option<Read>, Error> {
    if from < view.start || from > end {
        return Err(Error::OffsetOutOfRange { offset: from, start: view.start, end });
    }
    let below = below.min(end);
    let mut read = Read { chunks: Vec::new(), next_offset: from };
    if from >= below {
        return Ok(Some(read));
    }
    let Some(groups) = groups_from(&view.tail, from) else { return Ok(None) };
    take_groups(&mut read, groups, max_bytes, below);
    Ok(Some(read))
}

/// Reads one log. Cheap to clone; never waits for the writer and never sees half a batch.
#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The first offset.
    pub fn log_start(&self) -> Offset {
        self.shared.view.load().start
    }

    /// The log end offset: the next one to be written. (How far a reader may look is the caller's to say: the high
    /// watermark, or the last stable offset.)
    pub fn log_end(&self) -> Offset {
        self.shared.end.load(Ordering::Acquire)
    }

    /// The offset below which all is durable.
    pub fn stored(&self) -> Offset {
        self.shared.stored.load(Ordering::Acquire)
    }

    /// Bytes of all segments.
    pub fn size(&self) -> u64 {
        self.shared.view.load().segments.iter().map(|segment| segment.size()).sum()
    }

    /// Reads whole batches, from the one that holds `from` on: at least one if there is one, else no more than
    /// `max_bytes` of them, and none that reaches `below`. Nothing, with `next_offset` as it was asked, at the
    /// end. [`Error::OffsetOutOfRange`] below the start and above the end.
    ///
    /// What is in the hot tail comes from memory, uncopied, as its CRC was checked on its way in. What comes from
    /// the disk is checked here: damaged bytes are [`Error::Damaged`], never served. Blocks on the disk then.
    pub fn read(&self, from: Offset, max_bytes: usize, below: Offset) -> Result<Read, Error> {
        self.steadily(|view, end| self.try_read(view, end, from, max_bytes, below))
    }

    /// Like [`LogReader::read`], but from memory alone: `None` where the disk would be needed. Never blocks.
    pub fn read_hot(&self, from: Offset, max_bytes: usize, below: Offset) -> Result<Option<Read>, Error> {
        self.steadily(|view, end| hot(view, end, from, max_bytes, below))
    }

    /// Does `work` on a view of the log that no truncation crossed.
    fn steadily<T>(&self, work: impl Fn(&View, Offset) -> Result<T, Error>) -> Result<T, Error> {
        let mut result = Err(Error::Deleted(self.shared.dir.clone()));
        for _ in 0..ATTEMPTS {
            let before = self.shared.truncations.load(Ordering::Acquire);
            // The end first: the view that is loaded after it holds what is below it.
            let end = self.shared.end.load(Ordering::Acquire);
            let view = self.shared.view.load_full();
            result = work(&view, end);
            if self.shared.truncations.load(Ordering::Acquire) == before {
                break;
            }
        }
        match result {
            Err(_) if self.shared.deleted.load(Ordering::Acquire) => {
                Err(Error::Deleted(self.shared.dir.clone()))
            }
            result => result,
        }
    }

    fn try_read(
        &self,
        view: &View,
        end: Offset,
        from: Offset,
        max_bytes: usize,
        below: Offset,
    ) -> Result<Read, Error> {
        if let Some(read) = hot(view, end, from, max_bytes, below)? {
            return Ok(read);
        }
        let below = below.min(end);
        let mut read = Read { chunks: Vec::new(), next_offset: from };
        let storage = self.shared.env.storage.as_ref();
        let interval = u64::from(self.shared.env.options.index_interval_bytes);
        let holder = view.segments.partition_point(|segment| segment.base <= from).checked_sub(1);
        if let Some(segment) = holder.and_then(|holder| view.segments.get(holder))
            && let Some((bytes, next)) = segment.read(storage, interval, from, max_bytes, below)?
        {
            read.chunks.push(bytes);
            read.next_offset = next;
        }
        Ok(read)
    }

    /// The first record at or after `timestamp` that is below `below`: its offset and timestamp, exactly, by the
    /// records of the batch that holds it. `None` if there is none.
    pub fn offset_for_timestamp(
        &self,
        timestamp: Timestamp,
        below: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, Error> {
        self.steadily(|view, end| self.find_timestamp(view, timestamp, below.min(end)))
    }

    fn find_timestamp(
        &self,
        view: &View,
        timestamp: Timestamp,
        below: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, Error> {
        for segment in view.segments.iter().filter(|segment| segment.max_timestamp() >= timestamp) {
            if segment.base >= below {
                break;
            }
            let found = self.find_in(segment, timestamp, view.start, below)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn find_in(
        &self,
        segment: &Segment,
        timestamp: Timestamp,
        start: Offset,
        below: Offset,
    ) -> Result<Option<(Offset, Timestamp)>, Error> {
        let storage = self.shared.env.storage.as_ref();
        let interval = u64::from(self.shared.env.options.index_interval_bytes);
        let position = segment.position_at(storage, interval, timestamp)?;
        let due = segment.offset_at(storage, position)?;
        let mut scanner = Scanner::new(segment, storage, position, due, segment.size())?;
        loop {
            let header = match scanner.step()? {
                Step::Batch(header, _) => header,
                Step::End => return Ok(None),
                Step::Bad(why) => {
                    return Err(Error::damaged(&segment.log, scanner.position(), scanner.offset(), why));
                }
            };
            if header.base_offset >= below {
                return Ok(None);
            }
            if header.max_timestamp < timestamp || header.next_offset() <= start {
                continue;
            }
            let batch = RecordBatch::parse(Bytes::copy_from_slice(scanner.batch()))?;
            for record in batch.records()? {
                let record = record?;
                if record.timestamp >= timestamp && record.offset >= start {
                    return Ok((record.offset < below).then_some((record.offset, record.timestamp)));
                }
            }
        }
    }
}

/// Takes from the tail's groups what a read hands out.
fn take_groups<'a>(
    read: &mut Read,
    groups: impl Iterator<Item = &'a Bytes>,
    max_bytes: usize,
    below: Offset,
) {
    let mut taken = 0;
    for group in groups {
        let (mut start, mut at) = (None, 0);
        let mut full = false;
        while at < group.len() {
            // What is in the tail was checked on its way in.
            let Ok(header) = BatchHeader::decode(&group[at..]) else { break };
            if header.next_offset() <= read.next_offset {
                at += header.size();
                continue;
            }
            if header.last_offset() >= below || (taken > 0 && taken + header.size() > max_bytes) {
                full = true;
                break;
            }
            start.get_or_insert(at);
            taken += header.size();
            at += header.size();
            read.next_offset = header.next_offset();
        }
        if let Some(start) = start {
            read.chunks.push(group.slice(start..at));
        }
        if full || taken >= max_bytes {
            break;
        }
    }
}
