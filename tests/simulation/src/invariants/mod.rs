//! What must always hold, one rule a file.
//!
//! Each looks at what a change left: a replica after an event ([`Seen`]), the metadata before and after a command, a
//! reader's answer, or, at the end, everything.

pub(crate) mod acknowledged_is_committed;
pub(crate) mod convergence;
pub(crate) mod election_from_isr;
pub(crate) mod high_watermark;
pub(crate) mod isr_by_compare_and_set;
pub(crate) mod ledger;
pub(crate) mod no_loss_no_duplicate_in_order;
pub(crate) mod one_leader_per_epoch;
pub(crate) mod readers_below_high_watermark;
pub(crate) mod truncation;

use bus_log::Log;
use bus_protocol::batch::{RecordBatch, split};
use bus_protocol::{Durability, NodeId, Offset, PartitionId, TopicId};
use bus_replica::Replica;

use crate::client::Ticket;

/// A partition's name.
pub(crate) type Place = (TopicId, PartitionId);

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Violation {
    /// Which: the file's name under `invariants/`.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

pub(crate) type Check = Result<(), Violation>;

pub(crate) fn violated(invariant: &'static str, what: String) -> Check {
    Err(Violation { invariant, what })
}

/// What a topic's owner asked for, whatever the nodes are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demands {
    pub(crate) min_isr: usize,
    pub(crate) durability: Durability,
}

impl Demands {
    /// The end of what a power cut (or, with `durability=replicated`, a dead process) leaves of a replica.
    pub(crate) fn kept(&self, replica: &Replica<Ticket>) -> Offset {
        match self.durability {
            Durability::Fsync => replica.log().stored(),
            Durability::Replicated => replica.log().log_end(),
        }
    }
}

/// A replica as it stands after an event.
pub(crate) struct Seen<'a> {
    pub(crate) node: NodeId,
    /// Which start of the node it is.
    pub(crate) life: u64,
    pub(crate) place: Place,
    pub(crate) replica: &'a Replica<Ticket>,
    pub(crate) demands: Demands,
    /// The ISR that it has asked for and that is not decided.
    pub(crate) proposed: Option<&'a [(NodeId, u64)]>,
    /// Whether some of what it has cannot be read.
    pub(crate) damaged: bool,
}

/// The batches of a log from `from` to `below`; an error in words.
pub(crate) fn batches(log: &Log, from: Offset, below: Offset) -> Result<Vec<RecordBatch>, String> {
    let (mut found, mut next) = (Vec::new(), from);
    while next < below {
        let read = log.reader().read(next, 64 << 10, below).map_err(|error| error.to_string())?;
        if read.chunks.is_empty() {
            return Err(format!("no batch at {next}, below {below}"));
        }
        for chunk in read.chunks {
            for batch in split(chunk) {
                found.push(batch.map_err(|error| error.to_string())?);
            }
        }
        next = read.next_offset;
    }
    Ok(found)
}
