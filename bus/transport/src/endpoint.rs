//! Endpoints: one UDP socket each, and all connections that go over it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bus_protocol::NodeId;
use quinn::{IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;

use crate::tls::Believed;
use crate::{Close, Connection, Error, Identity, Options, Trust, certificate, connection, tls};

/// The head start of each address of a host over the next (RFC 8305, "connection attempt delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How long peers may take to hear that their connections are closed.
const CLOSING: Duration = Duration::from_millis(50);

/// A UDP socket and its connections: a server, a client, or both. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    shared: Arc<Shared>,
}

/// A server's address, taken: what else the server needs is made only where that can be had.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    listen: SocketAddr,
}

impl Listener {
    /// Takes `listen`; nobody is let in yet.
    pub fn bind(listen: SocketAddr, options: &Options) -> Result<Self, Error> {
        let socket = socket(listen, options);
        let socket = socket.map_err(|source| Error::Listen { address: listen.to_string(), source })?;
        Ok(Self { socket, listen })
    }

    /// The address that was taken: where any free port was asked for, with the one that was found.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        let taken = self.socket.local_addr().map(|address| address.as_socket());
        Ok(taken.map_err(|error| Error::Lost(error.to_string()))?.unwrap_or(self.listen))
    }
}

#[derive(Debug)]
struct Shared {
    trust: Trust,
    identity: Option<Arc<Identity>>,
    options: Options,
    /// Of connections that are made from here, to servers and to other brokers: no peer opens streams on those.
    transport: Arc<TransportConfig>,
    peer_transport: Arc<TransportConfig>,
}

impl Shared {
    fn new(trust: Trust, identity: Option<Arc<Identity>>, options: &Options) -> Result<Self, Error> {
        let transport = transport(options, 0)?;
        let peer_transport = self::transport(&options.between_peers(), 0)?;
        Ok(Self { trust, identity, options: options.clone(), transport, peer_transport })
    }
}

impl Endpoint {
    /// A server on `listen`. Its own connections, to other brokers, show the same identity and trust its CA.
    /// Runs within a tokio runtime.
    pub fn server(listen: SocketAddr, identity: Arc<Identity>, options: &Options) -> Result<Self, Error> {
        Self::serve(Listener::bind(listen, options)?, identity, options)
    }

    /// As [`Self::server`], on a socket that is bound already.
    pub fn serve(listener: Listener, identity: Arc<Identity>, options: &Options) -> Result<Self, Error> {
        let crypto = tls::server(&identity)?;
        let trust = Trust::Pem(identity.ca_pem().to_owned());
        let shared = Shared::new(trust, Some(identity), options)?;
        let mut server = quinn::ServerConfig::with_crypto(crypto);
        server.transport_config(transport(options, options.streams)?).migration(true);
        let Listener { socket, listen } = listener;
        let inner = endpoint(socket, Some(server), options)
            .map_err(|source| Error::Listen { address: listen.to_string(), source })?;
        Ok(Self { inner, shared: Arc::new(shared) })
    }

    /// A client on any free port. Runs within a tokio runtime.
    pub fn client(trust: Trust, identity: Option<Arc<Identity>>, options: &Options) -> Result<Self, Error> {
        let shared = Shared::new(trust, identity, options)?;
        // One socket for both families; where the machine has no IPv6, for the one there is.
        let inner = socket((Ipv6Addr::UNSPECIFIED, 0).into(), options)
            .or_else(|_| socket((Ipv4Addr::UNSPECIFIED, 0).into(), options))
            .and_then(|socket| endpoint(socket, None, options))
            .map_err(|source| Error::Listen { address: "any port".to_owned(), source })?;
        Ok(Self { inner, shared: Arc::new(shared) })
    }

