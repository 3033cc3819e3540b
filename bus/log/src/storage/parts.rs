//! What a gathered write has yet to write.

/// The bytes of several slices, from one place in them on.
#[derive(Clone)]
pub(super) struct Parts<'a> {
    parts: &'a [&'a [u8]],
    /// Into the first part.
    at: usize,
    left: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn new(parts: &'a [&'a [u8]]) -> Self {
        Self { parts, at: 0, left: parts.iter().map(|part| part.len()).sum() }
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Fills `buffer` with the next bytes; there are as many left.
    pub(super) fn copy(&mut self, buffer: &mut [u8]) {
        let mut filled = 0;
        while filled < buffer.len() {
            let part = &self.parts[0][self.at..];
            let count = part.len().min(buffer.len() - filled);
            buffer[filled..filled + count].copy_from_slice(&part[..count]);
            filled += count;
            self.skip(count);
        }
    }

    /// Passes over the next `count` bytes; there are as many left.
    pub(super) fn skip(&mut self, mut count: usize) {
        self.left -= count;
        while let Some(part) = self.parts.first().filter(|part| count >= part.len() - self.at) {
            count -= part.len() - self.at;
            (self.parts, self.at) = (&self.parts[1..], 0);
        }
        self.at += count;
    }
}
