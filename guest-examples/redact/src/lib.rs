//! Blanks fields of JSON objects on their way in: `--config fields=tailnum,name` makes each of them "***". A field
//! that is missing or null stays so; a record that is no JSON object is stored as it is.

use bus_guest::{Record, Reject, config};

#[bus_guest::transform]
fn redact(mut record: Record) -> Result<Option<Record>, Reject> {
    for field in config("fields").unwrap_or("tailnum").split(',') {
        let Some(value) = record.value() else { break };
        let Some(place) = fields::find(value, field.trim()) else { continue };
        if &value[place.clone()] == b"null" {
            continue;
        }
        let mut redacted = Vec::with_capacity(value.len());
        redacted.extend_from_slice(&value[..place.start]);
        redacted.extend_from_slice(b"\"***\"");
        redacted.extend_from_slice(&value[place.end..]);
        record.set_value(redacted);
    }
    Ok(Some(record))
}