    /// The socket's address.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.inner.local_addr().map_err(|error| Error::Lost(error.to_string()))
    }

    /// The next client that knocks; `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        let incoming = self.inner.accept().await?;
        Some(Incoming { inner: incoming, shared: self.shared.clone() })
    }

    /// Goes on from another UDP socket, on any free port of the same family. The connections migrate with what is under
    /// way on them (RFC 9000, section 9): for a client whose machine has got another address.
    pub fn rebind(&self) -> Result<(), Error> {
        let failed = |error: io::Error| Error::Lost(error.to_string());
        let any: SocketAddr = match self.inner.local_addr().map_err(failed)? {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = socket(any, &self.shared.options)
            .map_err(|source| Error::Listen { address: "any port".to_owned(), source })?;
        self.inner.rebind(socket.into()).map_err(failed)
    }

    /// How many connections there are, those under way among them.
    pub fn connections(&self) -> usize {
        self.inner.open_connections()
    }

    /// A connection to the server at `address` (`HOST:PORT`), whose certificate must be for that host.
    /// Fails after `Options::connect_timeout_ms` at the latest.
    pub async fn connect(&self, address: &str) -> Result<Connection, Error> {
        let host = split(address)?.0.to_owned();
        self.connect_as(address, &host, self.shared.transport.clone()).await
    }

    /// A connection to the broker `node` at `address`, whose certificate must be that broker's, whatever the host.
    /// Silence of [`Options::peer_idle_timeout_ms`] ends it: brokers must know soon that one is gone.
    pub async fn connect_node(&self, address: &str, node: NodeId) -> Result<Connection, Error> {
        let transport = self.shared.peer_transport.clone();
        self.connect_as(address, &certificate::node_name(node), transport).await
    }

    async fn connect_as(
        &self,
        address: &str,
        name: &str,
        transport: Arc<TransportConfig>,
    ) -> Result<Connection, Error> {
        let believed = match tls::believe(&self.shared.trust, address) {
            Ok(believed) => believed,
            Err(error @ Error::Untrusted { .. }) => {
                // Only somebody who is there is distrusted. He is told nothing, and nothing he says is believed.
                let anybody = self.attempt(address, name, transport, &Believed::anybody()).await?;
                anybody.close(Close::Done);
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        self.attempt(address, name, transport, &believed).await
    }

    async fn attempt(
        &self,
        address: &str,
        name: &str,
        transport: Arc<TransportConfig>,
        believed: &Believed,
    ) -> Result<Connection, Error> {
        let crypto = tls::client(believed, self.shared.identity.as_deref())?;
        let mut config = quinn::ClientConfig::new(crypto);
        config.transport_config(transport);
        let waited = self.shared.options.connect_timeout();
        let race = self.race(address, name, config, believed);
        match tokio::time::timeout(waited, race).await {
            Ok(result) => result,
            Err(_) => Err(Error::NoAnswer { address: address.to_owned(), waited }),
        }
    }

    /// Tries the host's addresses, each with a head start over the next; the first connection wins.
    async fn race(
        &self,
        address: &str,
        name: &str,
        config: quinn::ClientConfig,
        believed: &Believed,
    ) -> Result<Connection, Error> {
        let mut attempts = JoinSet::new();
        for (index, peer) in resolve(address).await?.into_iter().enumerate() {
            let (endpoint, config, name) = (self.inner.clone(), config.clone(), name.to_owned());
            let wait = ATTEMPT_DELAY.saturating_mul(u32::try_from(index).unwrap_or(u32::MAX));
            attempts.spawn(async move {
                tokio::time::sleep(wait).await;
                match endpoint.connect_with(config, peer, &name) {
                    Ok(connecting) => connecting.await.map_err(Attempt::Broken),
                    Err(error) => Err(Attempt::Impossible(error)),
                }
            });
        }
        let mut last = Error::Address { address: address.to_owned(), why: "it has no address".to_owned() };
        while let Some(result) = attempts.join_next().await {
            match result {
                Ok(Ok(inner)) => {
                    return Ok(Connection::new(inner, believed.is_checked(), &self.shared.options));
                }
                Ok(Err(Attempt::Broken(error))) => {
                    last = connection::refused(error, address, &believed.origin, &self.shared.options);
                }
                Ok(Err(Attempt::Impossible(error))) => {
                    last = Error::Address { address: address.to_owned(), why: error.to_string() };
                }
                Err(error) => last = Error::Lost(error.to_string()),
            }
        }
        Err(last)
    }

    /// Closes all connections, and lets nobody in any more. Returns at once; see [`Endpoint::wait_idle`].
    pub fn close(&self, close: Close) {
        self.inner.close(close.code(), close.reason().as_bytes());
    }

    /// Waits until the peers know that their connections are closed, or a moment has passed.
    pub async fn wait_idle(&self) {
        // A peer that is dead does not answer, and QUIC would wait for three of its probe timeouts.
        tokio::time::timeout(CLOSING, self.inner.wait_idle()).await.ok();
    }
}

enum Attempt {
    Broken(quinn::ConnectionError),
    Impossible(quinn::ConnectError),
}

/// A client that knocks. Dropping it refuses it.
#[derive(Debug)]
pub struct Incoming {
    inner: quinn::Incoming,
    shared: Arc<Shared>,
}

impl Incoming {
    /// Where it comes from.
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// Lets it in. Takes as long as the peer makes it, `Options::connect_timeout_ms` at most: not to be awaited
    /// where others wait to get in.
    pub async fn accept(self) -> Result<Connection, Error> {
        let address = self.inner.remote_address().to_string();
        let options = &self.shared.options;
        let refused = |error| connection::refused(error, &address, "", options);
        let connecting = self.inner.accept().map_err(refused)?;
        match tokio::time::timeout(options.connect_timeout(), connecting).await {
            Ok(Ok(inner)) => Ok(Connection::new(inner, true, options)),
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => Err(Error::Silent),
        }
    }

    /// Gives it back if it has proved that it receives at its address. Has it do so first otherwise (RFC 9000,
    /// section 8.1.2): it knocks again, for which nothing is kept here.
    pub fn validated(self) -> Option<Self> {
        if self.inner.remote_address_validated() {
            return Some(self);
        }
        // Fails for those who have proved it, and they are above.
        drop(self.inner.retry());
        None
    }
}

/// Host and port; an IPv6 host without its brackets.
fn split(address: &str) -> Result<(&str, u16), Error> {
    let error = |why: &str| Error::Address { address: address.to_owned(), why: why.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| error("it has no port"))?;
    let port = port.parse().map_err(|_| error("its port is no number from 1 to 65535"))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() { Err(error("it has no host")) } else { Ok((host, port)) }
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, Error> {
    let target = split(address)?;
    let found = tokio::net::lookup_host(target).await;
    let mut found: Vec<_> = found
        .map_err(|error| Error::Address { address: address.to_owned(), why: error.to_string() })?
        .collect();
    // `localhost` is often both, and brokers listen on 127.0.0.1 unless told otherwise.
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

fn endpoint(
    socket: Socket,
    server: Option<quinn::ServerConfig>,
    options: &Options,
) -> io::Result<quinn::Endpoint> {
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(options.datagram_bytes).map_err(io::Error::other)?;
    quinn::Endpoint::new(config, server, socket.into(), Arc::new(quinn::TokioRuntime))
}

fn socket(address: SocketAddr, options: &Options) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // A server that is told `[::1]` gets what it is told; `[::]` means every address there is.
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    let size = options.socket_buffer_bytes as usize;
    // The kernel grants what it may; less costs speed and no more.
    for result in [socket.set_recv_buffer_size(size), socket.set_send_buffer_size(size)] {
        if let Err(error) = result {
            tracing::debug!(%error, "the size of the socket's buffers stays as it is");
        }
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The transport's limits, as quinn takes them, with as many streams as the peer may open. What is not set here is as QUIC's recovery (RFC 9002) has it.
fn transport(options: &Options, streams: u32) -> Result<Arc<TransportConfig>, Error> {
    options.validate().map_err(|error| Error::Tls(error.to_string()))?;
    let mut config = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(options.datagram_bytes);
    let idle = IdleTimeout::try_from(Duration::from_millis(options.idle_timeout_ms))
        .map_err(|error| Error::Tls(error.to_string()))?;
    config
        .stream_receive_window(VarInt::from_u32(options.stream_window_bytes))
        .receive_window(VarInt::from_u32(options.connection_window_bytes))
        .send_window(options.send_window_bytes.into())
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery))
        .keep_alive_interval(Some(Duration::from_millis(options.keep_alive_ms)))
        .max_idle_timeout(Some(idle));
    Ok(Arc::new(config))
}
