//! Refuses records that lack a field: `--config required=carrier,flight,origin,dest` (which is the default).

use bus_guest::{Record, Reject, config};

#[bus_guest::transform]
fn validate(record: Record) -> Result<Option<Record>, Reject> {
    let value = record.value().ok_or_else(|| Reject::new("the record has no value"))?;
    for field in config("required").unwrap_or("carrier,flight,origin,dest").split(',') {
        let field = field.trim();
        if fields::value(value, field).is_none() {
            return Err(Reject::new(format!("field {field} is missing or null")));
        }
    }
    Ok(Some(record))
}
