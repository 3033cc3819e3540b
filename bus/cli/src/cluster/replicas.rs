//! `bus cluster reassign` and `bus cluster rebalance`: who holds what.

use std::collections::BTreeSet;

use anyhow::Context as _;
use bus_client::{Client, Moves};
use bus_protocol::request::{ClusterInfo, TopicInfo};
use bus_protocol::{NodeId, PartitionId, TopicName};
use clap::Args;
use serde_json::json;

use super::status::named;
use super::wait::{Left, Wait};
use crate::failure::{message, usage};
use crate::interrupt::Interrupt;
use crate::output::Format;
use crate::{output, units};

/// Topics whose leaders are asked how far the new replicas are.
const ASKED: usize = 16;

/// Give a topic's partitions other replicas
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus cluster reassign orders --replicas 1,2,3
  bus cluster reassign orders --replicas 4,2,3 --partition 7  # node 4 leads it
  bus cluster reassign orders --replicas 1,2,3 --throttle 50MiB --no-wait

Without --partition all partitions get these replicas, and the preferred leader goes round: partition i's is the i-th of the \
list. With it, the first of the list is. Records move in the background, and the old replicas go when the new ones are in \
sync. Ends when they are. Refused where one of the brokers is down. The same again with the old replicas calls it off.")]
pub(crate) struct Reassign {
    /// The topic
    topic: TopicName,
    /// The nodes that are to hold it
    #[arg(long, value_name = "NODE,...", value_delimiter = ',', required = true)]
    replicas: Vec<NodeId>,
    /// Only this partition; may be repeated
    #[arg(long, value_name = "P", value_delimiter = ',')]
    partition: Vec<PartitionId>,
    #[command(flatten)]
    how: How,
}

/// Spread replicas and leaders evenly over the brokers that are up and not drained
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus cluster rebalance  # a broker that was added gets its share
  bus cluster rebalance --throttle 50MiB
  bus cluster drain 3 && bus cluster rebalance  # broker 3 gives all away

