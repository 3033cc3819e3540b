//! Zigzag varints, as Protocol Buffers and Kafka write them.

/// Reads an `i32` at the front of `bytes` and moves past it; `None` if it is cut short or too long.
#[inline(always)]
pub(crate) fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        *bytes = rest;
        return Some(unzigzag32(u32::from(first)));
    }
    let (&second, rest) = rest.split_first()?;
    if second < 0x80 {
        *bytes = rest;
        return Some(unzigzag32(u32::from(first & 0x7f) | u32::from(second) << 7));
    }
    let raw = take_u64(bytes)?;
    u32::try_from(raw).ok().map(unzigzag32)
}

/// Reads an `i64` at the front of `bytes` and moves past it; `None` if it is cut short or too long.
#[inline(always)]
pub(crate) fn take_i64(bytes: &mut &[u8]) -> Option<i64> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        *bytes = rest;
        return Some(unzigzag64(u64::from(first)));
    }
    take_u64(bytes).map(unzigzag64)
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, &byte) in bytes.iter().take(10).enumerate() {
        // The tenth byte has room for one bit.
        if index == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *bytes = bytes.get(index + 1..)?;
            return Some(value);
        }
    }
    None
}

const fn unzigzag32(raw: u32) -> i32 {
    (raw >> 1) as i32 ^ -((raw & 1) as i32)
}

const fn unzigzag64(raw: u64) -> i64 {
    (raw >> 1) as i64 ^ -((raw & 1) as i64)
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// Appends `value`; an `i32` is written the same way.
#[inline]
pub(crate) fn put(out: &mut Vec<u8>, value: i64) {
    let mut raw = zigzag(value);
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// How many bytes [`put`] writes.
#[inline]
pub(crate) const fn len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_own_vectors() {
        let vectors: [(i64, &[u8]); 8] = [
            (0, &[0x00]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (i64::from(i32::MAX), &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i64::from(i32::MIN), &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ];
        for (value, bytes) in vectors {
            let mut out = Vec::new();
            put(&mut out, value);
            assert_eq!(out, bytes);
            assert_eq!(len(value), bytes.len());
            assert_eq!(take_i32(&mut &out[..]), i32::try_from(value).ok());
            assert_eq!(take_i64(&mut &out[..]), Some(value));
        }
    }

    #[test]
    fn the_extremes_and_the_overlong() {
        for value in [i64::MAX, i64::MIN, 1 << 40, -(1 << 40)] {
            let mut out = Vec::new();
            put(&mut out, value);
            assert_eq!(out.len(), len(value));
            assert_eq!(take_i64(&mut &out[..]), Some(value));
            assert_eq!(take_i32(&mut &out[..]), None);
            for cut in 0..out.len() {
                assert_eq!(take_i64(&mut &out[..cut]), None);
            }
        }
        assert_eq!(take_i64(&mut &[0xff; 11][..]), None);
        assert_eq!(take_i32(&mut &[0xff, 0xff, 0xff, 0xff, 0x1f][..]), None);
    }
}
