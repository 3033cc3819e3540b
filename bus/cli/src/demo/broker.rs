//! A broker of the demo's own: a process in a temporary folder, gone with it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use bus_client::{Client, Trust, TrustStore};

/// How long it may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// The process. It ends when its stdin closes, so also when this process is killed.
#[derive(Debug)]
pub(super) struct Broker {
    child: Child,
    address: String,
    trust: TrustStore,
}

impl Broker {
    /// Starts it on free ports, with everything that it keeps in `folder`.
    pub(super) async fn start(folder: &Path) -> anyhow::Result<Self> {
        let trust = TrustStore::at(folder.join("trust"));
        let mut child = Command::new(std::env::current_exe().context("where is the bus binary?")?)
            .args([
                "start",
                "--listen",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--until-stdin-closes",
                "--data",
            ])
            .arg(folder.join("data"))
            .env("BUS_TRUST_DIR", trust.folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run `bus start`")?;
        let stdout = child.stdout.take().context("the broker has no stdout")?;
        let mut broker = Self { child, address: String::new(), trust };
        let ready = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line =
            tokio::time::timeout(PATIENCE, ready).await.context("the broker did not get ready")???;
        let address = line.strip_prefix("ready: ").and_then(|line| line.split_once(" at "));
        let address = address.and_then(|(_, rest)| rest.split([',', ' ']).next());
        broker.address = address.context("the broker did not start; it says why above")?.to_owned();
        Ok(broker)
    }

    /// `HOST:PORT`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// A client of it.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let trust = Trust::Store(self.trust.clone());
        Ok(Client::builder().servers(&self.address).trust(trust).client_id("bus-demo").connect().await?)
    }

    /// Stops it as an operator would.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        let until = tokio::time::Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < until,
                "the broker did not stop within {PATIENCE:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        anyhow::ensure!(status.success(), "the broker ended with {status}");
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // Gone already where it was stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
