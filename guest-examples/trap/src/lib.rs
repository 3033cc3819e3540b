//! Panics on records whose value holds the word "poison"; lets others through. For tests.

use bus_guest::{Record, Reject};

#[bus_guest::transform]
fn trap(record: Record) -> Result<Option<Record>, Reject> {
    assert!(!is_poison(record.value()), "poison at {}", record.offset());
    Ok(Some(record))
}

fn is_poison(value: Option<&[u8]>) -> bool {
    value.is_some_and(|value| value.windows(6).any(|word| word == b"poison"))
}
