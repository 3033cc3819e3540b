//! `bus bench produce`: full load, a rate, or one record at a time.

use std::time::Duration;

use anyhow::Context as _;
use bus_client::{Client, Delivery, Producer, Record, TopicProducer};
use bus_protocol::TopicName;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Bench;
use super::cpu::Cpu;
use super::latency::Latency;
use super::report::Measured;
use crate::args::Global;
use crate::connection;

/// Under full load, one record of this many is timed.
const SAMPLE: u64 = 256;
/// Records between two looks at the clock.
const STRIDE: u64 = 128;
/// Timed records whose acknowledgement is awaited.
const AWAITED: usize = 1 << 16;

pub(super) async fn run(global: &Global, args: &Bench, topic: &TopicName) -> anyhow::Result<Measured> {
    let mut tasks = JoinSet::new();
    let mut producers = Vec::new();
    for _ in 0..args.producers {
        // A connection of its own, as another program would have.
        let client = connection::connect(global).await?;
        producers.push(producer(&client, args, topic).await?);
    }
    let cpu = Cpu::start(args.broker_pid.as_ref());
    let started = Instant::now();
    for (producer, topic) in producers {
        let args = args.clone();
        tasks.spawn(async move { one(&args, producer, topic, started).await });
    }
    let mut records = 0;
    let mut latency = Latency::new()?;
    while let Some(done) = tasks.join_next().await {
        let (sent, theirs) = done.context("a producer panicked: please report it")??;
        records += sent;
        latency.add(&theirs)?;
    }
    let elapsed = started.elapsed();
    Ok(Measured {
        records,
        elapsed,
        latency: latency.percentiles(),
        cpu_seconds: cpu.seconds(),
        function: None,
    })
}

/// A producer on the topic, its stream open: one record is through.
pub(super) async fn producer(
    client: &Client,
    args: &Bench,
    topic: &TopicName,
) -> anyhow::Result<(Producer, TopicProducer)> {
    let producer = client.producer().acks(args.acks.into()).compression(args.compression).build().await?;
    let to_topic = producer.topic(topic.as_str()).await?;
    let value = args.value();
    for partition in 0..args.partitions {
        to_topic.send(Record::new().partition(partition).value(&value)).await?.await?;
    }
    Ok((producer, to_topic))
}

async fn one(
    args: &Bench,
    producer: Producer,
    topic: TopicProducer,
    started: Instant,
) -> anyhow::Result<(u64, Latency)> {
    let (timed, awaited) = mpsc::channel(AWAITED);
    let collector = tokio::spawn(collect(awaited));
    let value = args.value();
    let until = started + args.duration();
    let before = producer.counts().acknowledged;
    if args.one_at_a_time {
        let latency = one_at_a_time(&topic, &value, until).await?;
        return Ok((producer.counts().acknowledged - before, latency));
    }
    let sent = match args.rate {
        Some(rate) => {
            let rate = rate as f64 / f64::from(args.producers);
            at_rate(&topic, &value, started, until, rate, &timed).await
        }
        None => full_load(&topic, &value, until, &timed).await,
    };
    drop(timed);
    sent?;
    producer.close().await?;
    let latency = collector.await.context("the collector panicked: please report it")??;
    Ok((producer.counts().acknowledged - before, latency))
}

type Timed = (Instant, Delivery);

/// Awaits acknowledgements in the order of sending, which is that of arrival within a partition.
async fn collect(mut awaited: mpsc::Receiver<Timed>) -> anyhow::Result<Latency> {
    let mut latency = Latency::new()?;
    while let Some((sent, delivery)) = awaited.recv().await {
        delivery.await?;
        latency.record(sent.elapsed());
    }
    Ok(latency)
}

pub(super) async fn full_load(
    topic: &TopicProducer,
    value: &[u8],
    until: Instant,
    timed: &mpsc::Sender<Timed>,
) -> anyhow::Result<()> {
    let mut count = 0_u64;
    loop {
        if count.is_multiple_of(STRIDE) && Instant::now() >= until {
            return Ok(());
        }
        if count.is_multiple_of(SAMPLE) {
            let sent = Instant::now();
            timed.send((sent, topic.send(Record::new().value(value)).await?)).await?;
        } else {
            // The producer counts it; a failure shows when it closes.
            drop(topic.send(Record::new().value(value)).await?);
        }
        count += 1;
    }
}

/// Sends in ticks of a millisecond. A record's time starts when its tick is due, so that a producer that falls behind
/// does not flatter the figure.
pub(super) async fn at_rate(
    topic: &TopicProducer,
    value: &[u8],
    started: Instant,
    until: Instant,
    rate: f64,
    timed: &mpsc::Sender<Timed>,
) -> anyhow::Result<()> {
    let mut count = 0_u64;
    let mut tick = started;
    while tick < until {
        let mut due = tick;
        if Instant::now() < tick {
            tokio::time::sleep_until(tick).await;
            // The timer's own delay is not the broker's.
            due = Instant::now();
        }
        let wanted = ((tick - started).as_secs_f64() * rate) as u64;
        while count < wanted {
            timed.send((due, topic.send(Record::new().value(value)).await?)).await?;
            count += 1;
        }
        tick += Duration::from_millis(1);
    }
    Ok(())
}

/// The next record when the last is acknowledged. Timed here, so that no other task's wake-up is part of it.
pub(super) async fn one_at_a_time(
    topic: &TopicProducer,
    value: &[u8],
    until: Instant,
) -> anyhow::Result<Latency> {
    let mut latency = Latency::new()?;
    loop {
        let sent = Instant::now();
        if sent >= until {
            return Ok(latency);
        }
        topic.send(Record::new().value(value)).await?.await?;
        latency.record(sent.elapsed());
    }
}
