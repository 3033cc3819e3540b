//! A cluster of real brokers, in this process or in three of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

mod bounds;
mod disk_full;
mod failover;
mod membership;
mod operation;
mod repair;

use std::time::Duration;

use bus_testkit::{Cluster, LoadResult, LoadUnderWay};
use serde_json::Value;

const MINUTE: Duration = Duration::from_secs(60);

/// What a command prints that must succeed.
async fn run(cluster: &Cluster, arguments: &[&str]) -> Vec<String> {
    let finished = cluster.bus(arguments).finished().await.unwrap();
    finished.success().unwrap_or_else(|error| panic!("{arguments:?}: {error}")).lines()
}

async fn produce(cluster: &Cluster, topic: &str, lines: &str) {
    cluster.bus(["produce", topic]).stdin(lines).finished().await.unwrap().success().unwrap();
}

/// The rows of `bus cluster status`, by node.
async fn status(cluster: &Cluster) -> Vec<Value> {
    let lines = run(cluster, &["cluster", "status", "-o", "json"]).await;
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Ends the load: no record failed, and all that was acknowledged is there, once, in order, on every replica.
async fn all_is_well(cluster: &Cluster, load: LoadUnderWay) {
    load.wait_for_acks(100, MINUTE).await.unwrap();
    let LoadResult { history, counts, failure } = load.stop().await.unwrap();
    assert_eq!((failure, counts.unknown, counts.refused), (None, 0, 0));
    cluster.wait_all_in_sync().await.unwrap();
    let stored = cluster.check_history("load", &history).await.unwrap();
    assert_eq!(stored, counts.acknowledged);
    assert_eq!(cluster.check_replicas("load").await.unwrap().records, stored);
}
