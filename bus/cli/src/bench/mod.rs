//! `bus bench`: our own figure, the machine's own limit measured in the same run, and the ratio.
//!
//! ```text
//!   limits (raw QUIC to the same broker; raw disk) -> produce | consume | end-to-end | function -> report
//! ```

mod consume;
mod cpu;
mod end_to_end;
mod function;
mod latency;
mod limits;
mod produce;
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bus_client::{Client, Compression, CreateTopic};
use bus_protocol::{Clock as _, SystemClock, TopicName};
use clap::{Args, ValueEnum};

use crate::args::Global;
use crate::failure::usage;
use crate::interrupt::Interrupt;
use crate::produce::AcksFlag;
use crate::{connection, units};

/// Measure throughput and latency, beside what the machine can do
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:
  bus bench produce               # full load, 1 KiB records
  bus bench produce --size 100 --seconds 5
  bus bench produce --rate 50000  # latency at partial load
  bus bench produce --one-at-a-time  # latency of a single record
  bus bench consume -o json
  bus bench end-to-end --rate 10000
  bus bench function --module identity.wasm --size 100
  bus bench produce --broker-pid \"$(pidof bus)\"  # the brokers' CPU, too
  bus bench produce --replicas 3  # in a cluster: min.insync.replicas is 2 then

Limits: one raw QUIC stream to the same broker, and sequential writes with fdatasync in --disk-dir (name a folder on the broker's \
disk). ratio: of the lesser of both for produce, of QUIC for consume. With R replicas each byte crosses the wire, and reaches a \
disk, R times, so the limit for what comes in is an R-th of that. MB are 1,000,000 bytes of values.")]
pub(crate) struct Bench {
    /// What to measure
    #[arg(value_enum)]
    what: What,
    /// Bytes of a record's value
    #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = units::size)]
    size: u64,
    /// How long to measure
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Partitions of the topic
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    partitions: u32,
    /// Brokers that hold each partition
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    replicas: u32,
    /// Replicas that must be in sync, the topic's min.insync.replicas [default: 2 with three replicas or more, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    min_insync: Option<u32>,
    /// When a record counts as produced
    #[arg(long, value_enum, default_value_t = AcksFlag::All)]
    acks: AcksFlag,
    /// Producers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    producers: u32,
    /// How batches are compressed
    #[arg(long, default_value = "none", value_name = "none|gzip|snappy|lz4|zstd")]
    compression: Compression,
    /// Records a second, in all, instead of as many as go
    #[arg(long, value_name = "N", conflicts_with = "one_at_a_time", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Send the next record when the last is acknowledged
    #[arg(long)]
    one_at_a_time: bool,
    /// A setting of the topic; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = crate::pairs::pair)]
    config: Vec<(String, String)>,
    /// What `consume` reads, written first
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = units::size)]
    fill: u64,
    /// The component that `function` deploys: one that changes nothing
    #[arg(long, value_name = "FILE.wasm", required_if_eq("what", "function"))]
    module: Option<PathBuf>,
    /// `function`: let it idle this long before the first record is timed
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = units::duration)]
    idle: Duration,
    /// Where the raw disk is measured [default: the current folder]
    #[arg(long, value_name = "DIR", default_value = ".", hide_default_value = true)]
    disk_dir: PathBuf,
    /// The brokers' processes, when they run here: their CPU time and memory are counted too
    #[arg(long, value_name = "PID,...")]
    broker_pid: Option<cpu::Pids>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Records in, until they are acknowledged
    Produce,
    /// Records out, from the start of a topic
    Consume,
    /// From the producer's send until a consumer has the record
    EndToEnd,
    /// What a transform that changes nothing costs
    Function,
}

