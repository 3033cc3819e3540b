//! Whatever is appended, synced, deleted and crashed: what was synced is there, in order, and nothing else.

use bus_log::storage::Crash;
use bus_log::{Error, Log, LogConfig, Options};
use bus_protocol::Offset;
use proptest::prelude::*;

use crate::support::*;

const CASES: u32 = 256;

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(usize, usize)>),
    Sync,
    SyncLater,
    /// So many syncs fail, over restarts of the process.
    FailSyncs(u32),
    DeleteBefore(u16),
    Truncate(u16),
    Crash(Option<u64>),
    Kill,
    Close,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => proptest::collection::vec((1usize..4, 0usize..3_000), 1..6).prop_map(Step::Append),
        4 => Just(Step::Sync),
        2 => Just(Step::SyncLater),
        2 => (1u32..4).prop_map(Step::FailSyncs),
        1 => any::<u16>().prop_map(Step::DeleteBefore),
        1 => any::<u16>().prop_map(Step::Truncate),
        2 => proptest::option::of(any::<u64>()).prop_map(Step::Crash),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
    ]
}

/// What the log should hold: for each batch its offsets and the byte its values are filled with.
struct Model {
    batches: Vec<(Offset, Offset, u8)>,
    stored: Offset,
    start: Offset,
    fill: u8,
}

impl Model {
    fn end(&self) -> Offset {
        self.batches.last().map_or(0, |last| last.1)
    }

    /// The log came back: it holds all that was stored, a prefix of what was appended, and nothing else.
    fn check(&mut self, log: &Log) {
        assert!(log.log_end() >= self.stored, "stored {}, found {}", self.stored, log.log_end());
        assert_eq!(log.recovery().lost_stored, None);
        assert_eq!(log.log_start(), self.start);
        self.batches.retain(|batch| batch.1 <= log.log_end());
        assert_eq!(log.log_end(), self.end().max(self.start));
        self.stored = log.stored();
        assert_eq!(self.stored, log.log_end());
        let found = read_all(&log.reader(), self.start, 5_000);
        let expected: Vec<_> = self.batches.iter().filter(|batch| batch.1 > self.start).collect();
        assert_eq!(found.len(), expected.len());
        for (batch, (base, next, fill)) in found.iter().zip(expected) {
            assert_eq!((batch.header().base_offset, batch.header().next_offset()), (*base, *next));
            for record in batch.records().unwrap() {
                assert!(record.unwrap().value.unwrap().iter().all(|byte| byte == fill));
            }
        }
    }
}

fn run(steps: &[Step]) {
    let disk = Disk::with(Options { checkpoint_bytes: 1 << 16, tail_bytes: 8_000, ..Options::default() });
    let config = LogConfig { segment_bytes: 16 << 10, ..LogConfig::default() };
    let mut log = disk.open(&config).unwrap();
    let mut model = Model { batches: Vec::new(), stored: 0, start: 0, fill: 0 };
    let mut later = None;
    for step in steps {
        match step {
            Step::Append(group) => {
                let mut batches = Vec::new();
                for (count, size) in group {
                    model.fill = model.fill.wrapping_add(1);
                    let base = model.end().max(model.start);
                    model.batches.push((base, base + *count as i64, model.fill));
                    batches.push(batch(*count, *size, model.fill, T0));
                }
                log.append_all(batches, 1).unwrap();
                assert_eq!(log.log_end(), model.end());
            }
            Step::Sync => model.stored = log.sync().unwrap(),
            Step::SyncLater => {
                if let Some(job) = Option::replace(&mut later, log.begin_sync()) {
                    model.stored = model.stored.max(job.run().unwrap());
                }
            }
            Step::FailSyncs(count) => {
                later = None;
                disk.storage.fail_syncs(*count);
                // It succeeds where there is nothing to sync.
                let _ = log.sync();
                drop(log);
                log = disk.reopen(&config);
                disk.storage.fail_syncs(0);
                model.check(&log);
            }
            Step::DeleteBefore(index) => {
                // Replicas only ever delete what is committed, and so stored.
                let offset = i64::from(*index) % (model.stored + 1);
                log.delete_before(offset).unwrap();
                model.start = model.start.max(offset);
            }
            Step::Truncate(index) => {
                let offset = model.start + i64::from(*index) % (log.log_end() - model.start + 1);
                log.truncate_to(offset).unwrap();
                model.batches.retain(|batch| batch.1 <= offset);
                model.start = model.start.min(log.log_end());
                model.stored = model.stored.min(log.log_end());
            }
            Step::Crash(_) | Step::Kill | Step::Close => {
                later = None;
                let crash = match step {
                    Step::Crash(Some(seed)) => Crash::Torn(*seed),
                    Step::Crash(None) => Crash::DropUnsynced,
                    _ => Crash::ProcessOnly,
                };
                if matches!(step, Step::Close) {
                    model.stored = log.log_end();
                    log.close().unwrap();
                } else {
                    drop(log);
                }
                disk.storage.crash(crash);
                log = disk.open(&config).unwrap();
                model.check(&log);
            }
        }
    }
    drop((later, log));
    disk.storage.crash(Crash::DropUnsynced);
    model.check(&disk.open(&config).unwrap());
}

