//! Consumer functions and processors, against a source, a sink and an offset store that are fakes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod fixture;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bus_function::{
    ConsumeError, Emission, FailureKind, Function, FunctionHost, OffsetStore, Options, PortError, Processor,
    ProcessorError, Progress, Sink, SinkError, Source,
};
use bus_protocol::batch::RecordBatch;
use bus_protocol::{Offset, TopicPartition};
use fixture::*;
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
    /// What the sink says after each record that it stores, the last first.
    breaks: Mutex<Vec<SinkError>>,
    /// The value that topic `out` does not take, and how that is said.
    refuse: &'static str,
    refusal: SinkError,
    refuses_letters: bool,
    /// The first record's value and the number of records, of each attempt.
    emits: Mutex<Vec<(String, usize)>>,
    /// What the source says before it works.
    read_errors: Mutex<Vec<PortError>>,
    /// Batches that are read at once.
    at_once: usize,
}

impl Fake {
    fn new(batches: Vec<RecordBatch>) -> Arc<Self> {
        Self::refusing(batches, "\0")
    }

    fn refusing(batches: Vec<RecordBatch>, refuse: &'static str) -> Arc<Self> {
        Arc::new(Self { refuse, ..Self::of(batches) })
    }

    fn of(batches: Vec<RecordBatch>) -> Self {
        let (committed, _) = watch::channel(None);
        Self {
            batches,
            stored: Mutex::default(),
            committed,
            sink_errors: Mutex::default(),
            breaks: Mutex::default(),
            refuse: "\0",
            refusal: SinkError::Rejected("record too large".into()),
            refuses_letters: false,
            emits: Mutex::default(),
            read_errors: Mutex::default(),
            at_once: 2,
        }
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
        if let Some(error) = self.read_errors.lock().unwrap().pop() {
            return Err(error);
        }
        let start = self.start().await?;
        if from < start {
            return Err(PortError::OutOfRange { start, end: self.end() });
        }
        Ok(self
            .batches
            .iter()
            .filter(|b| b.header().next_offset() > from)
            .take(self.at_once)
            .cloned()
            .collect())
    }
    async fn wait(&self, _: Offset) -> Result<(), PortError> {
        std::future::pending().await
    }
}

