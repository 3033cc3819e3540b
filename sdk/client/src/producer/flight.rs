//! What is under way to one partition, and how its batches are numbered. Does no I/O, and awaits nothing.
//!
//! A batch keeps its number until it is known to be stored, or known not to be: whoever leads the partition knows it
//! again by it. Where one fails for good, those behind it have no place any more; they are sent again under their
//! numbers until the leader has said of each that it has it, or that it does not continue what it has. Only then is the
//! producer's epoch in this partition raised (KIP-360), and what is left is numbered from 0.

use std::collections::VecDeque;

use bus_protocol::batch::assign;
use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use super::queue::{Open, Sealed};

/// Whose batches these are, and what the next one's number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    /// The next record's sequence number: from 0 to `i32::MAX`, and from 0 again (KIP-98).
    pub(crate) next: i32,
}

impl Numbers {
    pub(crate) fn new(id: i64) -> Self {
        Self { id, epoch: 0, next: 0 }
    }

    /// The number of a batch's first record.
    fn take(&mut self, records: u64) -> i32 {
        let first = self.next;
        // Both are below 2^31: a batch has far fewer records.
        self.next = ((u64::from(first.unsigned_abs()) + records) & 0x7fff_ffff) as i32;
        first
    }
}

/// What was taken from the queue and is not settled, in order.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    batches: VecDeque<Sealed>,
    /// How many of them, from the front, were written to the stream there is now.
    written: usize,
    /// Taken from the queue before there was a stream, and not numbered yet.
    pub(crate) waiting: Option<Open>,
    /// `None` before the first batch, without idempotence, and after an id has become useless.
    numbers: Option<Numbers>,
    /// The id that has become useless.
    spent: Option<i64>,
    /// A batch that has a number is gone: what is numbered behind it hangs in the air.
    gap: bool,
    /// The leader owes an answer since then.
    owed: Option<Instant>,
}

