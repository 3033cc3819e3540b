//! DESIGN §6.7: readers see what is committed and nothing else; and what they are told is committed stays so: within
//! the newest leader epoch that a reader has met, the high watermark never falls, nor over epochs.

use bus_protocol::batch::RecordBatch;
use bus_protocol::{Epoch, Offset};

use super::ledger::Ledger;
use super::{Check, Place, violated};

const NAME: &str = "readers_below_high_watermark";

/// A reader got these batches.
pub(crate) fn check(place: Place, ledger: &Ledger, batches: &[RecordBatch]) -> Check {
    match batches.iter().find(|batch| !ledger.holds(batch.header())) {
        None => Ok(()),
        Some(batch) => {
            let (base, epoch) = (batch.header().base_offset, batch.header().leader_epoch);
            let committed = ledger.at(base);
            let what = format!(
                "one of {place:?} got the batch of epoch {epoch} at {base}; committed is {committed:?}"
            );
            violated(NAME, what)
        }
    }
}

/// A reader that was told `before`, in that leader epoch, is told `now`.
pub(crate) fn check_told(place: Place, before: (Epoch, Offset), now: (Epoch, Offset)) -> Check {
    if now.0 < before.0 || now.1 >= before.1 {
        return Ok(());
    }
    let what =
        format!("one of {place:?} is told {} in epoch {}, after {} in {}", now.1, now.0, before.1, before.0);
    violated(NAME, what)
}
