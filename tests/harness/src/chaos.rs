//! Random faults under load, one node at a time; then: is all that was acknowledged there, once, in order, everywhere?

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bus_client::From;
use bus_protocol::{NodeId, Offset, PartitionId, TopicName};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::history::{Counts, History};
use crate::load::{Load, LoadResult};
use crate::random::Random;
use crate::replicas::Agreement;

const TOPIC: &str = "chaos";
/// How long the cluster may take to be whole again after a fault.
const RECOVERY: Duration = Duration::from_secs(90);
/// How long the load may take to go on while all is well.
const PROGRESS: Duration = Duration::from_secs(30);
/// How long a fault lasts, in milliseconds.
const LASTS: std::ops::Range<u64> = 100..4_000;

/// A run of chaos. Nodes are processes of their own.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// Decides what happens, when, and to whom; what the threads make of it is theirs.
    pub seed: u64,
    /// How long faults go on.
    pub duration: Duration,
    /// Whether a killed node's data folder is deleted each time, and there are no other faults.
    pub wipe: bool,
    /// Nodes. Three or more.
    pub nodes: NodeId,
    /// Partitions of the topic, three replicas each, two of them in sync at least.
    pub partitions: u32,
    /// Producers: idempotent, acks=all.
    pub producers: u32,
    /// What each of them sends.
    pub records_per_second: u32,
}

impl Default for Chaos {
    fn default() -> Self {
        Self {
            seed: 1,
            duration: Duration::from_secs(20),
            wipe: false,
            nodes: 3,
            partitions: 6,
            producers: 5,
            records_per_second: 1_000,
        }
    }
}

/// What goes wrong with one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    KillAndWipe,
    Stop,
    Pause,
    Isolate,
    /// From its peers, not from clients.
    Partition,
    /// It hears nothing of one peer.
    CutFrom(NodeId),
    /// One peer hears nothing of it.
    CutTo(NodeId),
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::KillAndWipe => "killed and wiped",
            Self::Stop => "stopped",
            Self::Pause => "paused",
            Self::Isolate => "isolated",
            Self::Partition => "partitioned",
            Self::CutFrom(_) => "deaf to a peer",
            Self::CutTo(_) => "mute to a peer",
        }
    }
}

/// What a run of chaos went through. It held.
#[derive(Clone, Debug)]
pub struct ChaosReport {
    /// The seed.
    pub seed: u64,
    /// How often each fault happened.
    pub faults: BTreeMap<&'static str, usize>,
    /// What became of the records.
    pub records: Counts,
    /// Records that are stored.
    pub stored: u64,
    /// What all replicas have in common: everything below the high watermarks.
    pub agreement: Agreement,
    /// The longest time in which nothing was acknowledged in some partition.
    pub longest_gap: Duration,
    /// The longest time that the cluster took to be whole after a fault was over.
    pub longest_recovery: Duration,
}

impl fmt::Display for ChaosReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<_> = self.faults.iter().map(|(fault, count)| format!("{count} {fault}")).collect();
        let Counts { acknowledged, refused, unknown } = self.records;
        let Agreement { batches, bytes, .. } = self.agreement;
        let (gap, recovery) = (self.longest_gap, self.longest_recovery);
        write!(
            f,
            "seed {}: {acknowledged} records acknowledged, {refused} refused, {unknown} unknown; {} stored, once, in \
             order\nreplicas equal: {batches} batches, {:.1} MB\nfaults: {}\nlongest time without an acknowledgement in \
             a partition: {gap:.1?}; longest recovery: {recovery:.1?}",
            self.seed,
            self.stored,
            bytes as f64 / 1e6,
            faults.join(", "),
        )
    }
}

impl Chaos {
    /// Runs it. An error says what did not hold, with the seed and what had happened.
    pub async fn run(self) -> anyhow::Result<ChaosReport> {
        let mut run = Run {
            random: Random::new(self.seed),
            cluster: Cluster::builder().nodes(self.nodes).processes().seed(self.seed).start().await?,
            chaos: self,
            trail: Vec::new(),
            faults: BTreeMap::new(),
            longest_recovery: Duration::ZERO,
        };
        let result = run.run().await;
        result.with_context(|| {
            let trail = run.trail.join("\n  ");
            format!(
                "chaos with seed {} (CHAOS_SEED={} runs it again):\n  {trail}",
                run.chaos.seed, run.chaos.seed
            )
        })
    }
}

struct Run {
    chaos: Chaos,
    random: Random,
    cluster: Cluster,
    /// What happened.
    trail: Vec<String>,
    faults: BTreeMap<&'static str, usize>,
    longest_recovery: Duration,
}

