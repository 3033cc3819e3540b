//! The settings of a broker, as `bus.toml` holds them.

use std::net::SocketAddr;
use std::path::PathBuf;

use bus_protocol::{NodeId, limits};
use serde::{Deserialize, Serialize};

/// The most addresses that a broker tries to join a cluster over.
const JOIN_ADDRESSES: usize = 64;
/// The most connections that a broker may be told to serve.
const MAX_CONNECTIONS: usize = 1 << 20;

/// Settings of one broker. All have defaults that work: a single node with its data in `./bus-data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// This node's id in its cluster, from 1.
    pub node_id: NodeId,
    /// The folder that holds everything this node keeps. Made where it is missing.
    pub data: PathBuf,
    /// Where clients and brokers reach it, over UDP. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The `HOST:PORT` that it tells others; `listen` unless said.
    pub advertise: Option<String>,
    /// The advertised addresses of the cluster's first brokers, the same list on each; empty for a node of its own.
    pub join: Vec<String>,
    /// The folder where the CA is left for this user's clients, and looked for; the user's own unless said.
    pub trust: Option<PathBuf>,
    /// Where this broker stands, if replicas are to be spread over racks.
    pub rack: Option<String>,
    /// How long an in-sync replica may lack something before it leaves the ISR, in milliseconds.
    pub replica_lag_time_max_ms: u64,
    /// Where `/metrics`, `/healthz` and `/readyz` are served, over TCP; nowhere if `None`. Port 0 takes a free one.
    pub http: Option<SocketAddr>,
    /// Connections of clients that are served at once; brokers have places of their own.
    pub max_connections: usize,
    /// How often retention looks for old segments, in seconds.
    pub retention_check_seconds: u64,
    /// Bytes of batches that may be on their way to the logs at once, over all partitions.
    pub produce_memory_bytes: usize,
    /// Bytes of batches from leaders that may be on their way to this broker's replicas at once, over all partitions.
    pub replication_memory_bytes: usize,
    /// Partitions of the internal topic that holds committed offsets, when it is first made.
    pub groups_partitions: u32,
    /// The transport's limits.
    pub transport: bus_transport::Options,
    /// The settings of all logs.
    pub log: bus_log::Options,
    /// The limits of the groups' coordinators.
    pub groups: bus_coordinator::Options,
    /// The metadata's timing.
    pub metadata: bus_metadata::Options,
    /// The function host's limits.
    pub functions: bus_function::Options,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_id: 1,
            data: PathBuf::from("bus-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 9440)),
            advertise: None,
            join: Vec::new(),
            trust: None,
            rack: None,
            replica_lag_time_max_ms: 3_000,
            http: Some(SocketAddr::from(([127, 0, 0, 1], 9441))),
            max_connections: limits::CLIENT_CONNECTIONS,
            retention_check_seconds: 30,
            produce_memory_bytes: 64 << 20,
            replication_memory_bytes: 64 << 20,
            groups_partitions: 8,
            transport: bus_transport::Options::default(),
            log: bus_log::Options::default(),
            groups: bus_coordinator::Options::default(),
            metadata: bus_metadata::Options::default(),
            functions: bus_function::Options::default(),
        }
    }
}

impl Options {
    /// Checks the ranges; the error is a sentence for the operator.
    pub fn validate(&self) -> Result<(), String> {
        if self.node_id == 0 {
            return Err("node_id must be at least 1".into());
        }
        if self.replica_lag_time_max_ms < 100 {
            return Err("replica_lag_time_max_ms must be at least 100".into());
        }
        if self.join.len() > JOIN_ADDRESSES {
            return Err(format!("join must name at most {JOIN_ADDRESSES} addresses"));
        }
        if self.retention_check_seconds == 0 {
            return Err("retention_check_seconds must be at least 1".into());
        }
        if self.max_connections == 0 || self.max_connections > MAX_CONNECTIONS {
            return Err(format!("max_connections must be 1 to {MAX_CONNECTIONS}"));
        }
        for (name, bytes) in [
            ("produce_memory_bytes", self.produce_memory_bytes),
            ("replication_memory_bytes", self.replication_memory_bytes),
        ] {
            let least = limits::MAX_MESSAGE_BYTES;
            if bytes < least || u32::try_from(bytes).is_err() {
                return Err(format!("{name} must be {least}, the largest batch, to 4 GiB"));
            }
        }
        if self.groups_partitions == 0 || self.groups_partitions > 1_000 {
            return Err("groups_partitions must be 1 to 1000".into());
        }
        self.transport.validate().map_err(|error| error.to_string())?;
        self.log.validate().map_err(|error| error.to_string())?;
        self.groups.validate().map_err(|error| error.to_string())?;
        self.metadata.validate().map_err(|error| error.to_string())?;
        self.functions.validate().map_err(|error| error.to_string())
    }
}
