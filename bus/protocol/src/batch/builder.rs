//! A batch in the making.

use bytes::Bytes;

use crate::{Timestamp, limits};

use super::{BatchError, BatchHeader, Compression, HEADER_BYTES, Header, RecordBatch, encode_record};

/// Builds a batch, record by record, straight into the bytes it will be sent as: no allocation for a record,
/// but for the buffer as it grows.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    compression: Compression,
    buffer: Vec<u8>,
    count: u32,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    transactional: bool,
    control: bool,
}

impl BatchBuilder {
    /// An empty batch, of no producer that has an id.
    pub fn new(compression: Compression) -> Self {
        Self::with_capacity(compression, 0)
    }

    /// The same, with room for `bytes` of records before the buffer must grow.
    pub fn with_capacity(compression: Compression, bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(HEADER_BYTES + bytes.min(limits::DECOMPRESSED_BATCH_BYTES));
        buffer.resize(HEADER_BYTES, 0);
        Self {
            compression,
            buffer,
            count: 0,
            base_timestamp: -1,
            max_timestamp: -1,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            transactional: false,
            control: false,
        }
    }

    /// Whose batch it is: an idempotent producer's id and epoch, and its first record's sequence number.
    pub fn set_producer(&mut self, id: i64, epoch: i16, base_sequence: i32) {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
    }

    /// Whether the batch is part of a transaction.
    pub fn set_transactional(&mut self, transactional: bool) {
        self.transactional = transactional;
    }

    /// Whether the batch is a transaction's marker.
    pub fn set_control(&mut self, control: bool) {
        self.control = control;
    }

    /// Adds a record and gives its place in the batch, from 0. Limits are checked by [`BatchBuilder::build`]: see
    /// that [`BatchBuilder::size_hint`] and [`super::record_bytes_bound`] stay within what the topic takes.
    pub fn push(
        &mut self,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
    ) -> u32 {
        let index = self.count;
        if index == 0 {
            (self.base_timestamp, self.max_timestamp) = (timestamp, timestamp);
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let headers = headers.iter().map(|header| (&header.key[..], header.value.as_deref()));
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);
        encode_record(&mut self.buffer, index, timestamp_delta, key, value, headers);
        self.count += 1;
        index
    }

    /// The batch's size in bytes with what was pushed so far, before compression.
    pub fn size_hint(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many records were pushed.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// The batch as it travels, with base offset 0 and no leader epoch (-1). Refuses an empty one, and one past
    /// the limits on records and bytes.
    pub fn build(self) -> Result<Bytes, BatchError> {
        self.build_batch().map(RecordBatch::into_bytes)
    }

    /// The same, as a checked batch.
    pub fn build_batch(self) -> Result<RecordBatch, BatchError> {
        let (count, size) = (self.len(), self.buffer.len() - HEADER_BYTES);
        if count == 0 {
            return Err(BatchError::Empty);
        }
        if count > limits::RECORDS_PER_BATCH {
            let limit = limits::RECORDS_PER_BATCH;
            return Err(BatchError::TooLarge { what: "records", size: count, limit });
        }
        if size > limits::DECOMPRESSED_BATCH_BYTES {
            let limit = limits::DECOMPRESSED_BATCH_BYTES;
            return Err(BatchError::TooLarge { what: "bytes once decompressed", size, limit });
        }
        let header = BatchHeader {
            base_offset: 0,
            batch_length: 0,
            leader_epoch: -1,
            crc: 0,
            attributes: BatchHeader::attributes_of(self.compression, self.transactional, self.control),
            last_offset_delta: count as i32 - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            record_count: count as i32,
        };
        let buffer = match self.compression {
            Compression::None => self.buffer,
            compression => {
                let mut out = Vec::with_capacity(HEADER_BYTES + size / 2);
                out.resize(HEADER_BYTES, 0);
                compression.compress(&self.buffer[HEADER_BYTES..], &mut out)?;
                out
            }
        };
        RecordBatch::seal(header, buffer)
    }
}
