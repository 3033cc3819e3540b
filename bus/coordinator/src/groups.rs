//! The groups of one partition of the internal topic.

use std::collections::BTreeMap;

use bus_protocol::{Offset, PartitionId, Timestamp, TopicId, TopicName, TopicPartition, partition_for_key};

use crate::codec::{self, Key, KeyRef, OffsetValue};
use crate::{Error, Options, Record};

/// The internal topic's name.
pub const GROUPS_TOPIC: &str = "__groups";

/// What a record takes in a batch beside its key and value, at the most.
const RECORD_OVERHEAD_BYTES: u64 = 24;

/// The partition of [`GROUPS_TOPIC`], which has `partitions`, that `group` lives in: murmur2 of its name, as
/// for a record with that key. 0 where there are no partitions.
pub fn partition_of(group: &str, partitions: u32) -> PartitionId {
    if partitions == 0 { 0 } else { partition_for_key(group.as_bytes(), partitions) }
}

/// An offset to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The topic.
    pub topic: TopicName,
    /// Its identity: the offset means nothing in a later topic of the same name.
    pub topic_id: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The next offset to read; not negative.
    pub offset: Offset,
}

/// An offset that is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The topic's identity when it was committed.
    pub topic_id: TopicId,
    /// The next offset to read.
    pub offset: Offset,
    /// When it was committed, by the coordinator's clock.
    pub timestamp: Timestamp,
}

type Offsets = BTreeMap<TopicPartition, Committed>;

/// The groups of one partition of [`GROUPS_TOPIC`].
#[derive(Clone, Debug)]
pub struct Groups {
    options: Options,
    groups: BTreeMap<String, Offsets>,
    offsets: usize,
    /// What [`Self::snapshot`] takes, kept up as records are applied.
    live_bytes: u64,
}

/// Two are equal that know the same of the same groups.
impl PartialEq for Groups {
    fn eq(&self, other: &Self) -> bool {
        self.groups == other.groups && self.offsets == other.offsets && self.live_bytes == other.live_bytes
    }
}

impl Groups {
    /// No groups. Fails where an option is out of range.
    pub fn new(options: Options) -> Result<Self, Error> {
        options.validate()?;
        Ok(Self { options, groups: BTreeMap::new(), offsets: 0, live_bytes: 0 })
    }

    /// Takes in a record that is in the log and committed; each once, in the log's order. An error means that the
    /// log is damaged or was written by a later version: the partition cannot be served, and nothing has changed.
    /// The limits of [`Options`] do not apply: what is in the log was accepted once.
    pub fn apply(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), Error> {
        let Key::Offset { group, topic, partition } = codec::decode_key(key)?;
        let committed = match value {
            Some(value) => {
                let OffsetValue { topic_id, offset, timestamp } = codec::decode_offset(value)?;
                Some((Committed { topic_id, offset, timestamp }, record_bytes(key, value)))
            }
            None => None,
        };
        let partition = TopicPartition::new(topic, partition);
        let before = match committed {
            Some((committed, bytes)) => {
                self.offsets += 1;
                self.live_bytes += bytes;
                self.groups.entry(group).or_default().insert(partition, committed)
            }
            None => {
                let Some(offsets) = self.groups.get_mut(&group) else { return Ok(()) };
                let before = offsets.remove(&partition);
                if offsets.is_empty() {
                    self.groups.remove(&group);
                }
                before
            }
        };
        if let Some(before) = before {
            let value = codec::encode_offset(&value_of(&before))?;
            self.offsets -= 1;
            self.live_bytes -= record_bytes(key, &value);
        }
        Ok(())
    }

    /// What to append for a commit: one record an offset. The commit holds once they are committed in the log and
    /// applied. `now` is the coordinator's clock.
    pub fn commit(&self, group: &str, commits: &[Commit], now: Timestamp) -> Result<Vec<Record>, Error> {
        self.check_name(group)?;
        let limit = self.options.offsets_per_commit;
        if commits.len() > limit {
            return Err(Error::CommitTooLarge { count: commits.len(), limit });
        }
        let known = self.groups.get(group);
        if known.is_none() && self.groups.len() >= self.options.groups {
            return Err(Error::Full { what: "groups", limit: self.options.groups });
        }
        let mut new = 0;
        let records = commits
            .iter()
            .map(|commit| {
                let partition = TopicPartition::new(commit.topic.clone(), commit.partition);
                if commit.offset < 0 {
                    return Err(Error::NegativeOffset { partition, offset: commit.offset });
                }
                new += usize::from(!known.is_some_and(|known| known.contains_key(&partition)));
                let committed =
                    Committed { topic_id: commit.topic_id, offset: commit.offset, timestamp: now };
                record(group, &partition, Some(&committed))
            })
            .collect::<Result<_, _>>()?;
        if self.offsets + new > self.options.offsets {
            return Err(Error::Full { what: "committed offsets", limit: self.options.offsets });
        }
        Ok(records)
    }

