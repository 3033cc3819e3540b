//! The ways to the other brokers of the cluster.
//!
//! Two connections a broker: one for records that followers are sent, one for everything else, so that a heartbeat
//! never waits behind a megabyte. Each is made when it is first needed, and made anew when it proves dead.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus_metadata::{PeerClient, PeerError};
use bus_protocol::request::{Answer, Request, Response};
use bus_protocol::{ErrorCode, NodeId, StreamKind, WireError, limits};
use bus_transport::{Close, Connection, Endpoint, RecvStream, SendStream};
use bytes::Bytes;

/// Questions in a row without an answer after which a connection is given up: its peer has restarted, as a rule,
/// and the new process knows nothing of it.
const UNANSWERED: u32 = 3;
/// How long a request between brokers may take, where its sender does not say.
const REQUEST: Duration = Duration::from_secs(10);

/// Connections to other brokers; a node proves who it is by its certificate. A clone shows the same.
#[derive(Clone)]
pub(crate) struct Peers {
    endpoint: Endpoint,
    control: Pool,
    records: Pool,
}

type Pool = Arc<Mutex<HashMap<NodeId, Arc<Way>>>>;

/// The way to one broker.
#[derive(Default)]
struct Way {
    /// Held while connecting: those who wait want the same connection.
    connection: tokio::sync::Mutex<Option<(String, Connection)>>,
    unanswered: AtomicU32,
    /// Whether it was said that the broker takes no more streams.
    full: AtomicBool,
}

impl Peers {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, control: Pool::default(), records: Pool::default() }
    }

    async fn open(
        &self,
        pool: &Pool,
        (node, address): (NodeId, &str),
        kind: StreamKind,
    ) -> Result<(Arc<Way>, SendStream, RecvStream), bus_transport::Error> {
        let way = {
            let mut ways = pool.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(ways.entry(node).or_default())
        };
        let connection = {
            let mut kept = way.connection.lock().await;
            let dead = way.unanswered.load(Ordering::Relaxed) >= UNANSWERED;
            match &*kept {
                Some((at, connection)) if at == address && !dead && !connection.is_closed() => {
                    connection.clone()
                }
                _ => {
                    if let Some((_, dead)) = kept.take() {
                        dead.close(Close::Done);
                    }
                    let made = self.endpoint.connect_node(address, node).await?;
                    way.unanswered.store(0, Ordering::Relaxed);
                    *kept = Some((address.to_owned(), made.clone()));
                    made
                }
            }
        };
        let opened = connection.open(kind).await;
        let full = matches!(opened, Err(bus_transport::Error::NoStream(_)));
        if way.full.swap(full, Ordering::Relaxed) != full && full {
            let limit = limits::STREAMS_PER_BROKER;
            tracing::warn!(
                node,
                limit,
                "a broker takes no more streams: more partitions that it leads are not followed until others leave it"
            );
        }
        let (send, recv) = opened?;
        Ok((way, send, recv))
    }

    /// A stream on which the leader at `address` sends records.
    pub(crate) async fn replicate(
        &self,
        node: NodeId,
        address: &str,
    ) -> Result<(SendStream, RecvStream), bus_transport::Error> {
        let (_, send, recv) = self.open(&self.records, (node, address), StreamKind::Replicate).await?;
        Ok((send, recv))
    }

    /// Has the broker `node` at `address` carry out a request; the second part of what comes back is the payload of
    /// its answer.
    pub(crate) async fn request(
        &self,
        (node, address): (NodeId, &str),
        request: &Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes), WireError> {
        self.request_within(REQUEST, (node, address), request, payload).await
    }

    /// As [`Self::request`]; a request that is not answered in time may have been carried out.
    pub(crate) async fn request_within(
        &self,
        within: Duration,
        (node, address): (NodeId, &str),
        request: &Request,
        payload: Bytes,
    ) -> Result<(Response, Bytes), WireError> {
        let asked = async {
            let (way, mut send, mut recv) =
                self.open(&self.control, (node, address), StreamKind::Request).await?;
            let waiting = Waiting::on(&way);
            send.write_frame(request, &[payload]).await?;
            send.finish()?;
            let answer = recv.read_frame::<Answer>().await?.ok_or(bus_transport::Error::Truncated)?;
            waiting.answered();
            Ok::<_, bus_transport::Error>(answer)
        };
        match tokio::time::timeout(within, asked).await {
            Ok(Ok((answer, payload))) => answer.map(|response| (response, payload)),
            Ok(Err(error)) => Err(WireError::new(
                ErrorCode::Busy,
                format!("node {node} at {address} cannot be asked: {error}"),
            )),
            Err(_) => Err(WireError::new(
                ErrorCode::TimedOut,
                format!("node {node} at {address} did not answer within {within:?}"),
            )),
        }
    }
}

/// Sends one of metadata's messages, and brings the answer.
async fn tell(
    mut send: SendStream,
    mut recv: RecvStream,
    message: Bytes,
) -> Result<Bytes, bus_transport::Error> {
    send.write_frame(&(), &[message]).await?;
    send.finish()?;
    let answer = recv.read_frame_within::<()>(limits::PAYLOAD_BYTES).await?;
    answer.map(|((), answer)| answer).ok_or(bus_transport::Error::Truncated)
}

/// Counts a question as unanswered when it is dropped: who asks sets the deadline by dropping the future.
struct Waiting<'a> {
    way: &'a Way,
    answered: bool,
}

impl<'a> Waiting<'a> {
    fn on(way: &'a Way) -> Self {
        Self { way, answered: false }
    }

    fn answered(mut self) {
        self.answered = true;
        self.way.unanswered.store(0, Ordering::Relaxed);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.way.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[async_trait::async_trait]
impl PeerClient for Peers {
    async fn call(&self, node: NodeId, address: &str, request: Bytes) -> Result<Bytes, PeerError> {
        let opened = self.open(&self.control, (node, address), StreamKind::Metadata).await;
        let (way, send, recv) =
            opened.map_err(|error| PeerError::Unreachable { node, why: error.to_string() })?;
        let waiting = Waiting::on(&way);
        // From here on it may have arrived.
        let answer = tell(send, recv, request).await;
        let answer = answer.map_err(|error| PeerError::Broken { node, why: error.to_string() })?;
        waiting.answered();
        Ok(answer)
    }

    async fn call_address(&self, address: &str, request: Bytes) -> Result<Bytes, PeerError> {
        let failed = |error: bus_transport::Error| {
            let (address, why) = (address.to_owned(), error.to_string());
            match error {
                bus_transport::Error::Untrusted { .. } | bus_transport::Error::Rejected { .. } => {
                    let why = "they are of different CAs: copy tls/ca.pem and tls/ca.key from a node of the \
                               cluster into an empty data directory for this one";
                    PeerError::Distrusted { address, why: why.to_owned() }
                }
                _ => PeerError::NoAnswer { address, why },
            }
        };
        let connection = self.endpoint.connect(address).await.map_err(failed)?;
        let (send, recv) = connection.open(StreamKind::Metadata).await.map_err(failed)?;
        let answer = tell(send, recv, request).await.map_err(failed);
        connection.close(Close::Done);
        answer
    }
}
