//! A node within the test's own process: quick to start, and to be debugged together with the test.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bus_broker::{Broker, Options};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use crate::process::DEADLINE;

/// Threads of a node, beside those that it starts for its disk.
const THREADS: usize = 2;
/// How often a start is tried again while what a killed node held is being let go.
const AGAIN: Duration = Duration::from_millis(50);

/// A broker on threads of its own: when they end, everything of it ends where it stands.
#[derive(Debug)]
pub(crate) struct InProcess {
    /// `None` only once it is stopped.
    broker: Option<Running>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    pub(crate) metrics: String,
}

struct Running(Broker);

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("address", &self.0.address()).finish_non_exhaustive()
    }
}

impl InProcess {
    /// Starts a broker with these settings (`bus.toml`). Blocks until it is ready: for a thread that may.
    pub(crate) fn start(settings: &str) -> anyhow::Result<Self> {
        let options: Options = toml::from_str(settings).with_context(|| format!("settings: {settings}"))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name(format!("node-{}", options.node_id))
            .enable_all()
            .build()?;
        let node = options.node_id;
        let started = runtime.block_on(async {
            let deadline = Instant::now() + DEADLINE;
            loop {
                match tokio::time::timeout_at(deadline, Broker::start(options.clone())).await {
                    Ok(Ok(broker)) => return Ok(broker),
                    // The threads of the one before may not all have ended: its locks and its socket go with them.
                    Ok(Err(error)) if is_held(&error) && Instant::now() < deadline => {
                        tokio::time::sleep(AGAIN).await;
                    }
                    Ok(Err(error)) => bail!("node {node} does not start: error: {error}"),
                    Err(_) => bail!("node {node} is not ready within {DEADLINE:?}"),
                }
            }
        });
        let broker = started?;
        let metrics = broker.http_address().map(|http| format!("http://{http}/metrics")).unwrap_or_default();
        Ok(Self { broker: Some(Running(broker)), runtime: Some(runtime), metrics })
    }

    /// Ends it where it stands.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Stops it as SIGTERM would. Blocks.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let (Some(Running(broker)), Some(runtime)) = (self.broker.take(), self.runtime.as_ref()) else {
            bail!("the broker does not run");
        };
        let stopped = runtime.block_on(async { tokio::time::timeout(DEADLINE, broker.shutdown()).await });
        stopped.with_context(|| format!("it has not stopped within {DEADLINE:?}"))
    }
}

fn is_held(error: &bus_broker::StartError) -> bool {
    let text = error.to_string();
    let held = ["in use by another process", "could not acquire lock", "Address already in use"];
    held.iter().any(|words| text.contains(words))
}

impl Drop for InProcess {
    fn drop(&mut self) {
        drop(self.broker.take());
        if let Some(runtime) = self.runtime.take() {
            // Tasks end at their next await, at once; what blocks is left behind.
            runtime.shutdown_background();
        }
    }
}
