//! Appending, rolling, full disks and failing syncs.

use bus_log::{Error, LogConfig};
use bus_protocol::TimestampType;
use bus_protocol::batch::RecordBatch;

use crate::support::*;

#[test]
fn offsets_run_on_over_segments() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    let mut expected = 0;
    for round in 0..60 {
        let count = 1 + round % 7;
        let group = (0..count).map(|n| batch(n + 1, 200, n as u8, T0)).collect();
        let appended = log.append_all(group, 3).unwrap();
        assert_eq!(appended.len(), count);
        for (n, one) in appended.iter().enumerate() {
            let one = one.place().unwrap();
            assert_eq!((one.base_offset, one.last_offset), (expected, expected + n as i64));
            expected = one.last_offset + 1;
        }
    }
    assert_eq!(log.log_end(), expected);
    let segments = names(&disk.storage, &dir()).iter().filter(|name| name.ends_with(".log")).count();
    assert!(segments > 5, "{segments}");
    let batches = read_all(&log.reader(), 0, 3_000);
    assert_eq!(batches.last().unwrap().header().next_offset(), expected);
    assert!(batches.iter().all(|batch| batch.header().leader_epoch == 3));
    assert_eq!(log.size(), batches.iter().map(|batch| batch.bytes().len() as u64).sum::<u64>());
}

#[test]
fn a_group_of_many_small_batches_is_few_writes_and_syncs() {
    let disk = Disk::new();
    let before = disk.storage.syncs();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    let syncs = || disk.storage.syncs() - before;
    assert_eq!(syncs(), 0, "a new log costs no sync");
    let group = (0..5_000).map(|_| batch(1, 10, 1, T0)).collect();
    log.append_all(group, 0).unwrap();
    assert_eq!(log.sync().unwrap(), 5_000);
    assert_eq!(log.stored(), 5_000);
    assert_eq!(syncs(), 3, "the file, the folder, the folder above");
    append(&mut log, 1, 10);
    log.sync().unwrap();
    assert_eq!(syncs(), 4);
    log.sync().unwrap();
    assert_eq!(syncs(), 4, "nothing new, nothing to do");
}

#[test]
fn a_sync_covers_what_was_there_when_it_began() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    append(&mut log, 3, 100);
    let job = log.begin_sync();
    assert_eq!(job.covers(), 3);
    append(&mut log, 3, 100);
    let stored = std::thread::spawn(move || job.run()).join().unwrap().unwrap();
    assert_eq!(stored, 3);
    assert_eq!(log.reader().stored(), 3);
    // A sync begun before a roll and run after it has nothing left to do.
    let job = log.begin_sync();
    while names(&disk.storage, &dir()).iter().filter(|name| name.ends_with(".log")).count() < 2 {
        append(&mut log, 3, 1_000);
    }
    assert!(job.run().unwrap() > 6);
}

#[test]
fn a_failed_sync_takes_the_log_offline() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    append(&mut log, 1, 100);
    log.sync().unwrap();
    append(&mut log, 1, 100);
    disk.storage.fail_syncs(1);
    assert!(matches!(log.sync(), Err(Error::Io { .. })));
    assert!(matches!(log.sync(), Err(Error::Poisoned { .. })), "the next fsync would lie");
    assert!(matches!(log.append(batch(1, 1, 1, T0), 0), Err(Error::Poisoned { .. })));
    assert_eq!(log.stored(), 1);
    assert_eq!(read_all(&log.reader(), 0, 1_000).len(), 2, "reads go on");
    drop(log);
    disk.storage.crash(bus_log::storage::Crash::DropUnsynced);
    assert_eq!(disk.open(&small_segments()).unwrap().log_end(), 1);
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    append(&mut log, 5, 100);
    log.sync().unwrap();
    let before = disk.storage.contents(&segment(0)).unwrap();
    for room in [0, 1, 60, 61, 300] {
        disk.storage.set_room(Some(room));
        let error = log.append(batch(5, 100, 9, T0), 0).unwrap_err();
        assert!(matches!(error, Error::Full { .. }), "{error}");
        assert_eq!(disk.storage.contents(&segment(0)).unwrap(), before);
        assert_eq!((log.log_end(), log.reader().log_end()), (5, 5));
    }
    assert_eq!(read_all(&log.reader(), 0, 1_000).len(), 1);
    disk.storage.set_room(None);
    append(&mut log, 5, 100);
    assert_eq!(log.sync().unwrap(), 10);
    // Full at a roll: the next append goes on where this one could not.
    while disk.storage.contents(&segment(0)).unwrap().len() < 15_000 {
        append(&mut log, 5, 100);
    }
    let end = log.log_end();
    disk.storage.set_room(Some(0));
    assert!(matches!(log.append(batch(1, 3_000, 9, T0), 0), Err(Error::Full { .. })));
    disk.storage.set_room(None);
    append(&mut log, 1, 3_000);
    assert_eq!(log.log_end(), end + 1);
    drop(log);
    assert_eq!(disk.open(&small_segments()).unwrap().log_end(), end + 1);
}

