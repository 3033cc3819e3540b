//! One segment: a file of batches end to end, and its indexes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bus_protocol::batch::BatchHeader;
use bus_protocol::{Offset, Timestamp};
use bytes::Bytes;

use crate::Error;
use crate::checkpoint::Place;
use crate::index::{Index, IndexContents};
use crate::scan::{Scanner, Step};
use crate::storage::{File, Storage};

/// The least that is read from a file at once.
const READ_BYTES: usize = 16 << 10;
/// No record yet.
pub(crate) const NO_TIMESTAMP: Timestamp = i64::MIN;

/// See the module. The file is opened when it is first needed and stays open as long as anybody holds the
/// segment, so that a reader can finish though the file was deleted meanwhile.
pub(crate) struct Segment {
    pub(crate) base: Offset,
    pub(crate) log: PathBuf,
    file: OnceLock<Arc<dyn File>>,
    size: AtomicU64,
    max_timestamp: AtomicI64,
    first_timestamp: AtomicI64,
    index: OnceLock<Index>,
    active: bool,
}

/// The file that segment `base` has in `dir`.
pub(crate) fn log_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{base:020}.log"))
}

/// The base offset in the name of a segment's `.log` file.
pub(crate) fn base_of(name: &str) -> Option<Offset> {
    let stem = name.strip_suffix(".log")?;
    (stem.len() == 20 && stem.bytes().all(|byte| byte.is_ascii_digit())).then(|| stem.parse().ok())?
}

impl Segment {
    /// A segment that is written to, with what is indexed of it.
    pub(crate) fn active(dir: &Path, base: Offset, file: Arc<dyn File>, index: IndexContents) -> Self {
        Self {
            base,
            log: log_path(dir, base),
            file: OnceLock::from(file),
            size: AtomicU64::new(0),
            max_timestamp: AtomicI64::new(NO_TIMESTAMP),
            first_timestamp: AtomicI64::new(NO_TIMESTAMP),
            index: OnceLock::from(Index::new(index)),
            active: true,
        }
    }

    /// A segment that is complete. Nothing is read yet.
    pub(crate) fn closed(dir: &Path, base: Offset, size: u64, max_timestamp: Timestamp) -> Self {
        Self {
            base,
            log: log_path(dir, base),
            file: OnceLock::new(),
            size: AtomicU64::new(size),
            max_timestamp: AtomicI64::new(max_timestamp),
            first_timestamp: AtomicI64::new(NO_TIMESTAMP),
            index: OnceLock::new(),
            active: false,
        }
    }

    /// The same segment, complete: its index leaves the memory.
    pub(crate) fn close(&self, dir: &Path) -> Self {
        let closed = Self::closed(dir, self.base, self.size(), self.max_timestamp());
        if let Some(file) = self.file.get() {
            let _ = closed.file.set(file.clone());
        }
        closed
    }

    /// The segment of `cut`, to be written to again, as it is cut off there; its index from `index` as far as that goes.
    pub(crate) fn reopen(
        storage: &dyn Storage,
        dir: &Path,
        mut index: IndexContents,
        file: Arc<dyn File>,
        cut: Place,
        interval: u64,
    ) -> Result<Self, Error> {
        let base = cut.segment;
        let (resume, before) = index.cut(index.covered.min(cut.position));
        let segment = Self::active(dir, base, file, index);
        if let Some(before) = before {
            segment.raise_max_timestamp(before);
        }
        let (position, due) = (u64::from(resume.position), base + i64::from(resume.relative));
        let mut scanner = Scanner::new(&segment, storage, position, due, cut.position)?;
        loop {
            match scanner.step()? {
                Step::Batch(header, position) => segment.add(&header, position, interval),
                Step::Bad(why) => {
                    return Err(Error::damaged(&segment.log, scanner.position(), scanner.offset(), why));
                }
                Step::End => break,
            }
        }
        segment.set_size(cut.position);
        segment.read_first_timestamp(storage)?;
        Ok(segment)
    }

