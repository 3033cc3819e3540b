//! A batch on its way into a log.

use bus_protocol::batch::{BatchError, BatchHeader, RecordBatch};
use bytes::BytesMut;

/// One whole, checked batch whose bytes nobody else holds, so that its offset can be written in place.
#[derive(Debug)]
pub struct AppendBatch {
    pub(crate) header: BatchHeader,
    pub(crate) bytes: BytesMut,
}

impl AppendBatch {
    /// Exactly one batch; header, length and CRC are checked.
    pub fn parse(bytes: BytesMut) -> Result<Self, BatchError> {
        let header = BatchHeader::check(&bytes)?;
        match bytes.len() - header.size() {
            0 => Ok(Self { header, bytes }),
            trailing => Err(BatchError::Trailing(trailing)),
        }
    }

    /// The header, with the offsets that the producer gave (as a rule from 0).
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }
}

impl From<RecordBatch> for AppendBatch {
    /// Copies nothing if `batch` is the only handle on its bytes; else the batch once.
    fn from(batch: RecordBatch) -> Self {
        let header = *batch.header();
        let bytes = batch.into_bytes().try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        Self { header, bytes }
    }
}
