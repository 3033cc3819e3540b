//! A topic's settings as they stand in a snapshot: by name, those that are not at their defaults, so that a
//! snapshot can be read by a version that knows more settings. One that knows fewer refuses it.

use std::collections::BTreeMap;

use bus_protocol::TopicConfig;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) fn serialize<S: Serializer>(config: &TopicConfig, serializer: S) -> Result<S::Ok, S::Error> {
    let defaults = TopicConfig::default();
    let mut settings = BTreeMap::new();
    if *config != defaults {
        let defaults = defaults.to_map();
        settings = config.to_map();
        settings.retain(|key, value| defaults.get(key) != Some(value));
    }
    settings.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TopicConfig, D::Error> {
    TopicConfig::parse(&BTreeMap::deserialize(deserializer)?).map_err(D::Error::custom)
}
