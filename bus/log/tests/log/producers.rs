//! Idempotent producers: what they sent is in the log once and in order, whatever became of the log meanwhile.

use bus_log::storage::{Crash, Storage};
use bus_log::{AppendBatch, Error, Log, LogConfig, Options, Outcome, SequenceError};
use bus_protocol::Offset;
use bus_protocol::batch::{BatchBuilder, Compression};

use crate::support::*;

/// A batch of `count` records of `size` bytes.
pub(crate) fn numbered(producer: i64, epoch: i16, first: i32, count: usize, size: usize) -> AppendBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    for n in 0..count {
        builder.push(T0 + n as i64, None, Some(&vec![first as u8; size]), &[]);
    }
    builder.set_producer(producer, epoch, first);
    AppendBatch::from(builder.build_batch().unwrap())
}

pub(crate) fn snapshots(disk: &Disk) -> Vec<Offset> {
    let names = names(&disk.storage, &dir());
    names.iter().filter_map(|name| name.strip_suffix(".snapshot")?.parse().ok()).collect()
}

pub(crate) fn snapshot(offset: Offset) -> std::path::PathBuf {
    dir().join(format!("{offset:020}.snapshot"))
}

/// The first and last offset of a batch that is there already.
fn known(outcome: Outcome) -> (Offset, Offset) {
    match outcome {
        Outcome::Duplicate(appended) => (appended.base_offset, appended.last_offset),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_sent_twice_is_stored_once() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    let group = vec![
        numbered(1, 0, 0, 2, 10),
        batch(1, 10, 1, T0),
        numbered(1, 0, 2, 1, 10),
        numbered(1, 0, 0, 2, 10),
        numbered(1, 0, 4, 1, 10),
        numbered(1, 0, 5, 1, 10),
        numbered(1, 0, 3, 1, 10),
    ];
    let outcomes = log.append_all(group, 0).unwrap();
    let first = outcomes[0].place().unwrap();
    assert_eq!((first.base_offset, first.last_offset), (0, 1));
    assert_eq!(outcomes[3], Outcome::Duplicate(first), "within one call");
    let out_of_order = |found| SequenceError::OutOfOrder { producer: 1, expected: 3, found };
    assert_eq!(outcomes[4], Outcome::Refused(out_of_order(4)));
    assert_eq!(outcomes[5], Outcome::Refused(out_of_order(5)));
    assert_eq!(outcomes[6].place().unwrap().base_offset, 4);
    assert_eq!((log.log_end(), log.producers()), (5, 1));
    assert_eq!(read_all(&log.reader(), 0, 1 << 20).len(), 4);
    let fenced = |log: &mut Log| log.append(numbered(1, 0, 4, 1, 10), 0).unwrap();
    log.append(numbered(1, 1, 0, 1, 10), 0).unwrap();
    let wanted = Outcome::Refused(SequenceError::Fenced { producer: 1, current: 1, found: 0 });
    assert_eq!(fenced(&mut log), wanted);
    drop(log);
    disk.storage.crash(Crash::ProcessOnly);
    assert_eq!(fenced(&mut disk.open(&small_segments()).unwrap()), wanted);
}

#[test]
fn a_duplicate_bears_the_time_of_the_first() {
    let disk = Disk::new();
    let config =
        LogConfig { timestamp_type: bus_protocol::TimestampType::LogAppendTime, ..LogConfig::default() };
    let mut log = disk.open(&config).unwrap();
    let first = log.append(numbered(1, 0, 0, 2, 10), 0).unwrap().place().unwrap();
    assert_eq!(first.append_time, Some(T0));
    disk.clock.advance(5);
    assert_eq!(log.append(numbered(1, 0, 0, 2, 10), 0).unwrap(), Outcome::Duplicate(first));
    drop(log);
    disk.storage.crash(Crash::ProcessOnly);
    let mut log = disk.open(&config).unwrap();
    assert_eq!(log.append(numbered(1, 0, 0, 2, 10), 0).unwrap(), Outcome::Duplicate(first));
}

#[test]
fn what_a_full_disk_refused_was_never_sent() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    log.append(numbered(1, 0, 0, 1, 100), 0).unwrap();
    disk.storage.set_room(Some(40_000));
    let mut group: Vec<_> = (1..40).map(|n| numbered(1, 0, n, 1, 2_000)).collect();
    group.insert(1, numbered(1, 0, 0, 1, 100));
    group.insert(3, numbered(1, 0, 77, 1, 100));
    let failed = log.append_all(group, 0).unwrap_err();
    assert!(matches!(failed.error, Error::Full { .. }));
    assert_eq!(known(failed.outcomes[1]), (0, 0));
    assert!(matches!(failed.outcomes[3], Outcome::Refused(_)));
    let written = failed.outcomes.len() as i32 - 2;
    assert!((3..39).contains(&written), "{written}");
    assert_eq!(log.log_end(), i64::from(written) + 1);
    disk.storage.set_room(None);
    assert_eq!(known(log.append(numbered(1, 0, written, 1, 2_000), 0).unwrap()).0, i64::from(written));
    let next = log.append(numbered(1, 0, written + 1, 1, 2_000), 0).unwrap();
    assert_eq!(next.place().unwrap().base_offset, i64::from(written) + 1);
    // A log that is offline knows nothing for certain, duplicates neither.
    disk.storage.fail_syncs(1);
    log.sync().unwrap_err();
    assert!(matches!(log.append(numbered(1, 0, written, 1, 2_000), 0), Err(Error::Poisoned { .. })));
}

