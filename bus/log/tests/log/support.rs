//! A clock by hand, batches, and logs of small segments.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bus_log::storage::{Crash, MemoryStorage, Storage};
use bus_log::{AppendBatch, Env, Error, Log, LogConfig, LogReader, Options};
use bus_protocol::batch::{BatchBuilder, Compression, RecordBatch, split};
use bus_protocol::{Clock, Offset, Timestamp};

pub(crate) const T0: Timestamp = 1_700_000_000_000;

#[derive(Clone)]
pub(crate) struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    pub(crate) fn advance(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn timestamp(&self) -> Timestamp {
        self.0.load(Ordering::Relaxed)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.timestamp() as u64)
    }
}

pub(crate) struct Disk {
    pub(crate) storage: MemoryStorage,
    pub(crate) clock: ManualClock,
    pub(crate) env: Env,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let storage = MemoryStorage::new();
        storage.create_dir(Path::new("/data")).unwrap();
        storage.sync_dir(Path::new("/")).unwrap();
        let clock = ManualClock(Arc::new(AtomicI64::new(T0)));
        let env = Env::new(Arc::new(storage.clone()), Arc::new(clock.clone()), options);
        Self { storage, clock, env }
    }

    pub(crate) fn open(&self, config: &LogConfig) -> Result<Log, bus_log::Error> {
        Log::open(&self.env, dir(), config.clone())
    }
}

impl Disk {
    /// As new processes on the same machine do, until one succeeds.
    pub(crate) fn reopen(&self, config: &LogConfig) -> Log {
        for _ in 0..10 {
            self.storage.crash(Crash::ProcessOnly);
            match self.open(config) {
                Ok(log) => return log,
                Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
            }
        }
        panic!("it cannot be opened");
    }
}

pub(crate) fn dir() -> PathBuf {
    PathBuf::from("/data/topic-0")
}

pub(crate) fn segment(base: Offset) -> PathBuf {
    dir().join(format!("{base:020}.log"))
}

pub(crate) fn small_segments() -> LogConfig {
    LogConfig { segment_bytes: 16 << 10, retention_ms: None, ..LogConfig::default() }
}

/// A batch of `count` records whose values are `size` bytes of `fill`, from `timestamp` on, 1 ms apart.
pub(crate) fn batch(count: usize, size: usize, fill: u8, timestamp: Timestamp) -> AppendBatch {
    let mut builder = BatchBuilder::new(Compression::None);
    for n in 0..count {
        builder.push(timestamp + n as i64, Some(&n.to_be_bytes()), Some(&vec![fill; size]), &[]);
    }
    AppendBatch::from(builder.build_batch().unwrap())
}

pub(crate) fn append(log: &mut Log, count: usize, size: usize) -> bus_log::Appended {
    let fill = 1 + (log.log_end() % 251) as u8;
    log.append(batch(count, size, fill, T0 + log.log_end()), 0).unwrap().place().unwrap()
}

/// Every batch from `from` on, read `max_bytes` at a time; checks that they follow on each other.
pub(crate) fn read_all(reader: &LogReader, from: Offset, max_bytes: usize) -> Vec<RecordBatch> {
    let (mut batches, mut next): (Vec<RecordBatch>, _) = (Vec::new(), from);
    loop {
        let read = reader.read(next, max_bytes, Offset::MAX).unwrap();
        if read.chunks.is_empty() {
            assert_eq!(read.next_offset, next);
            return batches;
        }
        for chunk in read.chunks {
            for batch in split(chunk) {
                let batch = batch.unwrap();
                batch.validate().unwrap();
                if let Some(last) = batches.last() {
                    assert_eq!(last.header().next_offset(), batch.header().base_offset);
                }
                batches.push(batch);
            }
        }
        next = read.next_offset;
        assert_eq!(batches.last().unwrap().header().next_offset(), next);
    }
}

pub(crate) fn names(storage: &MemoryStorage, dir: &Path) -> Vec<String> {
    storage.list(dir).unwrap()
}
