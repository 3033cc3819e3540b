//! DESIGN §6.2: `acks=all` is answered only when the high watermark has passed the batch.

use bus_protocol::Offset;

use super::ledger::Ledger;
use super::{Check, Place, violated};
use crate::client::Content;

/// A batch of `content` is about to be acknowledged at `base`.
pub(crate) fn check(place: Place, ledger: &Ledger, base: Offset, content: Content) -> Check {
    match ledger.at(base) {
        Some(entry) if entry.base == base && entry.content == content => Ok(()),
        found => {
            let what =
                format!("{content:?} is acknowledged at {base} of {place:?}; committed there is {found:?}");
            violated("acknowledged_is_committed", what)
        }
    }
}
