//! Followers: batches as they are, epochs, truncation.

use bus_log::storage::Crash;
use bus_log::{Error, Log, LogConfig};
use bus_protocol::replicate::LogEnd;
use bus_protocol::{Epoch, Offset};
use proptest::prelude::*;

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

#[test]
fn a_new_follower_that_begins_in_the_middle_is_there_after_a_power_cut() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    log.reset_to(47).unwrap();
    drop(log);
    disk.storage.crash(Crash::DropUnsynced);
    let log = disk.open(&small_segments()).unwrap();
    assert_eq!((log.log_start(), log.log_end(), log.recovery().lost_stored), (47, 47, None));
}

/// A log of 120 records that begins at 20, and a machine that dies in the middle of `cut`, after each of its changes: it
/// did not happen then, or it is done when the log is opened, and no record was lost.
fn is_whole_or_not_at_all(end: Offset, cut: impl Fn(&mut Log) -> Result<(), Error>) {
    for crash in [Crash::ProcessOnly, Crash::DropUnsynced, Crash::Torn(1), Crash::Torn(2), Crash::Torn(3)] {
        let mut ends = Vec::new();
        for changes in 0.. {
            let disk = Disk::new();
            let mut log = leader(&disk);
            log.delete_before(20).unwrap();
            log.sync().unwrap();
            disk.storage.die_after(Some(changes));
            let done = cut(&mut log);
            drop(log);
            disk.storage.crash(crash);
            let log = disk.open(&small_segments()).unwrap();
            let found = (log.log_start(), log.log_end());
            assert!(
                found == (end, end) || (done.is_err() && found == (20, 120)),
                "{crash:?} {changes}: {found:?}"
            );
            assert_eq!(log.recovery().lost_stored, None, "{crash:?} {changes}");
            ends.push(found.1);
            if done.is_ok() {
                break;
            }
        }
        ends.dedup();
        assert_eq!(ends, [120, end], "{crash:?}");
    }
}

#[test]
fn a_truncation_that_a_crash_cuts_short_leaves_a_prefix() {
    for crash in [Crash::ProcessOnly, Crash::DropUnsynced, Crash::Torn(1), Crash::Torn(2), Crash::Torn(3)] {
        for changes in 0.. {
            let disk = Disk::new();
            let mut log = leader(&disk);
            log.sync().unwrap();
            let before = read_all(&log.reader(), 0, 1 << 20);
            disk.storage.die_after(Some(changes));
            let done = log.truncate_to(30);
            drop(log);
            disk.storage.crash(crash);
            let log = disk.open(&small_segments()).unwrap();
            assert_eq!((log.log_start(), log.recovery().lost_stored), (0, None), "{crash:?} {changes}");
            let left = read_all(&log.reader(), 0, 1 << 20);
            assert_eq!(left, before[..left.len()], "{crash:?} {changes}");
            assert!(log.log_end() >= 30, "{crash:?} {changes}");
            if done.is_ok() {
                assert_eq!(log.log_end(), 30);
                break;
            }
        }
    }
}

#[test]
fn a_reset_that_a_crash_cuts_short_is_done_when_the_log_is_opened_or_not_at_all() {
    for end in [0, 3, 60, 5_000] {
        is_whole_or_not_at_all(end, |log| log.reset_to(end));
    }
    is_whole_or_not_at_all(10, |log| log.truncate_by(Some(2), 10).map(drop));
}

#[test]
fn a_reset_that_finds_no_room_is_done_when_the_log_is_opened_or_not_at_all() {
    let mut ends = Vec::new();
    for room in 0..400 {
        let disk = Disk::new();
        let mut log = leader(&disk);
        disk.storage.set_room(Some(room));
        let reset = log.reset_to(3);
        // A full disk that was found later than that is no promise that all is as it was.
        let as_before = matches!(&reset, Err(Error::Full { .. }));
        assert_eq!(
            as_before,
            reset.is_err() && log.log_end() == 120 && log.truncate_to(120).is_ok(),
            "{reset:?}"
        );
        drop(log);
        disk.storage.set_room(None);
        let log = disk.open(&small_segments()).unwrap();
        let found = (log.log_start(), log.log_end());
        assert!(found == (3, 3) || (reset.is_err() && found == (0, 120)), "{room}: {found:?}");
        ends.push((reset.is_ok(), found.0));
    }
    ends.dedup();
    // Before the first step, between the two, and after both.
    assert_eq!(ends, [(false, 0), (false, 3), (true, 3)]);
}

