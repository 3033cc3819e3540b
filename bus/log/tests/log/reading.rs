//! Reads against a naive model, beside the writer, from memory and from disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus_log::{Error, LogConfig, Options};
use bus_protocol::Offset;
use proptest::prelude::*;

use crate::support::*;

#[test]
fn a_tailing_reader_causes_no_disk_read() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    let reader = log.reader();
    let mut next = 0;
    for round in 0..300 {
        append(&mut log, 1 + round % 5, 300);
        let read = reader.read(next, 1 << 20, Offset::MAX).unwrap();
        assert_eq!(read.next_offset, log.log_end());
        next = read.next_offset;
    }
    assert_eq!(disk.storage.reads(), 0);
    assert!(disk.env.budget.used() > 0);
    log.trim_tail();
    assert_eq!(disk.env.budget.used(), 0);
    assert_eq!(read_all(&reader, 0, 4_000).len(), 300);
    assert!(disk.storage.reads() > 0);
}

#[test]
fn the_tail_hands_out_what_was_appended_uncopied() {
    let disk = Disk::new();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    let batch = batch(1, 100_000, 5, T0);
    log.append(batch, 0).unwrap();
    let first = log.reader().read(0, 1, Offset::MAX).unwrap();
    let second = log.reader().read(0, 1 << 20, Offset::MAX).unwrap();
    assert_eq!(first.chunks[0].as_ptr(), second.chunks[0].as_ptr());
}

#[test]
fn out_of_range_says_what_there_is() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    append(&mut log, 10, 10);
    log.delete_before(5).unwrap();
    for offset in [-1, 4, 11] {
        match log.reader().read(offset, 1, Offset::MAX) {
            Err(Error::OffsetOutOfRange { offset: o, start: 5, end: 10 }) => assert_eq!(o, offset),
            other => panic!("{other:?}"),
        }
    }
    assert!(log.reader().read(10, 1, Offset::MAX).unwrap().chunks.is_empty());
    assert_eq!(log.reader().read(7, 1, Offset::MAX).unwrap().next_offset, 10);
}

#[test]
fn damaged_bytes_are_not_served() {
    let disk = Disk::new();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    for _ in 0..10 {
        append(&mut log, 1, 1_000);
    }
    log.close().unwrap();
    let mut bytes = disk.storage.contents(&segment(0)).unwrap();
    let size = bytes.len() / 10;
    bytes[5 * size + 500] ^= 1;
    disk.storage.set_contents(&segment(0), bytes);
    let log = disk.open(&LogConfig::default()).unwrap();
    let reader = log.reader();
    assert_eq!(reader.read(0, 4 * size, Offset::MAX).unwrap().next_offset, 4);
    match reader.read(5, 1 << 20, Offset::MAX) {
        Err(Error::Damaged { file, position, offset: 5, .. }) => {
            assert_eq!((file, position), (segment(0), 5 * size as u64));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reader.read(6, 1 << 20, Offset::MAX).unwrap().next_offset, 10);
}

/// No byte of a stored batch can be wrong and be served, but for its leader epoch, which nothing covers; and no batch is
/// passed over because its offset is wrong.
#[test]
fn no_wrong_byte_is_served_from_disk() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    let end = |disk: &Disk| disk.storage.contents(&segment(0)).map_or(0, |bytes| bytes.len());
    let mut starts = Vec::new();
    while log.size() < 17_000 {
        starts.push(end(&disk));
        append(&mut log, 2, 900);
    }
    log.trim_tail();
    let whole = disk.storage.contents(&segment(0)).unwrap();
    starts.retain(|start| *start < whole.len());
    for start in [starts[0], starts[3], starts[starts.len() - 1]] {
        for at in (start..start + 100).filter(|at| !(12..16).contains(&(at - start))) {
            for flip in [0x01, 0x02, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= flip;
                disk.storage.set_contents(&segment(0), bytes);
                let offset = 2 * starts.iter().position(|known| *known == start).unwrap() as i64;
                match log.reader().read(offset, 1, Offset::MAX) {
                    Err(Error::Damaged { file, offset: found, position, .. }) => {
                        assert_eq!((file, position), (segment(0), start as u64));
                        assert_eq!(found, offset);
                    }
                    other => panic!("byte {}: {other:?}", at - start),
                }
            }
        }
    }
}

