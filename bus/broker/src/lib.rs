//! Joins the crates below into a node of the cluster.
//!
//! ```text
//!   server ── stream ──▶ handler/produce ▶ ingest (functions: transforms) ▶ replica ▶ log
//!     │                  handler/fetch   ◀──────────────────────────────── log reader, high watermark
//!     │                  handler/request ▶ metadata: propose ▶ image
//!     │                                                          │ watch
//!     └─ connection ◀ door                     reconciler: start and stop until what runs is what it says
//!                                                │            │
//!                                             topics       functions ▶ processors ▶ ingest, groups
//! ```
//!
//! The control plane is the reconciler: nothing is started because a request came, but because the committed
//! image says so; a request waits until that has happened. Not here: the formats (protocol), QUIC (transport), what a
//! leader decides (replica), Raft (metadata), the sandbox (function).

mod authority;
mod awaited;
mod blobs;
mod broker;
mod data_dir;
mod door;
mod failure;
mod feed;
mod functions;
mod groups;
mod handler;
mod http;
mod ingest;
mod leftovers;
mod metrics;
mod modules;
mod node;
mod options;
mod peers;
mod producer_ids;
mod reconciler;
mod refusal;
mod reopened;
mod replicas;
mod replication;
mod reports;
mod server;
mod tasks;
mod throttle;
mod topics;
mod traces;
mod watermarks;

pub use broker::Broker;
pub use data_dir::DataDirError;
pub use failure::{Failure, StartError};
pub use options::Options;
