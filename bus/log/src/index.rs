//! Where in a segment an offset or a time is to be looked for: sparse, rebuilt from the segment at need, and
//! never trusted beyond its CRC.
//!
//! ```text
//!   .index      "BIX1" | count u32 | covered u64 | crc u32 | (relative offset u32, position u32) ...
//!   .timeindex  "BTX1" | count u32 | covered u64 | crc u32 | (timestamp i64, position u32) ...
//! ```
//!
//! An offset entry says: at `position` begins the batch whose base offset is the segment's plus `relative`. A
//! time entry says: no record before `position` is later than `timestamp`. `covered`: batches before that
//! position are indexed.
//!
//! The active segment's indexes live in memory and are written when it is closed and with each checkpoint; a
//! closed segment's are read when they are first needed, and thinned to an entry each 64 KiB (128 KiB of memory
//! for 1 GiB of segment).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bus_protocol::batch::BatchHeader;
use bus_protocol::{Offset, Timestamp};

use crate::append_only::AppendOnly;
use crate::storage::{Storage, read_file};

const OFFSET_MAGIC: &[u8; 4] = b"BIX1";
const TIME_MAGIC: &[u8; 4] = b"BTX1";
const HEAD: usize = 20;
/// More than the index of a 2 GiB segment at the smallest interval.
const INDEX_BYTES: u64 = 256 << 20;
const THIN_BYTES: u32 = 64 << 10;
/// Nothing was indexed yet.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OffsetEntry {
    pub(crate) relative: u32,
    pub(crate) position: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimeEntry {
    pub(crate) timestamp: Timestamp,
    pub(crate) position: u32,
}

/// Both indexes of a segment.
pub(crate) struct Index {
    offsets: AppendOnly<OffsetEntry>,
    times: AppendOnly<TimeEntry>,
    last_position: AtomicU64,
}

/// What index files held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexContents {
    pub(crate) offsets: Vec<OffsetEntry>,
    pub(crate) times: Vec<TimeEntry>,
    pub(crate) covered: u64,
}

impl Index {
    pub(crate) fn new(contents: IndexContents) -> Self {
        Self {
            offsets: AppendOnly::new(contents.offsets),
            times: AppendOnly::new(contents.times),
            last_position: AtomicU64::new(NEVER),
        }
    }

    /// Takes note of the batch at `position`, the next in order; `before` is the latest timestamp before it.
    pub(crate) fn add(
        &self,
        segment: Offset,
        header: &BatchHeader,
        position: u64,
        before: Timestamp,
        interval: u64,
    ) {
        let last = self.last_position.load(Ordering::Relaxed);
        if last != NEVER && position - last < interval {
            return;
        }
        self.last_position.store(position, Ordering::Relaxed);
        let Ok(position) = u32::try_from(position) else { return };
        let Ok(relative) = u32::try_from(header.base_offset - segment) else { return };
        self.offsets.push(OffsetEntry { relative, position });
        if position > 0 && self.times.last().is_none_or(|last| before > last.timestamp) {
            self.times.push(TimeEntry { timestamp: before, position });
        }
    }

    /// Where to start looking for the batch that holds offset `relative` to the segment's base: a batch that begins
    /// there.
    pub(crate) fn entry_of(&self, relative: i64) -> OffsetEntry {
        let entry = self.offsets.snapshot().last_where(|entry| i64::from(entry.relative) <= relative);
        entry.unwrap_or(OffsetEntry { relative: 0, position: 0 })
    }

    /// Where to start looking for the first record at `timestamp` or later.
    pub(crate) fn position_at(&self, timestamp: Timestamp) -> u64 {
        let entry = self.times.snapshot().last_where(|entry| entry.timestamp < timestamp);
        entry.map_or(0, |entry| u64::from(entry.position))
    }

    pub(crate) fn contents(&self, covered: u64) -> IndexContents {
        let before = |position: u32| u64::from(position) < covered;
        IndexContents {
            offsets: self.offsets.snapshot().iter().filter(|entry| before(entry.position)).collect(),
            times: self.times.snapshot().iter().filter(|entry| before(entry.position)).collect(),
            covered,
        }
    }
}