#[test]
fn readers_read_on_beside_the_writer() {
    let disk = Disk::with(Options { tail_bytes: 20_000, ..Options::default() });
    let mut log = disk.open(&small_segments()).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..2)
        .map(|n| {
            let (reader, done) = (log.reader(), done.clone());
            std::thread::spawn(move || {
                let mut next = 0;
                loop {
                    let finished = done.load(Ordering::Acquire);
                    let batches = read_all(&reader, next, 1_000 + n * 50_000);
                    assert!(batches.first().is_none_or(|first| first.header().base_offset == next));
                    next = batches.last().map_or(next, |last| last.header().next_offset());
                    if finished {
                        return next;
                    }
                    // One that starts over keeps to the disk.
                    if n == 1 && next % 3 == 0 {
                        assert!(read_all(&reader, 0, 30_000).len() as i64 <= next.max(reader.log_end()));
                    }
                }
            })
        })
        .collect();
    for round in 0..1_500 {
        append(&mut log, 1 + round % 3, 100);
        if round % 100 == 0 {
            log.sync().unwrap();
        }
    }
    done.store(true, Ordering::Release);
    for thread in threads {
        assert_eq!(thread.join().unwrap(), log.log_end());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn lookups_agree_with_a_naive_model(
        batches in proptest::collection::vec((1usize..6, 0usize..2_500, -3_000i64..3_000), 1..60),
        lookups in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..40_000, any::<prop::sample::Index>()), 20),
        tail in any::<bool>(),
        start in any::<prop::sample::Index>(),
    ) {
        let disk = Disk::new();
        let mut log = disk.open(&small_segments()).unwrap();
        let mut records = Vec::new();
        let mut sizes = Vec::new();
        for (n, (count, size, jitter)) in batches.iter().enumerate() {
            let time = T0 + n as i64 * 500 + jitter;
            let batch = batch(*count, *size, n as u8, time);
            sizes.push((log.log_end(), log.log_end() + *count as i64, batch.header().size()));
            log.append(batch, 0).unwrap();
            records.extend((0..*count).map(|k| time + k as i64));
        }
        let end = log.log_end();
        let start = start.index(records.len()) as i64;
        log.delete_before(start).unwrap();
        if !tail {
            log.trim_tail();
        }
        let reader = log.reader();
        for (from, max_bytes, below) in lookups {
            let from = start + from.index((end - start) as usize + 1) as i64;
            let below = below.index(end as usize + 2) as i64;
            let read = reader.read(from, max_bytes, below).unwrap();
            let mut expected = from;
            let mut bytes = 0;
            for (_, next, size) in sizes.iter().filter(|(_, next, _)| *next > from) {
                // The disk may give less than it might; at a segment's end it does.
                if *next > below || (bytes > 0 && bytes + size > max_bytes) {
                    break;
                }
                bytes += size;
                expected = *next;
            }
            prop_assert!(read.next_offset <= expected, "{} > {expected}", read.next_offset);
            prop_assert_eq!(read.next_offset > from, expected > from);
            prop_assert!(read.chunks.len() < 2 || read.size() <= max_bytes);

            let time = T0 + (max_bytes as i64) - 5_000;
            let naive = records.iter().enumerate().skip(start as usize)
                .find(|(_, record)| **record >= time)
                .map(|(offset, record)| (offset as i64, *record))
                .filter(|(offset, _)| *offset < below);
            prop_assert_eq!(reader.offset_for_timestamp(time, below).unwrap(), naive);
        }
        prop_assert_eq!(read_all(&reader, start, 7_000).last().map(|last| last.header().next_offset()), Some(end));
    }
}
