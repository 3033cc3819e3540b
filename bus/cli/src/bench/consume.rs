//! `bus bench consume`: a topic is filled, then read from its start, again and again until the time is up.

use bus_client::{From, Record};
use bus_protocol::TopicName;
use tokio::time::Instant;

use super::Bench;
use super::cpu::Cpu;
use super::report::Measured;
use crate::args::Global;
use crate::connection;

/// Records between two looks at the clock.
const STRIDE: u64 = 1_024;

pub(super) async fn run(global: &Global, args: &Bench, topic: &TopicName) -> anyhow::Result<Measured> {
    fill(global, args, topic).await?;
    let client = connection::connect(global).await?;
    let cpu = Cpu::start(args.broker_pid.as_ref());
    let started = Instant::now();
    let until = started + args.duration();
    let mut records = 0;
    'passes: loop {
        let mut reader = client.reader([topic.as_str()]).from(From::Start).until_end(true).build().await?;
        while let Some(record) = reader.next().await {
            std::hint::black_box(record?);
            records += 1;
            if records % STRIDE == 0 && Instant::now() >= until {
                break 'passes;
            }
        }
        if Instant::now() >= until {
            break;
        }
    }
    let elapsed = started.elapsed();
    Ok(Measured { records, elapsed, latency: None, cpu_seconds: cpu.seconds(), function: None })
}

async fn fill(global: &Global, args: &Bench, topic: &TopicName) -> anyhow::Result<()> {
    let client = connection::connect(global).await?;
    let producer = client.producer().compression(args.compression).build().await?;
    let to_topic = producer.topic(topic.as_str()).await?;
    let value = args.value();
    for _ in 0..(args.fill / args.size).max(1) {
        drop(to_topic.send(Record::new().value(&value)).await?);
    }
    Ok(producer.close().await?)
}
