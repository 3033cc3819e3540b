//! The way to the other brokers of the cluster, for Raft's messages.

use std::collections::HashMap;

use bus_metadata::{PeerClient, PeerError};
use bus_protocol::{NodeId, StreamKind};
use bus_transport::{Connection, Endpoint};
use bytes::Bytes;
use tokio::sync::Mutex;

/// Connections to other brokers, made when first needed and kept; a node proves who it is by its certificate.
pub(crate) struct Peers {
    endpoint: Endpoint,
    connections: Mutex<HashMap<NodeId, Connection>>,
}

impl Peers {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, connections: Mutex::default() }
    }

    async fn connection(&self, node: NodeId, address: &str) -> Result<Connection, bus_transport::Error> {
        // Held while connecting: the callers that wait want the same connection.
        let mut connections = self.connections.lock().await;
        if let Some(connection) = connections.get(&node).filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let connection = self.endpoint.connect_node(address, node).await?;
        connections.insert(node, connection.clone());
        Ok(connection)
    }

    async fn ask(&self, node: NodeId, address: &str, request: Bytes) -> Result<Bytes, bus_transport::Error> {
        let (mut send, mut recv) = self.connection(node, address).await?.open(StreamKind::Metadata).await?;
        send.write_frame(&(), &[request]).await?;
        send.finish()?;
        match recv.read_frame::<()>().await? {
            Some(((), answer)) => Ok(answer),
            None => Err(bus_transport::Error::Truncated),
        }
    }
}

#[async_trait::async_trait]
impl PeerClient for Peers {
    async fn call(&self, node: NodeId, address: &str, request: Bytes) -> Result<Bytes, PeerError> {
        self.ask(node, address, request)
            .await
            .map_err(|error| PeerError::Unreachable { node, why: error.to_string() })
    }
}
