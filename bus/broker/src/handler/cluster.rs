//! Requests about the cluster and its brokers.

use std::sync::Arc;

use bus_metadata::{Applied, Command, balance, limits};
use bus_protocol::request::{Answer, BrokerInfo, ClusterInfo, Response};
use bus_protocol::{ErrorCode, NodeId, PartitionId, TopicId, TopicName, WireError};

use crate::node::Node;
use crate::topics::unknown_topic;

type Change = (TopicId, PartitionId, Vec<NodeId>);

pub(super) fn info(node: &Node) -> ClusterInfo {
    let image = node.metadata.image();
    let voters = node.metadata.members().voters;
    let brokers = image.brokers().map(|broker| BrokerInfo {
        node: broker.node,
        address: broker.address.clone(),
        fenced: broker.fenced,
        drained: broker.drained,
        epoch: broker.epoch,
        rack: broker.rack.clone(),
        voter: voters.contains_key(&broker.node),
    });
    ClusterInfo {
        cluster_id: image.cluster_id().unwrap_or_default().to_owned(),
        node: node.id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        controller: node.metadata.leader(),
        brokers: brokers.collect(),
    }
}

pub(super) async fn drain(node: &Arc<Node>, which: NodeId, drained: bool) -> Answer {
    node.change(Command::DrainBroker { node: which, drained }).await.map(|_| Response::Done)
}

pub(super) async fn reassign(
    node: &Arc<Node>,
    topic: &TopicName,
    assignments: Vec<(PartitionId, Vec<NodeId>)>,
    throttle: Option<u64>,
) -> Answer {
    let image = node.metadata.image();
    let id = image.topic(topic).ok_or_else(|| unknown_topic(topic))?.id;
    let changes = assignments.into_iter().map(|(partition, replicas)| (id, partition, replicas));
    move_replicas(node, changes.collect(), throttle).await
}

pub(super) async fn rebalance(node: &Arc<Node>, throttle: Option<u64>) -> Answer {
    let image = node.metadata.image();
    move_replicas(node, balance(&image), throttle).await
}

async fn move_replicas(node: &Arc<Node>, changes: Vec<Change>, throttle: Option<u64>) -> Answer {
    let mut partitions = 0;
    for some in changes.chunks(limits::PARTITIONS_PER_COMMAND) {
        match node.change(Command::Reassign { changes: some.to_vec(), throttle }).await? {
            Applied::Reassigned { partitions: moving } => partitions += moving,
            other => {
                let message = format!("a reassignment was answered with {other:?}");
                return Err(WireError::new(ErrorCode::Internal, message));
            }
        }
    }
    Ok(Response::Reassigning { partitions })
}
