//! Snapshots of the producers' table: `<offset>.snapshot` holds it as it was when the log ended at `offset`.
//!
//! One is written at each roll, with each recovery checkpoint and at a close, so that recovery notes no more than
//! the batches it reads anyway. The last three stay: the newest may be torn by a power cut, or lie above where a
//! follower must cut its log, or both. One is only a saving: a damaged or missing one is made up for by an older one,
//! or by the headers of the whole log. But one of a history that is not the log's any more would be a lie, so those
//! above a cut go, durably, before the cut, and recovery drops those above the log's end.

use std::path::{Path, PathBuf};

use bus_protocol::Offset;

use crate::Error;
use crate::producers::Producers;
use crate::storage::{Storage, read_file};

const KEPT: usize = 3;
/// Far more than a table of any sensible size takes.
const SNAPSHOT_BYTES: u64 = 1 << 30;

/// The snapshots in a folder, by rising offset.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    offsets: Vec<Offset>,
}

fn path(dir: &Path, offset: Offset) -> PathBuf {
    dir.join(format!("{offset:020}.snapshot"))
}

/// The offset in a snapshot's name.
fn offset_of(name: &str) -> Option<Offset> {
    let stem = name.strip_suffix(".snapshot")?;
    (stem.len() == 20 && stem.bytes().all(|byte| byte.is_ascii_digit())).then(|| stem.parse().ok())?
}

impl Snapshots {
    /// Of a folder that holds `names`.
    pub(crate) fn find(names: &[String]) -> Self {
        let mut offsets: Vec<Offset> = names.iter().filter_map(|name| offset_of(name)).collect();
        offsets.sort_unstable();
        Self { offsets }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The newest at `offset` or below it.
    pub(crate) fn newest_to(&self, offset: Offset) -> Option<Offset> {
        self.offsets.iter().rev().copied().find(|known| *known <= offset)
    }

    /// The table at `offset`. One that is not there or not whole is `None`, and is not asked for again.
    pub(crate) fn read(
        &mut self,
        storage: &dyn Storage,
        dir: &Path,
        offset: Offset,
        limit: usize,
    ) -> Option<Producers> {
        let at = self.offsets.binary_search(&offset).ok()?;
        let path = path(dir, offset);
        let why = match read_file(storage, &path, SNAPSHOT_BYTES) {
            Ok(bytes) => match Producers::decode(&bytes, offset, limit) {
                Some(producers) => return Some(producers),
                None => "it is damaged".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        tracing::warn!(file = %path.display(), why, "dropping a snapshot of the producers: it takes an older one, or the log");
        let _ = storage.remove_file(&path);
        self.offsets.remove(at);
        None
    }

    /// Writes the table at `offset`, the log's end, unless it is there. A failure costs the next recovery time, no
    /// more than that.
    pub(crate) fn write(&mut self, storage: &dyn Storage, dir: &Path, offset: Offset, bytes: &[u8]) {
        if self.offsets.last().is_some_and(|last| *last >= offset) {
            return;
        }
        let path = path(dir, offset);
        let written = storage.create(&path).and_then(|file| {
            file.write_at(&[bytes], 0)?;
            file.sync_data()
        });
        if let Err(error) = written {
            tracing::warn!(file = %path.display(), %error, "cannot write a snapshot of the producers: recovery will take longer");
            let _ = storage.remove_file(&path);
            return;
        }
        self.offsets.push(offset);
        let old = self.offsets.len().saturating_sub(KEPT);
        self.offsets.drain(..old).for_each(|offset| remove(storage, dir, offset));
    }

    /// Removes those above `offset`; whether there were any. They are gone for good once the folder is synced. An
    /// error leaves the rest of them, and must stop what made them wrong.
    pub(crate) fn remove_above(
        &mut self,
        storage: &dyn Storage,
        dir: &Path,
        offset: Offset,
    ) -> Result<bool, Error> {
        let mut any = false;
        while let Some(last) = self.offsets.last().copied().filter(|last| *last > offset) {
            let path = path(dir, last);
            match storage.remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, error));
                }
                _ => any = true,
            }
            self.offsets.pop();
        }
        Ok(any)
    }

    /// Removes those below `offset`, where the log's first segment begins now: what was written after them is gone,
    /// so no table can be made of them.
    pub(crate) fn remove_below(&mut self, storage: &dyn Storage, dir: &Path, offset: Offset) {
        let old = self.offsets.partition_point(|known| *known < offset);
        self.offsets.drain(..old).for_each(|offset| remove(storage, dir, offset));
    }
}

/// One that will not go does no harm.
fn remove(storage: &dyn Storage, dir: &Path, offset: Offset) {
    let path = path(dir, offset);
    if let Err(error) = storage.remove_file(&path) {
        tracing::debug!(file = %path.display(), %error, "cannot remove an old snapshot of the producers");
    }
}
