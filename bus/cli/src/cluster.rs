//! `bus cluster`.

use bus_client::Client;
use clap::Subcommand;
use serde::Serialize;

use crate::args::Global;
use crate::{connection, failure, output};

/// Look at the cluster
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  bus cluster status
  bus cluster status -o json | jq .state")]
pub(crate) enum Cluster {
    /// Show the brokers, the controller, and partitions that want attention
    #[command(after_help = "Examples:
  bus cluster status
  bus cluster status --server 10.0.0.1:9440 --ca ca.pem -o json")]
    Status,
}

#[derive(Serialize)]
struct Broker {
    node: u64,
    address: String,
    state: &'static str,
    /// Whether this broker decides for the cluster.
    controller: bool,
    leaders: usize,
    replicas: usize,
    /// Partitions with a replica here that is not in sync.
    under_replicated: usize,
    /// Partitions with a replica here that nobody leads.
    offline: usize,
    cluster: String,
}

pub(crate) async fn run(global: &Global, Cluster::Status: Cluster) -> anyhow::Result<()> {
    let client = connection::connect(global).await?;
    let brokers = status(&client).await?;
    if global.format.is_json() {
        return output::json(&brokers);
    }
    output::table(
        &["NODE", "ADDRESS", "STATE", "CONTROLLER", "LEADERS", "REPLICAS", "UNDER-REPLICATED", "OFFLINE"],
        brokers.iter().map(|broker| {
            vec![
                broker.node.to_string(),
                broker.address.clone(),
                broker.state.to_owned(),
                if broker.controller { "yes" } else { "no" }.to_owned(),
                broker.leaders.to_string(),
                broker.replicas.to_string(),
                broker.under_replicated.to_string(),
                broker.offline.to_string(),
            ]
        }),
    )?;
    if let Some(broker) = brokers.first() {
        failure::message(&format!("cluster {}", broker.cluster));
    }
    Ok(())
}

async fn status(client: &Client) -> anyhow::Result<Vec<Broker>> {
    let admin = client.admin();
    let cluster = admin.cluster().await?;
    let topics = admin.topics(None).await?;
    let partitions: Vec<_> = topics.iter().flat_map(|topic| &topic.partitions).collect();
    let brokers = cluster.brokers.iter().map(|broker| {
        let here = || partitions.iter().filter(|partition| partition.replicas.contains(&broker.node));
        Broker {
            node: broker.node,
            address: broker.address.clone(),
            state: if broker.fenced { "fenced" } else { "up" },
            controller: cluster.controller == Some(broker.node),
            leaders: here().filter(|partition| partition.leader == Some(broker.node)).count(),
            replicas: here().count(),
            under_replicated: here().filter(|partition| !partition.isr.contains(&broker.node)).count(),
            offline: here().filter(|partition| partition.leader.is_none()).count(),
            cluster: cluster.cluster_id.clone(),
        }
    });
    Ok(brokers.collect())
}
