//! Requests about topics.

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_metadata::{Command, MetadataImage};
use bus_protocol::request::{
    Answer, CreateTopic, PartitionInfo, PartitionState, Position, Response, TopicInfo,
};
use bus_protocol::{ErrorCode, PartitionId, TopicName, WireError};

use super::fetch;
use crate::node::Node;
use crate::topics::{Served, unknown_topic};

/// Replicas of a topic that the cluster itself needs, where there are brokers enough.
const INTERNAL_REPLICAS: u32 = 3;

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
        target: partition.target.clone(),
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
    node.change_everywhere(Command::CreateTopic(wanted)).await.map(|_| Response::Done)
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
    node.change_everywhere(Command::AlterTopic { topic, partitions, config }).await.map(|_| Response::Done)
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

pub(super) async fn describe(node: &Node, topic: &TopicName) -> Answer {
    let topic = node.topics.get(topic)?;
    let mut led = Vec::new();
    for (number, served) in topic.partitions.load_full().iter().enumerate() {
        let partition = number as PartitionId;
        match served {
            Served::Here(served) => {
                let reader = served.reader();
                led.push(PartitionInfo {
                    partition,
                    log_start: reader.log_start(),
                    high_watermark: served.high_watermark(),
                    log_end: reader.log_end(),
                    bytes: reader.size(),
                    offline: served.offline().map(ToString::to_string),
                    // One that is closed has none.
                    followers: served.followers().await.unwrap_or_default(),
                });
            }
            Served::Offline(why) => led.push(PartitionInfo {
                partition,
                log_start: 0,
                high_watermark: 0,
                log_end: 0,
                bytes: 0,
                offline: Some(why.clone()),
                followers: Vec::new(),
            }),
            Served::Follows(..) | Served::Elsewhere(_) => {}
        }
    }
    Ok(Response::Partitions(led))
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
        // A new leader must not say an end that is below what an earlier one said.
        let high_watermark = fetch::settled(&partition).await?.high_watermark;
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
    // As many copies as there are brokers for, and one of them may be gone.
    let up = node.metadata.image().brokers().filter(|broker| !broker.fenced && !broker.drained).count();
    let replicas = u32::try_from(up).unwrap_or(u32::MAX).clamp(1, INTERNAL_REPLICAS);
    let config = [("retention.ms", "-1"), ("min.insync.replicas", if replicas > 2 { "2" } else { "1" })];
    let wanted = CreateTopic {
        topic: topic.clone(),
        partitions,
        replicas,
        config: config.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        if_not_exists: true,
    };
    node.change_everywhere(Command::CreateTopic(wanted)).await.map(|_| ())
}
