//! Serves who was let in: each stream goes to the handler of its kind.

use std::sync::Arc;

use bus_protocol::{ErrorCode, NodeId, StreamKind, WireError, limits};
use bus_transport::{Endpoint, Opening, RecvStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;

use crate::door::{Door, Guest, Places, Stream};
use crate::handler;
use crate::node::Node;

/// Serves until the broker stops; then no stream is served any more.
pub(crate) async fn serve(endpoint: Endpoint, node: Arc<Node>) {
    let places = Places::new(node.options.max_connections, node.options.transport.streams);
    let mut door = Door::new(endpoint, places);
    let mut connections = JoinSet::new();
    let stopping = node.stopping();
    tokio::pin!(stopping);
    loop {
        tokio::select! {
            guest = door.next() => {
                let Some(guest) = guest else { break };
                connections.spawn(serve_connection(guest, Arc::clone(&node)));
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = &mut stopping => break,
        }
    }
}

async fn serve_connection(mut guest: Guest, node: Arc<Node>) {
    node.metrics.connections.increment(1.0);
    let peer = guest.peer_node();
    // What this connection sends half takes memory: of this, and no more.
    let room = Arc::new(Semaphore::new(limits::CONNECTION_FRAME_BYTES));
    // Streams end with their connection.
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = guest.stream(streams.len()) => match stream {
                Ok(Stream { opening, place }) => {
                    let (node, room) = (Arc::clone(&node), Arc::clone(&room));
                    streams.spawn(async move {
                        let _place = match place {
                            Ok(place) => place,
                            Err(full) => return opening.refuse(full).await,
                        };
                        if let Err(error) = serve_stream(opening, peer, &room, &node).await {
                            tracing::debug!(%error, "stream ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "connection ended");
                    break;
                }
            },
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
        }
    }
    node.metrics.connections.decrement(1.0);
}

async fn serve_stream(
    opening: Opening,
    peer: Option<NodeId>,
    room: &Semaphore,
    node: &Arc<Node>,
) -> Result<(), bus_transport::Error> {
    let (kind, mut send, recv) = opening.accept().await?;
    let between_brokers = matches!(kind, StreamKind::Metadata | StreamKind::Replicate);
    if !between_brokers && !node.is_ready() {
        let starting =
            WireError::new(ErrorCode::Busy, "the broker is starting or stopping: ask another, or try again");
        send.write_frame(&starting, &[]).await?;
        return send.finish();
    }
    match kind {
        StreamKind::Request => handler::request::serve(node, peer, room, send, recv).await,
        StreamKind::Produce => handler::produce::serve(node, room, send, recv).await,
        StreamKind::Fetch => handler::fetch::serve(node, send, recv).await,
        StreamKind::Discard => bus_transport::drain(send, recv).await.map(drop),
        // The peer's certificate is of this cluster's CA, or there is none: only brokers have one.
        StreamKind::Metadata | StreamKind::Replicate => match peer {
            Some(peer) if kind == StreamKind::Metadata => {
                handler::metadata::serve(node, peer, send, recv).await
            }
            Some(peer) => handler::replicate::serve(node, peer, send, recv).await,
            None => {
                let refused =
                    WireError::new(ErrorCode::Unauthorized, "this stream is for the cluster's brokers");
                send.write_frame(&refused, &[]).await?;
                send.finish()
            }
        },
    }
}

/// Waits until the connection has room for the next frame of `recv`; `None` where the stream ends. The room is
/// taken for as long as the permit lives.
pub(crate) async fn room_for_frame<'a>(
    room: &'a Semaphore,
    recv: &mut RecvStream,
) -> Result<Option<SemaphorePermit<'a>>, bus_transport::Error> {
    let Some(length) = recv.frame_length().await? else { return Ok(None) };
    let permits = u32::try_from(length.min(limits::CONNECTION_FRAME_BYTES)).unwrap_or(u32::MAX);
    room.acquire_many(permits).await.map(Some).map_err(|_| bus_transport::Error::LocallyClosed)
}
