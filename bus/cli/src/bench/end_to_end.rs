//! `bus bench end-to-end`: from the producer's send until a consumer has the record.

use anyhow::Context as _;
use bus_client::{From, Record, TopicProducer};
use bus_protocol::TopicName;
use tokio::time::Instant;

use super::Bench;
use super::cpu::Cpu;
use super::latency::Latency;
use super::produce::producer;
use super::report::Measured;
use crate::args::Global;
use crate::connection;

/// The value of the record that ends the run: no moment is that far off.
const LAST: u64 = u64::MAX;

pub(super) async fn run(global: &Global, args: &Bench, topic: &TopicName) -> anyhow::Result<Measured> {
    anyhow::ensure!(
        args.partitions == 1 && args.producers == 1 && !args.one_at_a_time,
        "end-to-end measures one producer and one partition, at full load or with --rate"
    );
    let (producer, to_topic) = producer(&connection::connect(global).await?, args, topic).await?;
    let mut reader =
        connection::connect(global).await?.reader([topic.as_str()]).from(From::End).build().await?;
    let cpu = Cpu::start(args.broker_pid.as_ref());
    let started = Instant::now();
    let (rate, until, value) = (args.rate, started + args.duration(), args.value());
    let sending = tokio::spawn(async move {
        send(&to_topic, value, started, until, rate).await?;
        producer.close().await.map_err(anyhow::Error::from)
    });
    let mut latency = Latency::new()?;
    let mut records = 0;
    while let Some(record) = reader.next().await {
        let value = record?.value.unwrap_or_default();
        let Some(stamp) = value.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else { continue };
        if stamp == LAST {
            break;
        }
        let now = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        latency.record(std::time::Duration::from_nanos(now.saturating_sub(stamp)));
        records += 1;
    }
    let elapsed = started.elapsed();
    sending.await.context("the producer panicked: please report it")??;
    Ok(Measured {
        records,
        elapsed,
        latency: latency.percentiles(),
        cpu_seconds: cpu.seconds(),
        function: None,
    })
}

/// Sends records that hold the moment they were due, in nanoseconds since `started`.
async fn send(
    topic: &TopicProducer,
    mut value: Vec<u8>,
    started: Instant,
    until: Instant,
    rate: Option<u64>,
) -> anyhow::Result<()> {
    let mut count = 0_u64;
    loop {
        let mut due = Instant::now();
        if let Some(rate) = rate {
            let wanted = started + std::time::Duration::from_secs_f64(count as f64 / rate as f64);
            if due < wanted {
                tokio::time::sleep_until(wanted).await;
                due = Instant::now();
            } else {
                due = wanted;
            }
        }
        let stamp = if due >= until { LAST } else { u64::try_from((due - started).as_nanos())? };
        value[..8].copy_from_slice(&stamp.to_le_bytes());
        drop(topic.send(Record::new().value(&value)).await?);
        if stamp == LAST {
            return Ok(());
        }
        count += 1;
    }
}
