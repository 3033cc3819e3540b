//! What a consumer emits.

use crate::Error;
use crate::codec;
use crate::record::{Origin, Record};

/// A consumer's way out. What it emits is stored once the call has ended well.
#[derive(Debug)]
pub struct Context {
    topics: Vec<String>,
    records: Vec<u8>,
    /// The time of what is emitted unless said: that of the batch's last record, less its base timestamp.
    pub(crate) timestamp_delta: i64,
    base_timestamp: i64,
    scratch: Vec<u8>,
    scratch_key: Vec<u8>,
}

/// What can be a key or a value: bytes, text, numbers (as decimal text), or nothing.
pub trait Field {
    /// Gives its bytes; `room` may hold them meanwhile.
    fn bytes<'a>(&'a self, room: &'a mut Vec<u8>) -> Option<&'a [u8]>;
}

macro_rules! field_of_bytes {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn bytes<'a>(&'a self, _: &'a mut Vec<u8>) -> Option<&'a [u8]> {
                let bytes: &[u8] = self.as_ref();
                Some(bytes)
            }
        }
    )*};
}
field_of_bytes!([u8], Vec<u8>, str, String);

macro_rules! field_of_number {
    ($($type:ty),*) => {$(
        impl Field for $type {
            fn bytes<'a>(&'a self, room: &'a mut Vec<u8>) -> Option<&'a [u8]> {
                room.clear();
                room.extend_from_slice(self.to_string().as_bytes());
                Some(room)
            }
        }
    )*};
}
field_of_number!(i32, i64, u32, u64, usize);

impl<const N: usize> Field for [u8; N] {
    fn bytes<'a>(&'a self, _: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        Some(self)
    }
}

impl<T: Field + ?Sized> Field for &T {
    fn bytes<'a>(&'a self, room: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        (**self).bytes(room)
    }
}

impl<T: Field> Field for Option<T> {
    fn bytes<'a>(&'a self, room: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        self.as_ref().and_then(|field| field.bytes(room))
    }
}

impl Context {
    pub(crate) fn new(origin: &Origin<'_>) -> Self {
        Self {
            topics: Vec::new(),
            records: Vec::new(),
            timestamp_delta: 0,
            base_timestamp: origin.base_timestamp,
            scratch: Vec::new(),
            scratch_key: Vec::new(),
        }
    }

    /// Emits a record to `topic`, one of the function's output topics, at the time of the batch's last record.
    pub fn emit(&mut self, topic: &str, key: impl Field, value: impl Field) -> Result<(), Error> {
        let (mut room, mut key_room) =
            (std::mem::take(&mut self.scratch), std::mem::take(&mut self.scratch_key));
        let (key, value) = (key.bytes(&mut key_room), value.bytes(&mut room));
        let emitted = self.put(topic, self.timestamp_delta, key, value, 0, &[]);
        (self.scratch, self.scratch_key) = (room, key_room);
        emitted
    }

    /// Emits `record` as it is, changes included, to `topic`: key, value, headers and timestamp.
    pub fn forward(&mut self, topic: &str, record: &Record<'_>) -> Result<(), Error> {
        let (count, headers) = record.raw_headers();
        self.put(topic, record.timestamp_delta(), record.key(), record.value(), count, headers)
    }

    /// Emits a record with headers and a time of its own, in milliseconds since the Unix epoch.
    pub fn emit_with(
        &mut self,
        topic: &str,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Result<(), Error> {
        let mut written = Vec::new();
        for (name, value) in headers {
            codec::put_bytes(&mut written, Some(name.as_bytes()));
            codec::put_bytes(&mut written, Some(value));
        }
        let delta = timestamp.wrapping_sub(self.base_timestamp);
        self.put(topic, delta, key, value, headers.len(), &written)
    }

    fn put(
        &mut self,
        topic: &str,
        timestamp_delta: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        header_count: usize,
        headers: &[u8],
    ) -> Result<(), Error> {
        if topic.is_empty() {
            return Err(Error::new("a record is emitted to a topic without a name"));
        }
        let place = match self.topics.iter().position(|known| known == topic) {
            Some(place) => place,
            None => {
                self.topics.push(topic.to_owned());
                self.topics.len() - 1
            }
        };
        codec::put_unsigned(&mut self.records, place as u64);
        codec::put_record(&mut self.records, timestamp_delta, 0, key, value, header_count, headers);
        Ok(())
    }

    pub(crate) fn into_parts(self) -> (Vec<String>, Vec<u8>) {
        (self.topics, self.records)
    }
}
