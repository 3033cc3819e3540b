//! How long a function that failed is left alone.

use std::time::Duration;

use crate::Options;

/// A function's record of failures; times are [`bus_protocol::Clock::monotonic`].
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
    until: Duration,
}

impl Backoff {
    /// Notes a failed call that ended at `now` and burnt `burnt`. `whole`: whether the failure counts towards
    /// the doubling, which that of a part of a batch that is being taken apart does not.
    pub(crate) fn failed(&mut self, options: &Options, now: Duration, burnt: Duration, whole: bool) {
        let fair = burnt.saturating_mul(options.backoff_share);
        let pause = if whole {
            self.failures = self.failures.saturating_add(1);
            let doubled = options.backoff_first_ms.saturating_mul(1 << (self.failures - 1).min(20));
            Duration::from_millis(doubled.min(options.backoff_last_ms))
        } else {
            Duration::ZERO
        };
        self.until = self.until.max(now.saturating_add(pause.max(fair)));
    }

    /// Notes a call that went well. A pause that is under way stays: what was burnt was burnt.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// How long there is to wait yet.
    pub(crate) fn remaining(&self, now: Duration) -> Option<Duration> {
        self.until.checked_sub(now).filter(|left| !left.is_zero())
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failures > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_pause_doubles_and_ends_with_success() {
        let (options, mut backoff) = (Options::default(), Backoff::default());
        for expected in [50, 100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            backoff.until = Duration::ZERO;
            backoff.failed(&options, Duration::ZERO, MS, true);
            assert_eq!(backoff.remaining(Duration::ZERO), Some(expected * MS));
        }
        backoff.succeeded();
        assert!(!backoff.is_failing());
        assert_eq!(backoff.remaining(5_000 * MS), None);
    }

    #[test]
    fn an_expensive_failure_is_paid_for() {
        let (options, mut backoff) = (Options::default(), Backoff::default());
        backoff.failed(&options, Duration::ZERO, 1_000 * MS, false);
        assert_eq!(backoff.remaining(Duration::ZERO), Some(20_000 * MS));
    }
}
