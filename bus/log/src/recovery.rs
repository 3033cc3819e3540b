//! Opening a log: what its files hold is found out, checked from the last checkpoint on, and a torn tail is cut.
//!
//! **What is a torn tail, and what is damage?** A closed segment is synced before its successor is created, so in
//! a file that has a successor anything wrong is damage. In the last file, the first place that is not the batch
//! that is due is judged by what is behind it and by the mark of what was stored (see `checkpoint.rs`):
//!
//! - A valid batch of a later offset follows: damage, as writes go to the end of the file, and what is before a
//!   batch was written before it. But a power cut may keep a later page of what was being synced and not an
//!   earlier one, which then reads as zeros: where a whole page (4 KiB) of zeros lies between, or the rest of the page that
//!   was durable so far is zeros, above the mark, it is such a hole, and torn.
//! - Nothing valid follows: torn, if it is above the mark; it was never acknowledged under `fsync`.
//! - Nothing valid follows, and it is below the mark: the bytes are there and wrong: damage. They are missing
//!   (the file ends within the batch, or before it, or with zeros): the disk lost the end of the file. That is cut as well, so
//!   that the log can be used, with an error in the log and [`Recovery::lost_stored`] set: a replica must
//!   not count as in sync with it.
//!
//! Damage is an error and changes nothing on the disk.
//!
//! What is right but above the mark may look durable without being so, after a sync that failed: it is written again
//! (`rewrite.rs`), and synced when the log is opened. What is below the mark is not; after `kill -9` that is all
//! but what was on its way.
//!
//! The producers' table comes from the snapshot that was written with the checkpoint, and from the batches that are
//! checked; if there is no such snapshot, `replay.rs` makes it up from what there is.

use std::path::Path;
use std::sync::Arc;

use bus_protocol::batch::{BatchHeader, HEADER_BYTES};
use bus_protocol::{Epoch, Offset};

use crate::checkpoint::{Checkpoint, Closed, Place};
use crate::epochs::Epochs;
use crate::index::IndexContents;
use crate::producers::Producers;
use crate::replay::restore;
use crate::rewrite::Rewrite;
use crate::scan::{Scanner, Step};
use crate::segment::{Segment, base_of, log_path};
use crate::snapshot::Snapshots;
use crate::storage::{File, Storage};
use crate::{Env, Error};

const PAGE: usize = 4096;
/// So many zeros are no beginning of a batch: its length, which is not zero, stands within them.
const ZERO_BYTES: usize = 12;
/// A file that ends with so many zeros was not written to its end. (A record without headers ends with one.)
const ZEROS: usize = 8;
const SEARCH_CHUNK: usize = 4 << 20;
/// Bytes whose CRC is tried in the search for a valid batch: an attacker's payload of fake headers ends it.
const SEARCH_BYTES: u64 = 1 << 30;

/// What opening a log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Bytes of batches that were read and checked.
    pub checked_bytes: u64,
    /// Bytes cut off the end of the last file, as they were no whole batch.
    pub cut_bytes: u64,
    /// Bytes of batches that were not known to be durable, and were written again before they were synced, so that the
    /// sync's answer is true even after one that failed.
    pub rewritten_bytes: u64,
    /// The end of what had been stored for certain, if the log ends before it now: this replica has lost what it
    /// said it had.
    pub lost_stored: Option<Offset>,
}

/// A log's state from its files.
pub(crate) struct Recovered {
    pub(crate) segments: Vec<Arc<Segment>>,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) snapshots: Snapshots,
    pub(crate) producers: Producers,
    pub(crate) end: Offset,
    pub(crate) report: Recovery,
    /// Whether there is more than is known to be durable.
    pub(crate) unsynced: bool,
    /// Whether a new checkpoint is worth its syncs.
    pub(crate) save: bool,
    /// Whether the active segment's entry in the folder is known to be durable.
    pub(crate) entry_known: bool,
}

