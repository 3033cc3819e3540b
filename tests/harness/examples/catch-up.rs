//! How fast a node that was away catches up, and what producers notice of it: `catch-up [MIB]`.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]

use anyhow::Context as _;
use bus_testkit::CatchUp;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mib = match std::env::args().nth(1) {
        Some(mib) => mib.parse().context("usage: catch-up [MIB]")?,
        None => CatchUp::default().mib,
    };
    println!("{}", CatchUp { mib, ..CatchUp::default() }.run().await?);
    Ok(())
}
