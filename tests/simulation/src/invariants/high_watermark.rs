//! DESIGN §6.3: the high watermark never falls in a replica's life; a leader's is at most what each member of the ISR
//! has stored, of the committed ISR and of the proposed one; it stands still while the ISR is below its minimum. And
//! what is below it is the same everywhere.

use std::collections::BTreeMap;

use bus_protocol::{NodeId, Offset};

use super::ledger::Ledger;
use super::{Check, Place, Seen, violated};

const NAME: &str = "high_watermark";

#[derive(Debug, Default)]
pub(crate) struct HighWatermarks {
    last: BTreeMap<(NodeId, Place), (u64, Offset)>,
    /// The most that each replica ever kept.
    kept: BTreeMap<(NodeId, Place), Offset>,
}

impl HighWatermarks {
    /// To be called after each event, before anybody is answered.
    pub(crate) fn observe(&mut self, seen: &Seen<'_>, ledger: &mut Ledger) -> Check {
        let key = (seen.node, seen.place);
        let kept = self.kept.entry(key).or_default();
        *kept = seen.demands.kept(seen.replica).max(*kept);
        let now = seen.replica.high_watermark();
        let before = match self.last.insert(key, (seen.life, now)) {
            Some((life, before)) if life == seen.life => before,
            _ => seen.replica.log().log_start(),
        };
        if now == before {
            return Ok(());
        }
        let (node, place) = (seen.node, seen.place);
        if now < before {
            return violated(NAME, format!("that of {place:?} on node {node} falls from {before} to {now}"));
        }
        if seen.replica.leads() && now > ledger.end() {
            self.check_isr(seen, now)?;
            ledger.extend(seen.replica.log(), now).or_else(|what| {
                violated(NAME, format!("{place:?} on node {node} commits what it cannot read: {what}"))
            })?;
        }
        if now > ledger.end() {
            let end = ledger.end();
            let what = format!("that of {place:?} on node {node} is {now}, and {end} is committed");
            return violated(NAME, what);
        }
        if seen.damaged {
            return Ok(());
        }
        ledger
            .check(seen.replica.log(), before, now)
            .or_else(|what| violated(NAME, format!("below that of {place:?} on node {node} ({now}): {what}")))
    }

    fn check_isr(&self, seen: &Seen<'_>, now: Offset) -> Check {
        let role = seen.replica.role();
        let (node, place) = (seen.node, seen.place);
        if role.isr.len() < seen.demands.min_isr {
            let what = format!(
                "that of {place:?} on node {node} moves to {now} with {} in sync, and {} are wanted",
                role.isr.len(),
                seen.demands.min_isr
            );
            return violated(NAME, what);
        }
        let proposed = seen.proposed.into_iter().flatten().map(|(member, _)| *member);
        for member in role.isr.iter().copied().chain(proposed) {
            let kept = self.kept.get(&(member, place)).copied().unwrap_or_default();
            if kept < now {
                let what = format!(
                    "that of {place:?} on node {node} moves to {now}; node {member} has stored {kept}"
                );
                return violated(NAME, what);
            }
        }
        Ok(())
    }

    /// The replica is gone from the node: the next one there begins anew.
    pub(crate) fn forget(&mut self, node: NodeId, place: Place) {
        self.last.remove(&(node, place));
    }
}
