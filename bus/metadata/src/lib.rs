//! The cluster's truth, by Raft: which brokers there are, which topics, where their partitions stand, and which
//! functions are deployed.
//!
//! ```text
//!   propose(Command) -> [the leader's node] -> Raft log (sled, flushed) -> a majority has it
//!                                                        |        -> MetadataImage::apply -> watch
//!                           peers, by the PeerClient                     |
//!                                                              a snapshot now and then
//!
//!   image       the value: pure, deterministic, cheap to clone           (image.rs and image/)
//!   command     what can be done to it, rejected why it cannot           (command.rs, rejected.rs)
//!   controller  what the leader does by itself: elections, the ISR of silent brokers, ends of reassignments (pure)
//!   balance     the plan that spreads replicas and leaders evenly        (balance.rs: pure)
//!   liveness    who has been heard of, and when                          (liveness.rs: pure)
//!   metadata    the handle that the broker holds                         (metadata.rs, over node.rs)
//!   join        how a node becomes one of a cluster's; group takes it in (join.rs, group.rs)
//!   propose     the way of a command to the leader                       (propose.rs)
//!   control     the leader's task: fences, decides, promotes voters      (control.rs)
//!   session     a broker's heartbeats, and how it leaves                 (session.rs)
//!   quorum      whether there is a majority, by what they are answered   (quorum.rs: pure)
//!   store       Raft's log, vote and snapshots, in sled                  (store.rs and store/)
//!   network     the way to the other nodes; messages what they say       (network.rs, messages.rs)
//! ```
//!
//! Everything that a broker does follows from the image: it compares what the image says with what runs, and
//! starts and stops until they agree.
//!
//! What it does not do: it opens no connection (the broker does, behind [`PeerClient`]), and holds no records, no
//! committed offsets and no module bytes. No other crate names openraft or sled.

mod balance;
mod command;
mod control;
pub mod controller;
mod error;
mod group;
mod image;
mod join;
pub mod limits;
mod liveness;
mod messages;
mod metadata;
mod network;
mod node;
mod options;
mod propose;
mod quorum;
mod rejected;
mod session;
mod store;

pub use balance::{Balance, balance};
pub use command::{Applied, Command, Deployment, DirectoryId, IsrChange, PartitionChange, Registration};
pub use error::{EnterError, Error, ProposeError};
pub use image::{Broker, Function, FunctionVersion, MetadataImage, Partition, Topic};
pub use join::Keeps;
pub use metadata::{Metadata, Progress};
pub use network::{PeerClient, PeerError};
pub use node::Members;
pub use options::Options;
pub use quorum::Quorum;
pub use rejected::Rejected;
