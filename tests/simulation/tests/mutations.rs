//! Each rule that is broken on purpose is noticed within a thousand seeds.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

use bus_simulation::{Mutation, Violation, run};

const SEEDS: u64 = 1_000;

/// The first seed that finds the break, and what it finds.
fn find(mutation: Mutation) -> Option<(u64, Violation)> {
    (1..=SEEDS).find_map(|seed| Some((seed, run(seed, Some(mutation)).violation?)))
}

#[test]
fn every_deliberate_break_is_found() {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let missed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(mutation) = Mutation::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match find(*mutation) {
                        Some((seed, violation)) => println!("{mutation:?}: seed {seed}: {violation}"),
                        None => missed.lock().unwrap().push(*mutation),
                    }
                }
            });
        }
    });
    assert!(missed.lock().unwrap().is_empty(), "not found within {SEEDS} seeds: {missed:?}");
}
