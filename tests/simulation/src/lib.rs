//! A seeded simulation of replication, controller and metadata: one thread, one seed, a virtual clock.
//!
//! ```text
//!   faults ──▶ world: one queue of events, one source of chance ──▶ trace (hash)
//!                │
//!     clients: producers with sequences, readers          control: MetadataImage + decide, as a log that all learn
//!                │ produce streams                             │ proposals, lost before or after
//!                ▼                                             ▼
//!     nodes: Replica over a Log on MemoryStorage  ◀── replication streams ──▶  other nodes
//!                │
//!                ▼ after every event
//!     invariants: one rule a file; the ledger of what is committed
//! ```
//!
//! What runs is the product's own code: `bus_replica::Replica`, `bus_log::Log`, `bus_metadata::MetadataImage` with
//! its commands and its controller. What is modelled: the tasks around a replica, the network (streams that are
//! ordered until they break), the disk (which keeps what was synced, and of the rest what it likes), and Raft, which
//! is taken for granted.
//!
//! Not here: QUIC, openraft, the client library. The crate's README says which faults come, and within which bounds.

mod away;
mod client;
mod clock;
mod control;
mod faults;
mod invariants;
mod lifecycle;
mod mutation;
mod network;
mod node;
mod pipe;
mod plan;
mod producing;
mod random;
mod reading;
mod replication;
mod run;
mod stream;
mod trace;
mod world;

pub use invariants::Violation;
pub use mutation::Mutation;
pub use run::{Outcome, replay, run};
