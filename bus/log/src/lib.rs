//! One partition's log on one disk.
//!
//! ```text
//!                  producers: sent before? in order?
//!                      |
//!   owner task -> Log::append_all -> page cache ---- begin_sync().run() ----> durable      (another thread may)
//!                      |
//!                      +-> hot tail (memory) -> view (arc-swap) <- LogReader, LogReader, ...
//!
//!   <topic>-<partition>/
//!       00000000000000000000.log  .index  .timeindex      a closed segment
//!       00000000000000041972.log                          the active one
//!       checkpoint                from where on to check after a crash; start, closed segments, epochs
//!       stored                    what was durable, as a hint
//!       00000000000000041972.snapshot   the producers, as they were when the log ended there
//! ```
//!
//! Append has two stages: [`Log::append_all`] gives batches their offsets, in order; a sync makes them durable,
//! many at once. Readers use immutable views and never wait behind the writer; what is new comes from memory. A
//! log recovers from its last checkpoint, cuts a torn tail, and never cuts damage silently: `recovery.rs` says
//! what is which. Other names in a partition's folder are left alone. Idempotent producers are known by what they
//! wrote (`producers.rs`): a batch that is sent twice is stored once. A follower cuts its log to what it shares with
//! its leader ([`Log::truncate_by`]), and its producers with it.
//!
//! It knows no network, no tokio, no replicas and no high watermark: how far a reader may look it is told at each
//! read. It does not check the records within a batch (`RecordBatch::validate` does, before), and it does not
//! compact. All disk access goes through [`storage::Storage`], so that a simulation can crash it.

mod append;
mod append_batch;
mod append_only;
mod checkpoint;
mod crc;
mod epochs;
mod error;
mod index;
mod log;
mod options;
mod producers;
mod reader;
mod recovery;
mod replay;
mod retention;
mod rewrite;
mod room;
mod scan;
mod segment;
mod shared;
mod snapshot;
pub mod storage;
mod sync;
mod tail;
mod truncation;

pub use append::{Appended, Outcome, SequenceError};
pub use append_batch::AppendBatch;
pub use epochs::EpochStart;
pub use error::{Error, PartialAppend};
pub use log::Log;
pub use options::{Env, InvalidOption, LogConfig, Options};
pub use reader::{LogReader, Read};
pub use recovery::Recovery;
pub use retention::{discard, finish_deletions};
pub use sync::SyncJob;
pub use tail::TailBudget;