#[test]
fn snapshots_come_with_rolls_and_checkpoints_and_few_stay() {
    let disk = Disk::with(Options { checkpoint_bytes: 1 << 16, ..Options::default() });
    let mut log = disk.open(&LogConfig::default()).unwrap();
    for n in 0..300 {
        log.append(numbered(n % 5, 0, n as i32 / 5, 1, 1_000), 0).unwrap();
        log.sync().unwrap();
        assert!(snapshots(&disk).len() <= 3);
    }
    assert_eq!(snapshots(&disk).len(), 3);
    let last = snapshots(&disk)[2];
    assert!(last > 200 && last < 300, "{last}");
    disk.storage.crash(Crash::ProcessOnly);
    let reads = disk.storage.reads();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    assert_eq!(log.producers(), 5);
    assert!(disk.storage.reads() - reads < 12, "only what is after the checkpoint is read, and once");
    assert_eq!(known(log.append(numbered(4, 0, 59, 1, 1_000), 0).unwrap()), (299, 299));
    log.close().unwrap();
    assert_eq!(snapshots(&disk).last(), Some(&300));
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    for n in 0..60 {
        log.append(numbered(1, 0, n, 1, 1_000), 0).unwrap();
    }
    let bases: Vec<Offset> = names(&disk.storage, &dir())
        .iter()
        .filter_map(|name| name.strip_suffix(".log")?.parse().ok())
        .collect();
    assert_eq!(snapshots(&disk), bases[bases.len() - 3..]);
}

/// A log of several segments and snapshots, closed; and what its last snapshot holds.
fn with_snapshots() -> (Disk, Vec<u8>) {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    for n in 0..60 {
        log.append(numbered(n % 3, 0, n as i32 / 3, 1, 1_000), 0).unwrap();
    }
    log.close().unwrap();
    assert_eq!(snapshots(&disk).len(), 3);
    let bytes = disk.storage.contents(&snapshot(60)).unwrap();
    (disk, bytes)
}

#[test]
fn a_snapshot_torn_or_wrong_at_any_byte_is_not_trusted() {
    let (disk, whole) = with_snapshots();
    let older = snapshots(&disk)[1];
    let older_bytes = disk.storage.contents(&snapshot(older)).unwrap();
    let mut cases: Vec<Vec<u8>> = (0..whole.len()).map(|cut| whole[..cut].to_vec()).collect();
    cases.extend((0..whole.len()).step_by(3).map(|at| {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x20;
        flipped
    }));
    // One of another offset is not this one either.
    cases.push(older_bytes.clone());
    for (n, bytes) in cases.into_iter().enumerate() {
        disk.storage.set_contents(&snapshot(60), bytes);
        if n % 2 == 0 && disk.storage.contents(&snapshot(older)).is_some() {
            disk.storage.set_contents(&snapshot(older), older_bytes[..n % older_bytes.len()].to_vec());
        }
        let log = disk.open(&small_segments()).unwrap();
        assert_eq!(log.producers(), 3);
        assert_eq!(log.recovery().checked_bytes, 0, "headers are enough");
        log.close().unwrap();
        assert_eq!(disk.storage.contents(&snapshot(60)).unwrap(), whole, "{n}");
    }
    // None at all, and none of the rest.
    for keep in [".log", "index"] {
        for name in names(&disk.storage, &dir()) {
            if !name.ends_with(".log") && !name.ends_with(keep) {
                disk.storage.remove_file(&dir().join(name)).unwrap();
            }
        }
        disk.open(&small_segments()).unwrap().close().unwrap();
        assert_eq!(disk.storage.contents(&snapshot(60)).unwrap(), whole);
    }
}

#[test]
fn a_hole_before_a_snapshot_is_not_trusted_either() {
    let (disk, _) = with_snapshots();
    let mut log = disk.open(&small_segments()).unwrap();
    let old = disk.storage.contents(&snapshot(snapshots(&disk)[0])).unwrap();
    let offset = snapshots(&disk)[0];
    for n in 20..60 {
        log.append(numbered(0, 0, n, 1, 1_000), 0).unwrap();
    }
    log.delete_before(90).unwrap();
    log.close().unwrap();
    let first = names(&disk.storage, &dir()).iter().find_map(|name| name.strip_suffix(".log")?.parse().ok());
    assert!(snapshots(&disk).iter().all(|offset| Some(*offset) >= first), "the others are of no use");
    // One that came back, while the later ones did not make it: what was between is gone.
    for name in snapshots(&disk) {
        disk.storage.remove_file(&snapshot(name)).unwrap();
    }
    disk.storage.create(&snapshot(offset)).unwrap().write_at(&[&old], 0).unwrap();
    let mut log = disk.open(&small_segments()).unwrap();
    assert_eq!(log.producers(), 1, "the ones whose batches are there");
    assert_eq!(log.append(numbered(0, 0, 60, 1, 10), 0).unwrap().place().unwrap().base_offset, 100);
}