/// Found by the test below: the file outlived its process, and its entry in the folder was never synced.
#[test]
fn a_file_that_a_dead_process_left_is_made_durable_too() {
    let one = || Step::Append(vec![(1, 0)]);
    let all = Step::Truncate(0);
    run(&[one(), all, Step::Kill, one(), Step::Sync, Step::Crash(None)]);
}

/// Found by the test below: the index of a segment that was cut told of what had been behind the cut, and was believed
/// once the checkpoint had gone that far again.
#[test]
fn an_index_does_not_outlive_a_cut() {
    let append = |group: &[(usize, usize)]| Step::Append(group.to_vec());
    run(&[
        append(&[(3, 0), (2, 0)]),
        Step::Truncate(26_805),
        append(&[(3, 0), (2, 0), (3, 0), (1, 0), (1, 0)]),
        append(&[(2, 0), (2, 0), (1, 0)]),
        Step::Truncate(9_253),
        append(&[(3, 0), (1, 0), (1, 0), (3, 0), (1, 0), (1, 0), (3, 0)]),
        Step::Truncate(13_641),
        Step::Sync,
        append(&[(1, 0), (1, 0), (3, 2_090), (3, 2_061)]),
        Step::Sync,
        Step::DeleteBefore(54_952),
        append(&[(3, 694)]),
        append(&[(1, 1_026), (3, 7), (1, 2_787), (3, 0)]),
        Step::Kill,
        Step::Truncate(24_509),
        append(&[(2, 1_651), (1, 622)]),
        Step::Kill,
        Step::DeleteBefore(1_923),
        Step::Kill,
    ]);
}

/// "fsyncgate": the sync that failed has lost what it should have kept, and the kernel counts it as clean.
#[test]
fn what_a_failed_sync_lost_is_written_again_by_the_next_process() {
    for failures in 1..4 {
        let disk = Disk::new();
        let config = LogConfig::default();
        let mut log = disk.open(&config).unwrap();
        append(&mut log, 3, 2_000);
        log.sync().unwrap();
        let stored = log.size();
        append(&mut log, 3, 3_000_000);
        append(&mut log, 3, 5_000);
        let unstored = log.size() - stored;
        disk.storage.fail_syncs(failures);
        assert!(matches!(log.sync(), Err(Error::Io { .. })));
        assert!(matches!(log.append(batch(1, 1, 1, T0), 0), Err(Error::Poisoned { .. })));
        drop(log);
        let log = disk.reopen(&config);
        assert_eq!((log.log_end(), log.stored()), (9, 9));
        assert_eq!(log.recovery().rewritten_bytes, unstored, "and no more than that");
        drop(log);
        disk.storage.crash(Crash::DropUnsynced);
        let log = disk.open(&config).unwrap();
        assert_eq!((log.log_end(), log.recovery().lost_stored), (9, None));
        assert_eq!(read_all(&log.reader(), 0, 1 << 20).len(), 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2_000, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn what_was_synced_survives_and_nothing_is_invented(steps in proptest::collection::vec(any_step(), 1..60)) {
        run(&steps);
    }
}
