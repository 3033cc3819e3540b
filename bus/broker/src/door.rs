//! Who gets in: places for handshakes, for clients and for brokers, each apart, so that no number of clients keeps the
//! brokers of a cluster from each other.
//!
//! ```text
//!   knock ──▶ a handshake; the oldest gives way ──▶ a broker, by its certificate ──▶ a broker's place
//!                                              └──▶ anybody else ──▶ a client's place, or Close::Full
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use bus_protocol::{ErrorCode, NodeId, WireError, limits};
use bus_transport::{Close, Connection, Endpoint, Error, Incoming, Opening};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

/// How many may be inside at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// Of which nobody knows yet who they are.
    pub(crate) handshakes: usize,
    pub(crate) clients: usize,
    pub(crate) brokers: usize,
    /// Streams of all clients together.
    pub(crate) client_streams: usize,
    /// Streams on one connection.
    pub(crate) streams: Streams,
}

/// How many streams a connection may hold open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams {
    /// As the transport allows them on any connection.
    pub(crate) at_first: u32,
    pub(crate) of_client: u32,
    pub(crate) of_broker: u32,
}

impl Places {
    /// As [`limits`] has them, but for those that the settings say.
    pub(crate) fn new(clients: usize, streams_at_first: u32) -> Self {
        Self {
            handshakes: limits::HANDSHAKES,
            clients,
            brokers: limits::BROKER_CONNECTIONS,
            client_streams: limits::CLIENT_STREAMS,
            streams: Streams {
                at_first: streams_at_first,
                of_client: limits::STREAMS_PER_CLIENT,
                of_broker: limits::STREAMS_PER_BROKER,
            },
        }
    }
}

/// Lets peers in.
pub(crate) struct Door {
    endpoint: Endpoint,
    handshakes: JoinSet<Result<Connection, Error>>,
    /// The handshakes, oldest first; some may have ended.
    under_way: VecDeque<AbortHandle>,
    at_once: usize,
    clients: Room,
    brokers: Room,
    client_streams: Arc<Semaphore>,
    streams: Streams,
}

/// The places for one kind of peer.
struct Room {
    of: &'static str,
    places: Arc<Semaphore>,
    limit: usize,
    /// Said once, and again when there was room between.
    full: bool,
}

impl Room {
    fn new(of: &'static str, limit: usize) -> Self {
        Self { of, places: Arc::new(Semaphore::new(limit)), limit, full: false }
    }

    fn enter(&mut self) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok();
        if place.is_none() && !self.full {
            tracing::warn!(of = self.of, limit = self.limit, "connections are refused: all places are taken");
        }
        self.full = place.is_none();
        place
    }
}

impl Door {
    pub(crate) fn new(endpoint: Endpoint, places: Places) -> Self {
        Self {
            endpoint,
            handshakes: JoinSet::new(),
            under_way: VecDeque::new(),
            at_once: places.handshakes,
            clients: Room::new("clients", places.clients),
            brokers: Room::new("brokers", places.brokers),
            client_streams: Arc::new(Semaphore::new(places.client_streams)),
            streams: places.streams,
        }
    }

    /// The next peer that has a place; the others are told that there is none. `None` once the endpoint is closed.
    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Guest> {
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => self.shake(incoming?),
                Some(ended) = self.handshakes.join_next() => match ended {
                    Ok(Ok(connection)) => {
                        if let Some(guest) = self.admit(connection) {
                            return Some(guest);
                        }
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "handshake failed"),
                    Err(ended) if ended.is_cancelled() => tracing::debug!("a handshake gave way to newer ones"),
                    Err(panic) => tracing::error!(error = %panic, "a handshake panicked"),
                },
            }
        }
    }

    /// Begins a handshake. An honest one takes some round trips, so that of many the oldest are those that never end.
    fn shake(&mut self, incoming: Incoming) {
        let mut incoming = Some(incoming);
        // Invented addresses shall not take the places of real ones.
        if self.handshakes.len() >= self.at_once / 2 {
            incoming = incoming.and_then(Incoming::validated);
        }
        let Some(incoming) = incoming else { return };
        if self.under_way.len() >= self.at_once {
            self.under_way.retain(|handshake| !handshake.is_finished());
        }
        if self.under_way.len() >= self.at_once
            && let Some(oldest) = self.under_way.pop_front()
        {
            oldest.abort();
        }
        self.under_way.push_back(self.handshakes.spawn(incoming.accept()));
    }

    fn admit(&mut self, connection: Connection) -> Option<Guest> {
        let broker = connection.peer_node().is_some();
        let room = if broker { &mut self.brokers } else { &mut self.clients };
        let Some(place) = room.enter() else {
            connection.close(Close::Full);
            return None;
        };
        let most = if broker { self.streams.of_broker } else { self.streams.of_client };
        Some(Guest {
            connection,
            allowed: self.streams.at_first.min(most),
            most,
            full: false,
            shared: (!broker).then(|| Arc::clone(&self.client_streams)),
            _place: place,
        })
    }
}

/// A peer that was let in, and the place that it takes.
pub(crate) struct Guest {
    connection: Connection,
    /// Streams that it may hold open now.
    allowed: u32,
    /// Streams that it may come to hold open.
    most: u32,
    /// Whether that was said to be reached.
    full: bool,
    /// The places for the streams of all clients; brokers need none.
    shared: Option<Arc<Semaphore>>,
    _place: OwnedSemaphorePermit,
}

/// A stream that a guest opened.
pub(crate) struct Stream {
    pub(crate) opening: Opening,
    /// Its place, where it needs one, as long as this lives; or what it is to be refused with.
    pub(crate) place: Result<Option<OwnedSemaphorePermit>, WireError>,
}

impl Guest {
    /// The broker that it proved to be.
    pub(crate) fn peer_node(&self) -> Option<NodeId> {
        self.connection.peer_node()
    }

    /// The next stream, while `open` are open. Cancel-safe.
    pub(crate) async fn stream(&mut self, open: usize) -> Result<Stream, Error> {
        self.allow(u32::try_from(open).unwrap_or(u32::MAX));
        let opening = self.connection.accept().await?;
        let place = match &self.shared {
            None => Ok(None),
            Some(places) => Arc::clone(places).try_acquire_owned().map(Some).map_err(|_| {
                let full =
                    "the broker's clients hold as many streams as it serves: ask another, or try again";
                WireError::new(ErrorCode::Busy, full)
            }),
        };
        Ok(Stream { opening, place })
    }

    /// Allows twice as many streams once half of them are used: those that are allowed take memory, used or not.
    fn allow(&mut self, open: u32) {
        if self.allowed < self.most && open >= self.allowed / 2 {
            self.allowed = self.allowed.saturating_mul(2).min(self.most);
            self.connection.allow_streams(self.allowed);
        }
        let full = open >= self.most;
        if full && !self.full {
            let (peer, node) = (self.connection.remote_address(), self.connection.peer_node());
            tracing::warn!(%peer, node, limit = self.most, "a connection has all the streams that it may have: more wait");
        }
        self.full = full;
    }
}

#[cfg(test)]
mod tests;
