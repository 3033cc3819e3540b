//! The client: where everything starts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bus_protocol::{Clock, SystemClock};
use bus_transport::{Connection, Endpoint, Options, Trust};

use crate::metadata::Metadata;
use crate::pool::Pool;
use crate::{Admin, Error, ProducerBuilder, ReaderBuilder};

/// A cluster, as one program sees it. Cheap to clone; the clones share their connections: one to each broker, made
/// when it is needed and made again, with jittered back-off, when it is lost.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    servers: Vec<String>,
    client_id: String,
    request_timeout: Duration,
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
        let (_, connection) = self.any_broker().await?;
        let bus_transport::Discarded { bytes, elapsed } =
            bus_transport::measure(&connection, duration).await?;
        Ok(LinkSpeed { bytes, elapsed })
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

    /// The brokers known, those to find the cluster by last.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let mut addresses = self.shared.metadata.brokers();
        let known = addresses.len();
        for server in &self.shared.servers {
            if !addresses[..known].contains(server) {
                addresses.push(server.clone());
            }
        }
        addresses
    }

    /// A connection to the first broker that answers.
    pub(crate) async fn any_broker(&self) -> Result<(String, Connection), Error> {
        let mut last = Error::Invalid("no server is given: say HOST:PORT[,HOST:PORT]".to_owned());
        for address in self.addresses() {
            match self.pool().get(&address).await {
                Ok(connection) => return Ok((address, connection)),
                Err(error) => last = error,
            }
        }
        Err(last)
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
    transport: Options,
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("servers", &self.servers)
            .field("trust", &self.trust)
            .field("client_id", &self.client_id)
            .field("request_timeout", &self.request_timeout)
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

    /// Connects to the first of the servers that answers. The error is that of the last where none does.
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
            clock: self.clock,
            pool: Pool::new(endpoint),
            metadata: Metadata::default(),
        };
        let client = Client { shared: Arc::new(shared) };
        client.any_broker().await?;
        Ok(client)
    }
}
