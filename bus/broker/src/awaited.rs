//! Whether anybody waits for this node to store what is new.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// For how long one who was served makes it likely that there is a next one.
const LATELY: Duration = Duration::from_millis(200);

/// When a producer was last served here: answered by this node as its partition's leader, or stored for as a follower.
/// What is committed already is waited for by nobody, and gives way while this was lately.
#[derive(Default)]
pub(crate) struct Awaited {
    /// In microseconds of the node's clock, and one more; 0 where there was none yet.
    served: AtomicU64,
}

impl Awaited {
    /// A producer is served at `now`, of the node's clock.
    pub(crate) fn served(&self, now: Duration) {
        self.served.store(micros(now) + 1, Ordering::Relaxed);
    }

    /// Whether producers are likely to wait for this node.
    pub(crate) fn lately(&self, now: Duration) -> bool {
        let served = self.served.load(Ordering::Relaxed);
        served > 0 && micros(now) < served + micros(LATELY)
    }
}

fn micros(time: Duration) -> u64 {
    // Half a million years.
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_served_is_remembered_for_a_moment() {
        let awaited = Awaited::default();
        assert!(!awaited.lately(Duration::ZERO), "nobody was served yet");
        awaited.served(Duration::ZERO);
        assert!(awaited.lately(LATELY));
        assert!(!awaited.lately(LATELY + Duration::from_millis(1)));
    }
}
