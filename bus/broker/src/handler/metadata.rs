//! A metadata stream: one of Raft's messages, and its answer, between brokers of one cluster.

use std::sync::Arc;

use bus_protocol::NodeId;
use bus_transport::{RecvStream, SendStream};

use crate::node::Node;

pub(crate) async fn serve(
    node: &Arc<Node>,
    peer: NodeId,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), bus_transport::Error> {
    let Some(((), request)) = recv.read_frame_within(bus_metadata::limits::PEER_MESSAGE_BYTES).await? else {
        return Ok(());
    };
    let answer = node.metadata.receive(peer, request).await;
    send.write_frame(&(), &[answer]).await?;
    send.finish()
}
