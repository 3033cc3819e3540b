//! A batch's first 61 bytes.

use crate::{Epoch, Offset, Timestamp, TimestampType, limits};

use super::{BatchError, Compression, HEADER_BYTES, LENGTH_END};

const COMPRESSION_MASK: i16 = 0b111;
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;

/// A batch's header. What [`BatchHeader::decode`] gives is within all ranges: counts are not negative, the
/// size is within [`limits::PAYLOAD_BYTES`], offsets do not overflow, the compression is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The first record's offset (in a stored batch: also when that record was dropped since).
    pub base_offset: Offset,
    /// Bytes of the batch after this field: its size less 12.
    pub batch_length: i32,
    /// The epoch of the leader that gave the batch its offset; -1 until one has.
    pub leader_epoch: Epoch,
    /// CRC-32C from the attributes to the end.
    pub crc: u32,
    /// Compression, timestamp type and flags.
    pub attributes: i16,
    /// The last offset less the base offset. Dropped records leave it as it is.
    pub last_offset_delta: i32,
    /// What the records' timestamp deltas count from, in milliseconds since the Unix epoch.
    pub base_timestamp: Timestamp,
    /// The latest record's timestamp.
    pub max_timestamp: Timestamp,
    /// The idempotent producer's id, or -1.
    pub producer_id: i64,
    /// The idempotent producer's epoch, or -1.
    pub producer_epoch: i16,
    /// The sequence number of the first record, or -1.
    pub base_sequence: i32,
    /// How many records the batch holds.
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header at the front of `bytes`, and checks its fields but not the CRC. The rest of the batch
    /// need not be there.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BatchError::Truncated { needed: HEADER_BYTES, found: bytes.len() });
        };
        if head[16] != 2 {
            return Err(BatchError::Magic(head[16] as i8));
        }
        let header = Self {
            base_offset: i64::from_be_bytes(field(head, 0)),
            batch_length: i32::from_be_bytes(field(head, 8)),
            leader_epoch: i32::from_be_bytes(field(head, 12)),
            crc: u32::from_be_bytes(field(head, 17)),
            attributes: i16::from_be_bytes(field(head, 21)),
            last_offset_delta: i32::from_be_bytes(field(head, 23)),
            base_timestamp: i64::from_be_bytes(field(head, 27)),
            max_timestamp: i64::from_be_bytes(field(head, 35)),
            producer_id: i64::from_be_bytes(field(head, 43)),
            producer_epoch: i16::from_be_bytes(field(head, 51)),
            base_sequence: i32::from_be_bytes(field(head, 53)),
            record_count: i32::from_be_bytes(field(head, 57)),
        };
        header.check_fields()?;
        Ok(header)
    }

    fn check_fields(&self) -> Result<(), BatchError> {
        if self.batch_length < (HEADER_BYTES - LENGTH_END) as i32 {
            return Err(BatchError::Header("its length is smaller than a header"));
        }
        if self.size() > limits::PAYLOAD_BYTES {
            return Err(BatchError::TooLarge {
                what: "bytes",
                size: self.size(),
                limit: limits::PAYLOAD_BYTES,
            });
        }
        if self.record_count < 0 || self.last_offset_delta < 0 {
            return Err(BatchError::Header("its record count or last offset delta is negative"));
        }
        if self.record_count as usize > limits::RECORDS_PER_BATCH {
            let (size, limit) = (self.record_count as usize, limits::RECORDS_PER_BATCH);
            return Err(BatchError::TooLarge { what: "records", size, limit });
        }
        if i64::from(self.record_count) > i64::from(self.last_offset_delta) + 1 {
            return Err(BatchError::Header("it counts more records than it has offsets"));
        }
        if self.base_offset < 0
            || self.base_offset.checked_add(i64::from(self.last_offset_delta) + 1).is_none()
        {
            return Err(BatchError::Header("its base offset is out of range"));
        }
        Compression::from_attributes(self.attributes).map(|_| ())
    }

    /// The header as it is written.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.base_offset.to_be_bytes());
        put(8, &self.batch_length.to_be_bytes());
        put(12, &self.leader_epoch.to_be_bytes());
        put(16, &[2]);
        put(17, &self.crc.to_be_bytes());
        put(21, &self.attributes.to_be_bytes());
        put(23, &self.last_offset_delta.to_be_bytes());
        put(27, &self.base_timestamp.to_be_bytes());
        put(35, &self.max_timestamp.to_be_bytes());
        put(43, &self.producer_id.to_be_bytes());
        put(51, &self.producer_epoch.to_be_bytes());
        put(53, &self.base_sequence.to_be_bytes());
        put(57, &self.record_count.to_be_bytes());
        out
    }

    /// How the records are compressed; [`Compression::None`] for a code nobody knows, which
    /// [`BatchHeader::decode`] refuses.
    pub fn compression(&self) -> Compression {
        Compression::from_attributes(self.attributes).unwrap_or_default()
    }

    /// Whose time the records bear. With `LogAppendTime` it is [`BatchHeader::max_timestamp`] for all of them.
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch is part of a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch holds a transaction's marker rather than anybody's records.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether each of the batch's offsets has its record, as it must when a producer sends it.
    pub fn is_dense(&self) -> bool {
        i64::from(self.record_count) == i64::from(self.last_offset_delta) + 1
    }

    /// The last offset that the batch takes up.
    pub fn last_offset(&self) -> Offset {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// The offset after the batch.
    pub fn next_offset(&self) -> Offset {
        self.last_offset().saturating_add(1)
    }

    /// The whole batch in bytes, with its header.
    pub fn size(&self) -> usize {
        usize::try_from(self.batch_length).unwrap_or(0) + LENGTH_END
    }

    /// A record's timestamp from its delta.
    pub fn timestamp_of(&self, timestamp_delta: i64) -> Timestamp {
        match self.timestamp_type() {
            // Wrapping, so that what was written with any two timestamps reads back.
            TimestampType::CreateTime => self.base_timestamp.wrapping_add(timestamp_delta),
            TimestampType::LogAppendTime => self.max_timestamp,
        }
    }

    pub(super) fn attributes_of(compression: Compression, transactional: bool, control: bool) -> i16 {
        let flag = |set: bool, bit: i16| if set { bit } else { 0 };
        (compression as i16 & COMPRESSION_MASK) | flag(transactional, TRANSACTIONAL) | flag(control, CONTROL)
    }
}

fn field<const N: usize>(head: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&head[at..at + N]);
    out
}
