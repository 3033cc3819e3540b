//! Names and numbers: what a topic, a partition, a node and a module are called.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits;

/// A broker's id, unique in its cluster, given by its operator, from 1.
pub type NodeId = u64;

/// A partition's number within its topic, from 0.
pub type PartitionId = u32;

/// A record's place in its partition, from 0; never negative in a stored record.
pub type Offset = i64;

/// A leader epoch: raised at each election of a partition's leader.
pub type Epoch = i32;

/// Milliseconds since the Unix epoch.
pub type Timestamp = i64;

/// A topic's identity, which a later topic of the same name does not share: the position in the metadata log
/// of the command that created it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TopicId(pub u64);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A topic's name: 1 to 249 characters of `a-z A-Z 0-9 . _ -`, and neither `.` nor `..` (Kafka's rule, as the
/// name is also a folder's). Cheap to clone. A value of this type is valid, also one that came off the wire.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicName(Arc<str>);

/// Why a topic's name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic name {name:?} is not valid: {why}")]
pub struct InvalidTopicName {
    name: String,
    why: &'static str,
}

impl TopicName {
    /// Checks `name` against the rule above.
    pub fn new(name: &str) -> Result<Self, InvalidTopicName> {
        let why = if name.is_empty() {
            "it is empty"
        } else if name == "." || name == ".." {
            "it is a folder's name"
        } else if name.len() > limits::TOPIC_NAME_BYTES {
            "it is longer than 249 characters"
        } else if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            "only a-z, A-Z, 0-9, '.', '_' and '-' are allowed"
        } else {
            return Ok(Self(name.into()));
        };
        // An error is shown to people: a name of a megabyte is not.
        Err(InvalidTopicName { name: name.chars().take(limits::TOPIC_NAME_BYTES).collect(), why })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the topic is the cluster's own (`__groups`): users read it, and do not write it.
    pub fn is_internal(&self) -> bool {
        self.0.starts_with("__")
    }
}

impl TryFrom<String> for TopicName {
    type Error = InvalidTopicName;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name)
    }
}

impl std::str::FromStr for TopicName {
    type Err = InvalidTopicName;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl From<TopicName> for String {
    fn from(name: TopicName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: TopicName,
    /// The partition's number in it.
    pub partition: PartitionId,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: TopicName, partition: PartitionId) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// The content address of a module's bytes: their SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BlobId(pub [u8; 32]);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_follow_kafkas_rule() {
        for good in ["a", "orders.v1", "A_b-9", &"x".repeat(249)] {
            assert_eq!(TopicName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a b", "a/b", "ä", &"x".repeat(250), "a\0"] {
            assert!(TopicName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_off_the_wire_is_checked_too() {
        let bytes = postcard::to_stdvec("../../etc").unwrap();
        assert!(postcard::from_bytes::<TopicName>(&bytes).is_err());
    }
}
