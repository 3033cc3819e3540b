//! A request stream: one request, one answer.

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::request::{Answer, Request, Response};
use bus_protocol::{ErrorCode, NodeId, WireError, limits};
use bus_transport::{RecvStream, SendStream};
use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{cluster, functions, peers, topics};
use crate::groups::Groups;
use crate::node::Node;
use crate::server::room_for_frame;

pub(crate) async fn serve(
    node: &Arc<Node>,
    peer: Option<NodeId>,
    room: &Semaphore,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), bus_transport::Error> {
    let answer = match serve_one(node, peer, room, &mut recv).await {
        Ok(Some(answer)) => answer,
        Ok(None) => return Ok(()),
        // A message of a newer client is no reason to leave it without a word.
        Err(bus_transport::Error::Frame(error)) => {
            Err(WireError::new(ErrorCode::InvalidRequest, format!("the request cannot be read: {error}")))
        }
        Err(error) => return Err(error),
    };
    if let Err(refused) = &answer {
        tracing::debug!(code = ?refused.code, error = %refused, "request refused");
    }
    match answer {
        Ok((response, payload)) => send.write_frame(&Answer::Ok(response), &[payload]).await?,
        Err(refused) => send.write_frame(&Answer::Err(refused), &[]).await?,
    }
    send.finish()
}

/// Reads the request and carries it out; `None` where the stream ends without one.
async fn serve_one(
    node: &Arc<Node>,
    peer: Option<NodeId>,
    room: &Semaphore,
    recv: &mut RecvStream,
) -> Result<Option<Result<(Response, Bytes), WireError>>, bus_transport::Error> {
    let Some(_room) = room_for_frame(room, recv).await? else { return Ok(None) };
    // A module takes memory and time to compile: few at once, whoever sends them.
    let _upload = match recv.frame_length().await? {
        Some(length) if length > limits::SMALL_REQUEST_BYTES => node.uploads.acquire().await.ok(),
        _ => None,
    };
    let within = Duration::from_secs(limits::REQUEST_SECONDS);
    let Ok(read) = tokio::time::timeout(within, recv.read_frame::<Request>()).await else {
        let late = format!("the request did not arrive within {within:?}");
        return Ok(Some(Err(WireError::new(ErrorCode::TimedOut, late))));
    };
    let Some((request, payload)) = read? else { return Ok(None) };
    node.metrics.requests.increment(1);
    let answered = match peer {
        Some(_) => peers::answer(node, request, payload).await,
        None => answer(node, request, payload).await.map(|response| (response, Bytes::new())),
    };
    Ok(Some(answered))
}

pub(super) async fn answer(node: &Arc<Node>, request: Request, payload: Bytes) -> Answer {
    match request {
        Request::Cluster => Ok(Response::Cluster(cluster::info(node))),
        Request::Topics { topics: wanted } => topics::list(node, wanted),
        Request::CreateTopic(wanted) => topics::create(node, wanted).await,
        Request::AlterTopic { topic, partitions, config } => {
            topics::alter(node, topic, partitions, config).await
        }
        Request::DeleteTopic { topic } => topics::delete(node, topic).await,
        Request::DescribePartitions { topic } => topics::describe(node, &topic).await,
        Request::ListOffsets { topic, partitions, position } => {
            topics::list_offsets(node, &topic, &partitions, position).await
        }
        Request::DeployFunction(spec) => functions::deploy(node, spec, payload).await,
        Request::ListFunctions { name } => functions::list(node, name.as_deref()),
        Request::FunctionLogs { name, after } => functions::logs(node, &name, after),
        Request::DeleteFunction { name } => functions::delete(node, name).await,
        Request::CommitOffsets { group, offsets } => {
            Groups::ensure_topic(node).await?;
            node.groups.commit(node, &group, offsets).await.map(|()| Response::Done)
        }
        Request::CommittedOffsets { group } => {
            Groups::ensure_topic(node).await?;
            node.groups.committed(node, &group).await.map(Response::CommittedOffsets)
        }
        Request::InitProducer => node.producer_ids.next(node).await.map(|id| Response::Producer { id }),
        Request::DrainBroker { node: drained_node, drained } => {
            cluster::drain(node, drained_node, drained).await
        }
        Request::Reassign { topic, assignments, throttle } => {
            cluster::reassign(node, &topic, assignments, throttle).await
        }
        Request::Rebalance { throttle } => cluster::rebalance(node, throttle).await,
        Request::AwaitMetadata { .. }
        | Request::Append { .. }
        | Request::StoreModule
        | Request::FetchModule { .. } => {
            Err(WireError::new(ErrorCode::Unauthorized, "this request is for the cluster's brokers"))
        }
        other => {
            Err(WireError::new(ErrorCode::InvalidRequest, format!("this version does not serve {other:?}")))
        }
    }
}
