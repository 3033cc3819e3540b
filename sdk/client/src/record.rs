//! Records: what a producer sends, and what a reader gets.

use bus_protocol::batch::Header;
use bus_protocol::{Offset, PartitionId, Timestamp, TopicName};
use bytes::Bytes;

/// Bytes of a record to be sent: borrowed, shared or owned. Made with `into()` from `&[u8]`, `&str`, `[u8; N]`,
/// `Vec<u8>`, `String` and [`Bytes`]. They are copied once, into the batch.
#[derive(Clone, Debug)]
pub struct Field<'a>(Kind<'a>);

#[derive(Clone, Debug)]
enum Kind<'a> {
    Borrowed(&'a [u8]),
    Shared(Bytes),
    Owned(Vec<u8>),
}

impl Field<'_> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Kind::Borrowed(bytes) => bytes,
            Kind::Shared(bytes) => bytes,
            Kind::Owned(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a [u8]> for Field<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self(Kind::Borrowed(bytes))
    }
}

impl<'a> From<&'a str> for Field<'a> {
    fn from(text: &'a str) -> Self {
        Self(Kind::Borrowed(text.as_bytes()))
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Field<'a> {
    fn from(bytes: &'a [u8; N]) -> Self {
        Self(Kind::Borrowed(bytes))
    }
}

impl<'a> From<&'a Vec<u8>> for Field<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self(Kind::Borrowed(bytes))
    }
}

impl<'a> From<&'a String> for Field<'a> {
    fn from(text: &'a String) -> Self {
        Self(Kind::Borrowed(text.as_bytes()))
    }
}

impl<'a> From<&'a Bytes> for Field<'a> {
    fn from(bytes: &'a Bytes) -> Self {
        Self(Kind::Borrowed(bytes))
    }
}

impl From<Bytes> for Field<'_> {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Shared(bytes))
    }
}

impl From<Vec<u8>> for Field<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Kind::Owned(bytes))
    }
}

impl From<String> for Field<'_> {
    fn from(text: String) -> Self {
        Self(Kind::Owned(text.into_bytes()))
    }
}

/// A record to be sent. Built up from [`Record::to`].
///
/// ```
/// # use bus_client::Record;
/// let record = Record::to("orders").key("42").value(b"{\"total\":7}").header("trace", "abc");
/// ```
#[derive(Clone, Debug)]
pub struct Record<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: Option<PartitionId>,
    pub(crate) timestamp: Option<Timestamp>,
    pub(crate) key: Option<Field<'a>>,
    pub(crate) value: Option<Field<'a>>,
    pub(crate) headers: Vec<Header>,
}

impl<'a> Record<'a> {
    /// A record for a topic, without key and value (a tombstone, where the topic is compacted) until they are set.
    pub fn to(topic: &'a str) -> Self {
        Self { topic, partition: None, timestamp: None, key: None, value: None, headers: Vec::new() }
    }

    /// A record for a [`crate::TopicProducer`], which knows its topic.
    pub fn new() -> Self {
        Self::to("")
    }

    /// The key: records of one key go to one partition (murmur2 of the key, as Kafka's clients do).
    pub fn key(mut self, key: impl Into<Field<'a>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The value.
    pub fn value(mut self, value: impl Into<Field<'a>>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// One more header.
    pub fn header(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header { key: Bytes::from(key.into()), value: Some(value.into()) });
        self
    }

    /// One more header, whose value may be null.
    pub fn nullable_header(mut self, key: impl Into<String>, value: Option<Bytes>) -> Self {
        self.headers.push(Header { key: Bytes::from(key.into()), value });
        self
    }

    /// The partition, whatever the key.
    pub fn partition(mut self, partition: PartitionId) -> Self {
        self.partition = Some(partition);
        self
    }

    /// The record's time, in milliseconds since the Unix epoch; the time of `send` unless set.
    pub fn timestamp(mut self, timestamp: Timestamp) -> Self {
        self.timestamp = Some(timestamp);
        self
    }
}

impl Default for Record<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerRecord {
    /// The topic that it is in.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// Its place there.
    pub offset: Offset,
    /// Its time, in milliseconds since the Unix epoch: the producer's, or the broker's, by the topic's
    /// `message.timestamp.type`.
    pub timestamp: Timestamp,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<Header>,
}
