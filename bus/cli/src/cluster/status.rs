//! `bus cluster status`.

use bus_client::{Client, NoMajority};
use bus_protocol::request::{BrokerInfo, ClusterInfo, PartitionState, Quorum, TopicInfo};
use bus_protocol::{NodeId, PartitionId};
use serde::Serialize;

use crate::failure::message;
use crate::output::{self, Format};
use crate::units::{show_count, show_rate};

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
    /// What to say where the cluster has no majority.
    warning: Option<String>,
    throttle: Option<u64>,
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
    /// Whether most of the voters stand behind a controller; where not, all of this may be old.
    quorum: bool,
    /// Bytes a second that each broker sends at most to replicas that are being added.
    throttle: Option<u64>,
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
                state: state(broker, &cluster.quorum),
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
                quorum: cluster.quorum.held,
                throttle: cluster.throttle,
            }
        });
        let brokers = brokers.collect();
        let count = partitions().count();
        let mut attention: Vec<_> = topics.into_iter().flat_map(attention).collect();
        attention.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
        Self {
            cluster_id: cluster.cluster_id.clone(),
            brokers,
            partitions: count,
            attention,
            warning: warning(cluster),
            throttle: cluster.throttle,
        }
    }

    /// Whether all brokers are up, and agree, and all replicas are in sync, where they belong.
    pub(crate) fn is_well(&self) -> bool {
        self.warning.is_none()
            && self.attention.is_empty()
            && self.brokers.iter().all(|broker| broker.state == "up")
    }

    /// Prints it.
    pub(crate) fn print(&self, format: Format) -> anyhow::Result<()> {
        if let Some(warning) = &self.warning {
            message(warning);
        }
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
                if broker.drained && broker.state != DRAINED {
                    format!("{}, {DRAINED}", broker.state)
                } else {
                    broker.state.to_owned()
                },
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
        let old = if self.warning.is_some() { " when there was a majority" } else { "" };
        let moving = self.attention.iter().any(|partition| partition.state.target.is_some());
        let throttle = self.throttle.filter(|_| moving);
        let throttle = throttle.map(|rate| format!(" (each broker sends {} at most)", show_rate(rate)));
        format!("cluster {}: {partitions}, {how}{old}{}", self.cluster_id, throttle.unwrap_or_default())
    }
}

const OFFLINE: &str = "offline";
const UNDER_REPLICATED: &str = "under-replicated";
const MOVING: &str = "moving";
const DRAINED: &str = "drained";

/// The cluster's word, where it has one; else, of a voter that does not answer the broker that was asked, that one's.
fn state(broker: &BrokerInfo, quorum: &Quorum) -> &'static str {
    match broker {
        _ if !quorum.held && quorum.silent.contains(&broker.node) => "silent",
        BrokerInfo { fenced: true, .. } => "fenced",
        BrokerInfo { drained: true, .. } => DRAINED,
        _ => "up",
    }
}

/// What the broker that was asked says of the majority, where it knows of none.
fn warning(cluster: &ClusterInfo) -> Option<String> {
    let missing = NoMajority::of(cluster)?;
    Some(format!("{missing}; what it shows may be old, and nothing can be changed until then"))
}

/// A node and where it is.
pub(super) fn named(node: NodeId, brokers: &[BrokerInfo]) -> String {
    match brokers.iter().find(|broker| broker.node == node) {
        Some(broker) => format!("{node} at {}", broker.address),
        None => node.to_string(),
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
        let quorum = Quorum { held: true, ago_ms: Some(9), silent: vec![] };
        ClusterInfo { cluster_id, node: 1, version, controller: Some(2), quorum, throttle: None, brokers }
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

    #[test]
    fn a_majority_that_is_gone_is_said() {
        let brokers = vec![broker(1, false, false), broker(2, false, false), broker(3, false, false)];
        let mut cluster = cluster(brokers);
        cluster.controller = None;
        cluster.quorum = Quorum { held: false, ago_ms: Some(12_400), silent: vec![2, 3] };
        let status = Status::of(&cluster, vec![]);
        assert!(!status.is_well());
        assert_eq!(status.sentence(), "cluster c: 0 partitions, all in sync when there was a majority");
        let states: Vec<_> = status.brokers.iter().map(|broker| broker.state).collect();
        assert_eq!(states, ["up", "silent", "silent"]);
        let warning = status.warning.unwrap();
        assert!(
            warning.contains("most of the 3 voters behind it for 12 s; voters 2 at 10.0.0.2:9440, 3 at ")
        );
        assert!(status.brokers.iter().all(|broker| !broker.controller && !broker.quorum));
        cluster.quorum = Quorum::default();
        assert!(super::warning(&cluster).unwrap().contains("behind it since it started; what"));
    }

    #[test]
    fn the_throttle_shows_while_replicas_move() {
        let mut cluster = cluster(vec![broker(1, false, false), broker(2, false, false)]);
        cluster.throttle = Some(50 << 20);
        let of =
            |target| Status::of(&cluster, vec![topic("t", vec![partition(Some(1), &[1], &[1], target)])]);
        assert_eq!(of(None).sentence(), "cluster c: 1 partition, all in sync");
        let moving = "cluster c: 1 partition, 1 moving (each broker sends 50 MiB/s at most)";
        assert_eq!(of(Some(&[2])).sentence(), moving);
        assert!(of(None).brokers.iter().all(|broker| broker.throttle == Some(50 << 20)));
    }
}
