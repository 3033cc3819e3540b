//! Requests about topics.

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_metadata::{Command, MetadataImage};
use bus_protocol::request::{
    Answer, CreateTopic, PartitionInfo, PartitionState, Position, Response, TopicInfo,
};
use bus_protocol::{ErrorCode, PartitionId, TopicName, WireError};

use crate::node::Node;
use crate::topics::{Served, unknown_topic};

pub(super) fn list(node: &Node, wanted: Option<Vec<TopicName>>) -> Answer {
    let image = node.metadata.image();
    let topics = match wanted {
        None => image.topics().map(|topic| info(&image, topic)).collect(),
        Some(names) => names
            .iter()
            .map(|name| image.topic(name).map(|topic| info(&image, topic)).ok_or_else(|| unknown_topic(name)))
            .collect::<Result<_, _>>()?,
    };
    Ok(Response::Topics(topics))
}

fn info(image: &MetadataImage, topic: &bus_metadata::Topic) -> TopicInfo {
    let transforms = image.transforms_of(&topic.name).into_iter();
    let functions = transforms.chain(image.consumers_of(&topic.name)).map(|function| function.name.clone());
    let partitions = topic.partitions.iter().map(|partition| PartitionState {
        leader: partition.leader,
        epoch: partition.leader_epoch,
        replicas: partition.replicas.clone(),
        isr: partition.isr.clone(),
    });
    TopicInfo {
        topic: topic.name.clone(),
        id: topic.id,
        config: topic.config.to_map(),
        functions: functions.collect(),
        partitions: partitions.collect(),
    }
}

pub(super) async fn create(node: &Arc<Node>, wanted: CreateTopic) -> Answer {
    if wanted.topic.is_internal() {
        return Err(internal(&wanted.topic));
    }
    node.change(Command::CreateTopic(wanted)).await.map(|_| Response::Done)
}

pub(super) async fn alter(
    node: &Arc<Node>,
    topic: TopicName,
    partitions: Option<u32>,
    config: BTreeMap<String, String>,
) -> Answer {
    if topic.is_internal() {
        return Err(internal(&topic));
    }
    node.change(Command::AlterTopic { topic, partitions, config }).await.map(|_| Response::Done)
}

pub(super) async fn delete(node: &Arc<Node>, topic: TopicName) -> Answer {
    if topic.is_internal() {
        return Err(internal(&topic));
    }
    node.change(Command::DeleteTopic { topic }).await.map(|_| Response::Done)
}

fn internal(topic: &TopicName) -> WireError {
    WireError::new(
        ErrorCode::Unauthorized,
        format!("topic {topic} is the cluster's own: names that begin with __ are not given to users"),
    )
}

pub(super) fn describe(node: &Node, topic: &TopicName) -> Answer {
    let topic = node.topics.get(topic)?;
    let partitions = topic.partitions.load();
    let led = partitions.iter().enumerate().filter_map(|(number, served)| {
        let partition = number as PartitionId;
        match served {
            Served::Here(served) => {
                let reader = served.reader();
                Some(PartitionInfo {
                    partition,
                    log_start: reader.log_start(),
                    high_watermark: served.high_watermark(),
                    log_end: reader.log_end(),
                    bytes: reader.size(),
                    offline: served.offline().map(str::to_owned),
                })
            }
            Served::Offline(why) => Some(PartitionInfo {
                partition,
                log_start: 0,
                high_watermark: 0,
                log_end: 0,
                bytes: 0,
                offline: Some(why.clone()),
            }),
            Served::Elsewhere => None,
        }
    });
    Ok(Response::Partitions(led.collect()))
}

pub(super) async fn list_offsets(
    node: &Node,
    topic: &TopicName,
    partitions: &[PartitionId],
    position: Position,
) -> Answer {
    let mut offsets = Vec::with_capacity(partitions.len());
    for number in partitions {
        let (_, partition) = node.topics.partition(topic, *number)?;
        let high_watermark = partition.high_watermark();
        let offset = match position {
            Position::Start => partition.reader().log_start(),
            Position::End => high_watermark,
            Position::Timestamp(timestamp) => {
                let reader = partition.reader().clone();
                let found =
                    node.blocking(move || reader.offset_for_timestamp(timestamp, high_watermark)).await?;
                found.map_or(high_watermark, |(offset, _)| offset)
            }
        };
        offsets.push((*number, offset));
    }
    Ok(Response::Offsets(offsets))
}

/// A topic that the cluster itself needs, made where it is missing.
pub(crate) async fn ensure(node: &Arc<Node>, topic: &TopicName, partitions: u32) -> Result<(), WireError> {
    if node.topics.get(topic).is_ok() {
        return Ok(());
    }
    let wanted = CreateTopic {
        topic: topic.clone(),
        partitions,
        replicas: 1,
        config: BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]),
        if_not_exists: true,
    };
    node.change(Command::CreateTopic(wanted)).await.map(|_| ())
}
