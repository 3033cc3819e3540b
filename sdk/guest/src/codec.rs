//! Records as they lie in a Kafka record batch, version 2: varints, zig-zag, lengths in front.

/// Takes one varint of at most 64 bits off the front, zig-zag decoded.
#[inline]
pub(crate) fn take(rest: &mut &[u8]) -> Option<i64> {
    let (&first, after) = rest.split_first()?;
    if first & 0x80 == 0 {
        *rest = after;
        return Some(unzigzag(u64::from(first)));
    }
    let mut value = u64::from(first & 0x7f);
    for (n, &byte) in after.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * (n + 1));
        if byte & 0x80 == 0 {
            *rest = &after[n + 1..];
            return Some(unzigzag(value));
        }
    }
    None
}

#[inline]
fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[inline]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Writes an unsigned varint.
pub(crate) fn put_unsigned(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a varint, zig-zag encoded.
pub(crate) fn put(out: &mut Vec<u8>, value: i64) {
    put_unsigned(out, zigzag(value));
}

/// How many bytes [`put`] writes.
pub(crate) fn len(value: i64) -> usize {
    (64 - (zigzag(value) | 1).leading_zeros() as usize).div_ceil(7)
}

/// Takes bytes with their length in front; the inner `None` is a null.
#[inline]
#[allow(clippy::option_option, reason = "cut short, null, or there")]
pub(crate) fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = take(rest)?;
    if length < 0 {
        return Some(None);
    }
    let (bytes, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(Some(bytes))
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put(out, -1),
        Some(bytes) => {
            put(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}

pub(crate) fn bytes_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| len(bytes.len() as i64) + bytes.len())
}

/// One record as it lies in its batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice<'a> {
    /// All of it, the length in front too.
    pub(crate) raw: &'a [u8],
    pub(crate) timestamp_delta: i64,
    pub(crate) offset_delta: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) header_count: usize,
    pub(crate) headers: &'a [u8],
}

impl<'a> Slice<'a> {
    /// Takes a record off the front.
    #[inline]
    pub(crate) fn take(rest: &mut &'a [u8]) -> Option<Self> {
        let start = *rest;
        let length = usize::try_from(take(rest)?).ok()?;
        let (mut body, after) = rest.split_at_checked(length)?;
        *rest = after;
        let raw = &start[..start.len() - after.len()];
        body = body.get(1..)?;
        let timestamp_delta = take(&mut body)?;
        let offset_delta = take(&mut body)?;
        let key = take_bytes(&mut body)?;
        let value = take_bytes(&mut body)?;
        let header_count = usize::try_from(take(&mut body)?).ok()?;
        Some(Self { raw, timestamp_delta, offset_delta, key, value, header_count, headers: body })
    }
}

/// Writes a record. `headers` are already written, without their count.
pub(crate) fn put_record(
    out: &mut Vec<u8>,
    timestamp_delta: i64,
    offset_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    header_count: usize,
    headers: &[u8],
) {
    let body = 1
        + len(timestamp_delta)
        + len(offset_delta)
        + bytes_len(key)
        + bytes_len(value)
        + len(header_count as i64)
        + headers.len();
    out.reserve(body + 5);
    put(out, body as i64);
    out.push(0);
    put(out, timestamp_delta);
    put(out, offset_delta);
    put_bytes(out, key);
    put_bytes(out, value);
    put(out, header_count as i64);
    out.extend_from_slice(headers);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: i64, tail: Vec<u8>) {
            let mut out = Vec::new();
            put(&mut out, value);
            prop_assert_eq!(out.len(), len(value));
            out.extend_from_slice(&tail);
            let mut rest = out.as_slice();
            prop_assert_eq!(take(&mut rest), Some(value));
            prop_assert_eq!(rest, tail.as_slice());
        }

        #[test]
        fn records_come_back(
            timestamp: i64, offset in 0i64..1 << 31,
            key: Option<Vec<u8>>, value: Option<Vec<u8>>, headers: Vec<u8>, count in 0usize..100,
        ) {
            let mut out = Vec::new();
            put_record(&mut out, timestamp, offset, key.as_deref(), value.as_deref(), count, &headers);
            let mut rest = out.as_slice();
            let slice = Slice::take(&mut rest).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(slice.raw, out.as_slice());
            prop_assert_eq!((slice.timestamp_delta, slice.offset_delta), (timestamp, offset));
            prop_assert_eq!((slice.key, slice.value), (key.as_deref(), value.as_deref()));
            prop_assert_eq!((slice.header_count, slice.headers), (count, headers.as_slice()));
        }

        #[test]
        fn garbage_is_no_panic(bytes: Vec<u8>) {
            let _ = Slice::take(&mut bytes.as_slice());
        }
    }
}