#[test]
fn a_log_says_where_it_ends_and_who_wrote_that() {
    let disk = Disk::new();
    let mut log = leader(&disk);
    assert_eq!(log.end_with_epoch(), LogEnd { epoch: Some(5), end: 120 });
    log.truncate_to(60).unwrap();
    assert_eq!(log.end_with_epoch(), LogEnd { epoch: Some(2), end: 60 });
    log.truncate_to(40).unwrap();
    assert_eq!(log.end_with_epoch(), LogEnd { epoch: Some(0), end: 40 });
    // All records are gone, and so is what is known of them.
    log.delete_before(40).unwrap();
    assert_eq!(log.end_with_epoch(), LogEnd { epoch: None, end: 40 });
    log.close().unwrap();
    let mut log = disk.open(&small_segments()).unwrap();
    assert_eq!(log.end_with_epoch(), LogEnd { epoch: None, end: 40 });
    log.reset_to(7).unwrap();
    assert_eq!(log.end_with_epoch(), LogEnd { epoch: None, end: 7 });
}

#[test]
fn a_cut_by_epoch_ends_where_both_histories_do() {
    // Its epochs: 0 to 40, 2 to 80, 5 to 120.
    for (diverged, end, left) in [
        (Some(5), 100, 100),
        (Some(5), 500, 120),
        (Some(4), 90, 80),
        (Some(2), 60, 60),
        (Some(2), 61, 60),
        (Some(1), 70, 40),
        (Some(0), 10, 10),
        (Some(0), 0, 0),
        (None, 30, 0),
    ] {
        let disk = Disk::new();
        let mut log = leader(&disk);
        let found = log.truncate_by(diverged, end).unwrap();
        assert_eq!((found, log.log_end()), (log.end_with_epoch(), left), "{diverged:?} {end}");
        disk.storage.crash(Crash::DropUnsynced);
        assert!(disk.open(&small_segments()).unwrap().log_end() <= left, "nothing of it was synced");
    }
    // Where the other history ends before this log starts, nothing of it is on that history; of epochs older than all it
    // has, nothing either.
    let disk = Disk::new();
    let mut log = leader(&disk);
    log.delete_before(50).unwrap();
    assert_eq!(log.truncate_by(Some(2), 20).unwrap(), LogEnd { epoch: None, end: 20 });
    assert_eq!((log.log_start(), log.log_end()), (20, 20));
    let disk = Disk::new();
    let mut log = leader(&disk);
    log.delete_before(50).unwrap();
    assert_eq!(log.truncate_by(Some(1), 90).unwrap().end, 50);
}

#[test]
fn an_emptied_log_knows_its_last_epoch_over_restarts() {
    for crash in [Crash::ProcessOnly, Crash::DropUnsynced, Crash::Torn(5)] {
        let disk = Disk::new();
        let mut log = leader(&disk);
        log.sync().unwrap();
        let config = LogConfig { retention_ms: Some(1), ..small_segments() };
        log.set_config(config.clone());
        log.apply_retention(T0 + 100_000, 120).unwrap();
        for _ in 0..3 {
            assert_eq!((log.log_start(), log.log_end(), log.size()), (120, 120, 0));
            assert_eq!(log.epochs().len(), 1);
            // A follower that is as far is not sent back.
            assert_eq!(log.epoch_end_offset(5), Some((5, 120)));
            assert_eq!(log.epoch_end_offset(4), None);
            assert_eq!(log.end_with_epoch(), LogEnd { epoch: None, end: 120 });
            drop(log);
            disk.storage.crash(crash);
            log = disk.open(&config).unwrap();
        }
        log.append(batch(1, 1, 1, T0), 5).unwrap();
        assert_eq!(log.epoch_end_offset(5), Some((5, 121)));
    }
}

