//! The file system as a log needs it: the machine's ([`DiskStorage`]), or one in memory that crashes on demand
//! ([`MemoryStorage`]).
//!
//! What holds after a crash: a file's bytes once [`File::sync_data`] has returned, a folder's entries (created,
//! renamed, removed) once [`Storage::sync_dir`] has. What was not synced may be there in part or not at all.

mod buffers;
mod direct;
mod disk;
mod memory;
mod parts;

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
pub use disk::DiskStorage;
pub use memory::{Crash, MemoryStorage};

/// Folders and files.
pub trait Storage: Send + Sync + 'static {
    /// Opens a file that exists, to read and write.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Creates a file, empty; one that exists is emptied.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// The names of a folder's entries, in no order. An error of kind `NotFound` when there is no such folder.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a folder and those above it; fine if it exists.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes a folder's entries durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Renames a file or folder; a file of the new name is replaced, atomically.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Who has it open reads on.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes a folder with all that is in it.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;

    /// How many bytes are free where `dir` lies; `None` where it is not known. A quota may allow fewer.
    fn free_bytes(&self, _dir: &Path) -> Option<u64> {
        None
    }
}

/// An open file. Reads may go on beside a write.
pub trait File: Send + Sync {
    /// Reads at `position` until `buffer` is full or the file ends; gives how many bytes were read.
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize>;

    /// Reads `length` bytes at `position`, or up to the file's end, into memory of its own.
    fn read(&self, position: u64, length: usize) -> io::Result<Bytes> {
        read_copy(self, position, length)
    }

    /// Writes `parts` end to end from `position` on, in as few system calls as can be. After an error, any part
    /// of it may have been written.
    fn write_at(&self, parts: &[&[u8]], position: u64) -> io::Result<()>;

    /// Returns once all that was written, and the length, would survive a power cut.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends the file to `length` bytes.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// The file's length in bytes.
    fn length(&self) -> io::Result<u64>;
}

fn read_copy(file: &(impl File + ?Sized), position: u64, length: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, position)?;
    bytes.truncate(read);
    Ok(bytes.into())
}

/// Reads a whole file, which is at most `limit` bytes long.
pub(crate) fn read_file(storage: &dyn Storage, path: &Path, limit: u64) -> io::Result<Bytes> {
    let file = storage.open(path)?;
    let length = file.length()?;
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large for what it is"));
    }
    file.read(0, length as usize)
}
