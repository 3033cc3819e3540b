//! `bus cluster status`.

use bus_client::Client;
use bus_protocol::request::{BrokerInfo, ClusterInfo, PartitionState, TopicInfo};
use bus_protocol::{NodeId, PartitionId};
use serde::Serialize;

use crate::failure::message;
use crate::output::{self, Format};
use crate::units::show_count;

/// Partitions that the table shows; their number is said in any case.
const SHOWN: usize = 50;

/// How the cluster is.
#[derive(Debug)]
pub(crate) struct Status {
    cluster_id: String,
    brokers: Vec<Broker>,
    /// How many there are, replicas not counted.
    partitions: usize,
    attention: Vec<Attention>,
}

#[derive(Debug, Serialize)]
struct Broker {
    node: NodeId,
    address: String,
    /// `up`, `fenced` or `drained`.
    state: &'static str,
    /// Whether this broker decides for the cluster.
    controller: bool,
    leaders: usize,
    replicas: usize,
    /// Partitions with a replica here that is not in sync.
    under_replicated: usize,
    /// Partitions with a replica here that nobody leads.
    offline: usize,
    epoch: u64,
    rack: Option<String>,
    /// Whether it votes on the cluster's metadata.
    voter: bool,
    drained: bool,
    cluster: String,
}

/// A partition that is not as it should be, or not yet.
#[derive(Debug, PartialEq, Eq)]
struct Attention {
    topic: String,
    partition: PartitionId,
    state: PartitionState,
    why: &'static str,
}

impl Status {
    /// Asks the cluster.
    pub(crate) async fn ask(client: &Client) -> anyhow::Result<Self> {
        let admin = client.admin();
        let (cluster, topics) = tokio::try_join!(admin.cluster(), admin.topics(None))?;
        Ok(Self::of(&cluster, topics))
    }

    fn of(cluster: &ClusterInfo, topics: Vec<TopicInfo>) -> Self {
        let partitions = || topics.iter().flat_map(|topic| &topic.partitions);
        let brokers = cluster.brokers.iter().map(|broker| {
            let here = || partitions().filter(|partition| partition.replicas.contains(&broker.node));
            Broker {
                node: broker.node,
                address: broker.address.clone(),
                state: state(broker),
                controller: cluster.controller == Some(broker.node),
                leaders: here().filter(|partition| partition.leader == Some(broker.node)).count(),
                replicas: here().count(),
                under_replicated: here().filter(|partition| !partition.isr.contains(&broker.node)).count(),
                offline: here().filter(|partition| partition.leader.is_none()).count(),
                epoch: broker.epoch,
                rack: broker.rack.clone(),
                voter: broker.voter,
                drained: broker.drained,
                cluster: cluster.cluster_id.clone(),
            }
        });
        let brokers = brokers.collect();
        let count = partitions().count();
        let mut attention: Vec<_> = topics.into_iter().flat_map(attention).collect();
        attention.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Self { cluster_id: cluster.cluster_id.clone(), brokers, partitions: count, attention }
    }

    /// Whether all brokers are up and all replicas in sync, where they belong.
    pub(crate) fn is_well(&self) -> bool {
        self.attention.is_empty() && self.brokers.iter().all(|broker| broker.state == "up")
    }

    /// Prints it.
    pub(crate) fn print(&self, format: Format) -> anyhow::Result<()> {
        if format.is_json() {
            return output::json(&self.brokers);
        }
        self.print_brokers()?;
        if !self.attention.is_empty() {
            output::line("")?;
            self.print_attention()?;
        }
        message(&self.sentence());
        Ok(())
    }

    fn print_brokers(&self) -> anyhow::Result<()> {
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        let heading = [
            "NODE",
            "ADDRESS",
            "STATE",
            "CONTROLLER",
            "VOTER",
            "EPOCH",
            "RACK",
            "LEADERS",
            "REPLICAS",
            "UNDER-REPLICATED",
            "OFFLINE",
        ];
        let row = |broker: &Broker| {
            vec![
                broker.node.to_string(),
                broker.address.clone(),
                broker.state.to_owned(),
                yes(broker.controller),
                yes(broker.voter),
                broker.epoch.to_string(),
                broker.rack.clone().unwrap_or_else(|| "-".to_owned()),
                broker.leaders.to_string(),
                broker.replicas.to_string(),
                broker.under_replicated.to_string(),
                broker.offline.to_string(),
            ]
        };
        output::table(&heading, self.brokers.iter().map(row))
    }

