//! Room on the log's disk: what is left of it to others, and whether one that was full has some again.

use std::path::Path;

use crate::storage::Storage;
use crate::{Error, Log};

/// The file that is written to find out; what a crash leaves of it is overwritten the next time.
const PROBE: &str = "room.probe";
/// How much room is room: a few batches' worth.
const PROBE_BYTES: usize = 1 << 20;
/// What logs leave free: what else the node keeps on that disk, its metadata above all, needs room as well. A node that
/// cannot store metadata must stop; one whose logs are full need not.
const RESERVE_BYTES: u64 = 8 << 20;

/// Whether `bytes` more leave the reserve as it is, as far as that is known. Appends at the same moment each see the room
/// that there was before all of them: the reserve is for that, too.
fn leaves_reserve(storage: &dyn Storage, dir: &Path, bytes: u64) -> bool {
    storage.free_bytes(dir).is_none_or(|free| free >= RESERVE_BYTES + bytes)
}

impl Log {
    /// That an append of so many bytes leaves some room to others; [`Error::Full`] otherwise.
    pub(crate) fn check_room(&self, path: &Path, bytes: u64) -> Result<(), Error> {
        if leaves_reserve(self.storage(), &self.shared.dir, bytes) {
            return Ok(());
        }
        Err(Error::Full { what: "append to", path: path.to_owned() })
    }

    /// Whether the log's disk takes something, and leaves the reserve free: found by writing a file of 1 MiB, which goes
    /// again, as what a file system says of its free space holds for neither quotas nor reserves of its own. To be asked
    /// where an append has failed with [`Error::Full`]; the log works on all the same.
    pub fn has_room(&self) -> bool {
        let (storage, path) = (self.storage(), self.shared.dir.join(PROBE));
        if !leaves_reserve(storage, &self.shared.dir, PROBE_BYTES as u64) {
            return false;
        }
        let written = storage.create(&path).and_then(|file| file.write_at(&[&vec![0; PROBE_BYTES]], 0));
        if let Err(error) = storage.remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            let error = Error::io("remove", &path, error);
            tracing::warn!(%error, "what was written to look for room stays");
        }
        written.is_ok()
    }
}
