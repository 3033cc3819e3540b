//! How the groups' state is written.
//!
//! A key is a version byte and a postcard [`Key`]; a value is a version byte and a postcard value of the key's
//! kind; no value takes the key back. Kinds are added at the end; a changed value gets the next version byte.

use bus_protocol::{Offset, PartitionId, Timestamp, TopicId, TopicName};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;

const KEY_VERSION: u8 = 1;
const OFFSET_VERSION: u8 = 1;

/// A record of the groups' topic, as it goes into a batch and comes out of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is about.
    pub key: Bytes,
    /// What holds from now on; `None` takes back what held.
    pub value: Option<Bytes>,
}

/// What a record is about. Borrowed where it is written, so that a commit copies no name.
#[derive(Serialize)]
pub(crate) enum KeyRef<'a> {
    Offset { group: &'a str, topic: &'a TopicName, partition: PartitionId },
}

/// [`KeyRef`] as it is read.
#[derive(Deserialize)]
pub(crate) enum Key {
    Offset { group: String, topic: TopicName, partition: PartitionId },
}

/// The value of [`Key::Offset`].
#[derive(Serialize, Deserialize)]
pub(crate) struct OffsetValue {
    pub(crate) topic_id: TopicId,
    pub(crate) offset: Offset,
    pub(crate) timestamp: Timestamp,
}

pub(crate) fn encode_key(key: &KeyRef<'_>) -> Result<Bytes, Error> {
    encode(KEY_VERSION, key)
}

pub(crate) fn decode_key(bytes: &[u8]) -> Result<Key, Error> {
    decode(KEY_VERSION, bytes)
}

pub(crate) fn encode_offset(value: &OffsetValue) -> Result<Bytes, Error> {
    encode(OFFSET_VERSION, value)
}

pub(crate) fn decode_offset(bytes: &[u8]) -> Result<OffsetValue, Error> {
    decode(OFFSET_VERSION, bytes)
}

fn encode<T: Serialize>(version: u8, value: &T) -> Result<Bytes, Error> {
    let bytes =
        postcard::to_extend(value, vec![version]).map_err(|error| Error::Corrupt(error.to_string()))?;
    Ok(bytes.into())
}

fn decode<T: DeserializeOwned>(known: u8, bytes: &[u8]) -> Result<T, Error> {
    match bytes.split_first() {
        Some((&version, rest)) if version == known => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(Error::Corrupt(format!("{} bytes are left over", rest.len()))),
            Err(error) => Err(Error::Corrupt(error.to_string())),
        },
        Some((&found, _)) => Err(Error::Version { found, known }),
        None => Err(Error::Corrupt("it is empty".into())),
    }
}