#[async_trait]
impl Sink for Fake {
    async fn emit(&self, emissions: &[Emission], progress: &mut Progress) -> Result<(), SinkError> {
        let first = emissions.iter().flat_map(|emission| &emission.records).next();
        let first = first.and_then(|record| record.value.clone()).unwrap_or_default();
        let records = emissions.iter().map(|emission| emission.records.len()).sum();
        self.emits.lock().unwrap().push((text(&first), records));
        if let Some(error) = self.sink_errors.lock().unwrap().pop() {
            return Err(error);
        }
        let mut answer = Ok(());
        for (at, emission) in emissions.iter().enumerate() {
            for (index, record) in emission.records.iter().enumerate() {
                if progress.is_committed(at, index) {
                    continue;
                }
                let value = text(record.value.as_deref().unwrap_or_default());
                if value == self.refuse && (emission.topic.as_str() == "out" || self.refuses_letters) {
                    answer = Err(self.refusal.clone());
                    break;
                }
                let headers = record.headers.iter();
                let headers = headers.map(|h| (text(&h.key), text(h.value.as_deref().unwrap_or_default())));
                let stored = (value, headers.collect());
                self.stored.lock().unwrap().entry(emission.topic.to_string()).or_default().push(stored);
                progress.commit(at, index);
                if let Some(error) = self.breaks.lock().unwrap().pop() {
                    return Err(error);
                }
            }
        }
        answer
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
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
async fn a_sink_that_breaks_off_stores_nothing_twice() {
    let host = host();
    let function = deploy(&host, consumer_spec("f", &["out"]), "consumer-faults");
    let fake = Fake::new(vec![batch_at(0, &["a", "b", "c"]), batch_at(3, &["d"])]);
    let broken = ["storage failed", "no leader", "disk is full"].map(|why| SinkError::Transient(why.into()));
    fake.breaks.lock().unwrap().extend(broken);
    run(&function, &fake).await;
    assert_eq!(fake.stored("out"), ["a", "b", "c", "d"]);
    assert!(fake.stored("f.dead-letter").is_empty());
    assert_eq!(function.stats().records_failed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_the_output_topics_transform_fails_on_is_dead_lettered_and_the_rest_stored_once() {
    let host = host();
    let spec = bus_protocol::FunctionSpec { retries: 2, ..consumer_spec("f", &["out"]) };
    let function = deploy(&host, spec, "consumer-faults");
    let batches = vec![batch_at(0, &["a", "b"]), batch_at(2, &["c", "bad", "d", "e"]), batch_at(6, &["g"])];
    let refusal = SinkError::Failed("function t on topic out failed: trap".into());
    let fake = Arc::new(Fake { refuse: "bad", refusal, ..Fake::of(batches) });
    // Before it: the transform is left alone. That is no failure of the records.
    let left_alone = || SinkError::Transient("left alone".into());
    fake.sink_errors.lock().unwrap().extend([left_alone(), left_alone(), left_alone()]);
    run(&function, &fake).await;
    assert_eq!(fake.stored("out"), ["a", "b", "c", "d", "e", "g"]);
    assert_eq!(fake.stored("f.dead-letter"), ["bad"]);
    let emits = fake.emits.lock().unwrap().clone();
    // Thrice as it was gathered with its neighbours, and once more where the first of them made progress.
    assert_eq!(emits.iter().filter(|emit| emit.0 == "a").count(), 3 + 1 + 2, "{emits:?}");
    assert_eq!(emits.iter().filter(|emit| **emit == ("bad".into(), 1)).count(), 3 + 1, "{emits:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_refuses_for_good_is_told_of() {
    let host = host();
    let function = deploy(&host, consumer_spec("f", &["out"]), "consumer-faults");
    let fake = Fake { refuse: "", refuses_letters: true, ..Fake::of(vec![batch_at(40, &["a", "", "b"])]) };
    let fake = Arc::new(fake);
    run(&function, &fake).await;
    assert_eq!(fake.stored("out"), ["a", "b"]);
    let (_, error) = function.stats().last_error.unwrap();
    assert!(error.contains("in-0 offset 41") && error.contains("not dead-lettered"), "{error}");
    assert!(function.logs(0).iter().any(|line| line.level == "error" && line.message == error));
    assert_eq!(function.stats().records_failed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_delivery_is_bounded() {
    let options = Options { output_bytes: 64 << 10, ..eager() };
    let host = FunctionHost::new(options, Arc::new(bus_protocol::SystemClock::new())).unwrap();
    let function = deploy(&host, consumer_spec("f", &["out"]), "consumer-faults");
    let value = "v".repeat(15 << 10);
    let batches = [0, 3, 6, 9].map(|base| batch_at(base, &[value.as_str(); 3])).into();
    let fake = Arc::new(Fake { at_once: 4, ..Fake::of(batches) });
    run(&function, &fake).await;
    let emits: Vec<_> = fake.emits.lock().unwrap().iter().map(|emit| emit.1).collect();
    assert_eq!(emits, [6, 6], "90 KiB are not kept for the rest of what was read");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_shown_and_waited_for() {
    let host = host();
    let function = deploy(&host, consumer_spec("f", &["out"]), "consumer-faults");
    let fake = Fake::new(vec![batch_at(0, &["a"])]);
    let damaged = || PortError::Damaged("0.log is damaged at byte 7".into());
    fake.read_errors.lock().unwrap().extend([damaged(), damaged(), damaged()]);
    run(&function, &fake).await;
    assert_eq!(fake.stored("out"), ["a"]);
    let (_, error) = function.stats().last_error.unwrap();
    assert!(error.contains("damaged at byte 7") && error.contains("in-0"), "{error}");
    assert_eq!(function.logs(0).iter().filter(|line| line.message == error).count(), 1, "said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_run_again_after_it_ended_and_stops_at_once_when_idle() {
    let host = host();
    let function = deploy(&host, consumer_spec("f", &["out"]), "consumer-faults");
    let fake = Fake::new(vec![batch_at(0, &["a"])]);
    fake.read_errors.lock().unwrap().push(PortError::Closed("gone".into()));
    let processor =
        Processor::new(function.clone(), topic("in"), 0, fake.clone(), fake.clone(), fake.clone()).unwrap();
    let ended = processor.run(std::future::pending()).await;
    assert_eq!(ended, Err(ProcessorError::Closed("gone".into())));
    let (mut committed, (idle, since)) = (fake.committed.subscribe(), tokio::sync::oneshot::channel());
    let stop = async move {
        committed.wait_for(|offset| *offset == Some(1)).await.unwrap();
        // By now it waits for records that do not come.
        tokio::task::yield_now().await;
        idle.send(tokio::time::Instant::now()).unwrap();
    };
    assert_eq!(processor.run(stop).await, Ok(1));
    let took = since.await.unwrap().elapsed();
    assert!(took < std::time::Duration::from_millis(900), "an idle one needs no grace: {took:?}");
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
