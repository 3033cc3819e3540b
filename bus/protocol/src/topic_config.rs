//! A topic's settings, under Kafka's names (and Kafka's values, so that `-1` means no limit).

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::batch::Compression;
use crate::limits;

/// When old segments go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CleanupPolicy {
    /// By `retention.ms` and `retention.bytes`.
    Delete,
}

/// Whose time a record bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's, at the append.
    LogAppendTime,
}

/// When a record counts as stored on a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Durability {
    /// Once it is on the disk; many appends share one fdatasync.
    Fsync,
    /// Once it is in memory.
    Replicated,
}

/// The settings of a topic. A value of this type is within all ranges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicConfig {
    /// `retention.ms`: how long a record is kept at the least; `None` for ever.
    pub retention_ms: Option<u64>,
    /// `retention.bytes`: what a partition keeps at the least; `None` without limit.
    pub retention_bytes: Option<u64>,
    /// `segment.bytes`: the size at which a segment is closed.
    pub segment_bytes: u64,
    /// `segment.ms`: the age at which a segment is closed.
    pub segment_ms: u64,
    /// `cleanup.policy`.
    pub cleanup_policy: CleanupPolicy,
    /// `min.insync.replicas`: fewer than this, and `acks=all` is refused.
    pub min_insync_replicas: u32,
    /// `max.message.bytes`: the largest batch.
    pub max_message_bytes: u32,
    /// `compression.type`: what batches are stored with; `None` as the producer sent them.
    pub compression_type: Option<Compression>,
    /// `message.timestamp.type`.
    pub timestamp_type: TimestampType,
    /// `durability`.
    pub durability: Durability,
    /// `unclean.leader.election.enable`: whether a replica may lead that is not in sync, where none that is can. What
    /// it lacks is lost then.
    pub unclean_leader_election: bool,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            retention_ms: Some(7 * 24 * 3_600 * 1_000),
            retention_bytes: None,
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3_600 * 1_000,
            cleanup_policy: CleanupPolicy::Delete,
            min_insync_replicas: 1,
            max_message_bytes: limits::DEFAULT_MAX_MESSAGE_BYTES as u32,
            compression_type: None,
            timestamp_type: TimestampType::CreateTime,
            durability: Durability::Fsync,
            unclean_leader_election: false,
        }
    }
}

/// Why a setting is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicConfigError {
    /// No such setting.
    #[error("topic setting {key:?} does not exist: {}", nearest.map_or_else(|| "`bus topic describe` shows those of a topic".to_owned(), |n| format!("did you mean {n}?")))]
    UnknownKey {
        /// As it was given.
        key: String,
        /// The setting that is nearest by name, if one is near.
        nearest: Option<&'static str>,
    },
    /// The setting does not take this value.
    #[error("topic setting {key} does not take {value:?}: {wanted}")]
    Value {
        /// The setting.
        key: &'static str,
        /// As it was given.
        value: String,
        /// What it takes.
        wanted: &'static str,
    },
}

impl TopicConfig {
    /// All settings by name.
    pub const KEYS: [&str; 11] = [
        "cleanup.policy",
        "compression.type",
        "durability",
        "max.message.bytes",
        "message.timestamp.type",
        "min.insync.replicas",
        "retention.bytes",
        "retention.ms",
        "segment.bytes",
        "segment.ms",
        "unclean.leader.election.enable",
    ];

    /// The defaults with `settings` on top.
    pub fn parse(settings: &BTreeMap<String, String>) -> Result<Self, TopicConfigError> {
        let mut config = Self::default();
        settings.iter().try_for_each(|(key, value)| config.set(key, value))?;
        Ok(config)
    }

