//! What each partition has committed, as the first leader saw it that did: the measure for all that comes after.

use bus_log::Log;
use bus_protocol::batch::{BatchHeader, RecordBatch};
use bus_protocol::{Epoch, Offset};

use super::batches;
use crate::client::Content;

/// A committed batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) base: Offset,
    pub(crate) next: Offset,
    pub(crate) epoch: Epoch,
    pub(crate) crc: u32,
    pub(crate) content: Content,
}

impl Entry {
    fn of(batch: &RecordBatch) -> Result<Self, String> {
        let header = batch.header();
        let content = Content::read(batch)?;
        let (base, next, epoch, crc) =
            (header.base_offset, header.next_offset(), header.leader_epoch, header.crc);
        Ok(Self { base, next, epoch, crc, content })
    }

    pub(crate) fn is(&self, header: &BatchHeader) -> bool {
        (self.base, self.next, self.epoch, self.crc)
            == (header.base_offset, header.next_offset(), header.leader_epoch, header.crc)
    }
}

/// The committed batches of one partition, from its first offset on, those that retention dropped since among them.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: Vec<Entry>,
}

impl Ledger {
    pub(crate) fn end(&self) -> Offset {
        self.entries.last().map_or(0, |last| last.next)
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The batch that holds `offset`.
    pub(crate) fn at(&self, offset: Offset) -> Option<&Entry> {
        let n = self.entries.partition_point(|entry| entry.next <= offset);
        self.entries.get(n).filter(|entry| entry.base <= offset)
    }

    /// Whether this very batch is committed.
    pub(crate) fn holds(&self, header: &BatchHeader) -> bool {
        self.at(header.base_offset).is_some_and(|entry| entry.is(header))
    }

    /// Takes note of what a leader's log has below its high watermark.
    pub(crate) fn extend(&mut self, log: &Log, high_watermark: Offset) -> Result<(), String> {
        for batch in batches(log, self.end(), high_watermark)? {
            let entry = Entry::of(&batch)?;
            if entry.base != self.end() {
                return Err(format!("a committed batch begins at {}, and {} is due", entry.base, self.end()));
            }
            self.entries.push(entry);
        }
        Ok(())
    }

    /// That `log` has the batches that are committed from `from` to `below`. Either may lie within one: a log can be told
    /// to start there, and its high watermark is not less.
    pub(crate) fn check(&self, log: &Log, from: Offset, below: Offset) -> Result<(), String> {
        let from = from.max(log.log_start());
        let below = self.at(below).map_or(below, |across| across.base);
        for batch in batches(log, from, below)? {
            let header = batch.header();
            if !self.holds(header) {
                let committed = self.at(header.base_offset);
                let (base, epoch) = (header.base_offset, header.leader_epoch);
                return Err(format!(
                    "the log has a batch of epoch {epoch} at {base}, where {committed:?} is committed"
                ));
            }
        }
        Ok(())
    }
}
