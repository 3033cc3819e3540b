//! The client: where everything starts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bus_protocol::request::Request;
use bus_protocol::{Clock, SystemClock};
use bus_transport::{Connection, Endpoint, Options, Trust};

use crate::metadata::Metadata;
use crate::pool::Pool;
use crate::{Admin, Error, ProducerBuilder, ReaderBuilder};

/// How long the first broker may take to say who the others are, before the client does without.
const WELCOME: Duration = Duration::from_secs(1);

/// A cluster, as one program sees it. Cheap to clone; the clones share their connections: one to each broker, made
/// when it is needed and made again, with jittered back-off, when it is lost. Any broker that answers will do: the
/// servers it was given, and all brokers it has heard of since; one that does not answer holds nobody up for more than
/// some 200 ms.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    servers: Vec<String>,
    client_id: String,
    request_timeout: Duration,
    metadata_interval: Duration,
    clock: Arc<dyn Clock>,
    pool: Pool,
    metadata: Metadata,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("id", &self.client_id)
            .field("servers", &self.servers)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the first broker of `servers` (`HOST:PORT[,HOST:PORT]`) that answers, trusting the CA that a
    /// broker on this machine left for its user. See [`Client::builder`] for more.
    pub async fn connect(servers: &str) -> Result<Self, Error> {
        Self::builder().servers(servers).connect().await
    }

    /// A client with other settings than the defaults.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Administration.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// A producer, to be set up and built.
    pub fn producer(&self) -> ProducerBuilder {
        ProducerBuilder::new(self.clone())
    }

    /// A reader of some topics, to be set up and built: a consumer without a group.
    pub fn reader<T: AsRef<str>>(&self, topics: impl IntoIterator<Item = T>) -> ReaderBuilder {
        ReaderBuilder::new(self.clone(), topics.into_iter().map(|topic| topic.as_ref().to_owned()).collect())
    }

    /// Sends bytes that the broker throws away, for about `duration`: what one QUIC stream to it carries at most.
    pub async fn measure_link(&self, duration: Duration) -> Result<LinkSpeed, Error> {
        let connection = self.any_broker().await?;
        let bus_transport::Discarded { bytes, elapsed } =
            bus_transport::measure(&connection, duration).await?;
        Ok(LinkSpeed { bytes, elapsed })
    }

    /// Goes on from another UDP socket, with all connections and what is under way on them: for programs that know that
    /// the address of their machine has changed. QUIC finds out by itself, only later.
    pub fn rebind(&self) -> Result<(), Error> {
        self.shared.pool.rebind()
    }

    /// Closes the connections; what is under way fails.
    pub fn close(&self) {
        self.shared.pool.close();
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.shared.clock
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.shared.metadata
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.shared.request_timeout
    }

    /// How often it is looked for new partitions.
    pub(crate) fn metadata_interval(&self) -> Duration {
        self.shared.metadata_interval
    }

    /// The brokers known and those to find the cluster by, those that are most likely to answer first.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let mut addresses = self.all_addresses();
        addresses.sort_by_key(|address| self.pool().rank(address));
        addresses
    }

    /// The brokers known, those that are fenced last, and those to find the cluster by.
    pub(crate) fn all_addresses(&self) -> Vec<String> {
        let mut addresses = self.shared.metadata.brokers();
        for server in &self.shared.servers {
            if !addresses.contains(server) {
                addresses.push(server.clone());
            }
        }
        addresses
    }

    /// A connection to the first broker that answers.
    async fn any_broker(&self) -> Result<Connection, Error> {
        self.first(self.addresses(), |client, address| async move { client.pool().get(&address).await }).await
    }
}

/// What one QUIC stream carried; see [`Client::measure_link`].
#[derive(Clone, Copy, Debug)]
pub struct LinkSpeed {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first byte until the broker's word that all had arrived.
    pub elapsed: Duration,
}

/// A client's settings.
#[derive(Clone)]
pub struct ClientBuilder {
    clock: Arc<dyn Clock>,
    servers: String,
    trust: Trust,
    client_id: String,
    request_timeout: Duration,
    metadata_interval: Duration,
    transport: Options,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("servers", &self.servers)
            .field("trust", &self.trust)
            .field("client_id", &self.client_id)
            .field("request_timeout", &self.request_timeout)
            .field("metadata_interval", &self.metadata_interval)
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock::new()),
            servers: "127.0.0.1:9440".to_owned(),
            trust: Trust::user(),
            client_id: "bus-client".to_owned(),
            request_timeout: Duration::from_secs(30),
            metadata_interval: Duration::from_secs(30),
            transport: Options::default(),
        }
    }
}

impl ClientBuilder {
    /// Brokers to find the cluster by: `HOST:PORT[,HOST:PORT]`. Default: `127.0.0.1:9440`.
    pub fn servers(mut self, servers: impl Into<String>) -> Self {
        self.servers = servers.into();
        self
    }

    /// Whom to trust. Default: [`Trust::user`].
    pub fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// The program's name, for logs.
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = client_id.into();
        self
    }

    /// How long one connection may take to come about. Default: 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.transport.connect_timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// How long a request may take, with all that is tried for it. Default: 30 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How often producers and readers look for new partitions of their topics. Default: 30 s.
    pub fn metadata_interval(mut self, interval: Duration) -> Self {
        self.metadata_interval = interval;
        self
    }

    /// The transport's limits.
    pub fn transport(mut self, options: Options) -> Self {
        self.transport = options;
        self
    }

    /// Where records get their time from. Default: the machine's clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Connects to the first of the servers that answers; the next is asked as soon as one has failed, or has not
    /// answered for 200 ms. The error is one of theirs where none does.
    /// Runs within a tokio runtime, which the client then stays with.
    pub async fn connect(self) -> Result<Client, Error> {
        self.transport.validate().map_err(|error| Error::Invalid(error.to_string()))?;
        let servers: Vec<String> = self
            .servers
            .split(',')
            .map(|server| server.trim().to_owned())
            .filter(|server| !server.is_empty())
            .collect();
        let endpoint = Endpoint::client(self.trust, None, &self.transport)?;
        let shared = Shared {
            servers,
            client_id: self.client_id,
            request_timeout: self.request_timeout,
            metadata_interval: self.metadata_interval.max(Duration::from_millis(1)),
            clock: self.clock,
            pool: Pool::new(endpoint),
            metadata: Metadata::default(),
        };
        let client = Client { shared: Arc::new(shared) };
        client.any_broker().await?;
        // So that it can go on when the server that it was given is gone. Where that fails, it is asked again when the
        // first request is.
        let _ = tokio::time::timeout(WELCOME, client.read(Request::Cluster)).await;
        Ok(client)
    }
}
