//! Torn tails, damage, checkpoints.

use std::sync::Arc;

use bus_log::storage::{Crash, DiskStorage};
use bus_log::{Env, Error, Log, LogConfig, Options};
use bus_protocol::SystemClock;

use crate::support::*;

/// A disk with one log of `count` batches, the last sync before the last batch; and where the last batch begins.
fn written(count: usize) -> (Disk, usize) {
    let disk = Disk::new();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    for _ in 1..count {
        append(&mut log, 3, 60);
    }
    log.sync().unwrap();
    let start = disk.storage.contents(&segment(0)).unwrap().len();
    append(&mut log, 3, 60);
    disk.storage.crash(Crash::ProcessOnly);
    (disk, start)
}

#[test]
fn a_tail_torn_at_every_byte_recovers() {
    let (disk, start) = written(5);
    let whole = disk.storage.contents(&segment(0)).unwrap();
    for cut in start..whole.len() {
        disk.storage.set_contents(&segment(0), whole[..cut].to_vec());
        let log = disk.open(&LogConfig::default()).unwrap();
        assert_eq!(log.log_end(), 12, "{cut}");
        assert_eq!(log.recovery().cut_bytes, (cut - start) as u64);
        assert_eq!(log.recovery().lost_stored, None);
        assert_eq!(read_all(&log.reader(), 0, 1 << 20).len(), 4);
        assert_eq!(disk.storage.contents(&segment(0)).unwrap().len(), start);
        // The rest of the batch was never written, but its place was taken.
        let mut zeros = whole[..cut].to_vec();
        zeros.resize(whole.len(), 0);
        if zeros == whole {
            continue;
        }
        disk.storage.set_contents(&segment(0), zeros);
        assert_eq!(disk.open(&LogConfig::default()).unwrap().log_end(), 12);
    }
}

#[test]
fn a_tail_torn_after_a_clean_stop_is_cut_and_told() {
    let (disk, start) = written(5);
    disk.open(&LogConfig::default()).unwrap().close().unwrap();
    let whole = disk.storage.contents(&segment(0)).unwrap();
    for cut in start..whole.len() {
        let copy = Disk::new();
        let mut log = copy.open(&LogConfig::default()).unwrap();
        for _ in 0..5 {
            append(&mut log, 3, 60);
        }
        log.close().unwrap();
        copy.storage.set_contents(&segment(0), whole[..cut].to_vec());
        let mut log = copy.open(&LogConfig::default()).unwrap();
        assert_eq!((log.log_end(), log.recovery().lost_stored), (12, Some(15)), "{cut}");
        assert_eq!(read_all(&log.reader(), 0, 1 << 20).len(), 4);
        append(&mut log, 1, 1);
        log.close().unwrap();
        assert_eq!(copy.open(&LogConfig::default()).unwrap().recovery().lost_stored, None);
    }
}

#[test]
fn damage_before_the_tail_is_an_error_and_changes_nothing() {
    let (disk, start) = written(5);
    let whole = disk.storage.contents(&segment(0)).unwrap();
    let size = start / 4;
    for at in (0..start).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        disk.storage.set_contents(&segment(0), damaged.clone());
        // The leader epoch and the base offset are not covered by the CRC; of these the offset is checked.
        let in_batch = at % size;
        if (12..16).contains(&in_batch) {
            continue;
        }
        match disk.open(&LogConfig::default()).map(|log| log.log_end()) {
            Err(Error::Damaged { file, position, offset, .. }) => {
                assert_eq!(file, segment(0));
                assert_eq!((position as usize, offset as usize), (at / size * size, at / size * 3));
            }
            other => panic!("byte {at}: {other:?}"),
        }
        assert_eq!(disk.storage.contents(&segment(0)).unwrap(), damaged);
    }
}

#[test]
fn damage_in_the_last_batch_is_damage_if_it_was_stored() {
    let (disk, start) = written(5);
    let mut bytes = disk.storage.contents(&segment(0)).unwrap();
    bytes[start + 70] ^= 1;
    disk.storage.set_contents(&segment(0), bytes.clone());
    // It was not synced: who knows what the disk made of it.
    assert_eq!(disk.open(&LogConfig::default()).unwrap().log_end(), 12);

    let (disk, start) = written(5);
    let mut log = disk.open(&LogConfig::default()).unwrap();
    append(&mut log, 1, 50);
    log.sync().unwrap();
    disk.storage.crash(Crash::ProcessOnly);
    let mut bytes = disk.storage.contents(&segment(0)).unwrap();
    let last = bytes.len() - 5;
    assert!(last > start + 100);
    bytes[last] ^= 1;
    disk.storage.set_contents(&segment(0), bytes);
    assert!(matches!(disk.open(&LogConfig::default()), Err(Error::Damaged { offset: 15, .. })));
}

