//! One replica of one partition on one node: what a leader and a follower decide, and the task that owns the log.
//!
//! ```text
//!   Partition (handle, cheap clone)              owner (one task)              Replica (no task, clock, network)
//!   append ─── bounded queue, in order ──▶  group ▶ write ▶ fdatasync ──▶  Leader: high watermark, ISR, answers
//!      ◀────────── ticket: committed ◀──────────────────────────────────  ·
//!   follower_opened, follower_stored ──▶   (a leader's followers)          ·
//!   follow ▶ Following: frames ─────────▶  (a follower's leader)           Follower: truncation, append, told HW
//!   read ──▶ LogReader (lock-free)          reports: ISR changes, what is offline or full ──▶ metadata
//! ```
//!
//! An append has two stages. [`Partition::append`] returns once the batch has its place in the queue (which is its
//! place in the log) and bytes of the shared budget; the [`Ticket`] resolves once the batch is committed.
//! Appends that arrive while the disk works are written meanwhile and share the next fdatasync; followers are sent
//! them meanwhile too.
//!
//! [`Replica`] is a plain state machine over a log, so that a simulation drives the same code as the owner does.
//! Not here: the network, functions, and who leads (that is metadata's word, given as a [`Role`]).

mod error;
mod event;
mod follower;
mod following;
mod leader;
mod owner;
mod partition;
mod replica;
mod room;

pub use error::{AppendError, Fault};
pub use follower::{FollowError, Follower};
pub use following::Following;
pub use leader::{ABSENT_FOR, Isr, IsrProposal, Leader, NotEnoughReplicas, REFUSED_FOR};
pub use partition::{Committed, Lane, Matter, Partition, Report, Runtime, Ticket};
pub use replica::{Answer, Append, Replica, Role};
