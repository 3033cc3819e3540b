//! A whole batch whose CRC was checked, and bytes that hold several.

use bytes::Bytes;

use crate::limits;

use super::record::walk;
use super::{BatchError, BatchHeader, CRC_START, Compression, HEADER_BYTES, LENGTH_END, Records};

/// One batch. A value of this type has had its header, length and CRC checked, but not its records (which may
/// be compressed): [`RecordBatch::validate`] does that. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl RecordBatch {
    /// Exactly one batch, with nothing after it.
    pub fn parse(bytes: Bytes) -> Result<Self, BatchError> {
        let header = check(&bytes)?;
        match bytes.len() - header.size() {
            0 => Ok(Self { header, bytes }),
            trailing => Err(BatchError::Trailing(trailing)),
        }
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch as it travels and lies on the disk.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The same, without the header.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The records, decompressed where needed (bounded by [`limits::DECOMPRESSED_BATCH_BYTES`]).
    pub fn records(&self) -> Result<Records, BatchError> {
        Ok(Records::new(self.header, self.records_bytes()?))
    }

    /// The records section, decompressed where needed: Kafka's records end to end, for
    /// [`super::RecordSlices`]. Of a batch that is not compressed it is a slice, not a copy.
    pub fn records_bytes(&self) -> Result<Bytes, BatchError> {
        let section = self.bytes.slice(HEADER_BYTES..);
        // An emptied batch holds no bytes at all, which is no compressor's way to write nothing.
        if section.is_empty() {
            return Ok(section);
        }
        self.header.compression().decompress(&section)
    }

    /// Checks the records: that they are well formed, as many as the header says, with offset deltas that rise
    /// and stay within the last offset delta, and none later than the header's max timestamp (by which lookups
    /// go). Gaps are fine, and so is an emptied batch.
    pub fn validate(&self) -> Result<(), BatchError> {
        self.validate_records(&self.records_bytes()?)
    }

    /// [`RecordBatch::validate`] for who has called [`RecordBatch::records_bytes`] already: `records` is its
    /// result.
    pub fn validate_records(&self, records: &[u8]) -> Result<(), BatchError> {
        let found = walk(&self.header, records, self.header.record_count)?;
        let by_producer = self.header.timestamp_type() == crate::TimestampType::CreateTime;
        match found.max_timestamp {
            Some(latest) if by_producer && latest > self.header.max_timestamp => {
                Err(BatchError::Header("a record is later than its max timestamp"))
            }
            _ => Ok(()),
        }
    }

    /// The batch with other records: same base offset, last offset delta, base sequence, producer, base
    /// timestamp and compression; length, record count, max timestamp and CRC are computed. `records` (from a
    /// transform, so not trusted) is checked as in [`RecordBatch::validate`]. With no record left the batch
    /// keeps its place and its max timestamp, and holds nothing.
    pub fn with_records(&self, records: &[u8], record_count: i32) -> Result<Self, BatchError> {
        if records.len() > limits::DECOMPRESSED_BATCH_BYTES {
            let (size, limit) = (records.len(), limits::DECOMPRESSED_BATCH_BYTES);
            return Err(BatchError::TooLarge { what: "bytes once decompressed", size, limit });
        }
        let found = walk(&self.header, records, record_count)?;
        let mut header = self.header;
        header.record_count = record_count;
        if let (Some(latest), crate::TimestampType::CreateTime) =
            (found.max_timestamp, header.timestamp_type())
        {
            header.max_timestamp = latest;
        }
        let mut out = Vec::with_capacity(HEADER_BYTES + records.len());
        out.resize(HEADER_BYTES, 0);
        if !records.is_empty() {
            header.compression().compress(records, &mut out)?;
        }
        Self::seal(header, out)
    }

    /// The batch with its records compressed another way; itself if they are compressed that way already.
    pub fn recompressed(&self, compression: Compression) -> Result<Self, BatchError> {
        if self.header.compression() == compression {
            return Ok(self.clone());
        }
        let records = self.records_bytes()?;
        let mut header = self.header;
        header.attributes = (header.attributes & !0b111) | compression as i16;
        let mut out = Vec::with_capacity(HEADER_BYTES + records.len());
        out.resize(HEADER_BYTES, 0);
        if !records.is_empty() {
            compression.compress(&records, &mut out)?;
        }
        Self::seal(header, out)
    }

    /// Writes `header` over the first bytes of `out`, whose records section is there, with length and CRC.
    pub(super) fn seal(mut header: BatchHeader, mut out: Vec<u8>) -> Result<Self, BatchError> {
        if out.len() > limits::PAYLOAD_BYTES {
            return Err(BatchError::TooLarge {
                what: "bytes",
                size: out.len(),
                limit: limits::PAYLOAD_BYTES,
            });
        }
        header.batch_length = (out.len() - LENGTH_END) as i32;
        out[..HEADER_BYTES].copy_from_slice(&header.encode());
        header.crc = crc32c::crc32c(&out[CRC_START..]);
        super::assign::put(&mut out, 17, &header.crc.to_be_bytes());
        Ok(Self { header, bytes: out.into() })
    }
}

/// Checks header, length and CRC of the batch at the front of `bytes`.
fn check(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::decode(bytes)?;
    let Some(batch) = bytes.get(..header.size()) else {
        return Err(BatchError::Truncated { needed: header.size(), found: bytes.len() });
    };
    let computed = crc32c::crc32c(&batch[CRC_START..]);
    if computed != header.crc {
        return Err(BatchError::Crc { stored: header.crc, computed });
    }
    Ok(header)
}

impl BatchHeader {
    /// Reads and checks the batch at the front of `bytes`: header, length and CRC, as [`RecordBatch::parse`]
    /// does, but borrowed, and whatever follows the batch.
    pub fn check(bytes: &[u8]) -> Result<Self, BatchError> {
        check(bytes)
    }
}

/// The batches that lie end to end in `bytes`. Ends after the first error; bytes that end within a batch are an
/// error ([`BatchError::Truncated`]).
pub fn split(bytes: Bytes) -> Batches {
    Batches { rest: bytes }
}

/// See [`split`].
#[derive(Clone, Debug)]
pub struct Batches {
    rest: Bytes,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let header = match check(&self.rest) {
            Ok(header) => header,
            Err(error) => {
                self.rest.clear();
                return Some(Err(error));
            }
        };
        let bytes = self.rest.split_to(header.size());
        Some(Ok(RecordBatch { header, bytes }))
    }
}
