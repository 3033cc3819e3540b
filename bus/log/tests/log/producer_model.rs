//! The producers' table against a model: after anything that can happen to a log, it is that of what the log holds.

use bus_log::storage::{Crash, Storage};
use bus_log::{AppendBatch, Error, Log, LogConfig, Options, Outcome};
use bus_protocol::Offset;
use bus_protocol::limits::PRODUCER_BATCHES_REMEMBERED;
use proptest::prelude::*;

use crate::producers::{numbered, snapshot, snapshots};
use crate::support::*;

const CASES: u32 = 192;

/// What a producer sends next: by how much its sequence is off, and its epoch.
type Send = (i64, i32, i16, usize);

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<Send>),
    /// As many of one producer's, one record each.
    Burst(i64, u8),
    /// The disk is full after so many bytes.
    Full(Vec<Send>, u16),
    Sync,
    SyncLater,
    Truncate(u16),
    Damage(usize, usize),
    Crash(Option<u64>),
    Kill,
    Close,
}

fn any_step() -> impl Strategy<Value = Step> {
    let far = prop_oneof![12 => Just(0), 3 => -80i32..0, 1 => 1i32..4];
    let epoch = prop_oneof![30 => Just(0i16), 1 => Just(1i16), 1 => Just(-1i16)];
    let send = (0i64..4, far, epoch, 1usize..4);
    let sends = || proptest::collection::vec(send.clone(), 1..8);
    prop_oneof![
        10 => sends().prop_map(Step::Append),
        1 => (0i64..4, 1u8..100).prop_map(|(id, count)| Step::Burst(id, count)),
        1 => (sends(), 0u16..4_000).prop_map(|(sends, room)| Step::Full(sends, room)),
        4 => Just(Step::Sync),
        2 => Just(Step::SyncLater),
        2 => any::<u16>().prop_map(Step::Truncate),
        1 => any::<(usize, usize)>().prop_map(|(file, at)| Step::Damage(file, at)),
        2 => proptest::option::of(any::<u64>()).prop_map(Step::Crash),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
    ]
}

/// A batch in the log.
#[derive(Clone, Copy, Debug)]
struct Stored {
    producer: i64,
    epoch: i16,
    first: i32,
    count: usize,
    base: Offset,
}

/// The log as a plain list of batches.
#[derive(Default)]
struct Model {
    batches: Vec<Stored>,
    stored: Offset,
}

impl Model {
    fn end(&self) -> Offset {
        self.batches.last().map_or(0, |last| last.base + last.count as i64)
    }

    fn cut(&mut self, end: Offset) {
        self.batches.retain(|batch| batch.base + batch.count as i64 <= end);
        self.stored = self.stored.min(end);
    }

    /// What the sender sends, and what must become of it; a new batch is in the list then.
    fn send(&mut self, (producer, far, up, count): Send) -> (AppendBatch, Option<Offset>, bool) {
        let of = self.batches.iter().rev().filter(|batch| batch.producer == producer);
        let last = of.clone().next();
        let next = last.map_or(0, |last| last.first + last.count as i32);
        let epoch = last.map_or(0, |last| last.epoch + up);
        let due = if up > 0 { 0 } else { next };
        let first = (due + far).max(0);
        let sent = numbered(producer, epoch, first, count, 300);
        let fenced = last.is_some_and(|last| epoch < last.epoch) || epoch < 0;
        if !fenced && (first == due || last.is_none()) {
            let base = self.end();
            self.batches.push(Stored { producer, epoch, first, count, base });
            return (sent, Some(base), true);
        }
        let current = of.take_while(|batch| Some(batch.epoch) == last.map(|last| last.epoch));
        let mut remembered = current.take(PRODUCER_BATCHES_REMEMBERED);
        let same = |batch: &&Stored| (batch.epoch, batch.first, batch.count) == (epoch, first, count);
        (sent, remembered.find(same).map(|batch| batch.base), false)
    }

    fn append(&mut self, log: &mut Log, sends: &[Send]) -> Result<(), Error> {
        let (batches, expected): (Vec<_>, Vec<_>) = sends
            .iter()
            .map(|send| {
                let (batch, base, new) = self.send(*send);
                (batch, (base, new))
            })
            .unzip();
        let (outcomes, error) = match log.append_all(batches, 1) {
            Ok(outcomes) => (outcomes, None),
            Err(failed) => (failed.outcomes, Some(failed.error)),
        };
        assert!(error.is_some() || outcomes.len() == expected.len());
        for (outcome, (base, new)) in outcomes.iter().zip(expected) {
            assert_eq!(outcome.place().ok().map(|place| place.base_offset), base);
            assert_eq!(matches!(outcome, Outcome::Appended(_)), new);
        }
        self.cut(log.log_end());
        assert_eq!(log.log_end(), self.end());
        error.map_or(Ok(()), Err)
    }