impl IndexContents {
    /// Reads both files of a segment; `None` if one is missing or not whole.
    pub(crate) fn read(storage: &dyn Storage, log: &Path) -> Option<Self> {
        let read = |extension: &str| read_file(storage, &log.with_extension(extension), INDEX_BYTES).ok();
        Self::decode(&read("index")?, &read("timeindex")?)
    }

    /// Writes both files of a segment. Not synced: a torn one is rebuilt.
    pub(crate) fn write(&self, storage: &dyn Storage, log: &Path) -> std::io::Result<()> {
        let (offsets, times) = self.encode();
        storage.create(&log.with_extension("index"))?.write_at(&[&offsets], 0)?;
        storage.create(&log.with_extension("timeindex"))?.write_at(&[&times], 0)
    }

    /// Removes both files of a segment, if they are there.
    pub(crate) fn remove(storage: &dyn Storage, log: &Path) {
        for extension in ["index", "timeindex"] {
            let _ = storage.remove_file(&log.with_extension(extension));
        }
    }

    fn encode(&self) -> (Vec<u8>, Vec<u8>) {
        let mut offsets = Vec::with_capacity(HEAD + self.offsets.len() * 8);
        offsets.resize(HEAD, 0);
        for entry in &self.offsets {
            offsets.extend_from_slice(&entry.relative.to_be_bytes());
            offsets.extend_from_slice(&entry.position.to_be_bytes());
        }
        let mut times = Vec::with_capacity(HEAD + self.times.len() * 12);
        times.resize(HEAD, 0);
        for entry in &self.times {
            times.extend_from_slice(&entry.timestamp.to_be_bytes());
            times.extend_from_slice(&entry.position.to_be_bytes());
        }
        seal(&mut offsets, OFFSET_MAGIC, self.offsets.len(), self.covered);
        seal(&mut times, TIME_MAGIC, self.times.len(), self.covered);
        (offsets, times)
    }

    /// Both files' bytes, or `None` when they are not two whole indexes of the same state.
    pub(crate) fn decode(offsets: &[u8], times: &[u8]) -> Option<Self> {
        let (covered, offsets) = open(offsets, OFFSET_MAGIC, 8)?;
        let (times_covered, times) = open(times, TIME_MAGIC, 12)?;
        let (offsets, _) = offsets.as_chunks::<8>();
        let (times, _) = times.as_chunks::<12>();
        let contents = Self {
            offsets: offsets
                .iter()
                .map(|[a, b, c, d, e, f, g, h]| OffsetEntry {
                    relative: u32::from_be_bytes([*a, *b, *c, *d]),
                    position: u32::from_be_bytes([*e, *f, *g, *h]),
                })
                .collect(),
            times: times
                .iter()
                .map(|[a, b, c, d, e, f, g, h, i, j, k, l]| TimeEntry {
                    timestamp: i64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
                    position: u32::from_be_bytes([*i, *j, *k, *l]),
                })
                .collect(),
            covered,
        };
        let rise = contents.offsets.is_sorted_by(|a, b| a.relative < b.relative && a.position < b.position)
            && contents.times.is_sorted_by(|a, b| a.timestamp < b.timestamp && a.position < b.position);
        let within = contents.offsets.last().is_none_or(|last| u64::from(last.position) < covered);
        (covered == times_covered && rise && within).then_some(contents)
    }

    /// Keeps what is before `limit`, less the last offset entry; gives that one's relative offset and position, from
    /// which a scan goes on, and the latest timestamp before it.
    pub(crate) fn cut(&mut self, limit: u64) -> (OffsetEntry, Option<Timestamp>) {
        self.offsets.retain(|entry| u64::from(entry.position) < limit);
        let resume = self.offsets.pop().unwrap_or(OffsetEntry { relative: 0, position: 0 });
        let before = self.times.iter().rev().find(|entry| entry.position <= resume.position);
        let before = before.map(|entry| entry.timestamp);
        self.times.retain(|entry| entry.position < resume.position);
        (resume, before)
    }