struct Walk<'a> {
    env: &'a Env,
    dir: &'a Path,
    /// The log's start.
    start: Offset,
    from: Place,
    mark: Option<Place>,
    epochs: Epochs,
    /// Where the table is known at `from`: the scan goes on with it.
    producers: Option<Producers>,
    report: Recovery,
}

pub(crate) fn recover(env: &Env, dir: &Path) -> Result<Recovered, Error> {
    let storage = env.storage.as_ref();
    let names = list_or_create(storage, dir)?;
    let mut bases: Vec<Offset> = names.iter().filter_map(|name| base_of(name)).collect();
    bases.sort_unstable();
    let mut checkpoint = Checkpoint::read(storage, dir).unwrap_or_else(|| {
        let first = bases.first().copied().unwrap_or(0);
        let recovery = Place { offset: first, segment: first, position: 0 };
        Checkpoint { start: first, recovery, ..Checkpoint::default() }
    });
    drop_leftovers(storage, dir, &checkpoint, &mut bases);
    let mut segments = closed_segments(storage, dir, &checkpoint, &mut bases)?;
    let mark = Place::read(storage, dir);
    let from = checkpoint.recovery;
    let mut epochs = Epochs::new(std::mem::take(&mut checkpoint.epochs));
    epochs.cut(from.offset);
    let mut snapshots = Snapshots::find(&names);
    let limit = env.options.producers_per_partition;
    let nothing_before = from.position == 0 && checkpoint.closed.is_empty() && snapshots.is_empty();
    let producers = match nothing_before {
        true => Some(Producers::new(from.offset, limit)),
        false => snapshots.read(storage, dir, from.offset, limit),
    };
    let (start, report) = (checkpoint.start, Recovery::default());
    let mut walk = Walk { env, dir, start, from, mark, epochs, producers, report };
    let end = walk.all(&bases, &mut segments, &mut checkpoint)?;
    walk.epochs.cut(end);
    let lost = walk.mark.map(|mark| mark.offset).into_iter().chain([from.offset]).max();
    // While a reset is under way the mark may be where the log is to begin.
    if let Some(stored) = lost.filter(|stored| *stored > end && checkpoint.reset.is_none()) {
        tracing::error!(dir = %dir.display(), stored, end, "the disk lost records that had been stored");
        walk.report.lost_stored = Some(stored);
    }
    // Those above the end are of batches that are gone, and must not be found when others have taken their place.
    if snapshots.remove_above(storage, dir, end)? {
        storage.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
    }
    let (producers, scanned) = match walk.producers.filter(|_| end >= from.offset) {
        Some(producers) => (producers, false),
        None => {
            let producers = restore(env, dir, &mut snapshots, &segments, end)?;
            (producers, snapshots.is_empty() && !segments.is_empty())
        }
    };
    let place = segments.last().filter(|last| last.is_active()).map_or(
        Place { offset: end, segment: end, position: 0 },
        |last| Place { offset: end, segment: last.base, position: last.size() },
    );
    let report = walk.report;
    // After `kill -9` the mark is exact: what it covers is not synced again, so that thousands of logs open at once.
    let unsynced =
        report.cut_bytes > 0 || report.rewritten_bytes > 0 || lost.is_none_or(|stored| stored != end);
    let save = report.cut_bytes > 0
        || report.lost_stored.is_some()
        || segments.iter().any(|segment| segment.base >= from.segment && !segment.is_active())
        || report.checked_bytes >= env.options.checkpoint_bytes / 8
        || scanned;
    let known = |known: Place| known.segment == place.segment && known.position > 0;
    let entry_known = walk.mark.is_some_and(known) || known(from);
    checkpoint.recovery = place;
    checkpoint.epochs = walk.epochs.all().to_vec();
    checkpoint.start = checkpoint.start.min(end);
    Ok(Recovered { segments, checkpoint, snapshots, producers, end, report, unsynced, save, entry_known })
}

