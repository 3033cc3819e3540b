//! What goes, and what stays.

use bus_log::storage::{Crash, Storage};
use bus_log::{Error, LogConfig, discard, finish_deletions};
use bus_protocol::Offset;

use crate::support::*;

fn log_files(disk: &Disk) -> usize {
    names(&disk.storage, &dir()).iter().filter(|name| name.ends_with(".log")).count()
}

#[test]
fn segments_go_by_age_but_not_past_the_high_watermark() {
    let disk = Disk::new();
    let config = LogConfig { retention_ms: Some(1_000), ..small_segments() };
    let mut log = disk.open(&config).unwrap();
    for n in 0..100 {
        log.append(batch(1, 1_000, 1, T0 + n * 100), 0).unwrap();
    }
    let (before, reader) = (log_files(&disk), log.reader());
    assert_eq!(log.apply_retention(T0 + 1_000, Offset::MAX).unwrap(), 0);
    assert_eq!(log.apply_retention(T0 + 5_000, 0).unwrap(), 0);
    let gone = log.apply_retention(T0 + 5_000, Offset::MAX).unwrap();
    assert!(gone > 0 && log_files(&disk) == before - gone);
    let start = log.log_start();
    assert!(start > 15 && start <= 40, "{start}");
    assert_eq!(reader.log_start(), start);
    assert!(matches!(reader.read(start - 1, 1, Offset::MAX), Err(Error::OffsetOutOfRange { .. })));
    disk.storage.crash(Crash::DropUnsynced);
    let mut log = disk.open(&config).unwrap();
    assert_eq!(log.log_start(), start);
    // All of it expired: the active segment too, and the end stays where it was.
    let end = log.log_end();
    log.apply_retention(T0 + 100_000, end).unwrap();
    assert_eq!((log.log_start(), log.log_end(), log.size()), (end, end, 0));
    assert!(log_files(&disk) <= 1, "an empty one may be there");
    disk.storage.crash(Crash::DropUnsynced);
    let mut log = disk.open(&config).unwrap();
    assert_eq!((log.log_start(), log.log_end()), (end, end));
    append(&mut log, 1, 10);
    assert_eq!(read_all(&log.reader(), end, 100).len(), 1);
}

#[test]
fn segments_go_by_size_and_never_the_active_one() {
    let disk = Disk::new();
    let config = LogConfig { retention_bytes: Some(40_000), ..small_segments() };
    let mut log = disk.open(&config).unwrap();
    for _ in 0..100 {
        append(&mut log, 1, 1_000);
    }
    log.apply_retention(T0, Offset::MAX).unwrap();
    assert!((40_000..40_000 + (16 << 10)).contains(&log.size()), "{}", log.size());
    log.set_config(LogConfig { retention_bytes: Some(0), ..config });
    log.apply_retention(T0, Offset::MAX).unwrap();
    assert_eq!(log_files(&disk), 1);
    assert!(log.size() > 0);
}

#[test]
fn a_full_disk_can_be_made_room_on() {
    let disk = Disk::new();
    let config = LogConfig { retention_bytes: Some(20_000), ..small_segments() };
    let mut log = disk.open(&config).unwrap();
    for _ in 0..50 {
        append(&mut log, 1, 1_000);
    }
    disk.storage.set_room(Some(0));
    assert!(matches!(log.apply_retention(T0, Offset::MAX), Err(Error::Full { .. })));
    assert_eq!(log.log_start(), 0);
    // The indexes went first; their room is enough.
    disk.storage.set_room(Some(1_000));
    assert!(log.apply_retention(T0, Offset::MAX).unwrap() > 0);
}

#[test]
fn records_below_a_raised_start_are_gone_for_good() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    for _ in 0..50 {
        append(&mut log, 2, 500);
    }
    assert!(matches!(log.delete_before(101), Err(Error::OffsetOutOfRange { .. })));
    assert!(log.delete_before(61).unwrap() > 0);
    assert_eq!(log.delete_before(10).unwrap(), 0);
    assert_eq!((log.log_start(), log.epochs()[0].offset), (61, 0));
    assert_eq!(log.reader().offset_for_timestamp(0, 1_000).unwrap().unwrap().0, 61);
    drop(log);
    disk.storage.crash(Crash::DropUnsynced);
    assert_eq!(disk.open(&small_segments()).unwrap().log_start(), 61);
}