impl Flight {
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.waiting.is_none()
    }

    /// Batches that are numbered and not settled.
    pub(crate) fn len(&self) -> usize {
        self.batches.len()
    }

    pub(crate) fn numbers(&self) -> Option<Numbers> {
        self.numbers
    }

    /// The id that is of no use any more, if there was one.
    pub(crate) fn spent(&self) -> Option<i64> {
        self.spent
    }

    /// When the oldest must be settled.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.batches.front().map(|batch| batch.deadline)
    }

    /// Since when an answer is due, if one is.
    pub(crate) fn owed_since(&self) -> Option<Instant> {
        self.owed
    }

    /// A new stream: all of it is to be written again.
    pub(crate) fn begin(&mut self) {
        self.written = 0;
        self.owed = None;
    }

    /// Whether a new batch may be numbered: not while it is open what becomes of the old numbers.
    pub(crate) fn takes_new(&self) -> bool {
        !self.gap && self.written == self.batches.len()
    }

    /// The number of a new batch, which [`Flight::push`] follows, or [`Flight::fail_front`].
    pub(crate) fn number(&mut self, records: u64) -> Option<(Numbers, i32)> {
        let numbers = self.numbers.as_mut()?;
        let first = numbers.take(records);
        Some((*numbers, first))
    }

    /// Takes a number back: its batch was not built.
    pub(crate) fn unnumber(&mut self, first: i32) {
        if let Some(numbers) = &mut self.numbers {
            numbers.next = first;
        }
    }

    pub(crate) fn push(&mut self, batch: Sealed) {
        self.batches.push_back(batch);
    }

    /// The next batch to write to the stream.
    pub(crate) fn write(&mut self) -> Option<Bytes> {
        let sent_only = self.gap;
        let batch = self.batches.get_mut(self.written).filter(|batch| batch.sent || !sent_only)?;
        batch.sent = true;
        self.written += 1;
        self.owed.get_or_insert_with(Instant::now);
        Some(batch.bytes.clone())
    }

    /// The batch that an answer is for; `None` where none is due.
    pub(crate) fn answered(&mut self) -> Option<Sealed> {
        self.written = self.written.checked_sub(1)?;
        self.owed = (self.written > 0).then(Instant::now);
        self.batches.pop_front()
    }

    /// The oldest, which fails for good: refused, or given up.
    pub(crate) fn fail_front(&mut self) -> Option<Sealed> {
        let batch = self.batches.pop_front()?;
        self.written = self.written.saturating_sub(1);
        if self.written == 0 {
            self.owed = None;
        }
        self.gap |= self.numbers.is_some();
        Some(batch)
    }

    /// All that may be stored under the numbers they have, which fail.
    pub(crate) fn fail_sent(&mut self) -> Vec<Sealed> {
        let sent = self.batches.iter().take_while(|batch| batch.sent).count();
        self.begin();
        self.batches.drain(..sent).collect()
    }

    /// Whether the numbers behind the oldest have a hole before it.
    pub(crate) fn has_gap(&self) -> bool {
        self.gap
    }

    /// Numbers anew, if that is due, and nothing is under way under old numbers.
    pub(crate) fn close_gap(&mut self) {
        if self.gap && !self.batches.iter().any(|batch| batch.sent) {
            self.raise_epoch();
        }
    }

    /// Numbers all there is from 0, in the next epoch: none of it is stored. Without a next epoch the id is of no use
    /// any more.
    pub(crate) fn raise_epoch(&mut self) {
        let next = self.numbers.and_then(|Numbers { id, epoch, .. }| {
            epoch.checked_add(1).map(|epoch| Numbers { id, epoch, next: 0 })
        });
        match next {
            Some(next) => self.restart(next),
            None => self.lose_id(),
        }
    }

    /// The id is of no use: all there is waits for another.
    pub(crate) fn lose_id(&mut self) {
        self.spent = self.numbers.take().map(|numbers| numbers.id).or(self.spent);
        self.gap = false;
        self.batches.iter_mut().for_each(|batch| batch.sent = false);
    }

    /// Numbers all there is, in order.
    pub(crate) fn restart(&mut self, mut numbers: Numbers) {
        for batch in &mut self.batches {
            let first = numbers.take(batch.records);
            let bytes = std::mem::take(&mut batch.bytes);
            let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            assign::set_producer(&mut bytes, numbers.id, numbers.epoch, first);
            batch.bytes = bytes.freeze();
            batch.sent = false;
        }
        self.numbers = Some(numbers);
        self.gap = false;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bus_protocol::batch::{BatchBuilder, Compression, RecordBatch};
    use proptest::prelude::*;

    use super::*;
    use crate::producer::delivery::BatchOutcome;

    fn push(flight: &mut Flight, records: u64) {
        let mut builder = BatchBuilder::new(Compression::None);
        for _ in 0..records {
            builder.push(1, None, Some(b"v"), &[]);
        }
        if let Some((numbers, first)) = flight.number(records) {
            builder.set_producer(numbers.id, numbers.epoch, first);
        }
        flight.push(Sealed {
            bytes: builder.build().unwrap(),
            outcome: Arc::new(BatchOutcome::new(0)),
            charged: 0,
            records,
            deadline: Instant::now(),
            sent: false,
        });
    }

    fn number(bytes: Bytes) -> (i64, i16, i32) {
        // Its CRC is checked, too.
        let header = *RecordBatch::parse(bytes).unwrap().header();
        (header.producer_id, header.producer_epoch, header.base_sequence)
    }

    fn numbered(id: i64) -> Flight {
        Flight { numbers: Some(Numbers::new(id)), ..Flight::default() }
    }

    fn written(flight: &mut Flight) -> Vec<(i64, i16, i32)> {
        std::iter::from_fn(|| flight.write().map(number)).collect()
    }

    #[test]
    fn a_new_stream_gets_the_same_numbers_again_in_order() {
        let mut flight = numbered(7);
        [3, 1, 5].into_iter().for_each(|records| push(&mut flight, records));
        let first = written(&mut flight);
        assert_eq!(first, [(7, 0, 0), (7, 0, 3), (7, 0, 4)]);
        assert!(flight.answered().is_some());
        flight.begin();
        assert!(flight.answered().is_none(), "nothing was asked on this stream");
        assert_eq!(written(&mut flight), first[1..]);
    }

    #[test]
    fn numbers_wrap_to_0() {
        let mut flight = numbered(1);
        flight.numbers = Some(Numbers { id: 1, epoch: 3, next: i32::MAX - 1 });
        [1, 3, 1].into_iter().for_each(|records| push(&mut flight, records));
        assert_eq!(written(&mut flight), [(1, 3, i32::MAX - 1), (1, 3, i32::MAX), (1, 3, 2)]);
    }

    #[test]
    fn behind_a_failed_batch_nothing_new_goes_out_under_old_numbers() {
        let mut flight = numbered(7);
        [2, 2].into_iter().for_each(|records| push(&mut flight, records));
        assert_eq!(written(&mut flight).len(), 2);
        flight.fail_front();
        flight.close_gap();
        assert!(flight.has_gap() && !flight.takes_new(), "the second may be stored");
        flight.begin();
        assert_eq!(written(&mut flight), [(7, 0, 2)]);
        assert!(flight.answered().is_some());
        flight.close_gap();
        assert!(!flight.has_gap() && flight.takes_new());
        push(&mut flight, 1);
        assert_eq!(written(&mut flight), [(7, 1, 0)]);
    }

    #[test]
    fn what_does_not_continue_behind_a_gap_is_numbered_anew() {
        let mut flight = numbered(7);
        [2, 3, 4].into_iter().for_each(|records| push(&mut flight, records));
        assert_eq!(written(&mut flight).len(), 3);
        flight.fail_front();
        flight.raise_epoch();
        flight.begin();
        assert_eq!(written(&mut flight), [(7, 1, 0), (7, 1, 3)]);
        assert!(flight.takes_new());
    }

    #[test]
    fn after_the_last_epoch_another_id_is_needed() {
        let mut flight = numbered(7);
        flight.numbers = Some(Numbers { id: 7, epoch: i16::MAX, next: 40 });
        [2, 3].into_iter().for_each(|records| push(&mut flight, records));
        written(&mut flight);
        flight.fail_front();
        flight.raise_epoch();
        assert_eq!(flight.numbers(), None);
        flight.restart(Numbers::new(8));
        flight.begin();
        assert_eq!(written(&mut flight), [(8, 0, 0)]);
    }

    #[test]
    fn without_idempotence_there_are_no_numbers_and_no_gaps() {
        let mut flight = Flight::default();
        [1, 1].into_iter().for_each(|records| push(&mut flight, records));
        assert_eq!(written(&mut flight), [(-1, -1, -1); 2]);
        flight.fail_front();
        assert!(!flight.has_gap() && flight.takes_new());
    }

    /// A leader's memory of one producer, as strict as the log's.
    #[derive(Default)]
    struct Leader {
        /// Epoch, and the numbers that were stored in it: of the first record, and behind the last.
        epoch: i16,
        batches: Vec<(i32, i32)>,
        /// How many records each stored batch had, in order.
        stored: Vec<u64>,
    }

    #[derive(Debug, PartialEq)]
    enum Verdict {
        Stored,
        Known,
        OutOfOrder,
        Fenced,
    }

    impl Leader {
        fn take(&mut self, epoch: i16, first: i32, records: u64) -> Verdict {
            if epoch < self.epoch {
                return Verdict::Fenced;
            }
            let end = first + records as i32;
            if epoch == self.epoch && self.batches.contains(&(first, end)) {
                return Verdict::Known;
            }
            let unknown = self.stored.is_empty();
            let expected = match self.batches.last() {
                Some((_, end)) if epoch == self.epoch => *end,
                _ => 0,
            };
            if first != expected && !unknown {
                return Verdict::OutOfOrder;
            }
            if epoch > self.epoch {
                self.batches.clear();
                self.epoch = epoch;
            }
            self.batches.push((first, end));
            self.stored.push(records);
            Verdict::Stored
        }
    }

    proptest! {
        /// Streams break at any point, answers are lost, batches are refused and given up: none is stored twice, what
        /// is stored is in order, and what was acknowledged is stored.
        #[test]
        fn nothing_is_stored_twice_or_out_of_order(steps in prop::collection::vec((0u8..10, 1usize..6), 1..120)) {
            let (mut flight, mut leader) = (numbered(1), Leader::default());
            let (mut records, mut acknowledged) = (0, Vec::new());
            for (kind, count) in steps {
                // Each batch has one record more than the last: known by their number.
                while flight.takes_new() && flight.len() < count {
                    records += 1;
                    push(&mut flight, records);
                    flight.write();
                }
                flight.begin();
                let mut asked = Vec::new();
                while asked.len() < count && let Some(bytes) = flight.write() {
                    asked.push(*RecordBatch::parse(bytes).unwrap().header());
                }
                for (index, header) in asked.into_iter().enumerate() {
                    let answers_are_lost = kind >= 6;
                    if kind == 1 && index == 1 {
                        // Refused for good, as a transform does: those behind it are looked at all the same.
                        flight.fail_front();
                        flight.close_gap();
                        continue;
                    }
                    let verdict =
                        leader.take(header.producer_epoch, header.base_sequence, header.record_count as u64);
                    if answers_are_lost {
                        continue;
                    }
                    match verdict {
                        Verdict::Stored | Verdict::Known => {
                            acknowledged.push(flight.answered().unwrap().records);
                            flight.close_gap();
                        }
                        Verdict::OutOfOrder => {
                            prop_assert!(flight.has_gap(), "numbers are skipped only where a batch failed");
                            flight.raise_epoch();
                            break;
                        }
                        Verdict::Fenced => prop_assert!(false, "an epoch is used after a newer one"),
                    }
                }
                if kind == 9 {
                    flight.fail_front();
                    flight.close_gap();
                }
            }
            let mut sorted = leader.stored.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(&sorted, &leader.stored, "in order, and none twice");
            prop_assert!(acknowledged.iter().all(|records| leader.stored.contains(records)));
        }
    }
}
