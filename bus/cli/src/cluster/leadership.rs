//! `bus cluster drain` and `bus cluster add-back`: who leads.

use std::time::Duration;

use anyhow::Context as _;
use bus_client::Client;
use bus_protocol::NodeId;
use bus_protocol::request::{ClusterInfo, TopicInfo};
use clap::Args;
use serde_json::json;

use super::wait::{Left, Wait};
use crate::interrupt::Interrupt;
use crate::output::Format;

/// Leaders move at once, some hundreds a second: where none does for so long, none will.
const STUCK: Duration = Duration::from_secs(30);

/// Have a broker lead nothing, and give it no new replicas
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus cluster drain 2  # then stop it, service its machine, start it again, and:
  bus cluster add-back 2
  bus cluster drain 3 && bus cluster rebalance  # for good: its replicas move

Ends when the broker leads nothing that another in-sync replica could lead. It goes on holding the replicas that it has.")]
pub(crate) struct Drain {
    /// The broker's node id
    node: NodeId,
    /// Do not wait until the leaders have moved
    #[arg(long)]
    no_wait: bool,
}

/// Have a drained broker lead again, and take new replicas
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus cluster add-back 2

Ends when the broker leads the partitions that it is the preferred leader of and in sync with.")]
pub(crate) struct AddBack {
    /// The broker's node id
    node: NodeId,
    /// Do not wait until the leaders have moved
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn drain(
    client: &Client,
    args: &Drain,
    format: Format,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let node = args.node;
    let (cluster, topics) = set(client, node, true, interrupt).await?;
    let done = |leads: usize| json!({"node": node, "done": "drained", "leads": leads});
    let Leads { others_could: of, nobody_else_could: mut kept } = leads(&cluster, &topics, node);
    if args.no_wait {
        return format.done(&format!("node {node} is drained: its leaders move away"), done(of + kept));
    }
    let wait = Wait { interrupt, done: "led by others", of, stuck: Some(STUCK) };
    wait.until_done(async || {
        let (cluster, topics) = look(client).await?;
        let leads = leads(&cluster, &topics, node);
        kept = leads.nobody_else_could;
        Ok(Left { partitions: leads.others_could, ..Left::default() })
    })
    .await?;
    let text = match kept {
        0 => format!("node {node} is drained: it leads nothing"),
        _ => format!(
            "node {node} is drained, but leads {kept} partition{} still: no other broker that is up and not drained has \
             {} in sync; see `bus cluster rebalance`",
            if kept == 1 { "" } else { "s" },
            if kept == 1 { "it" } else { "them" },
        ),
    };
    format.done(&text, done(kept))
}

pub(super) async fn add_back(
    client: &Client,
    args: &AddBack,
    format: Format,
    interrupt: &Interrupt,
) -> anyhow::Result<()> {
    let node = args.node;
    let (cluster, topics) = set(client, node, false, interrupt).await?;
    let down = cluster.brokers.iter().any(|broker| broker.node == node && broker.fenced);
    let done = json!({"node": node, "done": "added back", "down": down});
    if down {
        let text = format!("node {node} is added back; it is silent, and leads again when it is up");
        return format.done(&text, done);
    }
    if !args.no_wait {
        let wait = Wait { interrupt, done: "led by it", of: owed(&topics, node), stuck: Some(STUCK) };
        wait.until_done(async || {
            let topics = client.admin().topics(None).await?;
            Ok(Left { partitions: owed(&topics, node), ..Left::default() })
        })
        .await?;
    }
    format.done(&format!("node {node} is added back"), done)
}

/// Tells the cluster, and answers how it then stands.
async fn set(
    client: &Client,
    node: NodeId,
    drained: bool,
    interrupt: &Interrupt,
) -> anyhow::Result<(ClusterInfo, Vec<TopicInfo>)> {
    let what = if drained { "drain" } else { "add back" };
    interrupt
        .or(async {
            let done = client.admin().drain_broker(node, drained).await;
            done.with_context(|| format!("cannot {what} node {node}"))?;
            look(client).await
        })
        .await
}

async fn look(client: &Client) -> anyhow::Result<(ClusterInfo, Vec<TopicInfo>)> {
    let admin = client.admin();
    Ok(tokio::try_join!(admin.cluster(), admin.topics(None))?)
}

/// What a drained broker leads.
#[derive(Debug, PartialEq, Eq)]
struct Leads {
    others_could: usize,
    nobody_else_could: usize,
}

fn leads(cluster: &ClusterInfo, topics: &[TopicInfo], node: NodeId) -> Leads {
    let fit = |other: &NodeId| {
        cluster
            .brokers
            .iter()
            .any(|broker| broker.node == *other && *other != node && !broker.fenced && !broker.drained)
    };
    let mut leads = Leads { others_could: 0, nobody_else_could: 0 };
    for partition in topics.iter().flat_map(|topic| &topic.partitions) {
        if partition.leader != Some(node) {
            continue;
        }
        if partition.isr.iter().any(fit) {
            leads.others_could += 1;
        } else {
            leads.nobody_else_could += 1;
        }
    }
    leads
}

/// Partitions that a broker is the preferred leader of and could lead, and does not.
fn owed(topics: &[TopicInfo], node: NodeId) -> usize {
    let partitions = topics.iter().flat_map(|topic| &topic.partitions);
    partitions
        .filter(|partition| {
            partition.replicas.first() == Some(&node)
                && partition.isr.contains(&node)
                && partition.leader != Some(node)
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::{broker, cluster, partition, topic};
    use super::*;

    #[test]
    fn a_drained_broker_keeps_what_nobody_else_can_lead() {
        let cluster = cluster(vec![
            broker(1, false, true),
            broker(2, false, false),
            broker(3, true, false),
            broker(4, false, true),
        ]);
        let topics = [topic(
            "t",
            vec![
                partition(Some(1), &[1, 2], &[1, 2], None),
                partition(Some(1), &[1, 2], &[1], None),
                partition(Some(1), &[1, 3], &[1, 3], None),
                partition(Some(1), &[1, 4], &[1, 4], None),
                partition(Some(2), &[1, 2], &[1, 2], None),
            ],
        )];
        assert_eq!(leads(&cluster, &topics, 1), Leads { others_could: 1, nobody_else_could: 3 });
        assert_eq!(owed(&topics, 1), 1);
        assert_eq!(owed(&topics, 2), 0);
    }
}
