//! What many partitions cost while nothing happens, and how soon they have leaders again.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bus_protocol::NodeId;
use bus_protocol::request::{PartitionState, TopicInfo};
use tokio::time::Instant;

use crate::cluster::{Cluster, wait_until};

/// Also how many replicas each partition has.
const NODES: u32 = 3;
/// How long the cluster may take for what it does with all partitions at once.
const DEADLINE: Duration = Duration::from_secs(180);

/// Three nodes in processes of their own, with as many replicas on each as asked for, idle; then with as many
/// leaders on each, and each killed once.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Partitions of three replicas at first, so replicas of each node; then leaders of each, of three times as many.
    pub partitions: u32,
    /// How long the idle nodes' CPU time is watched.
    pub idle: Duration,
    /// Settings of all nodes, as `bus.toml` holds them.
    pub config: String,
}

impl Default for Scale {
    fn default() -> Self {
        Self { partitions: 1_000, idle: Duration::from_secs(20), config: String::new() }
    }
}

/// What it came to.
#[derive(Clone, Debug)]
pub struct ScaleReport {
    /// Partitions while the nodes were idle.
    pub partitions: u32,
    /// From asking for them until all nodes knew that all of their replicas were in sync.
    pub created: Duration,
    /// What each node used of a core while nothing happened: 0.01 is one percent.
    pub idle: Vec<(NodeId, f64)>,
    /// What happened with each node's kill, when there were three times as many partitions.
    pub kills: Vec<LostLeaders>,
}

/// A node that was killed, and how long what it led had no leader. The times are told by the metadata of another
/// node, asked every 20 ms.
#[derive(Clone, Debug)]
pub struct LostLeaders {
    /// Who was killed.
    pub node: NodeId,
    /// Whether it was the controller: another has to be elected first.
    pub controller: bool,
    /// How many partitions it led.
    pub leaders: usize,
    /// From the kill until it was fenced: mostly the silence that makes it one.
    pub fenced: Duration,
    /// From then on until every partition had a leader that was up.
    pub led: Duration,
    /// From its start until it led again what it had, and all replicas were in sync.
    pub back: Duration,
}

impl fmt::Display for ScaleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partitions, created) = (self.partitions, self.created.as_secs_f64());
        writeln!(
            f,
            "{partitions} partitions of {NODES} replicas, {partitions} on each node: in sync after {created:.2} s"
        )?;
        write!(f, "idle, percent of a core:")?;
        for (node, share) in &self.idle {
            write!(f, " node {node} {:.2}", share * 100.0)?;
        }
        let most = self.idle.iter().map(|(_, share)| *share).fold(0.0, f64::max);
        writeln!(f, ", the most {:.2}", most * 100.0)?;
        write!(f, "{} partitions, each node killed once:", u64::from(partitions) * u64::from(NODES))?;
        self.kills.iter().try_for_each(|kill| write!(f, "\n  {kill}"))
    }
}

impl fmt::Display for LostLeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let controller = if self.controller { ", the controller" } else { "" };
        write!(
            f,
            "node {}{controller}: {} leaders lost, all led again {:.2} s after the kill, {:.2} s after the fencing; \
             back in its place {:.2} s after its start",
            self.node,
            self.leaders,
            (self.fenced + self.led).as_secs_f64(),
            self.led.as_secs_f64(),
            self.back.as_secs_f64()
        )
    }
}

impl Scale {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<ScaleReport> {
        let cluster =
            Cluster::builder().nodes(NODES.into()).processes().direct().config(&self.config).start().await?;
        let created = create(&cluster, "scale", self.partitions).await?;
        let idle = idle(&cluster, self.idle).await?;
        create(&cluster, "scale-more", self.partitions.saturating_mul(NODES - 1)).await?;
        let mut kills = Vec::new();
        for node in cluster.nodes() {
            let lost = kill(&cluster, node).await;
            kills.push(lost.with_context(|| format!("the kill of node {node}"))?);
        }
        Ok(ScaleReport { partitions: self.partitions, created, idle, kills })
    }
}

