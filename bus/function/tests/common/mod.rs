//! What the tests of this crate share: the example components, settings, batches, and a clock that is held.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "each test binary uses a part"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_function::{Function, FunctionHost, MemoryModule, Options};
use bus_protocol::batch::{BatchBuilder, Compression, RecordBatch};
use bus_protocol::{Attachment, Clock, FunctionSpec, SystemClock, Timestamp, TopicName};
use bytes::Bytes;

pub fn component(name: &str) -> Bytes {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-examples/target/components");
    let folder = std::env::var_os("BUS_COMPONENTS").map_or_else(|| default.into(), PathBuf::from);
    let path = folder.join(format!("{name}.wasm"));
    match std::fs::read(&path) {
        Ok(bytes) => bytes.into(),
        Err(error) => panic!("{}: {error}: run `make guests`", path.display()),
    }
}

pub fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

pub fn transform_spec(name: &str) -> FunctionSpec {
    FunctionSpec {
        name: name.into(),
        attachment: Attachment::Transform { topic: topic("in") },
        outputs: vec![],
        config: Default::default(),
        memory_bytes: 16 << 20,
        fuel: 50_000_000,
        timeout_ms: 30_000,
        retries: 1,
        dead_letter: None,
    }
}

pub fn consumer_spec(name: &str, outputs: &[&str]) -> FunctionSpec {
    FunctionSpec {
        attachment: Attachment::Consumer { topics: vec![topic("in")], group: name.into() },
        outputs: outputs.iter().map(|name| topic(name)).collect(),
        ..transform_spec(name)
    }
}

/// Options under which a failed function may be called again at once.
pub fn eager() -> Options {
    Options { backoff_first_ms: 1, backoff_last_ms: 1, backoff_share: 0, ..Options::default() }
}

pub fn host() -> FunctionHost {
    FunctionHost::new(eager(), Arc::new(SystemClock::new())).unwrap()
}

pub fn deploy(host: &FunctionHost, spec: FunctionSpec, name: &str) -> Arc<Function> {
    host.function(spec, 1, Arc::new(MemoryModule::new(component(name)))).unwrap()
}

pub fn batch_at(base_offset: i64, values: &[&str]) -> RecordBatch {
    let mut batch = BatchBuilder::new(Compression::Lz4);
    batch.set_producer(7, 1, 42);
    for (n, value) in values.iter().enumerate() {
        batch.push(
            1_700_000_000_000 + n as i64,
            Some(format!("k{n}").as_bytes()),
            Some(value.as_bytes()),
            &[],
        );
    }
    let mut bytes = batch.build().unwrap().to_vec();
    bus_protocol::batch::assign::set_base_offset(&mut bytes, base_offset);
    RecordBatch::parse(bytes.into()).unwrap()
}

pub fn batch(values: &[&str]) -> RecordBatch {
    batch_at(0, values)
}

pub fn values(batch: &RecordBatch) -> Vec<(i64, String)> {
    let text = |bytes: Option<Bytes>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
    batch.records().unwrap().map(|record| record.unwrap()).map(|r| (r.offset, text(r.value))).collect()
}

/// A clock that moves only when told.
#[derive(Debug, Default)]
pub struct HeldClock(AtomicU64);

impl HeldClock {
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Clock for HeldClock {
    fn timestamp(&self) -> Timestamp {
        1_700_000_000_000 + self.0.load(Ordering::SeqCst) as i64
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}