    /// The snapshot of a log that only ever held these batches.
    fn table(&self) -> Vec<u8> {
        let (leader, follower) = (Disk::new(), Disk::new());
        let mut log = leader.open(&LogConfig::default()).unwrap();
        for Stored { producer, epoch, first, count, .. } in &self.batches {
            log.append(numbered(*producer, *epoch, *first, *count, 300), 1).unwrap().place().unwrap();
        }
        let batches = read_all(&log.reader(), 0, 1 << 30);
        let mut log = follower.open(&LogConfig::default()).unwrap();
        log.append_as_is(batches).unwrap();
        log.close().unwrap();
        follower.storage.contents(&snapshot(self.end())).unwrap()
    }

    /// The closed log's table is that one.
    fn check(&self, disk: &Disk, config: &LogConfig, damaged: bool) {
        if self.end() == 0 {
            return;
        }
        if damaged {
            // A damaged one that nobody has looked at stays until then.
            for offset in snapshots(disk) {
                disk.storage.remove_file(&snapshot(offset)).unwrap();
            }
            disk.storage.sync_dir(&dir()).unwrap();
            disk.open(config).unwrap().close().unwrap();
        }
        assert_eq!(disk.storage.contents(&snapshot(self.end())).unwrap(), self.table());
    }
}

fn run(steps: &[Step]) {
    let disk = Disk::with(Options { checkpoint_bytes: 1 << 16, tail_bytes: 8_000, ..Options::default() });
    let config = LogConfig { segment_bytes: 16 << 10, ..LogConfig::default() };
    let mut log = disk.open(&config).unwrap();
    let (mut model, mut later, mut damaged) = (Model::default(), None, false);
    for step in steps {
        match step {
            Step::Append(sends) => model.append(&mut log, sends).unwrap(),
            Step::Burst(id, count) => {
                model.append(&mut log, &vec![(*id, 0, 0, 1); usize::from(*count)]).unwrap();
            }
            Step::Full(sends, room) => {
                disk.storage.set_room(Some(u64::from(*room)));
                if let Err(error) = model.append(&mut log, sends) {
                    assert!(matches!(error, Error::Full { .. }), "{error}");
                }
                disk.storage.set_room(None);
                // Or a power cut may bring back what was written and cut off again.
                model.append(&mut log, &[(3, 0, 0, 1)]).unwrap();
                model.stored = log.sync().unwrap();
            }
            Step::Sync => model.stored = log.sync().unwrap(),
            Step::SyncLater => {
                if let Some(job) = Option::replace(&mut later, log.begin_sync()) {
                    model.stored = model.stored.max(job.run().unwrap());
                }
            }
            Step::Truncate(index) => {
                log.truncate_to(i64::from(*index) % (log.log_end() + 1)).unwrap();
                model.cut(log.log_end());
            }
            Step::Damage(file, at) => {
                let snapshots = snapshots(&disk);
                let Some(offset) = snapshots.get(file % snapshots.len().max(1)) else { continue };
                let mut bytes = disk.storage.contents(&snapshot(*offset)).unwrap();
                match at % 2 {
                    _ if bytes.is_empty() => continue,
                    0 => bytes.truncate(at / 2 % bytes.len()),
                    _ => {
                        let at = at / 2 % bytes.len();
                        bytes[at] ^= 0x10;
                    }
                }
                disk.storage.set_contents(&snapshot(*offset), bytes);
                damaged = true;
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
                    model.check(&disk, &config, damaged);
                } else {
                    drop(log);
                }
                disk.storage.crash(crash);
                log = disk.open(&config).unwrap();
                assert!(log.log_end() >= model.stored);
                model.cut(log.log_end());
                assert_eq!(log.log_end(), model.end());
                model.stored = log.log_end();
            }
        }
    }
    drop(later);
    log.close().unwrap();
    model.check(&disk, &config, damaged);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2_000, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn the_table_is_that_of_what_the_log_holds(steps in proptest::collection::vec(any_step(), 1..50)) {
        run(&steps);
    }
}
