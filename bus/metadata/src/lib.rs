//! The cluster's truth, by Raft: which brokers there are, which topics, where their partitions stand, and which
//! functions are deployed.
//!
//! ```text
//!   propose(Command) -> Raft log (sled, flushed) -> a majority has it -> MetadataImage::apply -> watch
//!                           |                                                  |
//!                        peers, by the PeerClient                        a snapshot now and then
//!
//!   image       the value: pure, deterministic, cheap to clone         (image.rs and image/)
//!   command     what can be done to it, rejected why it cannot         (command.rs, rejected.rs)
//!   controller  what the leader does by itself: elections              (controller.rs: pure)
//!   store       Raft's log, vote and snapshots, in sled                (store.rs and store/)
//!   network     Raft's messages, as bytes                              (network.rs)
//!   metadata    the handle that the broker holds                       (metadata.rs)
//! ```
//!
//! Everything that a broker does follows from the image: it compares what the image says with what runs, and
//! starts and stops until they agree.
//!
//! What it does not do: it opens no connection (the broker does, behind [`PeerClient`]), forwards no proposal to
//! the leader, notices no silent broker (somebody proposes [`Command::FenceBroker`]), and holds no records, no
//! committed offsets and no module bytes. No other crate names openraft or sled.

mod command;
pub mod controller;
mod error;
mod image;
pub mod limits;
mod metadata;
mod network;
mod options;
mod rejected;
mod store;

pub use command::{Applied, Command, Deployment, DirectoryId, Election, IsrChange, Registration};
pub use error::{Error, ProposeError};
pub use image::{Broker, Function, FunctionVersion, MetadataImage, Partition, Topic};
pub use metadata::{Members, Metadata, Progress};
pub use network::{PeerClient, PeerError};
pub use options::Options;
pub use rejected::Rejected;
