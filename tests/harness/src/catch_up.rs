//! How fast a node that was away has what it missed, and what producers notice of it.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use bus_client::Record;
use bus_protocol::NodeId;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::open_loop::{Latencies, OpenLoop};
use crate::raw_disk::raw_disk;

/// What is written while the node is away.
const MISSED: &str = "missed";
/// What others write meanwhile, and the node has no part in.
const STEADY: &str = "steady";
const RECORD_BYTES: usize = 1 << 10;
/// How long the raw QUIC stream is measured.
const LINK: Duration = Duration::from_secs(2);
/// Not counted: the producers' first moments.
const WARM_UP: Duration = Duration::from_secs(2);
/// How long the node may take, whatever it missed.
const DEADLINE: Duration = Duration::from_secs(600);

/// Three nodes in processes of their own; one is killed, much is written, and it is started again: once alone, once beside
/// a producer to partitions that it has no part in.
#[derive(Clone, Debug)]
pub struct CatchUp {
    /// What it misses, in MiB of values of 1 KiB.
    pub mib: u64,
    /// What the producer sends beside it.
    pub records_per_second: u32,
    /// How long the producer is watched before the node comes back.
    pub quiet: Duration,
    /// Settings of all nodes, as `bus.toml` holds them.
    pub config: String,
}

impl Default for CatchUp {
    fn default() -> Self {
        Self { mib: 2_048, records_per_second: 5_000, quiet: Duration::from_secs(6), config: String::new() }
    }
}

/// What it came to.
#[derive(Clone, Debug)]
pub struct CatchUpReport {
    /// What the node missed, in bytes of values.
    pub bytes: u64,
    /// With nothing else to do.
    pub alone: ComeBack,
    /// Beside a producer.
    pub beside: ComeBack,
    /// What the producer saw before.
    pub quiet: Latencies,
    /// What it saw from the node's start until that was in the ISR.
    pub meanwhile: Latencies,
    /// One raw QUIC stream to a broker of the same cluster, in bytes a second.
    pub raw_quic: f64,
    /// As many bytes read from one file and written to another at once, on the same disk, in bytes a second.
    pub raw_disk: f64,
}

/// How long the node took, from its start on.
#[derive(Clone, Copy, Debug)]
pub struct ComeBack {
    /// Until it was ready.
    pub ready: Duration,
    /// Until all nodes knew it to be in the ISR again.
    pub in_sync: Duration,
}

impl fmt::Display for CatchUpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "a node that missed {} MiB, from its start until it was in sync:", self.bytes >> 20)?;
        let one = |f: &mut fmt::Formatter<'_>, name, took: ComeBack| {
            let (ready, in_sync) = (took.ready.as_secs_f64(), took.in_sync.as_secs_f64());
            let speed = self.bytes as f64 / in_sync;
            writeln!(
                f,
                "  {name} {in_sync:.2} s, ready after {ready:.2} s: {:.0} MB/s, {:.2} of raw QUIC, {:.2} of the disk",
                speed / 1e6,
                speed / self.raw_quic,
                speed / self.raw_disk
            )
        };
        one(f, "alone", self.alone)?;
        one(f, "beside a producer", self.beside)?;
        writeln!(f, "  the producer before: {}", self.quiet)?;
        writeln!(f, "  the producer meanwhile: {}", self.meanwhile)?;
        let (quic, disk) = (self.raw_quic / 1e6, self.raw_disk / 1e6);
        write!(f, "  raw QUIC {quic:.0} MB/s; the disk, read and written at once, {disk:.0} MB/s each way")
    }
}

impl CatchUp {
    /// Runs it. Each part has a cluster of its own, so that no more than three times what is missed, or twice for the raw
    /// disk, lies on the disk at once.
    pub async fn run(self) -> anyhow::Result<CatchUpReport> {
        let bytes = self.mib << 20;
        let (raw_quic, raw_disk) = self.limits(bytes).await?;
        let alone = {
            let (cluster, away) = self.miss(bytes).await?;
            come_back(&cluster, away).await?
        };
        let (cluster, away) = self.miss(bytes).await?;
        // While it is away, so on the other two.
        cluster.create_topic(STEADY, 1, 2, &[("min.insync.replicas", "2")]).await?;
        let mut producer = OpenLoop::start(&cluster, STEADY, self.records_per_second, RECORD_BYTES).await?;
        tokio::time::sleep(WARM_UP).await;
        let before = Instant::now();
        tokio::time::sleep(self.quiet).await;
        let started = Instant::now();
        let beside = come_back(&cluster, away).await?;
        producer.stop().await.context("the producer beside it")?;
        let quiet = producer.between(before, started);
        let meanwhile = producer.between(started, started + beside.in_sync);
        Ok(CatchUpReport { bytes, alone, beside, quiet, meanwhile, raw_quic, raw_disk })
    }

