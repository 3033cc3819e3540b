//! Memory for direct reads and writes: aligned, and used again and again, as fresh memory is slow.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// What position, length and memory of a direct read or write are multiples of: the largest block in use.
pub(super) const BLOCK: usize = 4 << 10;
/// What a buffer holds: the most that one push carries, wherever in a block it begins.
pub(super) const BUFFER_BYTES: usize = (1 << 20) + 2 * BLOCK;
/// Buffers that are kept for the next use. There are as many more as are in use at once.
const KEPT_BUFFERS: usize = 16;

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffers {
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// A buffer that goes back when it is dropped.
pub(super) struct Buffer {
    memory: Vec<u8>,
    /// Where its first block begins.
    start: usize,
    home: Buffers,
}

impl Buffers {
    /// A buffer with whatever it last held.
    pub(super) fn take(&self) -> Buffer {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = free.unwrap_or_else(|| vec![0; BUFFER_BYTES + BLOCK]);
        let start = memory.as_ptr().align_offset(BLOCK);
        Buffer { memory, start, home: self.clone() }
    }
}

impl Buffer {
    /// All of it, from a block's start on.
    pub(super) fn blocks(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BUFFER_BYTES]
    }

    /// A part of it, uncopied; it goes back with the last of them.
    pub(super) fn share(self, range: Range<usize>) -> Bytes {
        let (start, end) = (self.start + range.start, self.start + range.end);
        Bytes::from_owner(self).slice(start..end)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT_BUFFERS {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}
