//! Reading and writing past the page cache (`O_DIRECT`), where the machine can.
//!
//! A log's newest bytes are in its hot tail already; a copy of them in the page cache costs a fresh page for each 4 KiB
//! and a write-back of its own, and pushes out what others read. Direct writes go by whole blocks, so not all of
//! a write takes this way: its end, less than a block, is left to the page cache until the next one. The kernel keeps both
//! ways coherent.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use bytes::Bytes;

use super::buffers::{BLOCK, BUFFER_BYTES, Buffers};
use super::parts::Parts;

/// A read or write from this size on is worth the way.
pub(super) const LEAST_BYTES: usize = 64 << 10;

/// A second handle of a file, for its direct reads and writes. Opened at the first of them.
#[derive(Debug, Default)]
pub(super) struct Direct {
    /// `None` where the file system takes none.
    handle: OnceLock<Option<fs::File>>,
}

impl Direct {
    fn handle(&self, file: &fs::File) -> Option<&fs::File> {
        self.handle.get_or_init(|| reopen(file)).as_ref()
    }

    /// Writes the whole blocks that come first in `parts` to `position`, which is a block's start, and gives how many
    /// bytes that were: fewer than there are where the file system would not take them this way.
    pub(super) fn write(
        &self,
        file: &fs::File,
        buffers: &Buffers,
        parts: &mut Parts<'_>,
        position: u64,
    ) -> io::Result<u64> {
        let Some(handle) = self.handle(file) else { return Ok(0) };
        let mut buffer = buffers.take();
        let mut written = 0;
        loop {
            let wanted = (parts.left() / BLOCK * BLOCK).min(BUFFER_BYTES);
            if wanted == 0 {
                return Ok(written);
            }
            let blocks = &mut buffer.blocks()[..wanted];
            parts.clone().copy(blocks);
            match handle.write_at(blocks, position + written) {
                Ok(taken) => {
                    parts.skip(taken);
                    written += taken as u64;
                    // Cut short: the page cache takes what is left, or says why it cannot.
                    if taken < wanted {
                        return Ok(written);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads `length` bytes at `position`, or up to the file's end; `None` where the file system would not give them
    /// this way, or they are too many for a buffer.
    pub(super) fn read(
        &self,
        file: &fs::File,
        buffers: &Buffers,
        position: u64,
        length: usize,
    ) -> io::Result<Option<Bytes>> {
        let into_block = position as usize % BLOCK;
        let wanted = (into_block + length).next_multiple_of(BLOCK);
        let Some(handle) = self.handle(file).filter(|_| wanted <= BUFFER_BYTES) else { return Ok(None) };
        let mut buffer = buffers.take();
        let mut read = 0;
        // A read that ends within a block has met the file's end.
        while read < into_block + length && read % BLOCK == 0 {
            let blocks = &mut buffer.blocks()[read..wanted];
            match handle.read_at(blocks, position - into_block as u64 + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let range = into_block..read.clamp(into_block, into_block + length);
        // A few bytes must not hold a large buffer.
        let few = range.len() < BUFFER_BYTES / 4;
        Ok(Some(if few { Bytes::copy_from_slice(&buffer.blocks()[range]) } else { buffer.share(range) }))
    }
}

/// The same file again, for direct reads and writes: by its handle, as its path may have changed.
#[cfg(target_os = "linux")]
fn reopen(file: &fs::File) -> Option<fs::File> {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32);
    let opened = options.open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    opened
        .inspect_err(|error| tracing::debug!(%error, "a file is read and written by way of the page cache"))
        .ok()
}

#[cfg(not(target_os = "linux"))]
fn reopen(_: &fs::File) -> Option<fs::File> {
    None
}
