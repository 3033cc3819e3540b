//! Changes nothing: what a transform costs. With `--config touch=true` it rewrites each value with itself: what a
//! transform costs that changes every record.

use bus_guest::{Record, Reject, config};

#[bus_guest::transform]
fn identity(mut record: Record) -> Result<Option<Record>, Reject> {
    if config("touch").is_some() {
        let value = record.value().unwrap_or_default().to_vec();
        record.set_value(value);
    }
    Ok(Some(record))
}
