//! Writing again what may look durable and is not.
//!
//! After a failed write-back or sync, Linux keeps the pages as they are but counts them as clean: they can be read,
//! and the next sync, of whatever process, says that all is well and writes none of them. So recovery writes the
//! batches that it finds behind the last sync that succeeded once more, which makes them dirty, and the answer of its
//! own sync true. It writes what it has read and checked, before anything else could come from the disk in its place.

use std::path::Path;

use crate::Error;
use crate::storage::File;

/// What is written at once.
const CHUNK: usize = 1 << 20;

/// Writes batches of a file to where they stand, from a place on.
pub(crate) struct Rewrite<'a> {
    file: &'a dyn File,
    path: &'a Path,
    from: u64,
    /// Where the buffer goes.
    position: u64,
    buffer: Vec<u8>,
    bytes: u64,
}

impl<'a> Rewrite<'a> {
    /// Of the file at `path`, which is durable before `from`.
    pub(crate) fn new(file: &'a dyn File, path: &'a Path, from: u64) -> Self {
        Self { file, path, from, position: 0, buffer: Vec::new(), bytes: 0 }
    }

    /// The batch that begins at `position`, the next in order, is right.
    pub(crate) fn batch(&mut self, position: u64, bytes: &[u8]) -> Result<(), Error> {
        if position + bytes.len() as u64 <= self.from {
            return Ok(());
        }
        if self.buffer.is_empty() {
            self.position = position;
        }
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// Writes what is left; gives how many bytes were written in all.
    pub(crate) fn finish(mut self) -> Result<u64, Error> {
        self.flush()?;
        Ok(self.bytes)
    }

    fn flush(&mut self) -> Result<(), Error> {
        if !self.buffer.is_empty() {
            let written = self.file.write_at(&[&self.buffer], self.position);
            written.map_err(|error| Error::io("write again", self.path, error))?;
            self.bytes += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}
