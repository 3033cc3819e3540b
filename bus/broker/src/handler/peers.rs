//! Requests of other brokers.

use std::sync::Arc;

use bus_protocol::batch::RecordBatch;
use bus_protocol::produce::Acks;
use bus_protocol::request::{Request, Response};
use bus_protocol::{ErrorCode, PartitionId, TopicName, WireError};
use bytes::Bytes;

use super::request;
use crate::ingest::ingest;
use crate::node::{Node, SETTLE};
use crate::refusal::Refusal as _;

/// Answers a broker. What users may ask it may ask as well; what it forwards is not forwarded again.
pub(super) async fn answer(
    node: &Arc<Node>,
    request: Request,
    payload: Bytes,
) -> Result<(Response, Bytes), WireError> {
    let response = match request {
        Request::AwaitMetadata { index } => {
            // Whoever asks has gone on by then.
            let late = |_| WireError::new(ErrorCode::TimedOut, "this broker does not run the change yet");
            tokio::time::timeout(SETTLE, node.await_metadata(index)).await.map_err(late)??;
            tokio::time::timeout(SETTLE, node.modules.complete()).await.ok();
            Response::Done
        }
        Request::Append { topic, partition, acks } => append(node, &topic, partition, acks, payload).await?,
        Request::StoreModule => {
            let blobs = node.blobs.clone();
            node.blocking(move || blobs.put(&payload)).await?;
            Response::Done
        }
        Request::FetchModule { module } => {
            let blobs = node.blobs.clone();
            let bytes = node.blocking(move || blobs.get(module)).await?;
            return Ok((Response::Module, bytes));
        }
        Request::CommitOffsets { group, offsets } => {
            node.groups.commit_here(node, &group, offsets).await?;
            Response::Done
        }
        Request::CommittedOffsets { group } => {
            Response::CommittedOffsets(node.groups.committed_here(node, &group).await?)
        }
        other => request::answer(node, other, payload).await?,
    };
    Ok((response, Bytes::new()))
}

async fn append(
    node: &Node,
    topic: &TopicName,
    number: PartitionId,
    acks: Acks,
    batch: Bytes,
) -> Result<Response, WireError> {
    let (topic, partition) = node.topics.partition(topic, number)?;
    let lane = partition.lane().map_err(|error| error.refusal())?;
    let batch = RecordBatch::parse(batch).map_err(|error| error.refusal())?;
    let ticket = ingest(&topic, &partition, batch, acks, &lane).await?;
    ticket.await.map(Response::Appended).map_err(|error| error.refusal())
}
