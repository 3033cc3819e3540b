//! A record as a function sees it: a view of the batch until something of it is changed.

use std::borrow::Cow;

use crate::codec::{self, Slice};

/// Where a batch belongs; the same for all its records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: u32,
    pub(crate) base_offset: i64,
    pub(crate) base_timestamp: i64,
}

/// A record: key, value, headers, timestamp, offset. Reading copies nothing; a record that is not changed is
/// stored byte for byte as it came.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    slice: Slice<'a>,
    origin: &'a Origin<'a>,
    key: Option<Cow<'a, [u8]>>,
    value: Option<Cow<'a, [u8]>>,
    /// Headers that replace those of the slice: how many, and as they are written.
    headers: Option<(usize, Vec<u8>)>,
    changed: bool,
}

impl<'a> Record<'a> {
    #[inline]
    pub(crate) fn new(slice: Slice<'a>, origin: &'a Origin<'a>) -> Self {
        Self {
            slice,
            origin,
            key: slice.key.map(Cow::Borrowed),
            value: slice.value.map(Cow::Borrowed),
            headers: None,
            changed: false,
        }
    }

    /// The topic that it is on, or on its way to.
    pub fn topic(&self) -> &'a str {
        self.origin.topic
    }

    /// Its partition.
    pub fn partition(&self) -> u32 {
        self.origin.partition
    }

    /// Its offset. In a transform, where it has none yet, its place in the producer's batch, from 0.
    pub fn offset(&self) -> i64 {
        self.origin.base_offset + self.slice.offset_delta
    }

    /// Its time, in milliseconds since the Unix epoch.
    pub fn timestamp(&self) -> i64 {
        self.origin.base_timestamp.wrapping_add(self.slice.timestamp_delta)
    }

    /// Its key.
    #[inline]
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// Its value.
    #[inline]
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// Its value as text, if it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.value()?).ok()
    }

    /// Sets its key.
    pub fn set_key(&mut self, key: impl Into<Vec<u8>>) {
        self.key = Some(Cow::Owned(key.into()));
        self.changed = true;
    }

    /// Takes its key away.
    pub fn clear_key(&mut self) {
        self.key = None;
        self.changed = true;
    }

    /// Sets its value.
    pub fn set_value(&mut self, value: impl Into<Vec<u8>>) {
        self.value = Some(Cow::Owned(value.into()));
        self.changed = true;
    }

    /// Takes its value away: in a compacted topic, that deletes its key.
    pub fn clear_value(&mut self) {
        self.value = None;
        self.changed = true;
    }

    /// Its headers, in order; names may repeat.
    pub fn headers(&self) -> Headers<'_> {
        let (remaining, rest) = self.raw_headers();
        Headers { remaining, rest }
    }

    /// The value of its last header of that name; of none, and of one without a value, `None`.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().filter(|(key, _)| *key == name).last()?.1
    }

    /// Adds a header behind the others.
    pub fn add_header(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let (count, written) = self.raw_headers();
        let mut written = written.to_vec();
        codec::put_bytes(&mut written, Some(name.as_bytes()));
        codec::put_bytes(&mut written, Some(value.as_ref()));
        self.headers = Some((count + 1, written));
        self.changed = true;
    }

    /// Takes away all headers of that name.
    pub fn remove_header(&mut self, name: &str) {
        let (mut count, mut written) = (0, Vec::new());
        for (key, value) in self.headers().filter(|(key, _)| *key != name) {
            codec::put_bytes(&mut written, Some(key.as_bytes()));
            codec::put_bytes(&mut written, value);
            count += 1;
        }
        self.headers = Some((count, written));
        self.changed = true;
    }

    /// The headers' count, and they as they are written.
    pub(crate) fn raw_headers(&self) -> (usize, &[u8]) {
        match &self.headers {
            Some((count, written)) => (*count, written),
            None => (self.slice.header_count, self.slice.headers),
        }
    }

    pub(crate) fn timestamp_delta(&self) -> i64 {
        self.slice.timestamp_delta
    }

    /// Whether it is the record at `raw` in the batch, untouched.
    #[inline]
    pub(crate) fn is_still(&self, raw: &[u8]) -> bool {
        !self.changed && std::ptr::eq(self.slice.raw, raw)
    }

    /// Writes it behind `out`, in the place of the record `of`.
    pub(crate) fn put(&self, out: &mut Vec<u8>, of: &Slice<'_>) {
        let (count, headers) = self.raw_headers();
        codec::put_record(out, of.timestamp_delta, of.offset_delta, self.key(), self.value(), count, headers);
    }
}

/// A record's headers: name and value.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    remaining: usize,
    rest: &'a [u8],
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let name = std::str::from_utf8(codec::take_bytes(&mut self.rest)??).ok()?;
        Some((name, codec::take_bytes(&mut self.rest)?))
    }
}
