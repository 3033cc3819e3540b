//! Partitions that are needed and that nobody leads.

use std::collections::BTreeMap;
use std::fmt;

use bus_protocol::request::PartitionState;
use bus_protocol::{NodeId, PartitionId, TopicName};
use tokio::sync::watch;

use crate::Client;

/// A partition without a leader. It gets one as soon as one of those that have all of its records is up and able to;
/// what needs the partition waits until then, or until its own timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoLeader {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// Who has all of its records, and where they are.
    pub in_sync: Vec<(NodeId, String)>,
    /// Whether all of those are down, as brokers say.
    pub down: bool,
}

impl fmt::Display for NoLeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, in_sync, down } = self;
        write!(f, "partition {topic}-{partition} has no leader")?;
        match &in_sync[..] {
            [(node, address)] if *down => {
                write!(f, ": only node {node} at {address} has all of its records, and is down: start it")
            }
            several if *down => {
                let several = several.iter().map(|(node, address)| format!("{node} at {address}"));
                let several = several.collect::<Vec<_>>().join(", ");
                write!(f, ": the nodes that have all of its records, {several}, are down: start one")
            }
            [] => write!(
                f,
                ": no replica is known to have all of its records. `bus topic alter {topic} --config \
                 unclean.leader.election.enable=true` goes on with what one of them has, without the rest"
            ),
            _ => write!(f, ": see `bus topic describe {topic}`"),
        }
    }
}

/// The partitions that had no leader when they were needed, and have had none since.
#[derive(Default)]
pub(crate) struct Leaderless(watch::Sender<BTreeMap<(TopicName, PartitionId), NoLeader>>);

impl Leaderless {
    /// What metadata says of a topic's partitions now; nothing, where there is none of that name.
    pub(crate) fn hear(&self, topic: &TopicName, partitions: &[PartitionState]) {
        let has_none = |partition: PartitionId| {
            partitions.get(partition as usize).is_some_and(|now| now.leader.is_none())
        };
        self.0.send_if_modified(|all| {
            let before = all.len();
            all.retain(|(name, partition), _| name != topic || has_none(*partition));
            all.len() < before
        });
    }

    /// It was needed, and had none.
    pub(crate) fn missed(&self, what: &NoLeader) {
        self.0.send_if_modified(|all| {
            all.insert((what.topic.clone(), what.partition), what.clone()).as_ref() != Some(what)
        });
    }
}

impl Client {
    /// The partitions that had no leader when this client needed them, and have had none since, as far as it has asked.
    pub fn leaderless(&self) -> watch::Receiver<BTreeMap<(TopicName, PartitionId), NoLeader>> {
        self.metadata().leaderless.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_could_lead_is_said_and_heard_once() {
        let at = |node: NodeId| (node, format!("10.0.0.{node}:9440"));
        let missing = |partition, nodes: &[NodeId]| NoLeader {
            topic: TopicName::new("t").unwrap(),
            partition,
            in_sync: nodes.iter().copied().map(at).collect(),
            down: true,
        };
        assert_eq!(
            missing(0, &[2]).to_string(),
            "partition t-0 has no leader: only node 2 at 10.0.0.2:9440 has all of its records, and is down: start it"
        );
        let several = missing(1, &[1, 2]).to_string();
        assert!(several.ends_with("records, 1 at 10.0.0.1:9440, 2 at 10.0.0.2:9440, are down: start one"));
        let nobody = NoLeader { down: false, ..missing(0, &[]) }.to_string();
        assert!(nobody.contains("no replica is known to have all of its records"), "{nobody}");
        let up = NoLeader { down: false, ..missing(0, &[2]) }.to_string();
        assert_eq!(up, "partition t-0 has no leader: see `bus topic describe t`");

        let leaderless = Leaderless::default();
        let mut heard = leaderless.0.subscribe();
        leaderless.missed(&missing(0, &[2]));
        assert!(heard.has_changed().unwrap());
        heard.mark_unchanged();
        leaderless.missed(&missing(0, &[2]));
        assert!(!heard.has_changed().unwrap(), "nothing new");
        leaderless.missed(&missing(1, &[2]));
        let led = |leader| PartitionState { leader, epoch: 3, replicas: vec![2], isr: vec![2], target: None };
        leaderless.hear(&TopicName::new("u").unwrap(), &[]);
        leaderless.hear(&missing(0, &[2]).topic, &[led(Some(2)), led(None)]);
        assert_eq!(heard.borrow().keys().map(|(_, partition)| *partition).collect::<Vec<_>>(), [1]);
        leaderless.hear(&missing(0, &[2]).topic, &[led(None)]);
        assert!(heard.borrow().is_empty(), "it has fewer partitions now");
    }
}
