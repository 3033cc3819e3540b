//! Record batch v2: Kafka's format (magic 2), on the wire and on the disk alike.
//!
//! ```text
//!   0            8        12             16    17   21          23                 27
//!   | base offset | length | leader epoch | magic | crc | attributes | last offset delta |
//!   27               35              43            51               53              57             61
//!   | base timestamp | max timestamp | producer id | producer epoch | base sequence | record count | records ...
//!
//!   record = length | attributes | timestamp delta | offset delta | key | value | headers     (varints, zigzag)
//! ```
//!
//! Base offset and leader epoch lie outside the CRC-32C, which runs from the attributes to the end: so the
//! leader gives a batch its place ([`assign`]) without touching what the producer wrote. `length` counts from
//! the leader epoch on. The records section is compressed as a whole. Numbers are big-endian (KIP-98).
//!
//! Everything that reads here is safe to give to anybody's bytes: no panic, no allocation by a count that was
//! not checked, no more than [`crate::limits::DECOMPRESSED_BATCH_BYTES`] from any compressed batch.

pub mod assign;
mod builder;
mod compression;
mod header;
mod record;
mod record_batch;
mod varint;

pub use builder::BatchBuilder;
pub use compression::{Compression, UnknownCompression};
pub use header::BatchHeader;
pub use record::{
    Header, HeaderSlices, Record, RecordSlice, RecordSlices, Records, encode_record, record_bytes_bound,
};
pub use record_batch::{Batches, RecordBatch, split};

/// The bytes of a batch before its records.
pub const HEADER_BYTES: usize = 61;

/// The bytes of base offset and length, which `length` does not count.
pub(crate) const LENGTH_END: usize = 12;
/// Where the CRC begins to count.
pub(crate) const CRC_START: usize = 21;

/// Why bytes are not a record batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The bytes end before the batch does.
    #[error("batch is cut short: it needs {needed} bytes and has {found}")]
    Truncated {
        /// How many bytes the batch needs, as far as can be said.
        needed: usize,
        /// How many there are.
        found: usize,
    },
    /// Not the format this code reads.
    #[error("batch has magic {0}: only record batch v2 (magic 2) is known")]
    Magic(i8),
    /// More bytes than one batch.
    #[error("batch is followed by {0} bytes that do not belong to it")]
    Trailing(usize),
    /// A field of the header that cannot be.
    #[error("batch header is wrong: {0}")]
    Header(&'static str),
    /// The batch was changed on its way.
    #[error("batch has crc {stored:08x} but its bytes give {computed:08x}: it was damaged")]
    Crc {
        /// As it stands in the header.
        stored: u32,
        /// Over the bytes as they are.
        computed: u32,
    },
    /// Larger than the format or the limits allow.
    #[error("batch is too large: {size} {what}, at most {limit}")]
    TooLarge {
        /// What there is too much of: `bytes`, `records`.
        what: &'static str,
        /// How much there is.
        size: usize,
        /// How much there may be.
        limit: usize,
    },
    /// The records section does not decompress.
    #[error("batch does not decompress as {compression}: {why}")]
    Decompress {
        /// As the header says.
        compression: Compression,
        /// What the decompressor said.
        why: String,
    },
    /// The records section does not compress.
    #[error("batch does not compress as {compression}: {why}")]
    Compress {
        /// As it was asked.
        compression: Compression,
        /// What the compressor said.
        why: String,
    },
    /// A record that cannot be.
    #[error("record {index} of the batch is wrong: {why}")]
    Record {
        /// The record's place in the batch, from 0.
        index: u32,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The header counts other than there are.
    #[error("batch says it holds {said} records but holds {found}")]
    Count {
        /// As it stands in the header.
        said: u32,
        /// As they were counted.
        found: u32,
    },
    /// A batch is built of at least one record.
    #[error("batch has no record")]
    Empty,
}

#[cfg(test)]
mod tests;