    /// Fewer offset entries: one each 64 KiB.
    pub(crate) fn thin(&mut self) {
        let mut next = 0;
        self.offsets.retain(|entry| {
            let keep = entry.position >= next;
            if keep {
                next = entry.position.saturating_add(THIN_BYTES);
            }
            keep
        });
        let mut next = 0;
        // An entry that goes makes a lookup start earlier, which is right too.
        self.times.retain(|entry| {
            let keep = entry.position >= next;
            if keep {
                next = entry.position.saturating_add(THIN_BYTES);
            }
            keep
        });
    }
}

fn seal(bytes: &mut [u8], magic: &[u8; 4], count: usize, covered: u64) {
    bytes[..4].copy_from_slice(magic);
    bytes[4..8].copy_from_slice(&(count as u32).to_be_bytes());
    bytes[8..16].copy_from_slice(&covered.to_be_bytes());
    let crc = crate::crc::of(&[&bytes[..16], &bytes[HEAD..]]);
    bytes[16..HEAD].copy_from_slice(&crc.to_be_bytes());
}

fn open<'a>(bytes: &'a [u8], magic: &[u8; 4], entry: usize) -> Option<(u64, &'a [u8])> {
    let (head, entries) = bytes.split_first_chunk::<HEAD>()?;
    let (fields, crc) = head.split_last_chunk::<4>()?;
    let [m0, m1, m2, m3, c0, c1, c2, c3, covered @ ..] = fields else { return None };
    let count = u32::from_be_bytes([*c0, *c1, *c2, *c3]) as usize;
    let whole = [*m0, *m1, *m2, *m3] == *magic
        && entries.len() == count.checked_mul(entry)?
        && u32::from_be_bytes(*crc) == crate::crc::of(&[fields, entries]);
    whole.then_some((u64::from_be_bytes(covered.try_into().ok()?), entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> IndexContents {
        IndexContents {
            offsets: (0..50).map(|n| OffsetEntry { relative: n * 10, position: n * 4_096 }).collect(),
            times: (1..50)
                .map(|n| TimeEntry { timestamp: i64::from(n) * 1_000, position: n * 4_096 })
                .collect(),
            covered: 50 * 4_096,
        }
    }

    #[test]
    fn round_trips_and_refuses_every_flipped_byte() {
        let (offsets, times) = contents().encode();
        assert_eq!(IndexContents::decode(&offsets, &times), Some(contents()));
        for at in 0..offsets.len() {
            let mut bytes = offsets.clone();
            bytes[at] ^= 0x40;
            assert_eq!(IndexContents::decode(&bytes, &times), None);
            assert_eq!(IndexContents::decode(&offsets[..at], &times), None);
        }
        for at in 0..times.len() {
            let mut bytes = times.clone();
            bytes[at] ^= 1;
            assert_eq!(IndexContents::decode(&offsets, &bytes), None);
        }
    }

    #[test]
    fn finds_where_to_look() {
        let index = Index::new(contents());
        assert_eq!(index.entry_of(-1).position, 0);
        assert_eq!(index.entry_of(105), OffsetEntry { relative: 100, position: 10 * 4_096 });
        assert_eq!(index.entry_of(10_000).position, 49 * 4_096);
        assert_eq!(index.position_at(0), 0);
        assert_eq!(index.position_at(2_000), 4_096);
        assert_eq!(index.position_at(2_001), 2 * 4_096);
        let mut thin = contents();
        thin.thin();
        assert_eq!(thin.offsets.len(), 4);
        assert_eq!(Index::new(thin).entry_of(200).position, 16 * 4_096);
        let mut cut = contents();
        assert_eq!(cut.cut(9_000), (OffsetEntry { relative: 20, position: 8_192 }, Some(2_000)));
        assert_eq!((cut.offsets.len(), cut.times.len()), (2, 1));
    }
}
