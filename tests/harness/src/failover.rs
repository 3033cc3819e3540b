//! How long producers wait for a new leader.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::cluster::Cluster;
use crate::load::{Load, LoadResult};
use crate::open_loop::quantile;

const TOPIC: &str = "failover";
/// How long the load may take to go on.
const PROGRESS: Duration = Duration::from_secs(30);

/// Takes the leader of a partition away, again and again, under a steady load of one producer.
#[derive(Clone, Debug)]
pub struct Failover {
    /// How often.
    pub times: usize,
    /// Whether it is stopped with SIGTERM rather than killed.
    pub graceful: bool,
    /// What the producer sends: the times are no finer than from one record to the next.
    pub records_per_second: u32,
    /// Settings of all nodes, as `bus.toml` holds them.
    pub config: String,
}

impl Default for Failover {
    fn default() -> Self {
        Self { times: 50, graceful: false, records_per_second: 2_000, config: String::new() }
    }
}

/// For each time: how long nothing was acknowledged.
#[derive(Clone, Debug)]
pub struct FailoverReport {
    /// In ascending order.
    pub gaps: Vec<Duration>,
    graceful: bool,
}

impl FailoverReport {
    /// The gap that this share of all gaps does not exceed: 0.5 is the median.
    pub fn quantile(&self, share: f64) -> Duration {
        quantile(&self.gaps, share)
    }
}

impl fmt::Display for FailoverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.graceful { "graceful stops" } else { "kills" };
        write!(f, "{} {how} of the leader, time without an acknowledgement:", self.gaps.len())?;
        for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)] {
            write!(f, " {name} {:.0} ms", self.quantile(share).as_secs_f64() * 1e3)?;
        }
        Ok(())
    }
}

impl Failover {
    /// Runs it, with three nodes in processes of their own, and checks at the end that nothing was lost.
    pub async fn run(self) -> anyhow::Result<FailoverReport> {
        let cluster = Cluster::builder().processes().config(&self.config).start().await?;
        cluster.create_topic(TOPIC, 1, 3, &[("min.insync.replicas", "2")]).await?;
        let load =
            Load { topic: TOPIC.to_owned(), records_per_second: self.records_per_second, ..Load::default() };
        let load = load.start(&cluster).await?;
        let mut gaps = Vec::with_capacity(self.times);
        for time in 1..=self.times {
            load.wait_for_acks(200, PROGRESS).await?;
            let leader = cluster.leader_of(TOPIC, 0).await?;
            load.forget_gaps();
            match self.graceful {
                true => cluster.stop(leader).await?,
                false => cluster.kill(leader).await?,
            }
            cluster.new_leader_of(TOPIC, 0, leader).await?;
            // Acknowledgements of the new leader, whatever of the old one's was still on its way.
            load.wait_for_acks(200, PROGRESS).await.with_context(|| format!("time {time}"))?;
            gaps.push(load.take_longest_gap());
            cluster.start_node(leader).await?;
            cluster.wait_all_in_sync().await?;
        }
        let LoadResult { history, failure, .. } = load.stop().await?;
        ensure!(failure.is_none(), "a record failed: {failure:?}");
        cluster.check_history(TOPIC, &history).await?;
        gaps.sort();
        Ok(FailoverReport { gaps, graceful: self.graceful })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_list() {
        let gaps = (1..=100).map(Duration::from_millis).collect();
        let report = FailoverReport { gaps, graceful: false };
        assert_eq!(report.quantile(0.5), Duration::from_millis(50));
        assert_eq!(report.quantile(0.99), Duration::from_millis(99));
        assert_eq!(report.quantile(1.0), Duration::from_millis(100));
        assert!(report.to_string().ends_with("p50 50 ms p90 90 ms p99 99 ms max 100 ms"), "{report}");
        assert_eq!(FailoverReport { gaps: Vec::new(), graceful: true }.quantile(0.5), Duration::ZERO);
    }
}
