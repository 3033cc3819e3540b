//! Consumer functions and processors, against a source, a sink and an offset store that are fakes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bus_function::{
    ConsumeError, Emission, FailureKind, Function, OffsetStore, PortError, Processor, Sink, SinkError, Source,
};
use bus_protocol::batch::RecordBatch;
use bus_protocol::{Offset, TopicPartition};
use common::*;
use tokio::sync::watch;

/// A stored record: its value and its headers.
type Stored = (String, HashMap<String, String>);

/// One partition, a broker's topics, and a group's offsets.
struct Fake {
    batches: Vec<RecordBatch>,
    stored: Mutex<BTreeMap<String, Vec<Stored>>>,
    committed: watch::Sender<Option<Offset>>,
    /// What the sink says before it works.
    sink_errors: Mutex<Vec<SinkError>>,
    refuse: &'static str,
}

impl Fake {
    fn new(batches: Vec<RecordBatch>) -> Arc<Self> {
        Self::refusing(batches, "\0")
    }

    fn refusing(batches: Vec<RecordBatch>, refuse: &'static str) -> Arc<Self> {
        let (committed, _) = watch::channel(None);
        Arc::new(Self { batches, stored: Mutex::default(), committed, sink_errors: Mutex::default(), refuse })
    }

    fn stored(&self, topic: &str) -> Vec<String> {
        let stored = self.stored.lock().unwrap();
        stored.get(topic).map(|records| records.iter().map(|(v, _)| v.clone()).collect()).unwrap_or_default()
    }

    fn end(&self) -> Offset {
        self.batches.last().map_or(0, |batch| batch.header().next_offset())
    }
}

#[async_trait]
impl Source for Fake {
    async fn start(&self) -> Result<Offset, PortError> {
        Ok(self.batches[0].header().base_offset)
    }
    async fn read(&self, from: Offset, _: usize) -> Result<Vec<RecordBatch>, PortError> {
        let start = self.start().await?;
        if from < start {
            return Err(PortError::OutOfRange { start, end: self.end() });
        }
        Ok(self.batches.iter().filter(|b| b.header().next_offset() > from).take(2).cloned().collect())
    }
    async fn wait(&self, _: Offset) -> Result<(), PortError> {
        std::future::pending().await
    }
}

