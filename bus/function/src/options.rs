//! The crate's settings.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of a [`crate::FunctionHost`]; [`Options::validate`] says whether they make sense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Threads that run guests; 0 for as many as there are cores, and at least 2. One function never holds them
    /// all.
    pub workers: usize,
    /// Calls that may wait for a worker, over all functions; further callers wait to get in line.
    pub queue: usize,
    /// Instances that may live at once, over all functions. When there are more, idle ones go, oldest first.
    pub instances: u32,
    /// How long an instance, or a compiled component, is kept without a call, in milliseconds.
    pub idle_ms: u64,
    /// The most bytes that one call may give back.
    pub output_bytes: usize,
    /// Where compiled components are cached; none: nowhere.
    pub cache: Option<PathBuf>,
    /// The most that the cache may hold before its least used entries go, in bytes.
    pub cache_bytes: u64,
    /// Lines that a function's log keeps.
    pub log_lines: usize,
    /// The longest line of a function's log, in bytes; the rest is cut.
    pub log_line_bytes: usize,
    /// How long a function is left alone after a failed call, in milliseconds; doubled with each further one.
    pub backoff_first_ms: u64,
    /// The longest that the doubling goes, in milliseconds.
    pub backoff_last_ms: u64,
    /// A function is left alone for at least this many times what its failed call burnt: 20 means that a guest
    /// that always fails burns at most about 5 % of a core.
    pub backoff_share: u32,
    /// The most that a processor reads at once, in bytes, unless one batch is larger.
    pub read_bytes: usize,
    /// How often a busy processor commits its offset, in milliseconds. It also does so when it is idle or stops.
    pub commit_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 0,
            queue: 256,
            instances: 512,
            idle_ms: 60_000,
            output_bytes: 32 << 20,
            cache: None,
            cache_bytes: 512 << 20,
            log_lines: 1_000,
            log_line_bytes: 4_096,
            backoff_first_ms: 50,
            backoff_last_ms: 5_000,
            backoff_share: 20,
            read_bytes: 1 << 20,
            commit_ms: 200,
        }
    }
}

impl Options {
    /// Checks the settings against each other; the error is a sentence for the user.
    pub fn validate(&self) -> Result<(), String> {
        if self.workers > 1_024 {
            return Err(format!("workers of {} are out of range: 0 (one a core) to 1024", self.workers));
        }
        if self.queue == 0 || self.log_lines == 0 || self.log_line_bytes < 80 || self.read_bytes == 0 {
            return Err(
                "queue, log_lines and read_bytes are at least 1, and log_line_bytes at least 80".into()
            );
        }
        if !(16..=4_096).contains(&self.instances) {
            return Err(format!("instances of {} are out of range: 16 to 4096", self.instances));
        }
        if self.output_bytes < 1 << 16 || self.output_bytes > 1 << 30 {
            return Err(format!("output_bytes of {} is out of range: 64KiB to 1GiB", self.output_bytes));
        }
        if self.backoff_first_ms == 0 || self.backoff_last_ms < self.backoff_first_ms {
            return Err("backoff_first_ms is at least 1 and at most backoff_last_ms".into());
        }
        if self.cache.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err("cache is an absolute path".into());
        }
        Ok(())
    }

    /// How many threads run guests.
    pub(crate) fn worker_threads(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(2, usize::from).max(2),
            workers => workers,
        }
    }

    pub(crate) fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_not() {
        Options::default().validate().unwrap();
        assert!(Options { instances: 1, ..Options::default() }.validate().is_err());
        assert!(Options { cache: Some("here".into()), ..Options::default() }.validate().is_err());
        assert!(Options { backoff_last_ms: 1, ..Options::default() }.validate().is_err());
    }
}
