//! Records within a batch: borrowed ([`RecordSlice`]), owned ([`Record`]), and how they are written.

use bytes::Bytes;

use crate::{Offset, Timestamp, limits};

use super::{BatchError, BatchHeader, varint};

/// A record as a reader gets it. Key, value and headers are slices of the batch: no copy was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: Offset,
    /// Its time in milliseconds since the Unix epoch: the producer's, or the append's.
    pub timestamp: Timestamp,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` deletes the key in a compacted topic.
    pub value: Option<Bytes>,
    /// Its headers, in the producer's order; keys may repeat.
    pub headers: Vec<Header>,
}

/// A record's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its name. UTF-8 in what was read; a batch whose header names are not is refused.
    pub key: Bytes,
    /// Its value.
    pub value: Option<Bytes>,
}

/// A record as it lies in the bytes of a records section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordSlice<'a> {
    /// The whole record as it is written, with its length in front: can be copied to another batch as it is.
    pub raw: &'a [u8],
    /// Its offset less the batch's base offset; not negative.
    pub offset_delta: i32,
    /// Its timestamp less the batch's base timestamp; see [`BatchHeader::timestamp_of`].
    pub timestamp_delta: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// How many headers it has.
    pub header_count: u32,
    headers: &'a [u8],
}

impl<'a> RecordSlice<'a> {
    /// The headers in order: name and value. They were checked when the record was read.
    pub fn headers(&self) -> HeaderSlices<'a> {
        HeaderSlices { rest: self.headers, remaining: self.header_count }
    }

    /// The headers as they are written, without their count.
    pub fn raw_headers(&self) -> &'a [u8] {
        self.headers
    }

    /// Reads the record at the front of `rest` and moves past it.
    #[inline]
    fn take(rest: &mut &'a [u8]) -> Result<Self, &'static str> {
        const CUT: &str = "it is cut short";
        let start = *rest;
        let length = varint::take_i32(rest).ok_or(CUT)?;
        let length = usize::try_from(length).map_err(|_| "its length is negative")?;
        let (mut body, after) = rest.split_at_checked(length).ok_or(CUT)?;
        *rest = after;
        let raw = &start[..start.len() - after.len()];
        // The record's own attributes are not used by version 2.
        body = body.get(1..).ok_or(CUT)?;
        let timestamp_delta = varint::take_i64(&mut body).ok_or(CUT)?;
        let offset_delta = varint::take_i32(&mut body).ok_or(CUT)?;
        if offset_delta < 0 {
            return Err("its offset delta is negative");
        }
        let key = take_bytes(&mut body)?;
        let value = take_bytes(&mut body)?;
        let count = varint::take_i32(&mut body).ok_or(CUT)?;
        let record = Self {
            raw,
            offset_delta,
            timestamp_delta,
            key,
            value,
            header_count: count as u32,
            headers: body,
        };
        if count == 0 && body.is_empty() { Ok(record) } else { record.check_headers(count) }
    }

    #[cold]
    #[inline(never)]
    fn check_headers(self, count: i32) -> Result<Self, &'static str> {
        let count = usize::try_from(count).map_err(|_| "its header count is negative")?;
        if count > limits::HEADERS_PER_RECORD {
            return Err("it has more than 4096 headers");
        }
        let mut body = self.headers;
        for _ in 0..count {
            let key = take_bytes(&mut body)?.ok_or("a header has no name")?;
            if std::str::from_utf8(key).is_err() {
                return Err("a header's name is not UTF-8");
            }
            take_bytes(&mut body)?;
        }
        if body.is_empty() { Ok(self) } else { Err("its length is more than it holds") }
    }
}

#[inline(always)]
fn take_bytes<'a>(body: &mut &'a [u8]) -> Result<Option<&'a [u8]>, &'static str> {
    let length = varint::take_i32(body).ok_or("it is cut short")?;
    if length < 0 {
        return if length == -1 { Ok(None) } else { Err("a length in it is negative") };
    }
    let (bytes, after) = body.split_at_checked(length as usize).ok_or("it is cut short")?;
    *body = after;
    Ok(Some(bytes))
}

/// A record's headers: name and value. Ends early rather than err, for the record was checked before.
#[derive(Clone, Debug)]
pub struct HeaderSlices<'a> {
    rest: &'a [u8],
    remaining: u32,
}

impl<'a> Iterator for HeaderSlices<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let key = std::str::from_utf8(take_bytes(&mut self.rest).ok()??).ok()?;
        Some((key, take_bytes(&mut self.rest).ok()?))
    }
}

/// The records of a records section that is not compressed (any more), borrowed: no allocation, no reference
/// count. Ends after the first error.
#[derive(Clone, Debug)]
pub struct RecordSlices<'a> {
    rest: &'a [u8],
    index: u32,
}

impl<'a> RecordSlices<'a> {
    /// Over `records`: Kafka's records end to end, as [`super::RecordBatch::records_bytes`] gives them.
    pub fn new(records: &'a [u8]) -> Self {
        Self { rest: records, index: 0 }
    }
}

impl<'a> Iterator for RecordSlices<'a> {
    type Item = Result<RecordSlice<'a>, BatchError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let index = self.index;
        self.index += 1;
        Some(RecordSlice::take(&mut self.rest).map_err(|why| {
            self.rest = &[];
            BatchError::Record { index, why }
        }))
    }
}

/// What a walk over a records section found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// The latest timestamp as the records' deltas say; `None` of no record.
    pub(super) max_timestamp: Option<Timestamp>,
}

/// Checks `records` against `header`: structure, count, offset deltas that rise and stay within the batch.
pub(super) fn walk(header: &BatchHeader, records: &[u8], count: i32) -> Result<Walk, BatchError> {
    let mut rest = records;
    let mut found = 0u32;
    let mut last = -1;
    let mut max_timestamp = i64::MIN;
    while !rest.is_empty() {
        let refuse = |why| BatchError::Record { index: found, why };
        let record = RecordSlice::take(&mut rest).map_err(refuse)?;
        if record.offset_delta <= last {
            return Err(refuse("its offset delta does not rise"));
        }
        last = record.offset_delta;
        max_timestamp = max_timestamp.max(header.base_timestamp.wrapping_add(record.timestamp_delta));
        found += 1;
    }
    if last > header.last_offset_delta {
        return Err(BatchError::Record { index: found - 1, why: "its offset is past the batch's last" });
    }
    if i64::from(found) != i64::from(count) {
        return Err(BatchError::Count { said: count as u32, found });
    }
    Ok(Walk { max_timestamp: (found > 0).then_some(max_timestamp) })
}

/// The records of a batch, owned, as slices of its (decompressed) bytes. As many as the header counts, or an
/// error, after which it ends.
#[derive(Clone, Debug)]
pub struct Records {
    header: BatchHeader,
    bytes: Bytes,
    position: usize,
    index: u32,
    failed: bool,
}

impl Records {
    pub(super) fn new(header: BatchHeader, bytes: Bytes) -> Self {
        Self { header, bytes, position: 0, index: 0, failed: false }
    }

    fn read(&mut self) -> Result<Record, BatchError> {
        let refuse = |why| BatchError::Record { index: self.index, why };
        let mut rest = &self.bytes[self.position..];
        let slice = RecordSlice::take(&mut rest).map_err(refuse)?;
        if slice.offset_delta > self.header.last_offset_delta {
            return Err(refuse("its offset is past the batch's last"));
        }
        let owned = |bytes: &[u8]| self.bytes.slice_ref(bytes);
        let record = Record {
            offset: self.header.base_offset + i64::from(slice.offset_delta),
            timestamp: self.header.timestamp_of(slice.timestamp_delta),
            key: slice.key.map(owned),
            value: slice.value.map(owned),
            headers: slice
                .headers()
                .map(|(key, value)| Header { key: owned(key.as_bytes()), value: value.map(owned) })
                .collect(),
        };
        self.position = self.bytes.len() - rest.len();
        self.index += 1;
        Ok(record)
    }
}

impl Iterator for Records {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let said = self.header.record_count as u32;
        if self.failed {
            return None;
        }
        let at_end = self.position == self.bytes.len();
        if at_end && self.index == said {
            return None;
        }
        let record = if at_end || self.index == said {
            Err(BatchError::Count { said, found: self.index + u32::from(!at_end) })
        } else {
            self.read()
        };
        self.failed = record.is_err();
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some((self.header.record_count as u32 - self.index) as usize + 1))
    }
}

/// Appends one record to a records section. The caller counts the records, keeps the offset deltas rising, and
/// the section within [`limits::DECOMPRESSED_BATCH_BYTES`]. Nothing is allocated unless `out` must grow.
pub fn encode_record<'a>(
    out: &mut Vec<u8>,
    offset_delta: u32,
    timestamp_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
) {
    let body = 1
        + varint::len(timestamp_delta)
        + varint::len(i64::from(offset_delta))
        + bytes_len(key)
        + bytes_len(value)
        + varint::len(headers.len() as i64)
        + headers.clone().map(|(key, value)| bytes_len(Some(key)) + bytes_len(value)).sum::<usize>();
    out.reserve(body + 10);
    varint::put(out, body as i64);
    out.push(0);
    varint::put(out, timestamp_delta);
    varint::put(out, i64::from(offset_delta));
    put_bytes(out, key);
    put_bytes(out, value);
    varint::put(out, headers.len() as i64);
    for (key, value) in headers {
        put_bytes(out, Some(key));
        put_bytes(out, value);
    }
}

/// The most bytes that a record takes up in a records section.
pub fn record_bytes_bound(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header]) -> usize {
    // Length, attributes, timestamp delta, offset delta, the lengths of key and value, the count of headers.
    let fixed = 5 + 1 + 10 + 5 + 5 + 5 + 5;
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let headers = headers.iter().map(|header| 10 + header.key.len() + length(header.value.as_deref()));
    fixed + length(key) + length(value) + headers.sum::<usize>()
}

#[inline]
fn bytes_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varint::len(bytes.len() as i64) + bytes.len())
}

#[inline]
fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => varint::put(out, -1),
        Some(bytes) => {
            varint::put(out, bytes.len() as i64);
            out.extend_from_slice(bytes);
        }
    }
}