/// After an unclean election: what this follower had deleted was not on the leader's history.
#[test]
fn who_wrote_what_is_deleted_binds_no_other_history() {
    let disk = Disk::new();
    let mut log = leader(&disk);
    log.sync().unwrap();
    log.delete_before(50).unwrap();
    assert_eq!(log.truncate_by(Some(1), 90).unwrap(), LogEnd { epoch: None, end: 50 });
    log.append(batch(2, 10, 1, T0), 1).unwrap();
    assert_eq!(log.epochs().iter().map(|start| (start.epoch, start.offset)).collect::<Vec<_>>(), [(1, 50)]);
    assert!(matches!(log.append(batch(1, 1, 1, T0), 0), Err(Error::OldEpoch { last: 1, found: 0 })));
    log.sync().unwrap();
    let epochs = log.epochs().to_vec();
    drop(log);
    disk.storage.crash(Crash::DropUnsynced);
    let log = disk.open(&small_segments()).unwrap();
    assert_eq!((log.epochs(), log.end_with_epoch()), (&epochs[..], LogEnd { epoch: Some(1), end: 52 }));
}

/// The two sides of a replication stream until they agree: where the follower's log ends then, and how often it had
/// to cut.
fn agree(leader: &Log, follower: &mut Log) -> (LogEnd, usize) {
    let mut said = follower.end_with_epoch();
    for cuts in 0..100 {
        let found = said.epoch.and_then(|epoch| leader.epoch_end_offset(epoch));
        let fits = match (said.epoch, found) {
            (None, _) => said.end <= leader.log_end(),
            (Some(epoch), Some((known, end))) => known == epoch && said.end <= end,
            (Some(_), None) => false,
        };
        if fits {
            return (said, cuts);
        }
        let (epoch, end) = found.map_or((None, leader.log_start()), |(epoch, end)| (Some(epoch), end));
        said = follower.truncate_by(epoch, end).unwrap();
    }
    panic!("they do not come to an end");
}

proptest! {
    /// Histories that part somewhere: the follower keeps what they have in common, all of it, and nothing else.
    #[test]
    fn a_follower_keeps_exactly_what_it_has_in_common(
        common in proptest::collection::vec((0i32..3, 1usize..4), 0..20),
        mine in proptest::collection::vec((0i32..3, 1usize..4), 0..20),
        theirs in proptest::collection::vec((0i32..3, 1usize..4), 0..20),
    ) {
        let (one, two) = (Disk::new(), Disk::new());
        let mut leader = one.open(&small_segments()).unwrap();
        let mut follower = two.open(&small_segments()).unwrap();
        let mut epoch: Epoch = 0;
        for (up, count) in common {
            epoch += up;
            leader.append(batch(count, 300, 1, T0), epoch).unwrap();
            follower.append(batch(count, 300, 1, T0), epoch).unwrap();
        }
        let end = leader.log_end();
        // An epoch has one leader: after the parting, each side has epochs of its own.
        let raise = |log: &mut Log, parity: i32, fill, group: Vec<(i32, usize)>| {
            let mut epoch = epoch / 2 * 2 + 2 + parity;
            for (up, count) in group {
                epoch += up * 2;
                log.append(batch(count, 300, fill, T0), epoch).unwrap();
            }
        };
        raise(&mut follower, 0, 2, mine);
        raise(&mut leader, 1, 3, theirs);
        let (left, cuts) = agree(&leader, &mut follower);
        prop_assert_eq!(left.end, end);
        prop_assert!(cuts <= 20);
        let kept = read_all(&follower.reader(), 0, 1 << 20);
        let whole = read_all(&leader.reader(), 0, 1 << 20);
        prop_assert_eq!(&kept[..], &whole[..kept.len()]);
        follower.append_as_is(whole[kept.len()..].to_vec()).unwrap();
        prop_assert_eq!(follower.end_with_epoch(), leader.end_with_epoch());
    }
}