#[test]
fn a_hole_in_the_rest_of_a_page_that_was_stored_in_part_is_torn() {
    let disk = Disk::new();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    append(&mut log, 1, 5_000);
    log.sync().unwrap();
    let stored = disk.storage.contents(&segment(0)).unwrap().len();
    let end = log.log_end();
    for size in [2_000, 5_000, 500] {
        append(&mut log, 1, size);
    }
    disk.storage.crash(Crash::ProcessOnly);
    let mut bytes = disk.storage.contents(&segment(0)).unwrap();
    bytes[stored..8_192].fill(0);
    disk.storage.set_contents(&segment(0), bytes.clone());
    assert_eq!(disk.open(&LogConfig::default()).unwrap().log_end(), end);

    // What is wrong there, but not a hole, is damage.
    bytes[stored + 20] = 1;
    disk.storage.set_contents(&segment(0), bytes);
    assert!(matches!(disk.open(&LogConfig::default()), Err(Error::Damaged { .. })));
}

#[test]
fn a_hole_in_what_was_being_synced_is_torn() {
    let disk = Disk::new();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    append(&mut log, 1, 5_000);
    log.sync().unwrap();
    let stored = disk.storage.contents(&segment(0)).unwrap().len();
    append(&mut log, 1, 20_000);
    append(&mut log, 1, 5_000);
    disk.storage.crash(Crash::ProcessOnly);
    let mut bytes = disk.storage.contents(&segment(0)).unwrap();
    bytes[12_288..16_384].fill(0);
    disk.storage.set_contents(&segment(0), bytes.clone());
    let log = disk.open(&LogConfig::default()).unwrap();
    assert_eq!(log.log_end(), 1);
    assert_eq!(disk.storage.contents(&segment(0)).unwrap().len(), stored);
    drop(log);
    // The same below what is known to be stored is damage.
    let disk = Disk::new();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    append(&mut log, 1, 20_000);
    append(&mut log, 1, 5_000);
    log.sync().unwrap();
    disk.storage.crash(Crash::ProcessOnly);
    let mut bytes = disk.storage.contents(&segment(0)).unwrap();
    bytes[12_288..16_384].fill(0);
    disk.storage.set_contents(&segment(0), bytes);
    assert!(matches!(disk.open(&LogConfig::default()), Err(Error::Damaged { .. })));
}

fn many_segments(close: bool) -> Disk {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    for _ in 0..100 {
        append(&mut log, 2, 400);
    }
    log.sync().unwrap();
    if close {
        log.close().unwrap();
    }
    disk
}

fn bases(disk: &Disk) -> Vec<i64> {
    let names = names(&disk.storage, &dir());
    names.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect()
}

#[test]
fn a_closed_segment_of_another_length_is_damage() {
    for longer in [false, true] {
        for close in [false, true] {
            let disk = many_segments(close);
            let path = segment(bases(&disk)[1]);
            let mut bytes = disk.storage.contents(&path).unwrap();
            bytes.resize(bytes.len() - 1 + 2 * usize::from(longer), 7);
            disk.storage.set_contents(&path, bytes);
            assert!(matches!(disk.open(&small_segments()), Err(Error::Damaged { file, .. }) if file == path));
        }
    }
}

#[test]
fn a_missing_segment_is_damage() {
    use bus_log::storage::Storage;
    for n in [0, 1, 3] {
        let disk = many_segments(true);
        disk.storage.remove_file(&segment(bases(&disk)[n])).unwrap();
        assert!(matches!(disk.open(&small_segments()), Err(Error::Damaged { .. })), "{n}");
    }
}

#[test]
fn without_a_checkpoint_all_is_checked_and_found() {
    use bus_log::storage::Storage;
    let disk = many_segments(true);
    disk.storage.set_contents(&dir().join("checkpoint"), b"bus-log 1\nstart 0\ncrc 00000000\n".to_vec());
    let log = disk.open(&small_segments()).unwrap();
    assert_eq!((log.log_end(), log.recovery().checked_bytes), (200, log.size()));
    drop(log);
    assert_eq!(disk.open(&small_segments()).unwrap().recovery().checked_bytes, 0);
    // Nor without it and without indexes.
    for name in names(&disk.storage, &dir()).iter().filter(|name| !name.ends_with(".log")) {
        disk.storage.remove_file(&dir().join(name)).unwrap();
    }
    let log = disk.open(&small_segments()).unwrap();
    assert_eq!(read_all(&log.reader(), 0, 5_000).len(), 100);
    // A segment in the middle that is cut short then shows by its neighbour.
    drop(log);
    disk.storage.remove_file(&dir().join("checkpoint")).unwrap();
    let path = segment(bases(&disk)[1]);
    let bytes = disk.storage.contents(&path).unwrap();
    let whole_batch = bytes.len() / 16;
    disk.storage.set_contents(&path, bytes[..bytes.len() - whole_batch].to_vec());
    assert!(matches!(disk.open(&small_segments()), Err(Error::Damaged { file, .. }) if file == path));
}

