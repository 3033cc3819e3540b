//! Each rule that is broken on purpose is noticed within a thousand seeds.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

use bus_simulation::{Mutation, Violation, run};

const SEEDS: u64 = 1_000;

/// The first seed in which the rule that was broken is the one that is seen broken, and what is seen.
fn find(mutation: Mutation) -> Option<(u64, Violation)> {
    let seen = |seed| run(seed, Some(mutation)).violation;
    let meant = |violation: &Violation| violation.invariant == mutation.breaks();
    (1..=SEEDS).find_map(|seed| Some((seed, seen(seed).filter(meant)?)))
}

#[test]
fn every_rule_is_broken_by_something() {
    let mut broken: Vec<_> = Mutation::ALL.into_iter().map(Mutation::breaks).collect();
    broken.sort_unstable();
    broken.dedup();
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/invariants")).unwrap();
    let mut rules: Vec<String> = files
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "mod" && name != "ledger")
        .collect();
    rules.sort_unstable();
    assert_eq!(rules, broken);
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