#[test]
fn what_a_log_is_to_leave_free_is_no_room_for_leader_nor_follower() {
    const RESERVE: u64 = 8 << 20;
    let (leader, follower) = (Disk::new(), Disk::new());
    let (mut led, mut followed) =
        (leader.open(&small_segments()).unwrap(), follower.open(&small_segments()).unwrap());
    append(&mut led, 1, 1_000);
    let stored = read_all(&led.reader(), 0, 1 << 20).remove(0);
    for disk in [&leader, &follower] {
        disk.storage.set_free(Some(RESERVE + 1_000));
    }
    assert!(matches!(led.append(batch(1, 1_000, 9, T0), 0), Err(Error::Full { .. })));
    let failed = followed.append_as_is(vec![stored.clone()]).unwrap_err();
    assert!(matches!(failed.error, Error::Full { .. }), "{failed}");
    append(&mut led, 1, 100);
    assert!(!led.has_room());
    for (free, room) in
        [(Some(RESERVE + (1 << 20)), true), (Some(RESERVE + (1 << 20) - 1), false), (None, true)]
    {
        leader.storage.set_free(free);
        assert_eq!(led.has_room(), room, "{free:?}");
    }
    // A quota that the file system does not tell of.
    leader.storage.set_room(Some(1_000));
    assert!(!led.has_room());
    follower.storage.set_free(Some(RESERVE + 2_000));
    followed.append_as_is(vec![stored]).unwrap();
    assert_eq!((led.log_end(), followed.log_end()), (2, 1));
}

#[test]
fn a_group_that_fills_the_disk_keeps_what_it_names() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    disk.storage.set_room(Some(40_000));
    let failed = log.append_all((0..40).map(|_| batch(1, 2_000, 1, T0)).collect(), 0).unwrap_err();
    assert!(matches!(failed.error, Error::Full { .. }));
    assert!(!failed.outcomes.is_empty());
    assert_eq!(log.log_end(), failed.outcomes.last().unwrap().place().unwrap().last_offset + 1);
    assert_eq!(read_all(&log.reader(), 0, 1 << 20).len(), failed.outcomes.len());
}

#[test]
fn log_append_time_is_the_clocks() {
    let disk = Disk::new();
    let config = LogConfig { timestamp_type: TimestampType::LogAppendTime, ..LogConfig::default() };
    let mut log = disk.open(&config).unwrap();
    disk.clock.advance(5);
    let appended = log.append(batch(2, 10, 1, 77), 0).unwrap().place().unwrap();
    assert_eq!(appended.append_time, Some(T0 + 5));
    let batches = read_all(&log.reader(), 0, 1_000);
    assert!(batches[0].records().unwrap().all(|record| record.unwrap().timestamp == T0 + 5));
    assert_eq!(log.reader().offset_for_timestamp(T0, 10).unwrap(), Some((0, T0 + 5)));
}

#[test]
fn segments_are_closed_by_age() {
    let disk = Disk::new();
    let config = LogConfig { segment_ms: 1_000, ..LogConfig::default() };
    let mut log = disk.open(&config).unwrap();
    append(&mut log, 1, 10);
    disk.clock.advance(999);
    append(&mut log, 1, 10);
    disk.clock.advance(1);
    append(&mut log, 1, 10);
    assert!(disk.storage.contents(&segment(2)).is_some());
    assert!(disk.storage.contents(&segment(1)).is_none());
    // An odd clock of a producer's does not make a segment of each batch.
    for n in 0..10 {
        log.append(batch(1, 10, 1, if n % 2 == 0 { 0 } else { T0 * 2 }), 0).unwrap();
    }
    assert!(disk.storage.contents(&segment(4)).is_none());
}

#[test]
fn a_shared_batch_is_copied_and_not_changed() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    append(&mut log, 4, 10);
    let mut builder = bus_protocol::batch::BatchBuilder::new(bus_protocol::batch::Compression::Zstd);
    builder.push(1, None, None, &[]);
    let mine: RecordBatch = builder.build_batch().unwrap();
    log.append(mine.clone().into(), 1).unwrap();
    assert_eq!(RecordBatch::parse(mine.bytes().clone()).unwrap().header().base_offset, 0);
    assert_eq!(read_all(&log.reader(), 4, 1_000)[0].header().base_offset, 4);
}
