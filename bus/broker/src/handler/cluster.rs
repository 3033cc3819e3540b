//! Requests about the cluster and its brokers.

use std::sync::Arc;

use bus_metadata::{Applied, Balance, Command, balance, limits};
use bus_protocol::request::{Answer, BrokerInfo, ClusterInfo, Moves, Quorum, Response};
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
    let bus_metadata::Quorum { held, ago, silent } = node.metadata.quorum();
    let ago_ms = ago.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    ClusterInfo {
        cluster_id: image.cluster_id().unwrap_or_default().to_owned(),
        node: node.id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        controller: node.metadata.leader().filter(|leader| held && !silent.contains(leader)),
        quorum: Quorum { held, ago_ms, silent },
        throttle: image.replication_throttle(),
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
    let partitions = move_replicas(node, changes.collect(), throttle).await?;
    Ok(Response::Reassigning(Moves { partitions, ..Moves::default() }))
}

pub(super) async fn rebalance(node: &Arc<Node>, throttle: Option<u64>) -> Answer {
    let image = node.metadata.image();
    let Balance { changes, under_way, silent } = balance(&image);
    let partitions = move_replicas(node, changes, throttle).await?;
    let count = |partitions| u32::try_from(partitions).unwrap_or(u32::MAX);
    Ok(Response::Reassigning(Moves { partitions, under_way: count(under_way), silent: count(silent) }))
}

async fn move_replicas(
    node: &Arc<Node>,
    changes: Vec<Change>,
    throttle: Option<u64>,
) -> Result<u32, WireError> {
    // The throttle is set also where nothing has to move: of what is under way.
    if changes.is_empty() && throttle.is_some() {
        node.change(Command::Reassign { changes, throttle }).await?;
        return Ok(0);
    }
    let mut moving = None;
    for some in changes.chunks(limits::PARTITIONS_PER_COMMAND) {
        match node.change(Command::Reassign { changes: some.to_vec(), throttle }).await {
            Ok(Applied::Reassigned { partitions }) => moving = Some(moving.unwrap_or(0) + partitions),
            Err(error) => return Err(moving.map_or(error.clone(), |moving| half_way(moving, &error))),
            Ok(other) => {
                let message = format!("a reassignment was answered with {other:?}");
                return Err(WireError::new(ErrorCode::Internal, message));
            }
        }
    }
    Ok(moving.unwrap_or(0))
}

/// Why the rest of a reassignment was not made: that nothing was changed may be true of the rest, and no more.
fn half_way(moving: u32, error: &WireError) -> WireError {
    let message = format!(
        "{moving} partitions are moving by now (see `bus cluster status`); of the rest: {}",
        error.message
    );
    // What says to a program that nothing was changed would say so of all.
    let code = if error.code.is_retriable() { ErrorCode::TimedOut } else { error.code };
    WireError::new(code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_already_is_not_denied() {
        for code in [ErrorCode::NotLeader, ErrorCode::ShuttingDown, ErrorCode::Busy] {
            let half = half_way(1_000, &WireError::new(code, "no majority: nothing was changed"));
            assert_eq!(half.code, ErrorCode::TimedOut);
            assert!(half.message.starts_with("1000 partitions are moving"), "{half}");
        }
        let refused = WireError::new(ErrorCode::UnknownBroker, "no broker 9");
        assert_eq!(half_way(1_000, &refused).code, ErrorCode::UnknownBroker);
    }
}
