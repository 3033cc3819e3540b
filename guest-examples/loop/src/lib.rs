//! Spins for ever on records whose value holds the word "poison"; lets others through. For tests.

use bus_guest::{Record, Reject};

#[bus_guest::transform]
fn spin(record: Record) -> Result<Option<Record>, Reject> {
    let mut n = 0u64;
    while is_poison(record.value()) {
        n = std::hint::black_box(n.wrapping_add(1));
    }
    Ok(Some(record))
}

fn is_poison(value: Option<&[u8]>) -> bool {
    value.is_some_and(|value| value.windows(6).any(|word| word == b"poison"))
}
