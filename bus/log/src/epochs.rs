//! Which leader epoch wrote from which offset on (KIP-101, KIP-279): what a follower truncates by.

use bus_protocol::{Epoch, Offset};

/// A leader epoch and the first offset written in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: Epoch,
    /// Its first offset, which may lie below the log's start.
    pub offset: Offset,
}

/// The epochs of a log, both numbers rising.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epochs {
    starts: Vec<EpochStart>,
}

impl Epochs {
    pub(crate) fn new(starts: Vec<EpochStart>) -> Self {
        Self { starts }
    }

    pub(crate) fn all(&self) -> &[EpochStart] {
        &self.starts
    }

    pub(crate) fn last(&self) -> Option<Epoch> {
        self.starts.last().map(|start| start.epoch)
    }

    /// A batch of `epoch` begins at `offset`.
    pub(crate) fn note(&mut self, epoch: Epoch, offset: Offset) {
        if epoch >= 0 && self.last().is_none_or(|last| epoch > last) {
            self.starts.push(EpochStart { epoch, offset });
        }
    }

    /// The log's first batch is of `epoch`: newer ones wrote what is deleted here, and were not on the leader's history
    /// (after an unclean election).
    pub(crate) fn begin(&mut self, epoch: Epoch) {
        self.starts.retain(|start| start.epoch <= epoch);
    }

    /// The log ends at `end` now.
    pub(crate) fn cut(&mut self, end: Offset) {
        self.starts.retain(|start| start.offset < end);
    }

    /// The log starts at `start` now: of the epochs that began before, the last goes on. It keeps the offset that it
    /// began at, so that a log of which nothing is left still knows, after a restart too, who wrote up to its end.
    pub(crate) fn raise(&mut self, start: Offset) {
        let first = self.starts.partition_point(|entry| entry.offset <= start).saturating_sub(1);
        self.starts.drain(..first);
    }

    /// The largest epoch that is not larger than `epoch`, and where it ends in a log that ends at `end`.
    pub(crate) fn end_of(&self, epoch: Epoch, end: Offset) -> Option<(Epoch, Offset)> {
        let after = self.starts.partition_point(|start| start.epoch <= epoch);
        let found = self.starts.get(after.checked_sub(1)?)?;
        Some((found.epoch, self.starts.get(after).map_or(end, |next| next.offset)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_end_where_the_next_begins() {
        let mut epochs = Epochs::default();
        assert_eq!(epochs.end_of(3, 10), None);
        for (epoch, offset) in [(0, 0), (0, 5), (2, 10), (2, 15), (5, 20), (-1, 30), (4, 30)] {
            epochs.note(epoch, offset);
        }
        assert_eq!(epochs.all().len(), 3);
        assert_eq!(epochs.end_of(0, 40), Some((0, 10)));
        assert_eq!(epochs.end_of(1, 40), Some((0, 10)));
        assert_eq!(epochs.end_of(4, 40), Some((2, 20)));
        assert_eq!(epochs.end_of(9, 40), Some((5, 40)));
        assert_eq!(epochs.end_of(-1, 40), None);
        epochs.raise(12);
        assert_eq!(epochs.all()[0], EpochStart { epoch: 2, offset: 10 });
        epochs.cut(20);
        assert_eq!(epochs.all().len(), 1);
        // Nothing is left, but for who wrote it.
        epochs.raise(20);
        epochs.cut(20);
        assert_eq!((epochs.last(), epochs.end_of(4, 20)), (Some(2), Some((2, 20))));
        epochs.begin(2);
        assert_eq!(epochs.last(), Some(2));
        epochs.begin(1);
        assert_eq!(epochs.last(), None);
    }
}
