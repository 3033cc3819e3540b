//! What an operator can set.

use serde::{Deserialize, Serialize};

use crate::Error;

/// The settings of one partition's coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The longest name of a group, in bytes.
    pub group_name_bytes: usize,
    /// The most groups.
    pub groups: usize,
    /// The most committed offsets, of all groups together. One takes about 200 bytes of memory.
    pub offsets: usize,
    /// The most offsets in one commit.
    pub offsets_per_commit: usize,
    /// No snapshot is written before the log has grown by this many bytes...
    pub snapshot_min_bytes: u64,
    /// ...and by this many times what the snapshot would take.
    pub snapshot_growth: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            group_name_bytes: 255,
            groups: 100_000,
            offsets: 1_000_000,
            offsets_per_commit: 10_000,
            snapshot_min_bytes: 16 << 20,
            snapshot_growth: 4,
        }
    }
}

impl Options {
    /// Checks that the settings are in range.
    pub fn validate(&self) -> Result<(), Error> {
        if !(1..=255).contains(&self.group_name_bytes) {
            return Err(Error::Options("group_name_bytes is 1 to 255"));
        }
        if self.groups == 0 || self.offsets == 0 || self.offsets_per_commit == 0 {
            return Err(Error::Options("groups, offsets and offsets_per_commit are more than 0"));
        }
        if self.snapshot_min_bytes == 0 || self.snapshot_growth == 0 {
            return Err(Error::Options("snapshot_min_bytes and snapshot_growth are more than 0"));
        }
        Ok(())
    }
}
