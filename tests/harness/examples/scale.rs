//! What many partitions cost idle nodes, and how soon they are led again: `scale [PARTITIONS]`, replicas of each node,
//! and then leaders of each.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use anyhow::Context as _;
use bus_testkit::Scale;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let partitions = match std::env::args().nth(1) {
        Some(partitions) => partitions.parse().context("usage: scale [PARTITIONS]")?,
        None => Scale::default().partitions,
    };
    println!("{}", Scale { partitions, ..Scale::default() }.run().await?);
    Ok(())
}
