//! DESIGN §6.1: one leader for each partition and leader epoch; and one life of it, as a leader that has started again
//! may have lost what it wrote in that epoch.

use std::collections::BTreeMap;

use bus_protocol::{Epoch, NodeId};

use super::{Check, Place, Seen, violated};

#[derive(Debug, Default)]
pub(crate) struct Leaders(BTreeMap<(Place, Epoch), (NodeId, u64)>);

impl Leaders {
    pub(crate) fn observe(&mut self, seen: &Seen<'_>) -> Check {
        if !seen.replica.leads() {
            return Ok(());
        }
        let epoch = seen.replica.role().epoch;
        let now = (seen.node, seen.life);
        let first = *self.0.entry((seen.place, epoch)).or_insert(now);
        if first == now {
            return Ok(());
        }
        let what = format!(
            "{:?} is led in epoch {epoch} by node {} in its life {}, and was by node {} in its life {}",
            seen.place, now.0, now.1, first.0, first.1
        );
        violated("one_leader_per_epoch", what)
    }
}
