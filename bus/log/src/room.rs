//! Whether a disk that was full has room again.

use crate::{Error, Log};

/// The file that is written to find out; what a crash leaves of it is overwritten the next time.
const PROBE: &str = "room.probe";
/// How much room is room: a few batches' worth.
const PROBE_BYTES: usize = 1 << 20;

impl Log {
    /// Whether the log's disk takes something: found by writing a file of 1 MiB, which goes again, as what a file system
    /// says of its free space holds for neither quotas nor reserves. To be asked where an append has failed with
    /// [`Error::Full`]; the log works on all the same.
    pub fn has_room(&self) -> bool {
        let (storage, path) = (self.storage(), self.shared.dir.join(PROBE));
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