/// Creates a topic, and answers how long it took until all nodes knew it to be in sync.
async fn create(cluster: &Cluster, topic: &str, partitions: u32) -> anyhow::Result<Duration> {
    let asked = Instant::now();
    cluster.create_topic(topic, partitions, NODES, &[("min.insync.replicas", "2")]).await?;
    cluster.wait_all_in_sync_within(DEADLINE).await?;
    Ok(asked.elapsed())
}

/// What each node uses of a core for that long, with nobody asking anything.
async fn idle(cluster: &Cluster, watched: Duration) -> anyhow::Result<Vec<(NodeId, f64)>> {
    let used = |node| anyhow::Ok((node, cluster.node(node)?.cpu_time()?));
    let nodes = cluster.nodes().into_iter();
    let before = nodes.map(used).collect::<anyhow::Result<Vec<_>>>()?;
    let started = Instant::now();
    tokio::time::sleep(watched).await;
    let elapsed = started.elapsed();
    let share = |(node, before): (NodeId, Duration)| {
        let (_, now) = used(node)?;
        Ok((node, (now - before).as_secs_f64() / elapsed.as_secs_f64()))
    };
    before.into_iter().map(share).collect()
}

async fn kill(cluster: &Cluster, node: NodeId) -> anyhow::Result<LostLeaders> {
    let controller = cluster.controller().await?;
    let others = cluster.nodes().into_iter().filter(|other| *other != node);
    // What the controller has decided counts once another knows.
    let witness = others.max_by_key(|other| *other != controller).context("there are others")?;
    let leads = |state: &&PartitionState| state.leader == Some(node);
    let leaders = partitions(&cluster.topic_infos(witness).await?).filter(leads).count();
    ensure!(leaders > 0, "node {node} leads nothing");
    let killed = Instant::now();
    cluster.kill(node).await?;
    wait_until("it is fenced", DEADLINE, async || Ok(!up(cluster, witness).await?.contains(&node))).await?;
    let fenced = Instant::now();
    wait_until("all partitions are led", DEADLINE, async || {
        let up = up(cluster, witness).await?;
        let topics = cluster.topic_infos(witness).await?;
        Ok(partitions(&topics).all(|state| state.leader.is_some_and(|leader| up.contains(&leader))))
    })
    .await?;
    let led = fenced.elapsed();
    let back = Instant::now();
    cluster.start_node(node).await?;
    wait_until("all is led by whom it was", DEADLINE, async || {
        let topics = cluster.topic_infos(witness).await?;
        Ok(partitions(&topics).all(|state| state.leader == state.replicas.first().copied()))
    })
    .await?;
    cluster.wait_all_in_sync_within(DEADLINE).await?;
    Ok(LostLeaders {
        node,
        controller: node == controller,
        leaders,
        fenced: fenced - killed,
        led,
        back: back.elapsed(),
    })
}

fn partitions(topics: &[TopicInfo]) -> impl Iterator<Item = &PartitionState> {
    topics.iter().flat_map(|topic| &topic.partitions)
}

/// Who is not fenced, by the word of `witness`.
async fn up(cluster: &Cluster, witness: NodeId) -> anyhow::Result<BTreeSet<NodeId>> {
    let brokers = cluster.cluster_info(witness).await?.brokers;
    Ok(brokers.into_iter().filter(|broker| !broker.fenced).map(|broker| broker.node).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_the_busiest_and_the_controller() {
        let (fenced, led, back) =
            (Duration::from_millis(900), Duration::from_millis(250), Duration::from_secs(4));
        let lost = LostLeaders { node: 2, controller: true, leaders: 1_000, fenced, led, back };
        let created = Duration::from_millis(150);
        let idle = vec![(1, 0.004), (2, 0.0125)];
        let report = ScaleReport { partitions: 1_000, created, idle, kills: vec![lost] };
        assert_eq!(
            report.to_string(),
            "1000 partitions of 3 replicas, 1000 on each node: in sync after 0.15 s\n\
             idle, percent of a core: node 1 0.40 node 2 1.25, the most 1.25\n\
             3000 partitions, each node killed once:\n  \
             node 2, the controller: 1000 leaders lost, all led again 1.15 s after the kill, 0.25 s after the \
             fencing; back in its place 4.00 s after its start"
        );
    }
}