/// The names in the log's folder, which is there then.
fn list_or_create(storage: &dyn Storage, dir: &Path) -> Result<Vec<String>, Error> {
    match storage.list(dir) {
        Ok(names) => Ok(names),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            storage.create_dir(dir).map_err(|error| Error::io("create", dir, error))?;
            Ok(Vec::new())
        }
        Err(error) => Err(Error::io("list", dir, error)),
    }
}

/// Files of segments before the first one that counts: a deletion that was not finished.
fn drop_leftovers(storage: &dyn Storage, dir: &Path, checkpoint: &Checkpoint, bases: &mut Vec<Offset>) {
    let first = checkpoint.closed.first().map_or(checkpoint.recovery.segment, |closed| closed.base_offset);
    bases.retain(|base| {
        if *base < first {
            drop_segment(storage, &log_path(dir, *base));
        }
        *base >= first
    });
}

/// Removes a segment's files; one that is not there is fine.
pub(crate) fn remove_segment(storage: &dyn Storage, log: &Path) -> Result<(), Error> {
    for extension in ["index", "timeindex", "log"] {
        let path = log.with_extension(extension);
        match storage.remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the files of a segment that is before the first one that counts: what will not go is tried again at the
/// next start.
pub(crate) fn drop_segment(storage: &dyn Storage, log: &Path) {
    if let Err(error) = remove_segment(storage, log) {
        tracing::warn!(%error, "a deleted segment is still there");
    }
}

/// The closed segments that the checkpoint knows: there, and as long as they were. They leave `bases`.
fn closed_segments(
    storage: &dyn Storage,
    dir: &Path,
    checkpoint: &Checkpoint,
    bases: &mut Vec<Offset>,
) -> Result<Vec<Arc<Segment>>, Error> {
    let mut segments = Vec::new();
    for closed in &checkpoint.closed {
        let segment = Segment::closed(dir, closed.base_offset, closed.size, closed.max_timestamp);
        if !bases.contains(&closed.base_offset) {
            return Err(Error::damaged(&segment.log, 0, closed.base_offset, "the segment is missing"));
        }
        let length = length_of(storage, &segment.log)?;
        if length != closed.size {
            let why = format!("the closed segment has {length} bytes and had {}", closed.size);
            return Err(Error::damaged(&segment.log, length.min(closed.size), closed.base_offset, why));
        }
        segments.push(Arc::new(segment));
    }
    bases.retain(|base| *base >= checkpoint.recovery.segment);
    Ok(segments)
}

fn length_of(storage: &dyn Storage, path: &Path) -> Result<u64, Error> {
    let length = storage.open(path).and_then(|file| file.length());
    length.map_err(|error| Error::io("open", path, error))
}

impl Walk<'_> {
    /// Checks the segments `bases` from the checkpoint on, and adds them to those before; gives the log's end.
    fn all(
        &mut self,
        bases: &[Offset],
        segments: &mut Vec<Arc<Segment>>,
        checkpoint: &mut Checkpoint,
    ) -> Result<Offset, Error> {
        let (from, mut due) = (self.from, self.from.offset);
        if bases.first().is_some_and(|first| *first != from.segment)
            || (bases.is_empty() && from.position > 0)
        {
            let why = "the segment is missing";
            return Err(Error::damaged(&log_path(self.dir, from.segment), 0, from.offset, why));
        }
        for (n, &base) in bases.iter().enumerate() {
            if n > 0 && base != due {
                let why = format!("the segment ends at offset {due}, and the next one begins at {base}");
                let before = &segments[segments.len() - 1];
                return Err(Error::damaged(&before.log, before.size(), due, why));
            }
            let last = n + 1 == bases.len();
            let (segment, end) = self.segment(base, last)?;
            due = end;
            if last {
                segments.push(Arc::new(segment));
            } else {
                segment.write_index(self.env.storage.as_ref(), segment.size());
                let (size, max_timestamp) = (segment.size(), segment.max_timestamp());
                checkpoint.closed.push(Closed { base_offset: base, size, max_timestamp });
                segments.push(Arc::new(segment.close(self.dir)));
            }
        }
        Ok(due)
    }

    /// Checks segment `base` from the checkpoint on; gives it and the offset after it.
    fn segment(&mut self, base: Offset, last: bool) -> Result<(Segment, Offset), Error> {
        let storage = self.env.storage.as_ref();
        let path = log_path(self.dir, base);
        let file = storage.open(&path).map_err(|error| Error::io("open", &path, error))?;
        let length = file.length().map_err(|error| Error::io("read", &path, error))?;
        let known = if base == self.from.segment { self.from.position } else { 0 };
        let contents = match known {
            0 => None,
            _ => IndexContents::read(storage, &path),
        };
        let mut contents = contents.unwrap_or_default();
        let (resume, before) = contents.cut(contents.covered.min(known).min(length));
        let segment = Segment::active(self.dir, base, file.clone(), contents);
        if let Some(before) = before {
            segment.raise_max_timestamp(before);
        }
        let (position, offset) = (u64::from(resume.position), base + i64::from(resume.relative));
        if position > 0 {
            segment.read_first_timestamp(storage)?;
        }
        let interval = u64::from(self.env.options.index_interval_bytes);
        let mut scanner = Scanner::new(&segment, storage, position, offset, length)?;
        // One with a successor was synced before that was created.
        let mut rewrite =
            Rewrite::new(file.as_ref(), &path, if last { self.stored_in(base) } else { u64::MAX });
        loop {
            match scanner.step()? {
                Step::Batch(header, position) => {
                    segment.add(&header, position, interval);
                    self.note(&header);
                    rewrite.batch(position, scanner.batch())?;
                }
                Step::End => break,
                Step::Bad(why) => {
                    let at = Place { offset: scanner.offset(), segment: base, position: scanner.position() };
                    self.judge(&segment, file.as_ref(), at, length, last, &why)?;
                    file.truncate(at.position).map_err(|error| Error::io("cut", &path, error))?;
                    break;
                }
            }
        }
        self.report.rewritten_bytes += rewrite.finish()?;
        let checked = scanner.position().saturating_sub(position.max(known));
        self.report.checked_bytes += checked;
        segment.set_size(scanner.position());
        Ok((segment, scanner.offset()))
    }

    fn note(&mut self, header: &BatchHeader) {
        if header.base_offset < self.from.offset {
            // An index sent the scan back a little.
            return;
        }
        if header.base_offset <= self.start {
            self.epochs.begin(header.leader_epoch);
        }
        self.epochs.note(header.leader_epoch, header.base_offset);
        if let Some(producers) = self.producers.as_mut() {
            producers.note(header, self.env.clock.timestamp());
            producers.commit(header.next_offset());
        }
    }

    /// Below which byte segment `base` is known to be durable.
    fn stored_in(&self, base: Offset) -> u64 {
        let known = [Some(self.from), self.mark].into_iter().flatten().filter(|known| known.segment >= base);
        // A later one was begun when this was synced.
        let byte = |known: Place| if known.segment > base { u64::MAX } else { known.position };
        known.map(byte).max().unwrap_or(0)
    }

    /// Whether what is wrong at `at` may be cut; an error if it is damage. See the module.
    fn judge(
        &mut self,
        segment: &Segment,
        file: &dyn File,
        at: Place,
        length: u64,
        last: bool,
        why: &str,
    ) -> Result<(), Error> {
        let damaged = |why: String| Err(Error::damaged(&segment.log, at.position, at.offset, why));
        if !last {
            return damaged(why.to_owned());
        }
        let mut stored = if at.segment == self.from.segment { self.from.position } else { 0 };
        if let Some(mark) = self.mark.filter(|mark| mark.segment == at.segment) {
            stored = stored.max(mark.position);
        }
        let search = Search { segment, file, at, length, epoch: self.epochs.last().unwrap_or(-1) };
        let was_stored = at.position < stored;
        match search.run()? {
            Behind::Batch { position, hole } if was_stored || !hole => {
                return damaged(format!("{why}; and there is a valid batch behind it, at byte {position}"));
            }
            Behind::Nothing { missing: false } if was_stored => return damaged(why.to_owned()),
            _ => {}
        }
        let cut = length - at.position;
        self.report.cut_bytes += cut;
        tracing::warn!(
            file = %segment.log.display(), position = at.position, offset = at.offset, bytes = cut, why,
            "cutting a torn tail"
        );
        Ok(())
    }
}

/// Looks behind a wrong place for a valid batch.
struct Search<'a> {
    segment: &'a Segment,
    file: &'a dyn File,
    at: Place,
    length: u64,
    epoch: Epoch,
}

