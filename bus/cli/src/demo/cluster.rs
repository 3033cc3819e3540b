//! A cluster of the demo's own: a process for each node, in a temporary folder, gone with it.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use bus_client::{Client, Trust, TrustStore};
use bus_protocol::NodeId;
use futures::future::try_join_all;
use tokio::time::Instant;

use crate::ports;

/// How long a node may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// The nodes, numbered from 1. Their processes end when their stdins close, so also when this process is killed.
#[derive(Debug)]
pub(super) struct Cluster {
    folder: PathBuf,
    addresses: Vec<SocketAddr>,
    nodes: Vec<Node>,
    trust: TrustStore,
}

#[derive(Debug)]
struct Node {
    id: NodeId,
    /// `None` while it is dead.
    process: Option<Process>,
}

#[derive(Debug)]
struct Process(Child);

impl Cluster {
    /// Starts that many nodes on free ports, with everything that they keep in `folder`.
    pub(super) async fn start(folder: &Path, nodes: usize) -> anyhow::Result<Self> {
        let addresses = ports::free(nodes, false).context("no free port on 127.0.0.1")?;
        let nodes = (1..).take(nodes).map(|id| Node { id, process: None }).collect();
        let trust = TrustStore::at(folder.join("trust"));
        let mut cluster = Self { folder: folder.to_owned(), addresses, nodes, trust };
        // Together: a new cluster needs all of its nodes.
        let ids: Vec<_> = cluster.nodes.iter().map(|node| node.id).collect();
        let processes = try_join_all(ids.into_iter().map(|id| cluster.spawn(id))).await?;
        for (node, process) in cluster.nodes.iter_mut().zip(processes) {
            node.process = Some(process);
        }
        Ok(cluster)
    }

    /// Runs a node's process, and returns when it is ready.
    async fn spawn(&self, id: NodeId) -> anyhow::Result<Process> {
        let folder = self.folder.join(format!("node-{id}"));
        let log = folder.with_extension("log");
        let join: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
        let address = self.address(id)?.to_string();
        let mut command = Command::new(std::env::current_exe().context("where is the bus binary?")?);
        command
            .args(["start", "--until-stdin-closes", "--http", "none", "--node-id", &id.to_string()])
            .args(["--listen", &address, "--join", &join.join(",")])
            .arg("--data")
            .arg(&folder)
            .env("BUS_TRUST_DIR", self.trust.folder())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if std::env::var_os("BUS_LOG").is_none() {
            // A broker that loses another has a word to say; here that is the plan.
            command.stderr(File::options().create(true).append(true).open(&log)?);
        }
        let mut child = command.spawn().context("cannot run `bus start`")?;
        let stdout = child.stdout.take().context("the broker has no stdout")?;
        let process = Process(child);
        let ready = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let ready = tokio::time::timeout(PATIENCE, ready).await;
        let why = || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let last = log.lines().last().unwrap_or("it says why above").to_owned();
            format!("node {id} did not get ready: {last}")
        };
        let line = ready.with_context(why)???;
        anyhow::ensure!(line.starts_with("ready: "), why());
        Ok(process)
    }

    fn address(&self, id: NodeId) -> anyhow::Result<SocketAddr> {
        let at = self.nodes.iter().position(|node| node.id == id);
        at.and_then(|at| self.addresses.get(at))
            .copied()
            .with_context(|| format!("node {id} is none of ours"))
    }

    fn node(&mut self, id: NodeId) -> anyhow::Result<&mut Node> {
        self.nodes.iter_mut().find(|node| node.id == id).with_context(|| format!("node {id} is none of ours"))
    }

    /// `HOST:PORT,...`
    pub(super) fn servers(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// A client of it.
    pub(super) async fn connect(&self) -> anyhow::Result<Client> {
        let trust = Trust::Store(self.trust.clone());
        Ok(Client::builder().servers(self.servers()).trust(trust).client_id("bus-demo").connect().await?)
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self, id: NodeId) -> anyhow::Result<()> {
        drop(self.node(id)?.process.take());
        Ok(())
    }

    /// Starts a node again that was killed, with what is on its disk; returns when it is ready.
    pub(super) async fn start_again(&mut self, id: NodeId) -> anyhow::Result<()> {
        let process = self.spawn(id).await?;
        self.node(id)?.process = Some(process);
        Ok(())
    }

    /// Stops all nodes as an operator would, one after the other.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if let Some(process) = node.process.take() {
                process.stop().await.with_context(|| format!("node {}", node.id))?;
            }
        }
        Ok(())
    }
}

impl Process {
    async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.0.stdin.take());
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait()? {
                break status;
            }
            anyhow::ensure!(Instant::now() < until, "did not stop within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        anyhow::ensure!(status.success(), "ended with {status}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already where it was stopped.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