#[async_trait]
impl Sink for Fake {
    async fn emit(&self, emissions: &[Emission]) -> Result<(), SinkError> {
        if let Some(error) = self.sink_errors.lock().unwrap().pop() {
            return Err(error);
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let refused = |emission: &Emission| {
            emission.topic.as_str() == "out"
                && emission.records.iter().any(|r| r.value.as_deref() == Some(self.refuse.as_bytes()))
        };
        if emissions.iter().any(refused) {
            return Err(SinkError::Rejected("record too large".into()));
        }
        let mut stored = self.stored.lock().unwrap();
        for emission in emissions {
            let topic = stored.entry(emission.topic.to_string()).or_default();
            topic.extend(emission.records.iter().map(|record| {
                let headers = record.headers.iter();
                let headers = headers.map(|h| (text(&h.key), text(h.value.as_deref().unwrap_or_default())));
                (text(record.value.as_deref().unwrap_or_default()), headers.collect())
            }));
        }
        Ok(())
    }
}

#[async_trait]
impl OffsetStore for Fake {
    async fn load(&self, _: &str, _: &TopicPartition) -> Result<Option<Offset>, PortError> {
        Ok(*self.committed.borrow())
    }
    async fn commit(&self, group: &str, place: &TopicPartition, offset: Offset) -> Result<(), PortError> {
        assert_eq!((group, place.to_string().as_str()), ("f", "in-0"));
        self.committed.send_replace(Some(offset));
        Ok(())
    }
}

/// Runs a processor until it has committed the source's end.
async fn run(function: &Arc<Function>, fake: &Arc<Fake>) {
    let processor =
        Processor::new(function.clone(), topic("in"), 0, fake.clone(), fake.clone(), fake.clone()).unwrap();
    let mut committed = fake.committed.subscribe();
    let end = fake.end();
    let ended = processor.run(async move {
        committed.wait_for(|offset| *offset == Some(end)).await.unwrap();
    });
    let ended = tokio::time::timeout(std::time::Duration::from_secs(50), ended).await;
    assert_eq!(ended.expect("the processor should come to the end").unwrap(), end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_routes_to_two_topics_and_commits() {
    let host = host();
    let function = deploy(&host, consumer_spec("f", &["flights.delayed", "flights.on-time"]), "route");
    let rows = |a: &str, b: &str| [format!(r#"{{"dep_delay":{a}}}"#), format!(r#"{{"dep_delay":{b}}}"#)];
    let (first, second) = (rows("15", "14"), rows("null", "99"));
    let batches = vec![batch_at(10, &[&first[0], &first[1]]), batch_at(12, &[&second[0], &second[1]])];
    let fake = Fake::new(batches);
    fake.sink_errors.lock().unwrap().push(SinkError::Transient("no leader".into()));
    run(&function, &fake).await;
    assert_eq!(fake.stored("flights.delayed"), [first[0].clone(), second[1].clone()]);
    assert_eq!(fake.stored("flights.on-time"), [first[1].clone(), second[0].clone()]);
    let stats = function.stats();
    assert_eq!((stats.records_in, stats.records_out, stats.records_failed), (4, 4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_in_the_middle_of_a_batch_and_after_what_is_gone() {
    let host = host();
    let function = deploy(&host, consumer_spec("f", &["out"]), "consumer-faults");
    let fake = Fake::new(vec![batch_at(10, &["a", "b", "c"])]);
    fake.committed.send_replace(Some(11));
    run(&function, &fake).await;
    assert_eq!(fake.stored("out"), ["b", "c"]);

    let fake = Fake::new(vec![batch_at(10, &["a", "b", "c"])]);
    fake.committed.send_replace(Some(3));
    run(&function, &fake).await;
    assert_eq!(fake.stored("out"), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_records_go_to_the_dead_letter_topic_and_the_rest_goes_on() {
    let host = host();
    let function = deploy(&host, consumer_spec("f", &["out"]), "consumer-faults");
    let batches = vec![
        batch_at(0, &["a", "b"]),
        batch_at(2, &["c", "poison", "d", "spin", "e", "hog", "error", "stray", "f"]),
        batch_at(11, &["g"]),
    ];
    let fake = Fake::new(batches);
    run(&function, &fake).await;
    assert_eq!(fake.stored("out"), ["a", "b", "c", "d", "e", "f", "g"]);
    assert_eq!(fake.stored("f.dead-letter"), ["poison", "spin", "hog", "error", "stray"]);
    let stored = fake.stored.lock().unwrap();
    let letters = &stored["f.dead-letter"];
    let header = |n: usize, name: &str| letters[n].1.get(name).cloned().unwrap_or_default();
    assert_eq!(
        ["bus.function", "bus.version", "bus.topic", "bus.partition", "bus.offset"].map(|h| header(0, h)),
        ["f", "1", "in", "0", "3"]
    );
    assert!(header(0, "bus.error").contains("poison at 3"), "{}", header(0, "bus.error"));
    assert!(header(0, "bus.trace").contains("faults"), "{}", header(0, "bus.trace"));
    let kinds: Vec<_> =
        (0..5).map(|n| header(n, "bus.error").split(':').next().unwrap_or_default().to_owned()).collect();
    assert_eq!(kinds, ["trap", "fuel", "memory", "error", "output"]);
    assert!(header(4, "bus.error").contains("not among its outputs (out)"), "{}", header(4, "bus.error"));
    assert_eq!(function.stats().records_failed, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sink_refuses_for_good_fails_its_record_only() {
    let host = host();
    let spec = bus_protocol::FunctionSpec { dead_letter: Some(topic("dlq")), ..consumer_spec("f", &["out"]) };
    let function = deploy(&host, spec, "consumer-faults");
    let fake = Fake::refusing(vec![batch_at(0, &["a", "big", "b"]), batch_at(3, &["c"])], "big");
    run(&function, &fake).await;
    assert_eq!(fake.stored("out"), ["a", "b", "c"]);
    assert_eq!(fake.stored("dlq"), ["big"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_input_gives_the_same_output_and_sleep_takes_no_time() {
    let input = batch_at(77, &["random", "random"]);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let host = host();
        let function = deploy(&host, consumer_spec("f", &["out"]), "consumer-faults");
        {
            let emissions = function.consume(&topic("in"), 0, &input).await.unwrap();
            let out: Vec<_> = emissions[0].records.iter().map(|r| r.value.clone().unwrap()).collect();
            seen.push(out);
        }
        let lines = function.logs(0);
        assert!(lines.iter().any(|l| l.level == "stdout" && l.message == "hello from stdout"));
        assert!(lines.iter().any(|l| l.level == "warn" && l.message.starts_with("random ")));
    }
    let first = String::from_utf8(seen[0][0].to_vec()).unwrap();
    // The batch's time, and the hour that the guest slept.
    assert!(first.starts_with("1700003600001 "), "{first}");
    assert_eq!(seen[0], seen[1], "another host gives the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_its_own_keeps_the_instance() {
    let host = host();
    let function = deploy(&host, consumer_spec("f", &["out"]), "consumer-faults");
    let error = function.consume(&topic("in"), 0, &batch(&["error"])).await.unwrap_err();
    assert!(matches!(&error, ConsumeError::Failed(f) if f.kind == FailureKind::Guest), "{error}");
    assert_eq!(function.stats().instances, 1);
}
