//! Virtual time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_protocol::{Clock, Timestamp};

/// Microseconds since the simulation began.
pub(crate) type Time = u64;

/// A millisecond.
pub(crate) const MS: Time = 1_000;
/// A second.
pub(crate) const SECOND: Time = 1_000 * MS;

/// The clock that all nodes of a simulation read; it stands still until the world moves it.
#[derive(Clone, Debug, Default)]
pub(crate) struct VirtualClock(Arc<AtomicU64>);

impl VirtualClock {
    pub(crate) fn set(&self, now: Time) {
        self.0.store(now, Ordering::Relaxed);
    }
}

impl Clock for VirtualClock {
    fn timestamp(&self) -> Timestamp {
        1_700_000_000_000 + (self.0.load(Ordering::Relaxed) / MS) as i64
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}
