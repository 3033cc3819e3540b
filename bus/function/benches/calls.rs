//! What calls cost: `cargo bench -p bus-function`. Needs the components of guest-examples (`make guests`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a bench"
)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus_function::{FileModule, Function, FunctionHost, Options, blob_id};
use bus_protocol::batch::{BatchBuilder, Compression, RecordBatch};
use bus_protocol::{Attachment, FunctionSpec, SystemClock, TopicName};
use bytes::Bytes;

fn components() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../guest-examples/target/components");
    std::env::var_os("BUS_COMPONENTS").map_or_else(|| default.into(), PathBuf::from)
}

fn function(host: &FunctionHost, name: &str, config: &[(&str, &str)], consumer: bool) -> Arc<Function> {
    let path = components().join(format!("{name}.wasm"));
    let bytes = Bytes::from(std::fs::read(&path).expect("run `make guests` first"));
    let topic = TopicName::new("bench").unwrap();
    let spec = FunctionSpec {
        name: name.into(),
        attachment: if consumer {
            Attachment::Consumer { topics: vec![topic], group: name.into() }
        } else {
            Attachment::Transform { topic }
        },
        outputs: if consumer { vec![TopicName::new("out").unwrap()] } else { vec![] },
        config: config.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>(),
        memory_bytes: FunctionSpec::DEFAULT_MEMORY_BYTES,
        fuel: FunctionSpec::DEFAULT_FUEL,
        timeout_ms: FunctionSpec::DEFAULT_TIMEOUT_MS,
        retries: 0,
        dead_letter: None,
    };
    host.function(spec, 1, Arc::new(FileModule::new(blob_id(&bytes), path))).unwrap()
}

fn batch(records: usize, size: usize) -> RecordBatch {
    let mut batch = BatchBuilder::new(Compression::None);
    let value: Vec<u8> = (0..size).map(|n| b'A' + (n % 26) as u8).collect();
    for n in 0..records {
        batch.push(1_000 + n as i64, None, Some(&value), &[]);
    }
    batch.build_batch().unwrap()
}

/// The median of five runs, each at least 200 ms, of `call`, which answers when it is done.
fn measure<F: Future<Output = ()>>(
    runtime: &tokio::runtime::Runtime,
    mut call: impl FnMut() -> F,
) -> Duration {
    let mut figures: Vec<Duration> = (0..5)
        .map(|_| {
            runtime.block_on(async {
                let (start, mut calls) = (Instant::now(), 0u32);
                while start.elapsed() < Duration::from_millis(200) {
                    call().await;
                    calls += 1;
                }
                start.elapsed() / calls
            })
        })
        .collect();
    figures.sort();
    figures[2]
}

/// Resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// A neighbour's calls in 6 s, alone and then beside a function that misbehaves whenever it is let.
fn neighbours(runtime: &tokio::runtime::Runtime, host: &FunctionHost, topic: &TopicName) {
    let neighbour = function(host, "identity", &[("touch", "1")], false);
    let good = batch(1_000, 100);
    let mut poison = BatchBuilder::new(Compression::None);
    poison.push(1_000, None, Some(b"poison"), &[]);
    let poison = poison.build_batch().unwrap();
    let run = |bad: Option<Arc<Function>>| {
        runtime.block_on(async {
            let callers: Vec<_> = (0..if bad.is_some() { 4 } else { 0 })
                .filter_map(|_| bad.clone())
                .map(|bad| {
                    let (topic, poison) = (topic.clone(), poison.clone());
                    tokio::spawn(async move {
                        loop {
                            let _ = bad.transform(&topic, 0, poison.clone()).await;
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    })
                })
                .collect();
            let (start, mut calls) = (Instant::now(), 0u64);
            while start.elapsed() < Duration::from_secs(6) {
                neighbour.transform(topic, 0, good.clone()).await.unwrap();
                calls += 1;
            }
            // A caller that died would leave the neighbour alone, and the figure would mean nothing.
            assert!(callers.iter().all(|caller| !caller.is_finished()), "a caller of the bad function died");
            callers.iter().for_each(tokio::task::JoinHandle::abort);
            calls as f64 / start.elapsed().as_secs_f64()
        })
    };
    for name in ["trap", "loop", "hog"] {
        let bad = function(host, name, &[], false);
        let alone = run(None);
        let beside = run(Some(bad.clone()));
        let again = run(None);
        println!(
            "neighbour of {name:<5} {alone:>6.0} calls/s alone, {beside:>6.0} beside ({:+.1} %; {} failed calls), {again:>6.0} alone again",
            (beside / alone.midpoint(again) - 1.0) * 100.0,
            bad.stats().calls_failed,
        );
    }
}

/// What deployed functions cost that were used once and are idle now; each of a module of its own, or all of one.
fn idle(runtime: &tokio::runtime::Runtime, topic: &TopicName, count: usize, distinct: bool) {
    let folder = tempfile::tempdir().unwrap();
    let before = resident();
    let options = Options { cache: Some(folder.path().join("cache")), idle_ms: 500, ..Options::default() };
    let host = FunctionHost::new(options, Arc::new(SystemClock::new())).unwrap();
    let component = std::fs::read(components().join("identity.wasm")).unwrap();
    let spec = function(&host, "identity", &[], false).spec().clone();
    let functions: Vec<_> = (0..count)
        .map(|n| {
            let mut bytes = component.clone();
            if distinct {
                // A custom section with a name of four bytes: the same component under another content address.
                bytes.extend_from_slice(&[0, 5, 4]);
                bytes.extend_from_slice(format!("{n:04}").as_bytes());
            }
            let path = folder.path().join(format!("{n}.wasm"));
            std::fs::write(&path, &bytes).unwrap();
            host.function(spec.clone(), 1, Arc::new(FileModule::new(blob_id(&bytes), path))).unwrap()
        })
        .collect();
    let one = batch(1, 100);
    for function in &functions {
        runtime.block_on(function.transform(topic, 0, one.clone())).unwrap();
    }
    let used = resident();
    std::thread::sleep(Duration::from_millis(700));
    host.sweep();
    let instances: u32 = functions.iter().map(|function| function.stats().instances).sum();
    println!(
        "{count} functions of {} modules: +{} KiB after a call each, +{} KiB idle ({instances} instances, {} components)",
        if distinct { count } else { 1 },
        used.saturating_sub(before),
        resident().saturating_sub(before),
        host.components()
    );
}

fn main() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let options = Options { cache: Some(cache.path().into()), idle_ms: 1_000, ..Options::default() };
    let host = FunctionHost::new(options, Arc::new(SystemClock::new())).unwrap();
    let topic = TopicName::new("bench").unwrap();

    let bytes =
        Bytes::from(std::fs::read(components().join("identity.wasm")).expect("run `make guests` first"));
    let start = Instant::now();
    host.inspect(&bytes).unwrap();
    println!("inspect, cold cache          {:>10.2?}", start.elapsed());
    let start = Instant::now();
    host.inspect(&bytes).unwrap();
    println!("inspect, warm cache          {:>10.2?}", start.elapsed());

    let one = batch(1, 100);
    let first = function(&host, "identity", &[], false);
    let start = Instant::now();
    runtime.block_on(first.transform(&topic, 0, one.clone())).unwrap();
    println!("first record, cached module  {:>10.2?}", start.elapsed());

    for (name, what, config, consumer) in [
        ("identity", "flat, nothing changed", &[][..], false),
        ("identity", "flat, every record changed", &[("touch", "1")][..], false),
        ("typed-uppercase", "typed, all kept", &[][..], false),
        ("consumer-faults", "flat consumer, all forwarded", &[][..], true),
    ] {
        let function = function(&host, name, config, consumer);
        for (records, size) in [(1, 100), (1_000, 100), (10_000, 100), (1_000, 1_024)] {
            let batch = batch(records, size);
            let took = measure(&runtime, || {
                let (function, topic, batch) = (function.clone(), topic.clone(), batch.clone());
                async move {
                    if consumer {
                        assert_eq!(
                            function.consume(&topic, 0, &batch).await.unwrap()[0].records.len(),
                            records
                        );
                    } else {
                        assert_eq!(function.transform(&topic, 0, batch).await.unwrap().dropped, 0);
                    }
                }
            });
            let each = took.as_nanos() as f64 / records as f64;
            println!("{what:<28} {records:>6} x {size:>4} B  {took:>10.2?} a call  {each:>9.1} ns a record");
        }
    }
    neighbours(&runtime, &host, &topic);
    idle(&runtime, &topic, 1_000, false);
    idle(&runtime, &topic, 1_000, true);
}
