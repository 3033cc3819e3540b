//! What an operator can set.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Error;

/// The settings of a node's metadata. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How often a Raft leader shows that it is there, and how long a follower may take to answer. Also the idle
    /// cost: a node wakes about this often.
    pub heartbeat_ms: u64,
    /// The shortest silence after which a follower stands for election. More than twice `heartbeat_ms`.
    pub election_timeout_min_ms: u64,
    /// The longest silence after which a follower stands for election, counted from when it stops staying with
    /// the leader that it last heard, which takes as long again: a dead leader is replaced within twice this time,
    /// as a rule. More than `election_timeout_min_ms`.
    pub election_timeout_max_ms: u64,
    /// How often a broker tells each voter that it is there.
    pub broker_heartbeat_ms: u64,
    /// The silence after which a broker is fenced. At least three times `broker_heartbeat_ms`.
    pub session_timeout_ms: u64,
    /// How long a node waits at its start for the others of its cluster, those not started yet among them.
    pub join_timeout_ms: u64,
    /// How long a piece of a snapshot may take to a peer.
    pub snapshot_piece_timeout_ms: u64,
    /// How long a proposal may take. Without a majority it would take for ever.
    pub propose_timeout_ms: u64,
    /// Proposals under way at once; more are refused as busy.
    pub proposals_in_flight: usize,
    /// Entries after which a snapshot is made.
    pub snapshot_entries: u64,
    /// Entries that are kept behind a snapshot, for followers that are a little late.
    pub kept_entries: u64,
    /// What the store may hold in memory, in bytes.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heartbeat_ms: 75,
            election_timeout_min_ms: 300,
            election_timeout_max_ms: 450,
            broker_heartbeat_ms: 200,
            session_timeout_ms: 1_000,
            join_timeout_ms: 60_000,
            snapshot_piece_timeout_ms: 5_000,
            propose_timeout_ms: 10_000,
            proposals_in_flight: 1_024,
            snapshot_entries: 4_096,
            kept_entries: 1_024,
            cache_bytes: 16 << 20,
        }
    }
}

impl Options {
    /// Checks that the settings are in range and fit together.
    pub fn validate(&self) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::Options(what.to_owned()));
        if self.heartbeat_ms < 10 {
            return wrong("heartbeat_ms is at least 10");
        }
        if self.election_timeout_min_ms < self.heartbeat_ms.saturating_mul(2) {
            return wrong("election_timeout_min_ms is at least twice heartbeat_ms");
        }
        if self.election_timeout_max_ms <= self.election_timeout_min_ms {
            return wrong("election_timeout_max_ms is more than election_timeout_min_ms");
        }
        if self.election_timeout_max_ms > 60_000 {
            return wrong("election_timeout_max_ms is at most 60000");
        }
        if self.broker_heartbeat_ms < 10 {
            return wrong("broker_heartbeat_ms is at least 10");
        }
        if self.session_timeout_ms < self.broker_heartbeat_ms.saturating_mul(3) {
            return wrong("session_timeout_ms is at least three times broker_heartbeat_ms");
        }
        if self.session_timeout_ms > 600_000 || !(1..=86_400_000).contains(&self.join_timeout_ms) {
            return wrong("session_timeout_ms is at most 600000, and join_timeout_ms 1 to 86400000");
        }
        if self.snapshot_piece_timeout_ms == 0 || self.propose_timeout_ms == 0 {
            return wrong("snapshot_piece_timeout_ms and propose_timeout_ms are more than 0");
        }
        if !(1..=1 << 20).contains(&self.proposals_in_flight) {
            return wrong("proposals_in_flight is 1 to 1048576");
        }
        if self.snapshot_entries == 0 {
            return wrong("snapshot_entries is more than 0");
        }
        if self.cache_bytes < 1 << 20 {
            return wrong("cache_bytes is at least 1048576");
        }
        Ok(())
    }

    pub(crate) fn broker_heartbeat(&self) -> Duration {
        Duration::from_millis(self.broker_heartbeat_ms)
    }

    pub(crate) fn session_timeout(&self) -> Duration {
        Duration::from_millis(self.session_timeout_ms)
    }

    pub(crate) fn join_timeout(&self) -> Duration {
        Duration::from_millis(self.join_timeout_ms)
    }

    pub(crate) fn propose_timeout(&self) -> Duration {
        Duration::from_millis(self.propose_timeout_ms)
    }
}