enum Behind {
    /// A valid batch of a later offset; `hole`: with a page of zeros before it.
    Batch { position: u64, hole: bool },
    /// None. `missing`: the bytes are not there, rather than there and wrong.
    Nothing { missing: bool },
}

impl Search<'_> {
    fn run(&self) -> Result<Behind, Error> {
        let (mut position, mut tried) = (self.at.position, 0u64);
        let mut ends_with_zeros = false;
        while position < self.length {
            let chunk = self.read(position, SEARCH_CHUNK + HEADER_BYTES)?;
            let searched = chunk.len().min(SEARCH_CHUNK);
            for at in 0..searched {
                let place = position + at as u64;
                let Some(header) = self.candidate(&chunk[at..], place) else { continue };
                tried += header.size() as u64;
                let found = self.read(place, header.size())?;
                if tried > SEARCH_BYTES || BatchHeader::check(&found).is_ok() {
                    return Ok(Behind::Batch { position: place, hole: self.hole_before(place)? });
                }
            }
            ends_with_zeros = chunk.ends_with(&[0; ZEROS]);
            position += searched as u64;
        }
        let whole = BatchHeader::decode(&self.read(self.at.position, HEADER_BYTES)?)
            .is_ok_and(|header| self.at.position + header.size() as u64 <= self.length);
        Ok(Behind::Nothing { missing: !whole || ends_with_zeros })
    }

    /// A header that may stand at `position`.
    fn candidate(&self, bytes: &[u8], position: u64) -> Option<BatchHeader> {
        // The cheapest test first: nearly all places fail it.
        if *bytes.get(16)? != 2 || position == self.at.position {
            return None;
        }
        let header = BatchHeader::decode(bytes).ok()?;
        let later = header.base_offset > self.at.offset
            && header.base_offset - self.at.offset <= i64::from(i32::MAX)
            && header.leader_epoch >= self.epoch;
        (later && position + header.size() as u64 <= self.length).then_some(header)
    }

    /// Whether a page of the file, from the wrong place to `end`, is all zeros.
    fn hole_before(&self, end: u64) -> Result<bool, Error> {
        let mut page = self.at.position.next_multiple_of(PAGE as u64);
        // The rest of a page that was durable up to here. Shorter, it could be the first bytes of a damaged header.
        let rest = (page - self.at.position) as usize;
        if rest >= ZERO_BYTES
            && page <= end
            && self.read(self.at.position, rest)?.iter().all(|byte| *byte == 0)
        {
            return Ok(true);
        }
        while page + PAGE as u64 <= end {
            if self.read(page, PAGE)?.iter().all(|byte| *byte == 0) {
                return Ok(true);
            }
            page += PAGE as u64;
        }
        Ok(false)
    }

    fn read(&self, position: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; (self.length - position).min(length as u64) as usize];
        let read = self.file.read_at(&mut bytes, position);
        bytes.truncate(read.map_err(|error| Error::io("read", &self.segment.log, error))?);
        Ok(bytes)
    }
}
