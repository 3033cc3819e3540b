//! What a deployed function is, apart from its bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{TopicName, limits};

/// Where a function stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attachment {
    /// On a topic's way in, for every producer.
    Transform {
        /// The topic.
        topic: TopicName,
    },
    /// A member of a consumer group.
    Consumer {
        /// The topics it reads; at least one.
        topics: Vec<TopicName>,
        /// The group whose committed offsets are its place.
        group: String,
    },
}

/// A function's settings, one version of it. Made by `bus function deploy`; checked by [`FunctionSpec::validate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionSpec {
    /// Its name: 1 to 128 characters of `a-z A-Z 0-9 . _ -`.
    pub name: String,
    /// Where it stands.
    pub attachment: Attachment,
    /// The topics that it may emit to. Empty for a transform.
    pub outputs: Vec<TopicName>,
    /// What `config` answers inside the function.
    pub config: BTreeMap<String, String>,
    /// The most linear memory one instance may hold, in bytes: 1 MiB to 1 GiB.
    pub memory_bytes: u64,
    /// The most fuel one call may burn (about one unit a Wasm instruction).
    pub fuel: u64,
    /// The longest that one call may take, in milliseconds: the net below `fuel`.
    pub timeout_ms: u64,
    /// How often a failed call is tried again before its batch is taken apart.
    pub retries: u32,
    /// Where records go that fail for good. For a consumer function `NAME.dead-letter` unless said.
    pub dead_letter: Option<TopicName>,
}

impl FunctionSpec {
    /// Memory of one instance unless said: 64 MiB.
    pub const DEFAULT_MEMORY_BYTES: u64 = 64 << 20;
    /// Fuel of one call unless said.
    pub const DEFAULT_FUEL: u64 = 2_000_000_000;
    /// Time of one call unless said, in milliseconds.
    pub const DEFAULT_TIMEOUT_MS: u64 = 1_000;
    /// Retries unless said.
    pub const DEFAULT_RETRIES: u32 = 3;

    /// Checks all settings against their ranges; the error is a sentence for the user.
    pub fn validate(&self) -> Result<(), String> {
        let name = &self.name;
        if name.is_empty() || name.len() > limits::FUNCTION_NAME_BYTES || TopicName::new(name).is_err() {
            return Err(format!(
                "function name {name:?} is not valid: 1 to {} characters of a-z, A-Z, 0-9, '.', '_' and '-'",
                limits::FUNCTION_NAME_BYTES
            ));
        }
        if let Some(internal) = self.outputs.iter().chain(&self.dead_letter).find(|topic| topic.is_internal())
        {
            return Err(format!("topic {internal} is the cluster's own: functions do not write there"));
        }
        if name.starts_with("__") {
            return Err(format!(
                "function name {name:?} is not valid: names that begin with __ are the cluster's own"
            ));
        }
        if !(1 << 20..=1 << 30).contains(&self.memory_bytes) {
            return Err(format!("memory of {} bytes is out of range: 1MiB to 1GiB", self.memory_bytes));
        }
        if self.fuel < 10_000 {
            return Err(format!("fuel of {} is too little for any call: at least 10000", self.fuel));
        }
        if !(1..=60_000).contains(&self.timeout_ms) {
            return Err(format!("timeout of {} ms is out of range: 1ms to 60s", self.timeout_ms));
        }
        if self.retries > 100 {
            return Err(format!("{} retries are out of range: 0 to 100", self.retries));
        }
        if self.config.len() > limits::CONFIG_ENTRIES {
            return Err(format!(
                "{} config entries are over the limit of {}",
                self.config.len(),
                limits::CONFIG_ENTRIES
            ));
        }
        match &self.attachment {
            Attachment::Consumer { topics, .. } if topics.is_empty() => {
                Err("a consumer function reads at least one topic".into())
            }
            Attachment::Consumer { group, .. } if group.is_empty() => {
                Err("a consumer function's group has a name".into())
            }
            Attachment::Transform { .. } if !self.outputs.is_empty() => {
                Err("a transform has no output topics: what it returns is stored in its own topic".into())
            }
            _ => Ok(()),
        }
    }
}
