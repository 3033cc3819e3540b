use bus_protocol::batch::{BatchBuilder, Compression};
use proptest::prelude::*;

use super::*;

fn header(id: i64, epoch: i16, first: i32, count: usize) -> BatchHeader {
    let mut builder = BatchBuilder::new(Compression::None);
    (0..count).for_each(|_| {
        builder.push(1, None, None, &[]);
    });
    builder.set_producer(id, epoch, first);
    *builder.build_batch().unwrap().header()
}

/// A log of one table.
struct Table {
    producers: Producers,
    end: Offset,
}

impl Table {
    fn new(limit: usize) -> Self {
        Self { producers: Producers::new(0, limit), end: 0 }
    }

    fn send(&mut self, id: i64, epoch: i16, first: i32, count: usize) -> Verdict {
        let header = header(id, epoch, first, count);
        let verdict = self.producers.admit(&header, self.end, None, 0);
        if verdict == Verdict::New {
            self.end += count as i64;
        }
        self.producers.commit(self.end);
        verdict
    }
}

fn duplicate(base_offset: Offset, last_offset: Offset) -> Verdict {
    Verdict::Duplicate(Appended { base_offset, last_offset, append_time: None })
}

fn out_of_order(producer: i64, expected: i32, found: i32) -> Verdict {
    Verdict::Refused(SequenceError::OutOfOrder { producer, expected, found })
}

fn fenced(producer: i64, current: i16, found: i16) -> Verdict {
    Verdict::Refused(SequenceError::Fenced { producer, current, found })
}

#[test]
fn a_batch_is_new_once_and_in_order() {
    let mut table = Table::new(10);
    assert_eq!(table.send(-1, -1, -1, 3), Verdict::New);
    assert_eq!(table.send(-1, -1, -1, 3), Verdict::New);
    assert_eq!(table.producers.len(), 0);
    assert_eq!(table.send(7, 0, 40, 2), Verdict::New, "it may have been forgotten");
    assert_eq!(table.send(7, 0, 40, 2), duplicate(6, 7));
    assert_eq!(table.send(7, 0, 40, 1), out_of_order(7, 42, 40), "part of a batch is no retry");
    assert_eq!(table.send(7, 0, 43, 1), out_of_order(7, 42, 43));
    assert_eq!(table.send(7, 0, -1, 1), out_of_order(7, 42, -1));
    assert_eq!(table.send(7, 0, 42, 5), Verdict::New);
    assert_eq!(table.send(7, 0, 40, 2), duplicate(6, 7));
    assert_eq!(table.send(8, -1, 0, 1), fenced(8, 0, -1));
    assert_eq!(table.send(8, 0, -5, 1), out_of_order(8, 0, -5));
    assert_eq!(table.producers.len(), 1);
}

#[test]
fn a_newer_epoch_begins_at_zero_and_fences_the_older() {
    let mut table = Table::new(10);
    table.send(7, 1, 0, 4);
    table.send(7, 1, 4, 4);
    assert_eq!(table.send(7, 2, 8, 1), out_of_order(7, 0, 8));
    assert_eq!(table.send(7, 2, 0, 4), Verdict::New);
    assert_eq!(table.send(7, 2, 0, 4), duplicate(8, 11));
    assert_eq!(table.send(7, 1, 8, 1), fenced(7, 2, 1));
    assert_eq!(table.send(7, 1, 0, 4), fenced(7, 2, 1));
    assert_eq!(table.send(7, 2, 4, 4), Verdict::New);
    // The second batch of the old epoch had the same sequences, and is not meant.
    assert_eq!(table.send(7, 2, 4, 4), duplicate(12, 15));
    table.send(7, 2, 8, 1);
    assert_eq!(table.producers.table[&7].batches.len(), 3, "what an older epoch wrote goes");
}

#[test]
fn sequences_wrap() {
    let mut table = Table::new(10);
    assert_eq!(table.send(7, 0, i32::MAX - 2, 2), Verdict::New);
    assert_eq!(table.send(7, 0, i32::MAX, 3), Verdict::New);
    assert_eq!(table.send(7, 0, i32::MAX, 3), duplicate(2, 4));
    assert_eq!(table.send(7, 0, 1, 1), out_of_order(7, 2, 1));
    assert_eq!(table.send(7, 0, 2, 1), Verdict::New);
    let mut table = Table::new(10);
    table.send(7, 0, i32::MAX - 1, 2);
    assert_eq!(table.send(7, 0, 0, 1), Verdict::New);
}

#[test]
fn the_last_batches_are_remembered_and_no_more() {
    let (mut table, kept) = (Table::new(10), PRODUCER_BATCHES_REMEMBERED as i32);
    for n in 0..200 {
        assert_eq!(table.send(7, 0, n, 1), Verdict::New);
        let oldest = (n + 1 - kept).max(0);
        assert_eq!(table.send(7, 0, oldest, 1), duplicate(oldest.into(), oldest.into()));
        if oldest > 0 {
            assert_eq!(table.send(7, 0, oldest - 1, 1), out_of_order(7, n + 1, oldest - 1));
        }
    }
    let batches = &table.producers.table[&7].batches;
    assert_eq!(batches.len(), kept as usize + 1);
    assert!(batches.capacity() <= kept as usize + 4, "{}", batches.capacity());
}

