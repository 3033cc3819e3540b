//! Questions to one node, and to no other: a client would go on to the next that answers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bus_protocol::StreamKind;
use bus_protocol::request::{Answer, Request, Response};
use bus_transport::{Connection, Endpoint, Options, Trust};

/// How long a node may take to answer before it counts as silent.
const PATIENCE: Duration = Duration::from_secs(1);

/// Connections to nodes. Its endpoint lives on the network's threads.
#[derive(Debug)]
pub(crate) struct Inquiry {
    endpoint: Endpoint,
    connections: Mutex<HashMap<String, Connection>>,
}

impl Inquiry {
    /// Within a runtime that does not stand still.
    pub(crate) fn new(trust: Trust) -> anyhow::Result<Self> {
        let options = Options { connect_timeout_ms: 1_000, ..Options::default() };
        Ok(Self { endpoint: Endpoint::client(trust, None, &options)?, connections: Mutex::default() })
    }

    /// What the node at `address` answers, within a second.
    pub(crate) async fn ask(&self, address: &str, request: &Request) -> anyhow::Result<Response> {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(address, request)).await;
        let answer = answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}")));
        if answer.is_err() {
            // The next question gets a connection of its own: the node may have another life by then.
            self.connections.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
        }
        answer.with_context(|| format!("the node at {address}"))
    }

    async fn exchange(&self, address: &str, request: &Request) -> anyhow::Result<Response> {
        let known = self.connections.lock().unwrap_or_else(PoisonError::into_inner).get(address).cloned();
        let connection = match known.filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => {
                let connection = self.endpoint.connect(address).await?;
                let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
                connections.insert(address.to_owned(), connection.clone());
                connection
            }
        };
        let (mut send, mut recv) = connection.open(StreamKind::Request).await?;
        send.write_frame(request, &[]).await?;
        send.finish()?;
        let (answer, _) = recv.read_frame::<Answer>().await?.context("the stream ended without an answer")?;
        Ok(answer?)
    }
}