    async fn start(&self) -> anyhow::Result<Cluster> {
        Cluster::builder().processes().direct().config(&self.config).start().await
    }

    /// Raw QUIC and the raw disk, in bytes a second.
    async fn limits(&self, bytes: u64) -> anyhow::Result<(f64, f64)> {
        let cluster = self.start().await?;
        let client = cluster.client().await?;
        let link = client.measure_link(LINK).await.context("the raw QUIC stream")?;
        client.close();
        cluster.stop_all().await?;
        let folder = cluster.scratch().to_owned();
        let elapsed = tokio::task::spawn_blocking(move || raw_disk(&folder, bytes)).await?;
        let elapsed = elapsed.context("the raw disk")?;
        Ok((link.bytes as f64 / link.elapsed.as_secs_f64(), bytes as f64 / elapsed.as_secs_f64()))
    }

    /// A cluster in which a node is down, and has missed so much; answers which.
    async fn miss(&self, bytes: u64) -> anyhow::Result<(Cluster, NodeId)> {
        let cluster = self.start().await?;
        cluster.create_topic(MISSED, 1, 3, &[("min.insync.replicas", "2")]).await?;
        // One whose leaving has nobody elected, and whose return moves no leader.
        let (leader, controller) = (cluster.leader_of(MISSED, 0).await?, cluster.controller().await?);
        let others = cluster.nodes().into_iter().rev();
        let away = { others }.find(|node| *node != leader && *node != controller).context("a third node")?;
        cluster.kill(away).await?;
        cluster.wait_for_isr(MISSED, 0, 2).await?;
        produce(&cluster, bytes / RECORD_BYTES as u64).await?;
        Ok((cluster, away))
    }
}

async fn produce(cluster: &Cluster, records: u64) -> anyhow::Result<()> {
    let producer = cluster.client().await?.producer().build().await?;
    let topic = producer.topic(MISSED).await?;
    let value = vec![0x5a; RECORD_BYTES];
    for _ in 0..records {
        // The producer counts it; a failure shows when it closes.
        drop(topic.send(Record::new().value(&value)).await?);
    }
    producer.close().await.context("what the node is to miss")
}

/// Starts the node, and waits until it is in the ISR of all that it has a part in.
async fn come_back(cluster: &Cluster, node: NodeId) -> anyhow::Result<ComeBack> {
    let started = Instant::now();
    cluster.start_node(node).await?;
    let ready = started.elapsed();
    cluster.wait_all_in_sync_within(DEADLINE).await?;
    Ok(ComeBack { ready, in_sync: started.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_the_time_is_a_share_of() {
        let took = |ms| ComeBack { ready: Duration::from_millis(200), in_sync: Duration::from_millis(ms) };
        let report = CatchUpReport {
            bytes: 500 << 20,
            alone: took(1_000),
            beside: took(2_000),
            quiet: Latencies::default(),
            meanwhile: Latencies::default(),
            raw_quic: f64::from(2_000 << 20),
            raw_disk: f64::from(1_000 << 20),
        };
        assert_eq!(
            report.to_string(),
            "a node that missed 500 MiB, from its start until it was in sync:\n  \
             alone 1.00 s, ready after 0.20 s: 524 MB/s, 0.25 of raw QUIC, 0.50 of the disk\n  \
             beside a producer 2.00 s, ready after 0.20 s: 262 MB/s, 0.12 of raw QUIC, 0.25 of the disk\n  \
             the producer before: p50 0.0 ms p99 0.0 ms (0 records)\n  \
             the producer meanwhile: p50 0.0 ms p99 0.0 ms (0 records)\n  \
             raw QUIC 2097 MB/s; the disk, read and written at once, 1049 MB/s each way"
        );
    }
}
