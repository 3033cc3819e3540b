//! Walking a segment's file batch by batch, checking each.

use std::sync::Arc;

use bus_protocol::Offset;
use bus_protocol::batch::{BatchError, BatchHeader};

use crate::Error;
use crate::segment::Segment;
use crate::storage::{File, Storage};

const CHUNK: usize = 1 << 20;

/// Walks the batches of a file; each must begin at the offset where the last one ended.
pub(crate) struct Scanner {
    file: Arc<dyn File>,
    path: std::path::PathBuf,
    buffer: Vec<u8>,
    /// Where in the file the buffer begins.
    start: u64,
    position: u64,
    offset: Offset,
    end: u64,
    current: usize,
}

pub(crate) enum Step {
    /// A whole, right batch and where it begins. The scanner stands after it.
    Batch(BatchHeader, u64),
    /// What is there is not the batch that is due. The scanner stands before it.
    Bad(String),
    /// Nothing more.
    End,
}

impl Scanner {
    /// From byte `position` on, where the batch with `offset` begins, to byte `end`.
    pub(crate) fn new(
        segment: &Segment,
        storage: &dyn Storage,
        position: u64,
        offset: Offset,
        end: u64,
    ) -> Result<Self, Error> {
        let (file, path) = (segment.file(storage)?.clone(), segment.log.clone());
        Ok(Self { file, path, buffer: Vec::new(), start: position, position, offset, end, current: 0 })
    }

    /// Where the next batch begins.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The offset that the next batch must have.
    pub(crate) fn offset(&self) -> Offset {
        self.offset
    }

    /// The bytes of the batch that [`Scanner::step`] gave last.
    pub(crate) fn batch(&self) -> &[u8] {
        let end = (self.position - self.start) as usize;
        &self.buffer[end - self.current..end]
    }

    /// The next batch.
    pub(crate) fn step(&mut self) -> Result<Step, Error> {
        if self.position >= self.end {
            return Ok(Step::End);
        }
        let mut checked = BatchHeader::check(self.rest());
        if let Err(BatchError::Truncated { needed, found }) = &checked
            && self.position + (*found as u64) < self.end
        {
            self.fill(*needed)?;
            checked = BatchHeader::check(self.rest());
            // The header was cut off the first time, and only now says how much there is to read.
            if let Err(BatchError::Truncated { needed, .. }) = &checked {
                self.fill(*needed)?;
                checked = BatchHeader::check(self.rest());
            }
        }
        let header = match checked {
            Ok(header) => header,
            Err(error) => return Ok(Step::Bad(error.to_string())),
        };
        if header.base_offset != self.offset {
            let why =
                format!("there is a batch with offset {} where {} is due", header.base_offset, self.offset);
            return Ok(Step::Bad(why));
        }
        let at = self.position;
        self.current = header.size();
        self.position += header.size() as u64;
        self.offset = header.next_offset();
        Ok(Step::Batch(header, at))
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[(self.position - self.start) as usize..]
    }

    fn fill(&mut self, needed: usize) -> Result<(), Error> {
        let length = (self.end - self.position).min(needed.max(CHUNK) as u64) as usize;
        self.buffer.resize(length, 0);
        let read = self
            .file
            .read_at(&mut self.buffer, self.position)
            .map_err(|error| Error::io("read", &self.path, error))?;
        self.buffer.truncate(read);
        self.start = self.position;
        Ok(())
    }
}
