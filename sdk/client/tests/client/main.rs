//! The client against small brokers of the tests' own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod admin;
mod broker;
mod failover;
mod idempotence;
mod producer;
mod reader;
mod recreation;
mod world;

use std::time::Duration;

/// No test waits longer.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it takes too long")
}
