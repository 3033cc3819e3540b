//! DESIGN §6.4: on a new epoch a follower truncates to where its last epoch ends on the leader; so it never cuts what
//! is committed, and what stays is a prefix of the leader's log.

use bus_protocol::batch::BatchHeader;
use bus_protocol::{NodeId, Offset};

use super::ledger::Ledger;
use super::{Check, Place, violated};

/// `before` is what a replica held, `start` and `end` are where its log lies now. What its leader has deleted by
/// retention, below `deleted`, may go.
pub(crate) fn check(
    (node, place): (NodeId, Place),
    ledger: &Ledger,
    before: &[BatchHeader],
    (start, end): (Offset, Offset),
    deleted: Offset,
) -> Check {
    let lost = before
        .iter()
        .find(|header| header.base_offset >= end && header.next_offset() > deleted && ledger.holds(header));
    match lost {
        None => Ok(()),
        Some(header) => {
            let what = format!(
                "node {node} cuts {place:?} to {start}..{end}, and with it the committed batch at {} of epoch {}",
                header.base_offset, header.leader_epoch
            );
            violated("truncation", what)
        }
    }
}
