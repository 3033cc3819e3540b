//! Whether a replica's disk has room for what it is to store.

use std::time::Duration;

use bus_log::Log;

use crate::FollowError;

/// What the owner of a log knows of its disk's room. A full disk is no loss: what is stored there counts.
#[derive(Default)]
pub(crate) struct Room {
    /// When the disk was full last, until something is stored again.
    full: Option<Duration>,
    /// Whether that is still to be reported.
    unreported: bool,
}

impl Room {
    /// The disk took nothing: others are to go on without this replica, as long as they can.
    pub(crate) fn ended(&mut self, log: &Log, now: Duration) {
        self.unreported = true;
        if self.full.replace(now).is_none() {
            tracing::error!(log = %log.dir().display(), "the disk is full: this replica stores nothing more, and leaves the ISR where the others can do without it: free space, or lower the topic's retention");
        }
    }

    /// The disk took something.
    pub(crate) fn found(&mut self, log: &Log) {
        if self.full.take().is_some() {
            tracing::info!(log = %log.dir().display(), "the disk has room again");
        }
    }

    /// For a follower that begins a stream: on a full disk none is begun, as all would be sent in vain. Except once in
    /// `lag`: what the leader has dropped by its retention may be dropped here as well.
    pub(crate) fn look(&mut self, log: &Log, now: Duration, lag: Duration) -> Result<(), FollowError> {
        match self.full {
            Some(_) if log.has_room() => self.found(log),
            Some(since) if now < since + lag => return Err(FollowError::Full),
            _ => {}
        }
        Ok(())
    }

    /// Leaves the report that is due, if one is; `leave` says whether there was a place for it, and is asked again with
    /// the next events where there was none.
    pub(crate) fn report(&mut self, leave: impl FnOnce() -> bool) {
        self.unreported = self.unreported && !leave();
    }
}
