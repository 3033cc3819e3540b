//! DESIGN §6.6: leaders come from the ISR; whoever leads has all that is committed.

use bus_metadata::MetadataImage;

use super::ledger::Ledger;
use super::{Check, Seen, violated};

const NAME: &str = "election_from_isr";

/// The metadata around a command.
pub(crate) fn check(before: &MetadataImage, after: &MetadataImage) -> Check {
    for topic in after.topics() {
        let Some(topic_before) = before.topic_by_id(topic.id) else { continue };
        for (number, (was, is)) in topic_before.partitions.iter().zip(&topic.partitions).enumerate() {
            let Some(leader) = is.leader.filter(|leader| was.leader != Some(*leader)) else { continue };
            if !was.isr.contains(&leader) {
                let what = format!("{}-{number} is led by node {leader}, not in sync: {was:?}", topic.name);
                return violated(NAME, what);
            }
        }
    }
    Ok(())
}

/// A replica that leads since just now.
pub(crate) fn check_leader(seen: &Seen<'_>, ledger: &Ledger) -> Check {
    let log = seen.replica.log();
    let (node, place, end) = (seen.node, seen.place, log.log_end());
    if end < ledger.end() {
        let what = format!(
            "node {node} leads {place:?} with a log that ends at {end}; {} is committed",
            ledger.end()
        );
        return violated(NAME, what);
    }
    if seen.damaged {
        return Ok(());
    }
    let from = log.log_start();
    ledger
        .check(log, from, ledger.end())
        .or_else(|what| violated(NAME, format!("node {node} leads {place:?}: {what}")))
}
