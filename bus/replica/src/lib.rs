//! One partition on one node: the task that owns its log, and what a leader decides.
//!
//! ```text
//!   Partition (handle, cheap clone)               owner (one task)                  Leader (pure)
//!   append ── bounded queue, in order ──▶  write ▶ log ▶ fdatasync ──stored──▶  high watermark,
//!      ◀────────── ticket: committed ◀──────────────────────────────────────── answers
//!   read   ──▶ LogReader (lock-free)       maintain: retention, tail
//! ```
//!
//! An append has two stages. [`Partition::append`] returns once the batch has its place in the queue (which is its
//! place in the log) and bytes of the shared budget; the [`Ticket`] resolves once the batch is committed.
//! Appends that arrive while the disk works are written meanwhile and share the next fdatasync.
//!
//! Not here: the network, functions, and who leads (that is metadata's word).

mod error;
mod leader;
mod owner;
mod partition;

pub use error::{AppendError, OpenError};
pub use leader::{Leader, NotEnoughReplicas};
pub use partition::{Lane, Partition, Role, Runtime, Ticket};