#[test]
fn producers_outlive_their_records_until_they_expire() {
    let disk = Disk::new();
    let config = LogConfig { retention_ms: Some(1_000), ..small_segments() };
    let mut log = disk.open(&config).unwrap();
    log.append(numbered(1, 0, 0, 3, 100), 0).unwrap();
    log.apply_retention(T0 + 50_000, Offset::MAX).unwrap();
    assert_eq!((log.log_start(), log.log_end()), (3, 3));
    assert_eq!(known(log.append(numbered(1, 0, 0, 3, 100), 0).unwrap()), (0, 2));
    disk.storage.crash(Crash::DropUnsynced);
    let mut log = disk.open(&config).unwrap();
    assert_eq!(known(log.append(numbered(1, 0, 0, 3, 100), 0).unwrap()), (0, 2));
    disk.clock.advance(24 * 60 * 60 * 1000 - 1);
    log.append(numbered(2, 0, 0, 1, 100), 0).unwrap();
    log.apply_retention(T0 + 24 * 60 * 60 * 1000 - 1, 0).unwrap();
    assert_eq!(log.producers(), 2);
    log.apply_retention(T0 + 24 * 60 * 60 * 1000, 0).unwrap();
    assert_eq!(log.producers(), 1);
    assert!(matches!(log.append(numbered(1, 0, 90, 1, 100), 0).unwrap(), Outcome::Appended(_)));
}

#[test]
fn a_log_forgets_whom_it_has_no_room_for() {
    let disk = Disk::with(Options { producers_per_partition: 64, ..Options::default() });
    let mut log = disk.open(&LogConfig::default()).unwrap();
    for id in 0..1_000 {
        log.append(numbered(id, 0, 0, 1, 10), 0).unwrap();
        assert!(log.producers() <= 64);
    }
    known(log.append(numbered(999, 0, 0, 1, 10), 0).unwrap());
    assert!(matches!(log.append(numbered(0, 0, 7, 1, 10), 0).unwrap(), Outcome::Appended(_)));
    drop(log);
    disk.storage.crash(Crash::ProcessOnly);
    let log = disk.open(&LogConfig::default()).unwrap();
    assert!((56..=64).contains(&log.producers()), "{}", log.producers());
}

#[test]
fn a_log_that_begins_anew_knows_nobody() {
    let (disk, _) = with_snapshots();
    let mut log = disk.open(&small_segments()).unwrap();
    log.reset_to(500).unwrap();
    assert_eq!((log.producers(), snapshots(&disk).len()), (0, 0));
    disk.storage.crash(Crash::DropUnsynced);
    let mut log = disk.open(&small_segments()).unwrap();
    assert_eq!((log.producers(), log.log_end()), (0, 500));
    assert!(matches!(log.append(numbered(1, 0, 7, 1, 10), 0).unwrap(), Outcome::Appended(_)));
    log.close().unwrap();
    assert_eq!((snapshots(&disk), disk.open(&small_segments()).unwrap().producers()), (vec![501], 1));
}

#[test]
fn a_snapshot_of_what_the_disk_lost_is_not_believed_later() {
    let (disk, _) = with_snapshots();
    let last = *snapshots(&disk).last().unwrap();
    let base = disk.open(&small_segments()).map(|log| log.log_end()).unwrap();
    assert_eq!((last, base), (60, 60));
    let active = names(&disk.storage, &dir()).into_iter().rfind(|name| name.ends_with(".log")).unwrap();
    let bytes = disk.storage.contents(&dir().join(&active)).unwrap();
    disk.storage.set_contents(&dir().join(&active), bytes[..bytes.len() - 100].to_vec());
    // Whoever opens it again before anything is appended hears of the loss as well.
    for _ in 0..2 {
        let log = disk.open(&small_segments()).unwrap();
        assert_eq!((log.log_end(), log.recovery().lost_stored), (59, Some(60)));
    }
    let mut log = disk.open(&small_segments()).unwrap();
    assert!(snapshots(&disk).last() < Some(&60));
    // Others write there now; the one whose last batch was lost sends it again.
    log.append(numbered(7, 0, 0, 1, 10), 0).unwrap().place().unwrap();
    let again = log.append(numbered(2, 0, 19, 1, 10), 0).unwrap();
    assert!(matches!(again, Outcome::Appended(appended) if appended.base_offset == 60), "{again:?}");
    drop(log);
    disk.storage.crash(Crash::ProcessOnly);
    assert_eq!(disk.open(&small_segments()).unwrap().producers(), 4);
}
