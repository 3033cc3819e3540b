//! How long producers wait for a new leader: `failover [TIMES] [kills|stops]`, kills and then graceful stops.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use anyhow::{Context as _, bail};
use bus_testkit::Failover;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let times = match std::env::args().nth(1) {
        Some(times) => times.parse().context("usage: failover [TIMES] [kills|stops]")?,
        None => Failover::default().times,
    };
    let which: &[bool] = match std::env::args().nth(2).as_deref() {
        Some("kills") => &[false],
        Some("stops") => &[true],
        None => &[false, true],
        Some(other) => bail!("{other} is neither: usage: failover [TIMES] [kills|stops]"),
    };
    for &graceful in which {
        println!("{}", Failover { times, graceful, ..Failover::default() }.run().await?);
    }
    Ok(())
}
