//! How long to wait before the next attempt.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(500);

/// Doubling waits, 20 ms to 500 ms, each shortened by up to a half at random, so that the clients of a broker that
/// comes back do not all come back at once.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.attempts.min(10)).min(LONGEST);
        self.attempts = self.attempts.saturating_add(1);
        whole.mul_f64(1.0 - random() as f64 / 1024.0)
    }

    /// After a success.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// 0 to 511.
fn random() -> u64 {
    // Each `RandomState` has keys of its own: random enough to spread clients.
    RandomState::new().build_hasher().finish() % 512
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_second_and_start_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] > FIRST / 2 && waits[0] <= FIRST, "{waits:?}");
        assert!(waits[5..].iter().all(|wait| *wait > LONGEST / 2 && *wait <= LONGEST), "{waits:?}");
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
