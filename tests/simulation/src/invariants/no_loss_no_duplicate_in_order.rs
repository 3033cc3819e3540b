//! DESIGN §6.8: what was acknowledged with `acks=all` is there, once, where it was said to be; an idempotent producer's
//! records are there at most once, and in the order in which it sent them; a timed-out batch may be there or not.

use std::collections::BTreeMap;

use bus_protocol::Offset;

use super::ledger::Ledger;
use super::{Check, Place, violated};
use crate::client::{Fate, Producer};

const NAME: &str = "no_loss_no_duplicate_in_order";

/// Everybody's history against what is committed at the end. Of what retention has deleted, below `deleted`, a
/// replica that was made since knows nothing: a producer that sends it again after so long has it stored again.
pub(crate) fn check(
    producers: &[Producer],
    ledgers: &BTreeMap<Place, Ledger>,
    deleted: &BTreeMap<Place, Offset>,
) -> Check {
    for (place, ledger) in ledgers {
        let deleted = deleted.get(place).copied().unwrap_or_default();
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        let mut times: BTreeMap<(u32, u64), u32> = BTreeMap::new();
        for entry in ledger.entries().iter().filter(|entry| entry.next > deleted) {
            let (producer, first) = (entry.content.producer, entry.content.first);
            let plan = &producers[producer as usize].plan;
            let before = last.insert(producer, first);
            if plan.idempotent && before.is_some_and(|before| before >= first) {
                let what =
                    format!("{:?} stands in {place:?} at {} after {before:?}", entry.content, entry.base);
                return violated(NAME, what);
            }
            let times = times.entry((producer, first)).or_default();
            *times += 1;
            let fate = producers[producer as usize].fate(*place, first);
            if *times > 1 || fate.is_none() || fate == Some(Fate::Refused) {
                let what = format!(
                    "{:?}, whose fate is {fate:?}, is there {times} times in {place:?}",
                    entry.content
                );
                return violated(NAME, what);
            }
        }
    }
    for producer in producers {
        for (place, sent) in producer.acknowledged() {
            let found = ledgers.get(&place).and_then(|ledger| ledger.at(sent.base));
            if found.is_none_or(|entry| entry.content != sent.content || entry.base != sent.base) {
                let what = format!(
                    "{:?} was acknowledged at {} of {place:?}; there is {found:?}",
                    sent.content, sent.base
                );
                return violated(NAME, what);
            }
        }
    }
    Ok(())
}