#[test]
fn those_idle_longest_go_first() {
    let mut table = Table::new(16);
    for id in 0..16 {
        table.send(id, 0, 0, 1);
    }
    table.send(0, 0, 1, 1);
    assert_eq!(table.producers.len(), 16);
    table.send(16, 0, 0, 1);
    let mut left: Vec<i64> = table.producers.table.keys().copied().collect();
    left.sort_unstable();
    assert_eq!(left, [0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    let mut table = Table::new(1);
    for id in 0..5 {
        table.send(id, 0, 0, 1);
        assert_eq!(table.producers.table.keys().collect::<Vec<_>>(), [&id]);
    }
}

#[test]
fn the_silent_expire_by_the_machines_clock() {
    let mut producers = Producers::new(0, 10);
    producers.admit(&header(1, 0, 0, 1), 0, None, 1_000);
    producers.admit(&header(2, 0, 0, 1), 1, None, 2_000);
    producers.commit(2);
    producers.expire(2_999, 2_000);
    assert_eq!(producers.len(), 2);
    producers.expire(3_000, 2_000);
    assert_eq!(producers.table.keys().collect::<Vec<_>>(), [&2]);
    producers.expire(0, 2_000);
    assert_eq!(producers.len(), 1, "a clock that went back forgets nobody");
}

#[test]
fn an_encoded_table_round_trips_and_every_flipped_byte_is_refused() {
    let mut table = Table::new(100);
    for (id, epoch, first) in [(3, 0, 5), (3, 0, 6), (9, 2, 0), (3, 1, 0), (5, 7, i32::MAX)] {
        assert_eq!(table.send(id, epoch, first, 1), Verdict::New);
    }
    table.producers.admit(&header(4, 0, 0, 3), 5, Some(77), 8);
    table.producers.commit(8);
    let bytes = table.producers.encode(8);
    let mut decoded = Producers::decode(&bytes, 8, 100).unwrap();
    assert_eq!(decoded.encode(8), bytes);
    let known = Appended { base_offset: 5, last_offset: 7, append_time: Some(77) };
    assert_eq!(decoded.admit(&header(4, 0, 0, 3), 8, None, 9), Verdict::Duplicate(known));
    assert!(Producers::decode(&bytes, 9, 100).is_none(), "another offset's");
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        assert!(Producers::decode(&flipped, 8, 100).is_none());
        assert!(Producers::decode(&bytes[..at], 8, 100).is_none());
    }
    // A table that may not be so large any more forgets at once.
    assert_eq!(Producers::decode(&bytes, 8, 2).unwrap().len(), 2);
}

/// A batch that is asked about: by producer, how far from the sequence due, how many epochs up, records.
type Ask = (i64, i32, i16, usize);

fn any_group() -> impl Strategy<Value = (Vec<Ask>, Option<usize>)> {
    let far = prop_oneof![12 => Just(0), 3 => -70i32..0, 1 => 1i32..4];
    let epoch = prop_oneof![30 => Just(0i16), 1 => Just(1i16), 1 => Just(-1i16)];
    let ask = (0i64..3, far, epoch, prop_oneof![4 => Just(1usize), 1 => 2usize..4]);
    (proptest::collection::vec(ask, 1..90), proptest::option::weighted(0.2, 0usize..90))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Groups of batches, some of them taken back in part: what is left is as if those had never been asked about.
    #[test]
    fn what_is_undone_was_never_there(groups in proptest::collection::vec(any_group(), 1..12)) {
        let mut producers = Producers::new(0, 100);
        let mut plain = Producers::new(0, 100);
        let mut end = 0;
        for (asks, undone) in groups {
            let (mut next, mut written) = (end, Vec::new());
            for (id, far, up, count) in asks {
                let last = producers.table.get(&id).and_then(|known| known.batches.back().copied());
                let (due, epoch) = last.map_or((0, 0), |last| (last.next(), last.epoch + up));
                let due = if up > 0 { 0 } else { due };
                let header = header(id, epoch, due.wrapping_add(far), count);
                if producers.admit(&header, next, None, 0) == Verdict::New {
                    written.push(BatchHeader { base_offset: next, ..header });
                    next += count as i64;
                }
            }
            written.truncate(undone.unwrap_or(written.len()));
            end = written.last().map_or(end, BatchHeader::next_offset);
            for header in written {
                plain.note(&header, 0);
                plain.commit(header.next_offset());
            }
            match undone {
                Some(_) => producers.undo(end),
                None => producers.commit(end),
            }
            prop_assert_eq!(producers.encode(end), plain.encode(end));
        }
    }
}
