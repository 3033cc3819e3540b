//! Sorts flights by their departure: late ones to one topic, punctual ones to another, cancelled ones (without a
//! departure delay) to a third. Settings, with their defaults: `minutes=15`, `delayed=flights.delayed`,
//! `on-time=flights.on-time`, `cancelled=` (empty: to the punctual ones' topic).

use bus_guest::{Batch, Context, Error, config};

#[bus_guest::consumer]
fn route(batch: Batch, context: &mut Context) -> Result<(), Error> {
    let minutes: f64 = config("minutes").unwrap_or("15").parse()?;
    let delayed = config("delayed").unwrap_or("flights.delayed");
    let on_time = config("on-time").unwrap_or("flights.on-time");
    let cancelled = config("cancelled").filter(|topic| !topic.is_empty()).unwrap_or(on_time);
    for record in batch {
        let delay = fields::number(record.value().unwrap_or_default(), "dep_delay");
        let topic = match delay {
            None => cancelled,
            Some(delay) if delay >= minutes => delayed,
            Some(_) => on_time,
        };
        context.forward(topic, &record)?;
    }
    Ok(())
}