impl Bench {
    fn record_bytes(&self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// The settings of the topic to measure with.
    fn topic_config(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut config = crate::pairs::map("--config", self.config.clone())?;
        let least = self.min_insync.unwrap_or(if self.replicas >= 3 { 2 } else { 1 });
        let named = config.contains_key(MIN_INSYNC);
        if named && self.min_insync.is_some() {
            return Err(usage(format!(
                "--min-insync and --config {MIN_INSYNC} are the same: give one of them"
            )));
        }
        if !named && least > self.replicas {
            return Err(usage(format!(
                "--min-insync {least} needs as many replicas: pass --replicas {least}"
            )));
        }
        if !named && least > 1 {
            config.insert(MIN_INSYNC.to_owned(), least.to_string());
        }
        Ok(config)
    }

    /// Incompressible bytes, the same in every run.
    fn value(&self) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[0]
        };
        std::iter::repeat_with(next).take(self.record_bytes()).collect()
    }
}

const MIN_INSYNC: &str = "min.insync.replicas";

/// A topic for this run, deleted at its end.
struct Topic {
    client: Client,
    name: TopicName,
}

impl Topic {
    async fn create(client: &Client, args: &Bench, suffix: &str) -> anyhow::Result<Self> {
        let name = format!("bench-{}-{}{suffix}", std::process::id(), SystemClock::new().timestamp());
        let name = TopicName::new(&name)?;
        let (config, topic) = (args.topic_config()?, name.clone());
        let &Bench { partitions, replicas, .. } = args;
        let wanted = CreateTopic { topic, partitions, replicas, config, if_not_exists: false };
        client.admin().create_topic(wanted).await.context("cannot create the topic to measure with")?;
        Ok(Self { client: client.clone(), name })
    }

    async fn delete(self) -> anyhow::Result<()> {
        Ok(self.client.admin().delete_topic(&self.name).await?)
    }
}

pub(crate) async fn run(global: &Global, args: Bench, interrupt: Interrupt) -> anyhow::Result<()> {
    // A batch holds at least one record, with room to spare for its header.
    let most = bus_protocol::limits::DEFAULT_MAX_MESSAGE_BYTES as u64 - 1_024;
    if !(8..=most).contains(&args.size) {
        return Err(usage(format!("--size {} is out of range: 8 to {most} bytes", args.size)));
    }
    args.topic_config()?;
    let client = interrupt.or(connection::connect(global)).await?;
    let limits = interrupt.or(limits::measure(&client, &args)).await?;
    let topic = Topic::create(&client, &args, "").await?;
    let measured = interrupt.or(async {
        match args.what {
            What::Produce => Box::pin(produce::run(global, &args, &topic.name)).await,
            What::Consume => Box::pin(consume::run(global, &args, &topic.name)).await,
            What::EndToEnd => Box::pin(end_to_end::run(global, &args, &topic.name)).await,
            What::Function => Box::pin(function::run(global, &args, &topic.name)).await,
        }
    });
    let measured = measured.await;
    if args.what == What::Function {
        // Gone already where the measurement ended well.
        let _ = client.admin().delete_function(topic.name.as_str()).await;
    }
    let deleted = topic.delete().await;
    report::print(global, &args, &limits, &measured?)?;
    deleted.context("cannot delete the topic that was measured with")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn least(line: &str) -> anyhow::Result<Option<String>> {
        let words = ["bus", "bench", "produce"].into_iter().chain(line.split_whitespace());
        match crate::args::Cli::parse_from(words).verb {
            crate::args::Verb::Bench(bench) => Ok(bench.topic_config()?.remove(MIN_INSYNC)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn three_replicas_keep_two_in_sync_unless_said() {
        assert_eq!(least("").unwrap(), None);
        assert_eq!(least("--replicas 2").unwrap(), None);
        assert_eq!(least("--replicas 3").unwrap().as_deref(), Some("2"));
        assert_eq!(least("--replicas 3 --min-insync 1").unwrap(), None);
        assert_eq!(least("--replicas 3 --config min.insync.replicas=3").unwrap().as_deref(), Some("3"));
        for wrong in ["--min-insync 2", "--replicas 3 --min-insync 2 --config min.insync.replicas=3"] {
            assert!(least(wrong).unwrap_err().is::<crate::failure::Usage>(), "{wrong}");
        }
    }
}
