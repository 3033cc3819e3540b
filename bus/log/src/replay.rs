//! The producers' table from what a log holds: the newest snapshot that is whole, and the headers of the batches
//! that were written since.

use std::path::Path;
use std::sync::Arc;

use bus_protocol::batch::{BatchHeader, HEADER_BYTES};
use bus_protocol::{Offset, Timestamp};

use crate::producers::Producers;
use crate::segment::Segment;
use crate::snapshot::Snapshots;
use crate::{Env, Error};

/// What is read at once. The rest of a batch that is longer is passed over unread.
const CHUNK: usize = 64 << 10;

/// The table of a log that holds `segments` and ends at `end`.
pub(crate) fn restore(
    env: &Env,
    dir: &Path,
    snapshots: &mut Snapshots,
    segments: &[Arc<Segment>],
    end: Offset,
) -> Result<Producers, Error> {
    let limit = env.options.producers_per_partition;
    // A table with a hole in it would refuse what is right: what was written since a snapshot must all be there.
    let first = segments.first().map_or(end, |segment| segment.base);
    let mut found = None;
    while found.is_none()
        && let Some(offset) = snapshots.newest_to(end).filter(|offset| *offset >= first)
    {
        let producers = snapshots.read(env.storage.as_ref(), dir, offset, limit);
        found = producers.map(|producers| (producers, offset));
    }
    let (mut producers, from) = found.unwrap_or_else(|| (Producers::new(first, limit), first));
    let now = env.clock.timestamp();
    for (n, segment) in segments.iter().enumerate() {
        let segment_end = segments.get(n + 1).map_or(end, |next| next.base);
        if segment_end > from {
            replay(env, segment, from, now, &mut producers)?;
        }
    }
    producers.commit(end);
    Ok(producers)
}

/// Notes the batches of `segment` from `from` on. Their CRCs are not checked.
fn replay(
    env: &Env,
    segment: &Segment,
    from: Offset,
    now: Timestamp,
    producers: &mut Producers,
) -> Result<(), Error> {
    let storage = env.storage.as_ref();
    let interval = u64::from(env.options.index_interval_bytes);
    // At the segment's beginning no index is needed, which may have to be made first.
    let (mut position, mut due) = match from <= segment.base {
        true => (0, segment.base),
        false => segment.position_of(storage, interval, from)?,
    };
    let (file, size) = (segment.file(storage)?, segment.size());
    let (mut buffer, mut start) = (Vec::new(), position);
    while position < size {
        if position + HEADER_BYTES as u64 > start + buffer.len() as u64 {
            buffer.resize((size - position).min(CHUNK as u64) as usize, 0);
            let read = file.read_at(&mut buffer, position);
            buffer.truncate(read.map_err(|error| Error::io("read", &segment.log, error))?);
            start = position;
        }
        let damaged = |why: String| Error::damaged(&segment.log, position, due, why);
        let header = BatchHeader::decode(&buffer[(position - start) as usize..]);
        let header = header.map_err(|error| damaged(error.to_string()))?;
        if header.base_offset != due || position + header.size() as u64 > size {
            return Err(damaged(format!("there is no whole batch with offset {due}")));
        }
        if header.base_offset >= from {
            producers.note(&header, now);
            producers.commit(header.next_offset());
        }
        position += header.size() as u64;
        due = header.next_offset();
    }
    Ok(())
}
