//! What a follower knows and decides, with no I/O.

use bus_protocol::replicate::LogEnd;
use bus_protocol::{Epoch, Offset};

/// A follower's state for one partition in one leader epoch.
///
/// Invariant: nothing is appended before the leader has said that this log is a prefix of its own; so all that is
/// appended in an epoch continues that epoch's leader's log (KIP-101).
#[derive(Debug)]
pub struct Follower {
    epoch: Epoch,
    on_history: bool,
    /// The highest high watermark that the leader told.
    told: Offset,
}

/// What a follower refuses a leader's frame with.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The replica has another role by now.
    #[error("the replica does not follow in leader epoch {0} any more")]
    Stale(Epoch),
    /// Batches came before it was settled where they belong.
    #[error("the leader sends batches before the logs agree")]
    NotSettled,
    /// A batch of an epoch that the leader cannot have.
    #[error("a batch bears leader epoch {found}, which is above the leader's {current}")]
    FutureEpoch {
        /// The batch's.
        found: Epoch,
        /// The leader's.
        current: Epoch,
    },
    /// The batches do not parse, or their CRC is wrong: they are damaged at the leader or on the way.
    #[error("the leader sends a damaged batch: {0}")]
    Damaged(String),
    /// There is no room on this replica's disk.
    #[error("the disk is full")]
    Full,
    /// This replica's own log.
    #[error(transparent)]
    Log(#[from] bus_log::Error),
    /// The partition was closed, or its storage has failed.
    #[error("the partition is not served here any more")]
    Closed,
}

impl Follower {
    /// Follows whoever leads in `epoch`.
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, on_history: false, told: 0 }
    }

    /// That a frame of the stream opened in `epoch` still concerns this follower.
    pub fn check(&self, epoch: Epoch) -> Result<(), FollowError> {
        if epoch == self.epoch { Ok(()) } else { Err(FollowError::Stale(epoch)) }
    }

    /// A stream begins: where the logs part is asked anew.
    pub fn restart(&mut self) {
        self.on_history = false;
    }

    /// The leader found this log on its history.
    pub fn settled(&mut self) {
        self.on_history = true;
    }

    /// The leader's high watermark is `high_watermark`.
    pub fn tell(&mut self, high_watermark: Offset) {
        self.told = high_watermark.max(self.told);
    }

    /// Below it the leader calls all committed.
    pub fn told(&self) -> Offset {
        self.told
    }

    /// That batches may be appended now, the newest of which bears `epoch`.
    pub fn admit(&self, epoch: Option<Epoch>) -> Result<(), FollowError> {
        if !self.on_history {
            return Err(FollowError::NotSettled);
        }
        match epoch {
            Some(found) if found > self.epoch => Err(FollowError::FutureEpoch { found, current: self.epoch }),
            _ => Ok(()),
        }
    }
}

/// Where `follower`'s log stands to the leader's: `None` if it is a prefix of it, or the leader's largest epoch not
/// above the follower's last, and where that ends in the leader's log. `end_of` looks that up (KIP-279).
pub(crate) fn divergence(
    follower: LogEnd,
    end_of: impl FnOnce(Epoch) -> Option<(Epoch, Offset)>,
) -> Option<(Option<Epoch>, Offset)> {
    // An empty log is a prefix of any that starts where it ends.
    let last = follower.epoch?;
    match end_of(last) {
        Some((epoch, end)) if epoch == last && follower.end <= end => None,
        Some((epoch, end)) => Some((Some(epoch), end)),
        None => Some((None, 0)),
    }
}
