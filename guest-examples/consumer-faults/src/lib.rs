//! Does what its records' values say: "poison" panics, "spin" never ends, "hog" eats memory, "error" fails, "stray"
//! emits to a topic that is not an output, "random" emits a random number and the time after a sleep; anything else
//! is forwarded to the topic `out`. For tests.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus_guest::{Batch, Context, Error, log};

#[bus_guest::consumer]
fn faults(batch: Batch, context: &mut Context) -> Result<(), Error> {
    for record in batch {
        match record.text().unwrap_or_default() {
            "poison" => panic!("poison at {}", record.offset()),
            "spin" => loop {
                std::hint::black_box(0);
            },
            "hog" => {
                let mut eaten: Vec<Vec<u8>> = Vec::new();
                loop {
                    eaten.push(std::hint::black_box(vec![1; 1 << 20]));
                }
            }
            "error" => return Err(Error::new("asked to fail")),
            "stray" => context.emit("stray", record.key(), record.value())?,
            "random" => {
                std::thread::sleep(Duration::from_secs(3600));
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
                let random = RandomState::new().hash_one(1);
                println!("hello from stdout");
                log::warn!("random {random}");
                context.emit("out", record.key(), format!("{now} {random}"))?;
            }
            _ => context.forward("out", &record)?,
        }
    }
    Ok(())
}
