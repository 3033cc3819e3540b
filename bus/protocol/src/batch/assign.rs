//! What a leader writes into a batch when it gives it its place. Base offset and epoch lie outside the CRC.

use crate::{Epoch, Offset, Timestamp};

use super::{CRC_START, HEADER_BYTES};

const ATTRIBUTES: usize = 21;
const MAX_TIMESTAMP: usize = 35;
const MAX_TIMESTAMP_END: usize = 43;
const LOG_APPEND_TIME: u8 = 1 << 3;
const PRODUCER: usize = 43;
const PRODUCER_END: usize = 57;

/// Writes the base offset. `batch` begins with a whole, checked batch; shorter bytes are left as they are.
pub fn set_base_offset(batch: &mut [u8], offset: Offset) {
    put(batch, 0, &offset.to_be_bytes());
}

/// Writes the leader epoch. `batch` begins with a whole, checked batch; shorter bytes are left as they are.
pub fn set_leader_epoch(batch: &mut [u8], epoch: Epoch) {
    put(batch, 12, &epoch.to_be_bytes());
}

/// Marks the batch as `LogAppendTime`, with `time` for all of its records, and mends the CRC. `batch` is
/// exactly one whole, checked batch; shorter bytes are left as they are.
///
/// The CRC is linear, so only the header's part of it is computed anew: the cost does not grow with the batch.
pub fn set_append_time(batch: &mut [u8], time: Timestamp) {
    if batch.len() < HEADER_BYTES {
        return;
    }
    mend(batch, MAX_TIMESTAMP_END, |batch| {
        batch[ATTRIBUTES + 1] |= LOG_APPEND_TIME;
        put(batch, MAX_TIMESTAMP, &time.to_be_bytes());
    });
}

/// Gives the batch another producer, or other sequence numbers, and mends the CRC: for a producer that numbers anew
/// what it has not stored (KIP-360). `batch` is exactly one whole, checked batch; shorter bytes are left as they are.
pub fn set_producer(batch: &mut [u8], id: i64, epoch: i16, base_sequence: i32) {
    if batch.len() < HEADER_BYTES {
        return;
    }
    mend(batch, PRODUCER_END, |batch| {
        put(batch, PRODUCER, &id.to_be_bytes());
        put(batch, PRODUCER + 8, &epoch.to_be_bytes());
        put(batch, PRODUCER + 10, &base_sequence.to_be_bytes());
    });
}

/// Makes a change before `end`, and in the CRC what follows from it.
fn mend(batch: &mut [u8], end: usize, change: impl FnOnce(&mut [u8])) {
    let before = crc32c::crc32c(&batch[CRC_START..end]);
    change(batch);
    let after = crc32c::crc32c(&batch[CRC_START..end]);
    let whole = u32::from_be_bytes([batch[17], batch[18], batch[19], batch[20]]);
    let crc = crc32c::crc32c_combine(before ^ after, whole, batch.len() - end);
    put(batch, 17, &crc.to_be_bytes());
}

pub(super) fn put(batch: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = batch.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}