    /// Finds out the time that the segment began at.
    pub(crate) fn read_first_timestamp(&self, storage: &dyn Storage) -> Result<(), Error> {
        let mut head = [0; bus_protocol::batch::HEADER_BYTES];
        let read = self.file(storage)?.read_at(&mut head, 0);
        let read = read.map_err(|error| Error::io("read", &self.log, error))?;
        if let Ok(header) = BatchHeader::decode(&head[..read]) {
            self.set_first_timestamp(header.max_timestamp);
        }
        Ok(())
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    pub(crate) fn max_timestamp(&self) -> Timestamp {
        self.max_timestamp.load(Ordering::Acquire)
    }

    pub(crate) fn first_timestamp(&self) -> Timestamp {
        self.first_timestamp.load(Ordering::Acquire)
    }

    pub(crate) fn set_first_timestamp(&self, timestamp: Timestamp) {
        self.first_timestamp.store(timestamp, Ordering::Release);
    }

    pub(crate) fn raise_max_timestamp(&self, timestamp: Timestamp) {
        self.max_timestamp.fetch_max(timestamp, Ordering::AcqRel);
    }

    pub(crate) fn file(&self, storage: &dyn Storage) -> Result<&Arc<dyn File>, Error> {
        if self.file.get().is_none() {
            let file = storage.open(&self.log).map_err(|error| Error::io("open", &self.log, error))?;
            let _ = self.file.set(file);
        }
        self.file.get().ok_or_else(|| unreachable!("it was set above"))
    }

    /// The writer wrote the batch at `position`, the next in order. It is visible from
    /// [`Segment::set_size`] on.
    pub(crate) fn add(&self, header: &BatchHeader, position: u64, interval: u64) {
        let before = self.max_timestamp();
        if position == 0 {
            self.set_first_timestamp(header.max_timestamp);
        }
        if let Some(index) = self.index.get() {
            index.add(self.base, header, position, before, interval);
        }
        self.raise_max_timestamp(header.max_timestamp);
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Writes the indexes to their files, as far as the batches before `covered` go.
    pub(crate) fn write_index(&self, storage: &dyn Storage, covered: u64) {
        let Some(index) = self.index.get().filter(|_| self.active) else { return };
        if let Err(error) = index.contents(covered).write(storage, &self.log) {
            tracing::warn!(file = %self.log.display(), %error, "cannot write the index: it will be rebuilt");
        }
    }

    /// The index: a closed segment's is read, or rebuilt, at its first use.
    fn index(&self, storage: &dyn Storage, interval: u64) -> Result<&Index, Error> {
        if self.index.get().is_none() {
            let stored = IndexContents::read(storage, &self.log).filter(|index| index.covered == self.size());
            let mut contents = match stored {
                Some(contents) => contents,
                None => self.rebuild(storage, interval)?,
            };
            contents.thin();
            let _ = self.index.set(Index::new(contents));
        }
        self.index.get().ok_or_else(|| unreachable!("it was set above"))
    }

    fn rebuild(&self, storage: &dyn Storage, interval: u64) -> Result<IndexContents, Error> {
        tracing::info!(file = %self.log.display(), "rebuilding the index of a segment");
        let index = Index::new(IndexContents::default());
        let mut scanner = Scanner::new(self, storage, 0, self.base, self.size())?;
        let mut before = NO_TIMESTAMP;
        loop {
            match scanner.step()? {
                Step::Batch(header, position) => {
                    index.add(self.base, &header, position, before, interval);
                    before = before.max(header.max_timestamp);
                }
                Step::Bad(why) => {
                    return Err(Error::damaged(&self.log, scanner.position(), scanner.offset(), why));
                }
                Step::End => break,
            }
        }
        let contents = index.contents(self.size());
        if let Err(error) = contents.write(storage, &self.log) {
            tracing::warn!(file = %self.log.display(), %error, "cannot write the index");
        }
        Ok(contents)
    }

    /// Where to start looking for the first record at `timestamp` or later.
    pub(crate) fn position_at(
        &self,
        storage: &dyn Storage,
        interval: u64,
        timestamp: Timestamp,
    ) -> Result<u64, Error> {
        Ok(self.index(storage, interval)?.position_at(timestamp))
    }

    /// Where to start looking for the batch that holds `offset`: a position, and the base offset of the batch that is
    /// due there.
    pub(crate) fn position_of(
        &self,
        storage: &dyn Storage,
        interval: u64,
        offset: Offset,
    ) -> Result<(u64, Offset), Error> {
        let entry = self.index(storage, interval)?.entry_of(offset.saturating_sub(self.base));
        Ok((u64::from(entry.position), self.base + i64::from(entry.relative)))
    }

    /// The base offset of the batch that begins at `position`, where an index says that one does.
    pub(crate) fn offset_at(&self, storage: &dyn Storage, position: u64) -> Result<Offset, Error> {
        if position == 0 {
            return Ok(self.base);
        }
        let length = bus_protocol::batch::HEADER_BYTES;
        let header = BatchHeader::decode(&self.read_bytes(storage, position, length)?);
        let header =
            header.map_err(|error| Error::damaged(&self.log, position, self.base, error.to_string()))?;
        Ok(header.base_offset)
    }

    /// Reads whole batches from the one that holds `from` on: at least one, else no more than `max_bytes`; none
    /// that reaches `below`. Their CRCs are checked. Gives them and the offset after them; `None` if the first reaches
    /// `below`. The segment holds `from`.
    pub(crate) fn read(
        &self,
        storage: &dyn Storage,
        interval: u64,
        from: Offset,
        max_bytes: usize,
        below: Offset,
    ) -> Result<Option<(Bytes, Offset)>, Error> {
        let size = self.size();
        let (mut position, mut due) = self.position_of(storage, interval, from)?;
        let mut wanted = max_bytes.max(READ_BYTES);
        while position < size {
            let length = (size - position).min(wanted as u64) as usize;
            let bytes = self.read_bytes(storage, position, length)?;
            let (found, next_wanted) = self.pick(&bytes, (position, due), from, max_bytes, below, size)?;
            match found {
                Picked::Some { start, end, next_offset } => {
                    let read = bytes.slice(start..end);
                    // A few bytes must not hold a large buffer.
                    let read = if read.len() < length / 4 { Bytes::copy_from_slice(&read) } else { read };
                    return Ok(Some((read, next_offset)));
                }
                Picked::NoneBelow => return Ok(None),
                Picked::Skipped(skipped, next) => (position, due) = (position + skipped as u64, next),
            }
            wanted = wanted.max(next_wanted);
        }
        Err(Error::damaged(&self.log, size, due, format!("the segment ends before offset {from}")))
    }

    fn read_bytes(&self, storage: &dyn Storage, position: u64, length: usize) -> Result<Bytes, Error> {
        let file = self.file(storage)?;
        let bytes = file.read(position, length).map_err(|error| Error::io("read", &self.log, error))?;
        if bytes.len() < length {
            let why = format!("the file ends {} bytes early", length - bytes.len());
            return Err(Error::damaged(&self.log, position + bytes.len() as u64, self.base, why));
        }
        Ok(bytes)
    }

    /// Which batches of `bytes` (from a position of the file, where the batch of an offset is due) a read hands out, and
    /// how much must be read at once to see the next.
    fn pick(
        &self,
        bytes: &[u8],
        (position, mut due): (u64, Offset),
        from: Offset,
        max_bytes: usize,
        below: Offset,
        size: u64,
    ) -> Result<(Picked, usize), Error> {
        let damaged =
            |at: usize, due: Offset, why: String| Error::damaged(&self.log, position + at as u64, due, why);
        let (mut at, mut picked, mut wanted) = (0, None, 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            if rest.len() < bus_protocol::batch::HEADER_BYTES && position + (bytes.len() as u64) < size {
                break;
            }
            let header = BatchHeader::decode(rest).map_err(|error| damaged(at, due, error.to_string()))?;
            // The offset lies outside the CRC.
            if header.base_offset != due {
                return Err(damaged(at, due, format!("offset {} is where it should be", header.base_offset)));
            }
            if position + (at + header.size()) as u64 > size {
                return Err(damaged(at, due, "the batch is longer than the rest of the segment".to_owned()));
            }
            if header.next_offset() <= from {
                at += header.size();
                due = header.next_offset();
                continue;
            }
            let taken = picked.map_or(0, |start: usize| at - start);
            if picked.is_some() && (header.last_offset() >= below || taken + header.size() > max_bytes) {
                break;
            }
            if rest.len() < header.size() {
                wanted = header.size();
                break;
            }
            BatchHeader::check(rest).map_err(|error| damaged(at, due, error.to_string()))?;
            // Only a batch that was checked can say so.
            if header.last_offset() >= below {
                return Ok((Picked::NoneBelow, 0));
            }
            picked.get_or_insert(at);
            due = header.next_offset();
            at += header.size();
        }
        let found = match picked {
            Some(start) => Picked::Some { start, end: at, next_offset: due },
            // A batch that is passed over may be longer than what was read: the next read begins behind it.
            None => Picked::Skipped(at, due),
        };
        Ok((found, wanted))
    }
}

enum Picked {
    Some {
        start: usize,
        end: usize,
        next_offset: Offset,
    },
    /// How many bytes, and the offset that is due behind them.
    Skipped(usize, Offset),
    NoneBelow,
}