    /// Sets one setting; an empty value takes it back to its default.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), TopicConfigError> {
        let Some(&key) = Self::KEYS.iter().find(|known| **known == key) else {
            let key = key.chars().take(100).collect::<String>();
            return Err(TopicConfigError::UnknownKey { nearest: Self::nearest(&key), key });
        };
        let default = Self::default().to_map().remove(key).filter(|_| value.is_empty());
        let value = default.as_deref().unwrap_or(value);
        let refuse =
            |wanted| TopicConfigError::Value { key, value: value.chars().take(100).collect(), wanted };
        match key {
            "retention.ms" => self.retention_ms = unlimited(value).map_err(refuse)?,
            "retention.bytes" => self.retention_bytes = unlimited(value).map_err(refuse)?,
            "segment.bytes" => {
                self.segment_bytes =
                    within(value, 1 << 14..=1 << 31).ok_or_else(|| refuse("bytes, 16384 to 2147483648"))?;
            }
            "segment.ms" => {
                self.segment_ms =
                    within(value, 1..=u64::MAX).ok_or_else(|| refuse("milliseconds, at least 1"))?;
            }
            "cleanup.policy" => {
                self.cleanup_policy = match value {
                    "delete" => CleanupPolicy::Delete,
                    _ => return Err(refuse("this version knows `delete`")),
                }
            }
            "min.insync.replicas" => {
                self.min_insync_replicas =
                    within(value, 1..=100).ok_or_else(|| refuse("a number, 1 to 100"))?;
            }
            "max.message.bytes" => {
                self.max_message_bytes = within(value, 1 << 10..=limits::MAX_MESSAGE_BYTES as u32)
                    .ok_or_else(|| refuse("bytes, 1024 to 33554432"))?;
            }
            "compression.type" => {
                self.compression_type = match value {
                    "producer" => None,
                    name => {
                        Some(name.parse().map_err(|_| refuse("producer, none, gzip, snappy, lz4 or zstd"))?)
                    }
                }
            }
            "message.timestamp.type" => {
                self.timestamp_type = match value {
                    "CreateTime" => TimestampType::CreateTime,
                    "LogAppendTime" => TimestampType::LogAppendTime,
                    _ => return Err(refuse("CreateTime or LogAppendTime")),
                }
            }
            "unclean.leader.election.enable" => {
                self.unclean_leader_election = value.parse().map_err(|_| refuse("true or false"))?;
            }
            _ => {
                self.durability = match value {
                    "fsync" => Durability::Fsync,
                    "replicated" => Durability::Replicated,
                    _ => return Err(refuse("fsync or replicated")),
                }
            }
        }
        Ok(())
    }

    /// The setting whose name is nearest, if one is near.
    fn nearest(key: &str) -> Option<&'static str> {
        Self::KEYS
            .into_iter()
            .map(|known| (strsim::normalized_damerau_levenshtein(known, key), known))
            .filter(|(likeness, _)| *likeness > 0.5)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, known)| known)
    }

    /// All settings as they are written, those at their defaults too; [`TopicConfig::parse`] reads them back.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let limit = |limit: Option<u64>| limit.map_or_else(|| "-1".to_owned(), |limit| limit.to_string());
        Self::KEYS
            .into_iter()
            .map(|key| {
                let value = match key {
                    "retention.ms" => limit(self.retention_ms),
                    "retention.bytes" => limit(self.retention_bytes),
                    "segment.bytes" => self.segment_bytes.to_string(),
                    "segment.ms" => self.segment_ms.to_string(),
                    "cleanup.policy" => "delete".to_owned(),
                    "min.insync.replicas" => self.min_insync_replicas.to_string(),
                    "max.message.bytes" => self.max_message_bytes.to_string(),
                    "compression.type" => {
                        self.compression_type.map_or("producer".to_owned(), |c| c.to_string())
                    }
                    "message.timestamp.type" => format!("{:?}", self.timestamp_type),
                    "unclean.leader.election.enable" => self.unclean_leader_election.to_string(),
                    _ => format!("{:?}", self.durability).to_lowercase(),
                };
                (key.to_owned(), value)
            })
            .collect()
    }
}

fn unlimited(value: &str) -> Result<Option<u64>, &'static str> {
    match value.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(limit) => u64::try_from(limit).map(Some).map_err(|_| "a number, or -1 for no limit"),
        Err(_) => Err("a number, or -1 for no limit"),
    }
}

fn within<T: std::str::FromStr + PartialOrd + Display>(
    value: &str,
    range: std::ops::RangeInclusive<T>,
) -> Option<T> {
    value.parse().ok().filter(|value| range.contains(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_round_trip_as_text() {
        let mut config = TopicConfig::default();
        for (key, value) in
            [("retention.ms", "-1"), ("compression.type", "zstd"), ("durability", "replicated")]
        {
            config.set(key, value).unwrap();
        }
        assert_eq!(TopicConfig::parse(&config.to_map()).unwrap(), config);
        assert_eq!(config.to_map().len(), TopicConfig::KEYS.len());
        config.set("retention.ms", "").unwrap();
        assert_eq!(config.retention_ms, TopicConfig::default().retention_ms);
    }

    #[test]
    fn a_misspelt_setting_names_the_nearest() {
        let error = TopicConfig::default().set("retention.msec", "1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "topic setting \"retention.msec\" does not exist: did you mean retention.ms?"
        );
        let error = TopicConfig::default().set("zzz", "1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "topic setting \"zzz\" does not exist: `bus topic describe` shows those of a topic"
        );
        assert!(TopicConfig::default().set("retention.ms", "soon").is_err());
        assert!(TopicConfig::default().set("retention.ms", "-2").is_err());
    }
}