    fn print_attention(&self) -> anyhow::Result<()> {
        let heading = ["TOPIC", "PARTITION", "IS", "LEADER", "REPLICAS", "ISR", "TARGET"];
        let row = |partition: &Attention| {
            let state = &partition.state;
            vec![
                partition.topic.clone(),
                partition.partition.to_string(),
                partition.why.to_owned(),
                state.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string()),
                output::list(&state.replicas),
                output::list(&state.isr),
                state.target.as_deref().map_or_else(|| "-".to_owned(), output::list),
            ]
        };
        output::table(&heading, self.attention.iter().take(SHOWN).map(row))?;
        if let Some(more) = self.attention.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            message(&format!("and {} more: see `bus topic describe`", show_count(more as u64)));
        }
        Ok(())
    }

    fn sentence(&self) -> String {
        let partitions = match self.partitions {
            1 => "1 partition".to_owned(),
            partitions => format!("{} partitions", show_count(partitions as u64)),
        };
        let count = |why: &str| self.attention.iter().filter(|partition| partition.why == why).count();
        let wrong = [OFFLINE, UNDER_REPLICATED, MOVING].map(|why| (why, count(why)));
        let wrong = wrong.into_iter().filter(|(_, count)| *count > 0);
        let wrong: Vec<_> = wrong.map(|(why, count)| format!("{} {why}", show_count(count as u64))).collect();
        let how = if wrong.is_empty() { "all in sync".to_owned() } else { wrong.join(", ") };
        format!("cluster {}: {partitions}, {how}", self.cluster_id)
    }
}

const OFFLINE: &str = "offline";
const UNDER_REPLICATED: &str = "under-replicated";
const MOVING: &str = "moving";

fn state(broker: &BrokerInfo) -> &'static str {
    match broker {
        BrokerInfo { fenced: true, .. } => "fenced",
        BrokerInfo { drained: true, .. } => "drained",
        _ => "up",
    }
}

fn attention(topic: TopicInfo) -> impl Iterator<Item = Attention> {
    let name = topic.topic.to_string();
    (0..).zip(topic.partitions).filter_map(move |(partition, state)| {
        let why = if state.leader.is_none() {
            OFFLINE
        } else if state.target.is_some() {
            // The replicas that are added are out of sync until they have caught up.
            MOVING
        } else if state.replicas.iter().any(|replica| !state.isr.contains(replica)) {
            UNDER_REPLICATED
        } else {
            return None;
        };
        Some(Attention { topic: name.clone(), partition, state, why })
    })
}

#[cfg(test)]
pub(super) mod tests {
    use bus_protocol::{TopicId, TopicName};

    use super::*;

    pub(crate) fn broker(node: NodeId, fenced: bool, drained: bool) -> BrokerInfo {
        let address = format!("10.0.0.{node}:9440");
        BrokerInfo { node, address, fenced, drained, epoch: 7, rack: None, voter: true }
    }

    pub(crate) fn cluster(brokers: Vec<BrokerInfo>) -> ClusterInfo {
        let (cluster_id, version) = ("c".to_owned(), "0".to_owned());
        ClusterInfo { cluster_id, node: 1, version, controller: Some(2), brokers }
    }

    pub(crate) fn partition(
        leader: Option<NodeId>,
        replicas: &[NodeId],
        isr: &[NodeId],
        target: Option<&[NodeId]>,
    ) -> PartitionState {
        let (replicas, isr, target) = (replicas.to_vec(), isr.to_vec(), target.map(<[_]>::to_vec));
        PartitionState { leader, epoch: 1, replicas, isr, target }
    }

    pub(crate) fn topic(name: &str, partitions: Vec<PartitionState>) -> TopicInfo {
        let (config, functions) = ([].into(), vec![]);
        TopicInfo { topic: TopicName::new(name).unwrap(), id: TopicId(1), config, functions, partitions }
    }

    #[test]
    fn what_wants_attention_is_told_apart() {
        let brokers = vec![broker(1, false, false), broker(2, false, true), broker(3, true, true)];
        let orders = vec![
            partition(Some(1), &[1, 2], &[1, 2], None),
            partition(Some(1), &[1, 3], &[1], None),
            partition(None, &[3], &[3], None),
            partition(Some(1), &[1, 2, 3], &[1, 2], Some(&[1, 3])),
        ];
        let status = Status::of(&cluster(brokers), vec![topic("orders", orders)]);
        let why: Vec<_> = status.attention.iter().map(|row| (row.partition, row.why)).collect();
        assert_eq!(why, [(1, UNDER_REPLICATED), (2, OFFLINE), (3, MOVING)]);
        let brokers: Vec<_> = status
            .brokers
            .iter()
            .map(|b| (b.state, b.controller, b.leaders, b.replicas, b.under_replicated, b.offline))
            .collect();
        let wanted =
            [("up", false, 3, 3, 0, 0), ("drained", true, 0, 2, 0, 0), ("fenced", false, 0, 3, 2, 1)];
        assert_eq!(brokers, wanted);
        assert!(!status.is_well());
        assert_eq!(status.sentence(), "cluster c: 4 partitions, 1 offline, 1 under-replicated, 1 moving");
    }

    #[test]
    fn a_cluster_that_is_well() {
        let orders = vec![partition(Some(1), &[1, 2], &[2, 1], None)];
        let brokers = vec![broker(1, false, false), broker(2, false, false)];
        let status = Status::of(&cluster(brokers), vec![topic("orders", orders)]);
        assert!(status.is_well());
        assert_eq!(status.sentence(), "cluster c: 1 partition, all in sync");
    }
}
