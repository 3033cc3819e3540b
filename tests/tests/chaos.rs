//! Random kills, stops, pauses and cuts, one node at a time, under load: nothing acknowledged is lost, nothing is there
//! twice, order holds, and the replicas are equal. `CHAOS_SECONDS` says for how long, `CHAOS_SEED` what happens.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

use std::time::Duration;

use bus_testkit::Chaos;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}

/// One at a time: each has the machine for itself.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn run(chaos: Chaos) {
    let _turn = TURN.lock().await;
    let seed = number("CHAOS_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        now.as_nanos() as u64 % 1_000_000
    });
    let duration = Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(20));
    eprintln!("CHAOS_SEED={seed}");
    match (Chaos { seed, duration, ..chaos }).run().await {
        Ok(report) => eprintln!("{report}"),
        Err(error) => panic!("{error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_loses_nothing() {
    run(Chaos::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chaos_with_a_new_disk_each_time_loses_nothing() {
    run(Chaos { wipe: true, ..Chaos::default() }).await;
}
