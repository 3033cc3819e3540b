//! Consumer groups' committed offsets, as a state machine over the internal topic `__groups`.
//!
//! ```text
//!   becomes leader of a partition of __groups:   read its log from the start -> Groups::apply, each record
//!   a commit:   Groups::commit -> records -> append, wait until committed -> Groups::apply, each -> answer
//!   the log has grown:   Groups::wants_snapshot -> Groups::snapshot -> append, wait -> delete all before it
//! ```
//!
//! The state is what the log says and nothing else: [`Groups::commit`] and its like only say what to write, and
//! [`Groups::apply`] is called with what has been written, in the log's order. A group lives in one partition,
//! [`partition_of`] its name, so one [`Groups`] knows all of it.
//!
//! Records carry keys and tombstones as a compacted topic's do. Until the log compacts, a snapshot stands in for
//! it: every live entry is written again, and what lies before the first of them can go. From where a snapshot
//! is asked for to where its last record is appended, no other record may be appended to the partition, or a
//! newer commit would be followed by an older one. A crash on the way does no harm: what was written of the
//! snapshot repeats what is there.
//!
//! What it does not do: it reads and writes no log, knows no clock, and, so far, no members and no transactions.

mod codec;
mod error;
mod groups;
mod options;
#[cfg(test)]
mod properties;

pub use codec::Record;
pub use error::Error;
pub use groups::{Commit, Committed, GROUPS_TOPIC, Groups, partition_of};
pub use options::Options;