impl Run {
    async fn run(&mut self) -> anyhow::Result<ChaosReport> {
        let settings = [("min.insync.replicas", "2"), ("segment.bytes", "4194304")];
        self.cluster.create_topic(TOPIC, self.chaos.partitions, 3, &settings).await?;
        let load = Load {
            topic: TOPIC.to_owned(),
            partitions: self.chaos.partitions,
            producers: self.chaos.producers,
            records_per_second: self.chaos.records_per_second,
            seed: self.chaos.seed,
            ..Load::default()
        };
        let load = load.start(&self.cluster).await?;
        load.wait_for_acks(1_000, PROGRESS).await.context("before any fault")?;
        load.forget_gaps();
        let started = Instant::now();
        while started.elapsed() < self.chaos.duration {
            let node = *self.random.pick(&self.cluster.nodes());
            let fault = self.fault(node);
            let lasts = Duration::from_millis(LASTS.start + self.random.below(LASTS.end - LASTS.start));
            let at = started.elapsed().as_secs_f64();
            self.trail.push(format!("{at:.1} s: node {node} {fault:?} for {lasts:?}"));
            tracing::info!(at, node, ?fault, ?lasts, "chaos");
            *self.faults.entry(fault.name()).or_default() += 1;
            self.happen(node, fault).await?;
            // Not a wait for anything: how long the fault lasts.
            tokio::time::sleep(lasts).await;
            let over = Instant::now();
            self.undo(node, fault).await?;
            self.cluster.wait_all_in_sync_within(RECOVERY).await?;
            self.longest_recovery = self.longest_recovery.max(over.elapsed());
            load.wait_for_acks(100, PROGRESS).await.context("after a fault")?;
        }
        let longest_gap = load.take_longest_gap();
        let LoadResult { history, counts: records, failure } = load.stop().await?;
        if let Some(failure) = failure {
            self.trail.push(format!("a record failed: {failure}"));
        }
        self.cluster.wait_all_in_sync_within(RECOVERY).await?;
        let stored = self.cluster.check_history(TOPIC, &history).await?;
        let agreement = self.cluster.check_replicas(TOPIC).await?;
        let faults = std::mem::take(&mut self.faults);
        let longest_recovery = self.longest_recovery;
        let seed = self.chaos.seed;
        Ok(ChaosReport { seed, faults, records, stored, agreement, longest_gap, longest_recovery })
    }

    fn fault(&mut self, node: NodeId) -> Fault {
        if self.chaos.wipe {
            return Fault::KillAndWipe;
        }
        let others: Vec<_> = self.cluster.nodes().into_iter().filter(|other| *other != node).collect();
        let peer = *self.random.pick(&others);
        let faults = [
            Fault::Kill,
            Fault::Kill,
            Fault::Stop,
            Fault::Pause,
            Fault::Pause,
            Fault::Isolate,
            Fault::Partition,
            Fault::CutFrom(peer),
            Fault::CutTo(peer),
        ];
        *self.random.pick(&faults)
    }

    async fn happen(&self, node: NodeId, fault: Fault) -> anyhow::Result<()> {
        let cluster = &self.cluster;
        match fault {
            Fault::Kill => cluster.kill(node).await,
            Fault::KillAndWipe => {
                cluster.kill(node).await?;
                cluster.wipe(node).await
            }
            Fault::Stop => cluster.stop(node).await,
            Fault::Pause => cluster.pause(node).await,
            Fault::Isolate => cluster.isolate(node).await,
            Fault::Partition => {
                let others: Vec<_> = cluster.nodes().into_iter().filter(|other| *other != node).collect();
                cluster.partition(&[node], &others).await
            }
            Fault::CutFrom(peer) => cluster.cut(peer, node).await,
            Fault::CutTo(peer) => cluster.cut(node, peer).await,
        }
    }

    async fn undo(&self, node: NodeId, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Kill | Fault::KillAndWipe | Fault::Stop => self.cluster.start_node(node).await,
            Fault::Pause => self.cluster.resume(node).await,
            Fault::Isolate | Fault::Partition | Fault::CutFrom(_) | Fault::CutTo(_) => {
                self.cluster.heal().await
            }
        }
    }
}

impl Cluster {
    /// Reads all of a topic, and checks it against what its producers were told; answers how many records there are.
    /// The producers should be done.
    pub async fn check_history(&self, topic: &str, history: &History) -> anyhow::Result<u64> {
        let mut checker = history.checker();
        let client = self.client().await?;
        let mut reader = client.reader([topic]).from(From::Start).until_end(true).build().await?;
        loop {
            let next = tokio::time::timeout(PROGRESS, reader.next()).await;
            let Some(record) = next.with_context(|| format!("{topic} cannot be read to its end"))? else {
                break;
            };
            let record = record?;
            checker.read(record.partition, record.offset, record.value.as_deref().unwrap_or_default());
        }
        client.close();
        Ok(checker.finish()?)
    }

    /// Waits until all that is stored is committed, stops all nodes, and compares a topic's replicas, on those nodes that
    /// are to have them. Nobody may be producing.
    pub async fn check_replicas(&self, topic: &str) -> anyhow::Result<Agreement> {
        let client = self.client().await?;
        let (admin, name) = (client.admin(), TopicName::new(topic)?);
        let mut ends: Vec<(PartitionId, Offset, Vec<NodeId>)> = Vec::new();
        self.wait_until("all that is stored is committed", RECOVERY, async || {
            let partitions = admin.describe_partitions(&name).await?;
            // A partition whose leader does not answer is left out.
            let topics = admin.topics(Some(vec![name.clone()])).await?;
            let known = topics.first().map_or(&[][..], |topic| &topic.partitions);
            ensure!(
                partitions.len() == known.len(),
                "{} of {} partitions answer",
                partitions.len(),
                known.len()
            );
            ends.clear();
            for partition in &partitions {
                ensure!(partition.high_watermark == partition.log_end, "{partition:?}");
                let known = known.get(partition.partition as usize).context("an unknown partition")?;
                ends.push((partition.partition, partition.log_end, known.replicas.clone()));
            }
            Ok(true)
        })
        .await?;
        client.close();
        self.stop_all().await?;
        let mut total = Agreement::default();
        for (partition, end, nodes) in ends {
            let Agreement { batches, records, bytes } =
                self.replicas_agree(&nodes, topic, partition, end).await?;
            (total.batches, total.records) = (total.batches + batches, total.records + records);
            total.bytes += bytes;
        }
        for node in self.nodes() {
            let stderr = self.node(node)?.stderr();
            ensure!(!stderr.contains("panicked"), "node {node} panicked: {stderr}");
        }
        Ok(total)
    }
}
