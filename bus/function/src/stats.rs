//! What a function did since the broker started.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bus_protocol::Timestamp;

use crate::failure::Failure;

/// How a function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds an instance, or a call is under way.
    Running,
    /// It holds no instance; the next record makes one.
    Idle,
    /// Its last call failed.
    Failing,
}

impl State {
    /// The word that `bus function list` shows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Idle => "idle",
            Self::Failing => "failing",
        }
    }
}

/// A function's figures; all but `instances` and `memory_bytes` count since the function was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// How it does.
    pub state: State,
    /// Records given to calls that ended well.
    pub records_in: u64,
    /// Records that it let through or emitted.
    pub records_out: u64,
    /// Records that it dropped or refused, or that went to the dead-letter topic.
    pub records_failed: u64,
    /// Calls that failed.
    pub calls_failed: u64,
    /// Fuel burnt.
    pub fuel: u64,
    /// Instances held now.
    pub instances: u32,
    /// Linear memory of those instances.
    pub memory_bytes: u64,
    /// What it last failed with, and when.
    pub last_error: Option<(Timestamp, String)>,
}

/// The figures as they are counted.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) records_in: AtomicU64,
    pub(crate) records_out: AtomicU64,
    pub(crate) records_failed: AtomicU64,
    pub(crate) calls_failed: AtomicU64,
    pub(crate) fuel: AtomicU64,
    last_error: Mutex<Option<(Timestamp, String)>>,
}

impl Counters {
    pub(crate) fn count(&self, records_in: u64, records_out: u64, records_failed: u64) {
        self.records_in.fetch_add(records_in, Ordering::Relaxed);
        self.records_out.fetch_add(records_out, Ordering::Relaxed);
        self.records_failed.fetch_add(records_failed, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, at: Timestamp, failure: &Failure) {
        self.calls_failed.fetch_add(1, Ordering::Relaxed);
        self.trouble(at, failure.to_string());
    }

    /// Something other than a call went wrong.
    pub(crate) fn trouble(&self, at: Timestamp, what: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, what));
    }

    pub(crate) fn last_error(&self) -> Option<(Timestamp, String)> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