#[test]
fn indexes_are_rebuilt_when_they_are_wrong() {
    let disk = many_segments(true);
    let expected = read_all(&disk.open(&small_segments()).unwrap().reader(), 0, 5_000);
    for (n, name) in names(&disk.storage, &dir()).iter().enumerate() {
        if name.ends_with("index") {
            let mut bytes = disk.storage.contents(&dir().join(name)).unwrap();
            let at = (n * 13) % bytes.len();
            bytes[at] ^= 0xff;
            disk.storage.set_contents(&dir().join(name), bytes);
        }
    }
    let log = disk.open(&small_segments()).unwrap();
    for from in 0..200 {
        let read = log.reader().read(from, 1, 1_000).unwrap();
        assert_eq!(read.chunks[0], expected[from as usize / 2].bytes());
    }
    for n in 0..200 {
        // Records are 1 ms apart and batches begin at T0 + their offset.
        assert_eq!(log.reader().offset_for_timestamp(T0 + n, 1_000).unwrap(), Some((n, T0 + n)));
    }
}

#[test]
fn a_clean_stop_leaves_nothing_to_check() {
    let disk = many_segments(true);
    let syncs = disk.storage.syncs();
    let log = disk.open(&small_segments()).unwrap();
    assert_eq!((log.recovery().checked_bytes, log.recovery().rewritten_bytes), (0, 0));
    assert_eq!(disk.storage.syncs(), syncs, "and nothing to sync");
    assert_eq!(log.log_end(), 200);
    assert_eq!(log.epoch_end_offset(0), Some((0, 200)));
}

#[test]
fn a_killed_process_costs_the_next_start_no_sync() {
    let disk = Disk::new();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    append(&mut log, 3, 100);
    log.sync().unwrap();
    disk.storage.crash(Crash::ProcessOnly);
    let syncs = disk.storage.syncs();
    let mut log = disk.open(&LogConfig::default()).unwrap();
    assert_eq!((log.stored(), disk.storage.syncs()), (3, syncs));
    assert_eq!(log.recovery().rewritten_bytes, 0);
    append(&mut log, 3, 100);
    log.sync().unwrap();
    append(&mut log, 3, 100);
    assert_eq!(disk.storage.syncs(), syncs + 1);
    disk.storage.crash(Crash::ProcessOnly);
    // Nine records are in the page cache, and six were stored.
    assert_eq!(disk.open(&LogConfig::default()).unwrap().stored(), 9);
    assert_eq!(disk.storage.syncs(), syncs + 2);
    disk.storage.crash(Crash::DropUnsynced);
    assert_eq!(disk.open(&LogConfig::default()).unwrap().log_end(), 9);
}

#[test]
fn only_what_is_after_the_checkpoint_is_checked() {
    let disk = Disk::with(Options { checkpoint_bytes: 1 << 16, ..Options::default() });
    let mut log = disk.open(&LogConfig::default()).unwrap();
    for _ in 0..500 {
        append(&mut log, 2, 500);
        log.sync().unwrap();
    }
    disk.storage.crash(Crash::ProcessOnly);
    let log = disk.open(&LogConfig::default()).unwrap();
    assert_eq!(log.log_end(), 1_000);
    assert!(log.size() > 500_000);
    assert!(log.recovery().checked_bytes < 1 << 16, "{:?}", log.recovery());
    assert_eq!(read_all(&log.reader(), 0, 50_000).len(), 500);
}

#[test]
fn on_a_real_disk_too() {
    let folder = tempfile::tempdir().unwrap();
    let env = Env::new(Arc::new(DiskStorage::default()), Arc::new(SystemClock::new()), Options::default());
    let path = folder.path().join("topic-0");
    let mut log = Log::open(&env, &path, small_segments()).unwrap();
    for n in 0..200 {
        append(&mut log, 2, if n % 10 == 0 { 6_000 } else { 300 });
        if n % 7 == 0 {
            log.sync().unwrap();
        }
    }
    let before = read_all(&log.reader(), 0, 10_000);
    drop(log);
    let last = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
    let last = last.filter(|path| path.extension().is_some_and(|end| end == "log")).max().unwrap();
    let length = std::fs::metadata(&last).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(length - 3).unwrap();
    let mut log = Log::open(&env, &path, small_segments()).unwrap();
    assert_eq!(read_all(&log.reader(), 0, 10_000), before[..199]);
    append(&mut log, 2, 300);
    log.close().unwrap();
    let log = Log::open(&env, &path, small_segments()).unwrap();
    assert_eq!((log.log_end(), log.recovery().checked_bytes), (400, 0));
    log.delete().unwrap();
    assert!(!path.exists());
}