    /// What a group has committed, by partition; `None` for a group that has committed nothing.
    pub fn committed(&self, group: &str) -> Option<&BTreeMap<TopicPartition, Committed>> {
        self.groups.get(group)
    }

    /// What a group has committed for one partition of one topic. An offset that was committed for an earlier
    /// topic of the same name does not count.
    pub fn committed_offset(
        &self,
        group: &str,
        topic_id: TopicId,
        partition: &TopicPartition,
    ) -> Option<Offset> {
        let committed = self.groups.get(group)?.get(partition)?;
        (committed.topic_id == topic_id).then_some(committed.offset)
    }

    /// All groups that have committed anything, by name.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// How many offsets all groups have committed.
    pub fn len(&self) -> usize {
        self.offsets
    }

    /// Whether no group has committed anything.
    pub fn is_empty(&self) -> bool {
        self.offsets == 0
    }

    /// What to append to delete a group: a tombstone an offset.
    pub fn delete_group(&self, group: &str) -> Result<Vec<Record>, Error> {
        let offsets = self.groups.get(group).ok_or_else(|| unknown(group))?;
        offsets.keys().map(|partition| record(group, partition, None)).collect()
    }

    /// What to append so that a group has committed nothing for a topic.
    pub fn delete_offsets(&self, group: &str, topic: &TopicName) -> Result<Vec<Record>, Error> {
        let offsets = self.groups.get(group).ok_or_else(|| unknown(group))?;
        let of_topic = offsets.keys().filter(|partition| partition.topic == *topic);
        of_topic.map(|partition| record(group, partition, None)).collect()
    }

    /// What to append so that no offset is left of a topic that does not exist any more, in any group. `exists`
    /// is asked for each; it does not matter when, or how often, this is done.
    pub fn delete_orphans(&self, exists: impl Fn(&TopicName, TopicId) -> bool) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for (group, offsets) in &self.groups {
            for (partition, committed) in offsets {
                if !exists(&partition.topic, committed.topic_id) {
                    records.push(record(group, partition, None)?);
                }
            }
        }
        Ok(records)
    }

    /// Whether it is time for a [`Self::snapshot`]: `bytes_since` is how much the log has grown since the last
    /// one, or since its start. Over the long run a snapshot adds at most `1 / snapshot_growth` to what is written.
    pub fn wants_snapshot(&self, bytes_since: u64) -> bool {
        let growth = self.live_bytes.saturating_mul(self.options.snapshot_growth);
        bytes_since >= self.options.snapshot_min_bytes.max(growth)
    }

    /// Every live entry: once these records are appended, and committed, all that lies before the first of them in
    /// the log can be deleted. No other record may come between (see the crate's page).
    pub fn snapshot(&self) -> impl Iterator<Item = Result<Record, Error>> {
        self.groups.iter().flat_map(|(group, offsets)| {
            offsets.iter().map(move |(partition, committed)| record(group, partition, Some(committed)))
        })
    }

    fn check_name(&self, group: &str) -> Result<(), Error> {
        let why = if group.is_empty() {
            "it is empty"
        } else if group.len() > self.options.group_name_bytes {
            "it is too long: at most 255 bytes, or what the broker's options say"
        } else if group.chars().any(char::is_control) {
            "it holds control characters"
        } else {
            return Ok(());
        };
        Err(Error::InvalidGroup { name: shown(group), why })
    }
}

fn record(group: &str, partition: &TopicPartition, committed: Option<&Committed>) -> Result<Record, Error> {
    let (topic, number) = (&partition.topic, partition.partition);
    let key = codec::encode_key(&KeyRef::Offset { group, topic, partition: number })?;
    let value = committed.map(|committed| codec::encode_offset(&value_of(committed))).transpose()?;
    Ok(Record { key, value })
}

fn value_of(committed: &Committed) -> OffsetValue {
    let Committed { topic_id, offset, timestamp } = *committed;
    OffsetValue { topic_id, offset, timestamp }
}

fn record_bytes(key: &[u8], value: &[u8]) -> u64 {
    key.len() as u64 + value.len() as u64 + RECORD_OVERHEAD_BYTES
}

fn unknown(group: &str) -> Error {
    Error::UnknownGroup { group: shown(group) }
}

/// An error is shown to people: a name of a megabyte is not.
fn shown(group: &str) -> String {
    group.chars().take(100).collect()
}
