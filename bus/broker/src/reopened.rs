//! Replicas whose task has panicked are opened anew, by a mistake in the program that may never be met again; one that
//! is met again at once would have it do so for ever.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bus_protocol::{PartitionId, TopicId};

type At = (TopicId, PartitionId);

/// A replica that panics again within this time stays offline.
const AT_ONCE: Duration = Duration::from_secs(600);

/// When replicas were opened anew after a panic.
#[derive(Default)]
pub(crate) struct Reopened(Mutex<HashMap<At, Duration>>);

impl Reopened {
    /// Whether a replica whose task has panicked is opened anew.
    pub(crate) fn may(&self, at: At, now: Duration) -> bool {
        let reopened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reopened.get(&at).is_none_or(|last| now.saturating_sub(*last) > AT_ONCE)
    }

    /// It is.
    pub(crate) fn note(&self, at: At, now: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(at, now);
    }

    /// Those that are not held any more.
    pub(crate) fn forget(&self, gone: impl Fn(&At) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|at, _| !gone(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_and_once_more_when_it_has_served_for_long() {
        let (reopened, at) = (Reopened::default(), (TopicId(7), 0));
        let began = Duration::from_secs(5);
        assert!(reopened.may(at, began));
        reopened.note(at, began);
        assert!(!reopened.may(at, began + AT_ONCE));
        assert!(reopened.may((TopicId(7), 1), began), "each for itself");
        let later = began + AT_ONCE + Duration::from_secs(1);
        assert!(reopened.may(at, later));
        reopened.note(at, later);
        assert!(!reopened.may(at, later));
        reopened.forget(|gone| *gone == at);
        assert!(reopened.may(at, later));
    }
}