Moves as few replicas as that takes, and spreads over racks first. Partitions that are being reassigned, and those whose move \
would wait for a broker that is down, stay as they are. Records move in the background. Ends when all is done.")]
pub(crate) struct Rebalance {
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct How {
    /// What each broker sends to new replicas a second at most, as in 50MiB; 0 for no limit. It stays until it is changed
    #[arg(long, value_name = "SIZE[/s]", value_parser = units::rate)]
    throttle: Option<u64>,
    /// Do not wait until the replicas have moved
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn reassign(
    client: &Client,
    args: Reassign,
    format: Format,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let Reassign { topic, replicas, partition: only, how } = args;
    let mut named = BTreeSet::new();
    if let Some(twice) = replicas.iter().find(|node| !named.insert(**node)) {
        return Err(usage(format!("--replicas names node {twice} twice: name each node once")));
    }
    let asked = async {
        let topics = client.admin().topics(Some(vec![topic.clone()])).await?;
        let partitions = topics.first().map_or(0, |topic| topic.partitions.len());
        let assignments = assignments(partitions, &only, &replicas);
        Ok(client.admin().reassign(&topic, assignments, how.throttle).await?)
    };
    let moving = interrupt.or(asked).await.with_context(|| format!("cannot reassign topic {topic}"))?;
    let left = settle(client, moving.partitions, &how, interrupt, Some(&topic)).await?;
    let done = json!({"topic": topic, "done": "reassigned", "replicas": replicas, "partitions": left.of, "moving": left.moving});
    format.done(&left.sentence(&format!("{topic} on nodes {}", output::list(&replicas))), done)
}

pub(super) async fn rebalance(
    client: &Client,
    args: &Rebalance,
    format: Format,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let asked = async { Ok(client.admin().rebalance(args.how.throttle).await?) };
    let Moves { partitions, under_way, silent } =
        interrupt.or(asked).await.context("cannot rebalance the cluster")?;
    for (count, why) in [
        (under_way, "being reassigned already"),
        (silent, "waiting for a broker that is down: start it, or drain it, and rebalance again"),
    ] {
        if count > 0 {
            message(&format!("left as they are: {} partitions, {why}", units::show_count(count.into())));
        }
    }
    let left = settle(client, partitions, &args.how, interrupt, None).await?;
    let done = json!({"done": "rebalanced", "partitions": left.of, "moving": left.moving, "under_way": under_way, "silent": silent});
    format.done(&left.sentence("the cluster"), done)
}

/// The list for each partition: as it is for those that are named, else turned by one from partition to partition, so
/// that not one broker leads them all.
fn assignments(
    partitions: usize,
    only: &[PartitionId],
    replicas: &[NodeId],
) -> Vec<(PartitionId, Vec<NodeId>)> {
    if !only.is_empty() {
        return only.iter().map(|partition| (*partition, replicas.to_vec())).collect();
    }
    let turned = |by: usize| {
        let mut turned = replicas.to_vec();
        turned.rotate_left(by % replicas.len().max(1));
        turned
    };
    (0..).zip((0..partitions).map(turned)).collect()
}

/// What has come of a move.
struct Settled {
    /// Partitions that were to move.
    of: usize,
    /// Those that were not waited for.
    moving: usize,
}

impl Settled {
    fn sentence(&self, what: &str) -> String {
        match self {
            Self { of: 0, .. } => format!("{what}: no replica had to move"),
            Self { moving: 1.., .. } => {
                format!("{what}: the replicas move now, `bus cluster status` shows how far they are")
            }
            Self { of: 1, .. } => format!("{what}: 1 partition has moved"),
            Self { of, .. } => format!("{what}: {} partitions have moved", units::show_count(*of as u64)),
        }
    }
}

/// Waits, unless told not to, until all replicas are where they belong: of the topic, or of all.
async fn settle(
    client: &Client,
    moving: u32,
    how: &How,
    interrupt: &Interrupt,
    topic: Option<&TopicName>,
) -> anyhow::Result<Settled> {
    if how.no_wait {
        return Ok(Settled { of: moving as usize, moving: moving as usize });
    }
    let of = interrupt.or(left(client, topic)).await?.partitions.max(moving as usize);
    let wait = Wait { interrupt, done: "moved", of, stuck: None };
    wait.until_done(async || left(client, topic).await).await?;
    Ok(Settled { of, moving: 0 })
}

async fn left(client: &Client, topic: Option<&TopicName>) -> anyhow::Result<Left> {
    let admin = client.admin();
    let topics = admin.topics(topic.map(|topic| vec![topic.clone()])).await?;
    let cluster = admin.cluster().await?;
    let waiting: Vec<_> = waiting(&topics, &cluster, topic.is_some()).collect();
    let records = if waiting.is_empty() { None } else { records(client, &topics).await };
    let waits_for: BTreeSet<NodeId> = waiting.iter().flat_map(|(_, missing)| missing).copied().collect();
    let held_up = silent(&cluster, &waits_for);
    Ok(Left { partitions: waiting.len(), records, waits_for: waits_for.into_iter().collect(), held_up })
}

/// The partitions that are not done, and for whom they wait. A replica that is only added needs no target: it is done when
/// it is in sync, which counts where the user has named it or it is up to get there.
fn waiting(
    topics: &[TopicInfo],
    cluster: &ClusterInfo,
    named: bool,
) -> impl Iterator<Item = (PartitionId, Vec<NodeId>)> {
    let up = |node: &NodeId| cluster.brokers.iter().any(|broker| broker.node == *node && !broker.fenced);
    lacking(topics).filter_map(move |(partition, targeted, mut missing)| {
        missing.retain(|node| targeted || named || up(node));
        (targeted || !missing.is_empty()).then_some((partition, missing))
    })
}

/// Partitions that are on their way, or lack a replica: whether they have a target, and who is not in sync.
fn lacking(topics: &[TopicInfo]) -> impl Iterator<Item = (PartitionId, bool, Vec<NodeId>)> {
    topics.iter().flat_map(|topic| (0..).zip(&topic.partitions)).filter_map(|(partition, state)| {
        let wanted = state.target.as_ref().unwrap_or(&state.replicas);
        let missing: Vec<_> = wanted.iter().copied().filter(|node| !state.isr.contains(node)).collect();
        (state.target.is_some() || !missing.is_empty()).then_some((
            partition,
            state.target.is_some(),
            missing,
        ))
    })
}

/// Who of those that are waited for cannot take anything.
fn silent(cluster: &ClusterInfo, waits_for: &BTreeSet<NodeId>) -> Option<String> {
    let fenced = cluster.brokers.iter().filter(|broker| broker.fenced && waits_for.contains(&broker.node));
    let fenced: Vec<_> = fenced.map(|broker| named(broker.node, &cluster.brokers)).collect();
    let waits =
        || format!("waits for node {}, which is down: start it, or reassign again", fenced.join(", "));
    (!fenced.is_empty()).then(waits)
}

/// How many records the new replicas lack, as far as their leaders say.
async fn records(client: &Client, topics: &[TopicInfo]) -> Option<u64> {
    let mut records = None;
    for topic in
        topics.iter().filter(|topic| lacking(std::slice::from_ref(topic)).next().is_some()).take(ASKED)
    {
        let Ok(logs) = client.admin().describe_partitions(&topic.topic).await else { continue };
        for (partition, _, missing) in lacking(std::slice::from_ref(topic)) {
            let Some(log) = logs.iter().find(|log| log.partition == partition) else { continue };
            for node in missing {
                let stored = log.followers.iter().find(|(follower, _)| *follower == node);
                let stored = stored.map_or(log.log_start, |(_, stored)| *stored);
                let lag = u64::try_from(log.log_end.saturating_sub(stored)).unwrap_or_default();
                *records.get_or_insert(0) += lag;
            }
        }
    }
    records
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{broker, cluster, partition, topic};
    use super::*;

    #[test]
    fn preferred_leaders_go_round_unless_a_partition_is_named() {
        let all = assignments(4, &[], &[1, 2, 3]);
        assert_eq!(all, [(0, vec![1, 2, 3]), (1, vec![2, 3, 1]), (2, vec![3, 1, 2]), (3, vec![1, 2, 3])]);
        assert_eq!(assignments(4, &[2], &[4, 1]), [(2, vec![4, 1])]);
        assert_eq!(assignments(0, &[], &[1]), []);
    }

    #[test]
    fn who_holds_a_move_up_is_named() {
        let partitions = vec![
            partition(Some(1), &[1, 2, 3], &[1, 2], Some(&[2, 3])),
            partition(Some(1), &[1, 2], &[1, 2], None),
            partition(Some(2), &[1, 2], &[2], None),
            partition(Some(1), &[1, 3], &[1], None),
            partition(Some(1), &[1, 2], &[1, 2], Some(&[2])),
        ];
        let topics = [topic("t", partitions)];
        let brokers =
            |fenced| cluster(vec![broker(1, true, false), broker(2, false, false), broker(3, fenced, false)]);
        let of = |fenced, named| waiting(&topics, &brokers(fenced), named).collect::<Vec<_>>();
        assert_eq!(of(false, true), [(0, vec![3]), (2, vec![1]), (3, vec![3]), (4, vec![])]);
        assert_eq!(of(false, false), [(0, vec![3]), (3, vec![3]), (4, vec![])]);
        assert_eq!(of(true, false), [(0, vec![3]), (4, vec![])]);
        let waits_for = BTreeSet::from([2, 3]);
        assert_eq!(silent(&brokers(false), &waits_for), None);
        assert_eq!(
            silent(&brokers(true), &waits_for).unwrap(),
            "waits for node 3 at 10.0.0.3:9440, which is down: start it, or reassign again"
        );
    }
}
