//! Followers: batches as they are, epochs, truncation.

use bus_log::storage::Crash;
use bus_log::{Error, Log, LogConfig};
use bus_protocol::Offset;

use crate::support::*;

/// A leader's log: epochs 0, 2 and 5, twenty batches of two records each.
fn leader(disk: &Disk) -> Log {
    let mut log = disk.open(&small_segments()).unwrap();
    for epoch in [0, 2, 5] {
        for _ in 0..20 {
            let batch = batch(2, 400, epoch as u8, T0 + log.log_end());
            log.append(batch, epoch).unwrap();
        }
    }
    log
}

#[test]
fn a_follower_stores_the_same_bytes() {
    let (one, two) = (Disk::new(), Disk::new());
    let leader = leader(&one);
    let mut follower = two.open(&LogConfig::default()).unwrap();
    let batches = read_all(&leader.reader(), 0, 10_000);
    for pair in batches.chunks(2) {
        follower.append_as_is(pair.to_vec()).unwrap();
    }
    assert_eq!(read_all(&follower.reader(), 0, 10_000), batches);
    assert_eq!(follower.epochs(), leader.epochs());
    assert_eq!(follower.epoch_end_offset(2), Some((2, 80)));
    assert_eq!(follower.epoch_end_offset(3), Some((2, 80)));
    assert_eq!(follower.epoch_end_offset(7), Some((5, 120)));
    let failed = follower.append_as_is(batches[..1].to_vec()).unwrap_err();
    assert!(matches!(failed.error, Error::NotContiguous { expected: 120, found: 0 }));
    assert!(matches!(follower.append(batch(1, 1, 1, T0), 4), Err(Error::OldEpoch { last: 5, found: 4 })));
    drop(follower);
    two.storage.crash(Crash::ProcessOnly);
    assert_eq!(two.open(&LogConfig::default()).unwrap().epochs(), leader.epochs());
}

#[test]
fn truncation_takes_back_to_any_offset_and_lasts() {
    for offset in (0..=120).rev().step_by(3) {
        for crash in [Crash::ProcessOnly, Crash::DropUnsynced, Crash::Torn(offset as u64)] {
            let disk = Disk::new();
            let mut log = leader(&disk);
            let reader = log.reader();
            let before = read_all(&reader, 0, 10_000);
            if offset % 2 == 0 {
                log.sync().unwrap();
            }
            let old_sync = log.begin_sync();
            log.truncate_to(offset).unwrap();
            // Within a batch: the batch goes.
            let end = offset / 2 * 2;
            assert_eq!((log.log_end(), reader.log_end()), (end, end));
            assert!(old_sync.run().unwrap() <= end);
            assert_eq!(read_all(&reader, 0, 10_000), before[..end as usize / 2]);
            assert!(log.epochs().iter().all(|start| start.offset < end));
            let epoch = 7;
            log.append(batch(3, 300, 9, T0), epoch).unwrap();
            assert_eq!(reader.read(end, 1, Offset::MAX).unwrap().next_offset, end + 3);
            assert_eq!(log.epochs().last().unwrap().offset, end);
            log.sync().unwrap();
            drop(log);
            disk.storage.crash(crash);
            let log = disk.open(&small_segments()).unwrap();
            assert_eq!(log.log_end(), end + 3);
            assert_eq!(read_all(&log.reader(), 0, 10_000)[..end as usize / 2], before[..end as usize / 2]);
            assert_eq!(log.recovery().lost_stored, None);
        }
    }
}

#[test]
fn a_truncation_alone_lasts_too() {
    let disk = Disk::new();
    let mut log = leader(&disk);
    log.sync().unwrap();
    log.truncate_to(50).unwrap();
    assert_eq!(log.stored(), 50);
    drop(log);
    disk.storage.crash(Crash::DropUnsynced);
    let mut log = disk.open(&small_segments()).unwrap();
    assert_eq!((log.log_end(), log.recovery().lost_stored), (50, None));
    assert!(matches!(log.truncate_to(-1), Err(Error::OffsetOutOfRange { .. })));
    log.truncate_to(99).unwrap();
    assert_eq!(log.log_end(), 50);
}

#[test]
fn a_follower_that_fell_out_of_range_begins_anew() {
    for offset in [0, 30, 120, 5_000] {
        let disk = Disk::new();
        let mut log = leader(&disk);
        log.sync().unwrap();
        log.reset_to(offset).unwrap();
        assert_eq!((log.log_start(), log.log_end(), log.size()), (offset, offset, 0));
        assert!(log.epochs().is_empty());
        drop(log);
        disk.storage.crash(Crash::DropUnsynced);
        let mut log = disk.open(&small_segments()).unwrap();
        assert_eq!((log.log_start(), log.log_end(), log.recovery().lost_stored), (offset, offset, None));
        append(&mut log, 1, 10);
        log.sync().unwrap();
        assert_eq!(read_all(&log.reader(), offset, 100).len(), 1);
        drop(log);
        disk.storage.crash(Crash::DropUnsynced);
        assert_eq!(disk.open(&small_segments()).unwrap().log_end(), offset + 1);
    }
}
