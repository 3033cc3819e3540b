//! Eats memory without end on records whose value holds the word "poison"; lets others through. For tests.

use bus_guest::{Record, Reject};

#[bus_guest::transform]
fn hog(record: Record) -> Result<Option<Record>, Reject> {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    while is_poison(record.value()) {
        eaten.push(std::hint::black_box(vec![1; 1 << 20]));
    }
    Ok(Some(record))
}

fn is_poison(value: Option<&[u8]>) -> bool {
    value.is_some_and(|value| value.windows(6).any(|word| word == b"poison"))
}
