//! How a batch's records are compressed, as Kafka's clients do it.

use std::io::{Read, Write};

use bytes::Bytes;

use crate::limits;

use super::BatchError;

/// How a batch's records are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// gzip.
    Gzip = 1,
    /// Snappy, in Kafka's (xerial's) framing.
    Snappy = 2,
    /// LZ4 frames.
    Lz4 = 3,
    /// Zstandard.
    Zstd = 4,
}

impl std::fmt::Display for Compression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// No compression of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("compression {0:?} is not known: none, gzip, snappy, lz4 or zstd")]
pub struct UnknownCompression(String);

impl std::str::FromStr for Compression {
    type Err = UnknownCompression;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|compression| compression.to_string() == name)
            .ok_or_else(|| UnknownCompression(name.chars().take(100).collect()))
    }
}

/// xerial's stream header: magic, version 1, compatible with 1.
const XERIAL_HEADER: [u8; 16] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1];
const XERIAL_MAGIC_BYTES: usize = 8;
/// The uncompressed bytes of a xerial block, as snappy-java makes them.
const XERIAL_BLOCK_BYTES: usize = 32 << 10;
/// Snappy's best is 64 bytes from 3: a block that claims more lies, and gets no memory.
const SNAPPY_MAX_RATIO: usize = 22;
/// A zstd frame may ask its reader for a window of at most 64 MiB.
const ZSTD_WINDOW_LOG: u32 = 26;

impl Compression {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    pub(super) fn from_attributes(attributes: i16) -> Result<Self, BatchError> {
        Self::ALL
            .into_iter()
            .find(|compression| *compression as i16 == attributes & 0b111)
            .ok_or(BatchError::Header("its compression is none that is known"))
    }

    /// Appends `records`, compressed, to `out`.
    pub(super) fn compress(self, records: &[u8], out: &mut Vec<u8>) -> Result<(), BatchError> {
        let result = match self {
            Self::None => {
                out.extend_from_slice(records);
                Ok(())
            }
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::default());
                encoder.write_all(records).and_then(|()| encoder.finish().map(|_| ()))
            }
            Self::Snappy => compress_xerial(records, out),
            Self::Lz4 => compress_lz4(records, out),
            Self::Zstd => compress_zstd(records, out),
        };
        result.map_err(|error| BatchError::Compress { compression: self, why: error.to_string() })
    }

    /// `compressed` as it was before: at most [`limits::DECOMPRESSED_BATCH_BYTES`] of it, or an error.
    pub(super) fn decompress(self, compressed: &Bytes) -> Result<Bytes, BatchError> {
        let mut out = Vec::new();
        let result = match self {
            Self::None => return Ok(compressed.clone()),
            Self::Gzip => {
                read_bounded(flate2::read::MultiGzDecoder::new(&compressed[..]), compressed.len(), &mut out)
            }
            Self::Snappy => decompress_snappy(compressed, &mut out),
            Self::Lz4 => {
                read_bounded(lz4_flex::frame::FrameDecoder::new(&compressed[..]), compressed.len(), &mut out)
            }
            Self::Zstd => zstd::stream::read::Decoder::with_buffer(&compressed[..])
                .and_then(|mut decoder| decoder.window_log_max(ZSTD_WINDOW_LOG).map(|()| decoder))
                .and_then(|decoder| read_bounded(decoder, compressed.len(), &mut out)),
        };
        result.map_err(|error| BatchError::Decompress { compression: self, why: error.to_string() })?;
        if out.len() > limits::DECOMPRESSED_BATCH_BYTES {
            return Err(too_large());
        }
        Ok(out.into())
    }
}

fn too_large() -> BatchError {
    let limit = limits::DECOMPRESSED_BATCH_BYTES;
    BatchError::TooLarge { what: "bytes once decompressed", size: limit + 1, limit }
}

/// Reads to the end, or one byte past the limit.
fn read_bounded(reader: impl Read, compressed: usize, out: &mut Vec<u8>) -> std::io::Result<()> {
    let limit = limits::DECOMPRESSED_BATCH_BYTES;
    // A guess at the size saves growing; it is bounded by what the peer really sent.
    out.reserve(compressed.saturating_mul(3).min(limit));
    reader.take(limit as u64 + 1).read_to_end(out).map(|_| ())
}

fn compress_zstd(records: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    let mut encoder = zstd::stream::write::Encoder::new(out, 0)?;
    // A known size keeps the reader's window, and so its memory, as small as the batch.
    encoder.set_pledged_src_size(Some(records.len() as u64))?;
    encoder.write_all(records)?;
    encoder.finish().map(|_| ())
}

fn compress_lz4(records: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    // Kafka's reader knows independent blocks only, and its writer makes blocks of 64 KiB.
    let info = lz4_flex::frame::FrameInfo::new()
        .block_mode(lz4_flex::frame::BlockMode::Independent)
        .block_size(lz4_flex::frame::BlockSize::Max64KB);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, out);
    encoder.write_all(records)?;
    encoder.finish().map(|_| ()).map_err(std::io::Error::other)
}

fn compress_xerial(records: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    out.extend_from_slice(&XERIAL_HEADER);
    let mut encoder = snap::raw::Encoder::new();
    for block in records.chunks(XERIAL_BLOCK_BYTES) {
        let length_at = out.len();
        let room = snap::raw::max_compress_len(block.len());
        out.resize(length_at + 4 + room, 0);
        let written = encoder.compress(block, &mut out[length_at + 4..])?;
        out.truncate(length_at + 4 + written);
        out[length_at..length_at + 4].copy_from_slice(&(written as u32).to_be_bytes());
    }
    Ok(())
}

fn decompress_snappy(compressed: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    let magic = &XERIAL_HEADER[..XERIAL_MAGIC_BYTES];
    if !compressed.starts_with(magic) {
        return decompress_snappy_block(compressed, out);
    }
    let cut_short = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let mut rest = compressed;
    while !rest.is_empty() {
        // Streams that were put end to end have their headers in between.
        if rest.starts_with(magic) {
            rest = rest.get(XERIAL_HEADER.len()..).ok_or_else(cut_short)?;
            continue;
        }
        let (length, after) = rest.split_first_chunk::<4>().ok_or_else(cut_short)?;
        let (block, after) =
            after.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(cut_short)?;
        decompress_snappy_block(block, out)?;
        rest = after;
    }
    Ok(())
}

fn decompress_snappy_block(block: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    let size = snap::raw::decompress_len(block)?;
    let start = out.len();
    if size > block.len().saturating_mul(SNAPPY_MAX_RATIO) || start + size > limits::DECOMPRESSED_BATCH_BYTES
    {
        return Err(std::io::Error::other("a block claims more than it may hold"));
    }
    out.resize(start + size, 0);
    let written = snap::raw::Decoder::new().decompress(block, &mut out[start..])?;
    out.truncate(start + written);
    Ok(())
}