#[test]
fn a_reader_finishes_though_the_segment_goes() {
    let folder = tempfile::tempdir().unwrap();
    let env = bus_log::Env::new(
        std::sync::Arc::new(bus_log::storage::DiskStorage::default()),
        std::sync::Arc::new(bus_protocol::SystemClock::new()),
        bus_log::Options { tail_bytes: 0, ..Default::default() },
    );
    let mut log = bus_log::Log::open(&env, folder.path().join("t-0"), small_segments()).unwrap();
    for _ in 0..100 {
        append(&mut log, 1, 500);
    }
    let reader = log.reader();
    let thread = std::thread::spawn(move || {
        loop {
            let start = reader.log_start();
            match reader.read(start, 2_000, Offset::MAX) {
                Ok(read) if read.chunks.is_empty() => return,
                Ok(_) | Err(Error::OffsetOutOfRange { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    for offset in 1..=100 {
        log.delete_before(offset).unwrap();
    }
    thread.join().unwrap();
}

#[test]
fn a_deletion_that_a_crash_stopped_is_finished() {
    let disk = Disk::new();
    let mut log = disk.open(&small_segments()).unwrap();
    append(&mut log, 1, 10);
    log.sync().unwrap();
    let reader = log.reader();
    log.delete().unwrap();
    assert!(reader.read(0, 1, 1).is_ok(), "the tail is still in this reader's hands");
    assert!(names(&disk.storage, dir().parent().unwrap()).is_empty());

    let mut log = disk.open(&small_segments()).unwrap();
    assert_eq!(log.log_end(), 0);
    append(&mut log, 1, 10);
    log.sync().unwrap();
    drop(log);
    disk.storage.rename(&dir(), &dir().with_file_name("topic-0.deleted")).unwrap();
    finish_deletions(&disk.storage, dir().parent().unwrap()).unwrap();
    assert!(names(&disk.storage, dir().parent().unwrap()).is_empty());
    finish_deletions(&disk.storage, std::path::Path::new("/nowhere")).unwrap();
}

#[test]
fn what_is_damaged_can_be_discarded_and_begun_anew() {
    let other = std::path::PathBuf::from("/data/topic-0.deleted");
    for crash in [Crash::ProcessOnly, Crash::DropUnsynced, Crash::Torn(3), Crash::Torn(8)] {
        let disk = Disk::new();
        let mut log = disk.open(&small_segments()).unwrap();
        for _ in 0..50 {
            append(&mut log, 1, 1_000);
        }
        log.close().unwrap();
        let mut bytes = disk.storage.contents(&segment(0)).unwrap();
        bytes.pop();
        disk.storage.set_contents(&segment(0), bytes);
        assert!(matches!(disk.open(&small_segments()), Err(Error::Damaged { .. })));
        // Whatever else lies there, and whatever an earlier one left.
        disk.storage.create(&dir().join("what is this")).unwrap();
        disk.storage.create_dir(&other.join("deeper")).unwrap();
        discard(&disk.storage, &dir()).unwrap();
        assert!(names(&disk.storage, std::path::Path::new("/data")).is_empty());
        disk.storage.crash(crash);
        finish_deletions(&disk.storage, std::path::Path::new("/data")).unwrap();
        assert!(names(&disk.storage, std::path::Path::new("/data")).is_empty());
        let mut log = disk.open(&small_segments()).unwrap();
        assert_eq!((log.log_start(), log.log_end(), log.producers()), (0, 0, 0));
        assert_eq!(log.recovery().lost_stored, None);
        append(&mut log, 1, 10);
        log.sync().unwrap();
        drop(log);
        disk.storage.crash(Crash::DropUnsynced);
        assert_eq!(disk.open(&small_segments()).unwrap().log_end(), 1);
        discard(&disk.storage, &dir()).unwrap();
        discard(&disk.storage, &dir()).unwrap();
    }
}
