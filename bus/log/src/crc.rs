//! CRC-32C over what this crate keeps beside the batches.

/// Of `parts` end to end.
pub(crate) fn of(parts: &[&[u8]]) -> u32 {
    parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part))
}
