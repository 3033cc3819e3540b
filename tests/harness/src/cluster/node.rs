//! One node of a cluster, running or not.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bus_protocol::NodeId;

#[cfg(feature = "in-process")]
use super::in_process::InProcess;
use super::ports::Port;
use crate::process::{Launch, Process, cpu_time};

/// What nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Process,
    InProcess,
}

/// What a node is started with, each time.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) kind: Kind,
    /// The relays of the nodes that form the cluster.
    pub(crate) join: String,
    /// `bus.toml`, without what the harness decides.
    pub(crate) config: String,
    pub(crate) arguments: Vec<String>,
    /// The CA that it is given, if it is.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) trust: PathBuf,
}

/// A node of a [`Cluster`](crate::Cluster).
#[derive(Debug)]
pub struct Node {
    id: NodeId,
    folder: PathBuf,
    port: Port,
    address: SocketAddr,
    settings: Settings,
    /// Held only for a moment: what takes its time, a start or a stop, is done beside it.
    life: Mutex<Option<Life>>,
    /// Held while it starts.
    starting: Mutex<()>,
}

#[derive(Debug)]
struct Life {
    running: Running,
    paused: bool,
}

#[derive(Debug)]
enum Running {
    Process(Process),
    #[cfg(feature = "in-process")]
    InProcess(Box<InProcess>),
}

impl Node {
    pub(crate) fn new(id: NodeId, root: &Path, port: Port, address: SocketAddr, settings: Settings) -> Self {
        let folder = root.join(format!("node-{id}"));
        Self { id, folder, port, address, settings, life: Mutex::default(), starting: Mutex::default() }
    }

    fn life(&self) -> MutexGuard<'_, Option<Life>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where everybody reaches it: its relay, where there is one.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Where it listens behind its relay: who talks to it there sees no faults.
    pub fn listens(&self) -> SocketAddr {
        self.port.address()
    }

    /// Where it keeps its data.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its process id, while it runs in a process of its own.
    pub fn pid(&self) -> Option<u32> {
        match &self.life().as_ref()?.running {
            Running::Process(process) => process.id().ok(),
            #[cfg(feature = "in-process")]
            Running::InProcess(_) => None,
        }
    }

    /// The CPU time that it has used since its start, in steps of 10 ms. For nodes in processes of their own.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let pid = self.pid().context("it does not run in a process of its own")?;
        cpu_time(pid).with_context(|| format!("the CPU time of node {}", self.id))
    }

    /// `http://HOST:PORT/metrics`, while it runs.
    pub fn metrics(&self) -> Option<String> {
        match &self.life().as_ref()?.running {
            Running::Process(process) => Some(process.metrics.clone()),
            #[cfg(feature = "in-process")]
            Running::InProcess(broker) => Some(broker.metrics.clone()),
        }
    }

    /// What its `/metrics` show under a name, over all labels; 0 where there is no such name.
    pub fn counted(&self, name: &str) -> anyhow::Result<f64> {
        let url = self.metrics().context("it serves no metrics")?;
        let address = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let lines = answer.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// What it wrote to stderr so far, over all its lives; nothing of a node within this process.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.folder.join("stderr")).unwrap_or_default()
    }

    /// Whether it runs, paused or not.
    pub fn is_running(&self) -> bool {
        self.life().is_some()
    }

    /// Whether it is held by [`Cluster::pause`](crate::Cluster::pause).
    pub fn is_paused(&self) -> bool {
        self.life().as_ref().is_some_and(|life| life.paused)
    }

    /// Starts it, and waits until it is ready. Blocks.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(!self.is_running(), "node {} runs already", self.id);
        let running = self.launch().with_context(|| format!("node {} does not start", self.id))?;
        *self.life() = Some(Life { running, paused: false });
        Ok(())
    }

    fn launch(&self) -> anyhow::Result<Running> {
        fs::create_dir_all(&self.folder)?;
        if let Some(ca) = &self.settings.ca {
            give_ca(ca, &self.data())?;
        }
        match self.settings.kind {
            Kind::Process => self.process().map(Running::Process),
            Kind::InProcess => self.in_process(),
        }
    }

    fn process(&self) -> anyhow::Result<Process> {
        let settings = &self.settings;
        let mut arguments: Vec<OsString> = vec!["--node-id".into(), self.id.to_string().into()];
        arguments.extend(["--advertise".into(), self.address().into()]);
        arguments.extend(["--join".into(), OsString::from(&settings.join)]);
        if !settings.config.is_empty() {
            let config = self.folder.join("bus.toml");
            fs::write(&config, &settings.config)?;
            arguments.extend(["--config".into(), config.into_os_string()]);
        }
        arguments.extend(settings.arguments.iter().map(Into::into));
        let launch = Launch {
            listen: &self.listens().to_string(),
            data: &self.data(),
            trust: &settings.trust,
            stderr: &self.folder.join("stderr"),
            arguments,
        };
        launch.run()
    }

    #[cfg(feature = "in-process")]
    fn in_process(&self) -> anyhow::Result<Running> {
        let join: Vec<_> = self.settings.join.split(',').map(|address| format!("{address:?}")).collect();
        // Rust's strings, quoted as TOML has them, but for what no path of a temporary folder holds.
        let settings = format!(
            "node_id = {}\ndata = {:?}\nlisten = \"{}\"\nadvertise = \"{}\"\njoin = [{}]\nhttp = \"127.0.0.1:0\"\ntrust = {:?}\n{}",
            self.id,
            self.data().display().to_string(),
            self.listens(),
            self.address,
            join.join(", "),
            self.settings.trust,
            self.settings.config
        );
        InProcess::start(&settings).map(Box::new).map(Running::InProcess)
    }

    #[cfg(not(feature = "in-process"))]
    fn in_process(&self) -> anyhow::Result<Running> {
        bail!("this harness was built without its feature in-process: use Cluster::builder().processes()")
    }

    fn take(&self) -> anyhow::Result<Life> {
        self.life().take().with_context(|| format!("node {} does not run", self.id))
    }

    /// Ends it where it stands. Blocks until it is gone.
    pub(crate) fn kill(&self) -> anyhow::Result<()> {
        match self.take()?.running {
            Running::Process(process) => process.kill(),
            #[cfg(feature = "in-process")]
            Running::InProcess(broker) => {
                broker.kill();
                Ok(())
            }
        }
    }

    /// Has it stop, and waits until it has. Blocks.
    pub(crate) fn stop(&self) -> anyhow::Result<()> {
        let life = self.take()?;
        match life.running {
            Running::Process(process) => {
                if life.paused {
                    process.signal("CONT")?;
                }
                let status = process.terminate().with_context(|| format!("node {}", self.id))?;
                ensure!(status.success(), "node {} ended with {status}: {}", self.id, self.stderr());
                Ok(())
            }
            #[cfg(feature = "in-process")]
            Running::InProcess(broker) => broker.stop(),
        }
    }

    /// Holds it, or lets it go on.
    pub(crate) fn pause(&self, paused: bool) -> anyhow::Result<()> {
        let mut life = self.life();
        let life = life.as_mut().with_context(|| format!("node {} does not run", self.id))?;
        match &life.running {
            Running::Process(process) => process.signal(if paused { "STOP" } else { "CONT" })?,
            #[cfg(feature = "in-process")]
            Running::InProcess(_) => {
                bail!("a node within this process cannot be paused: use Cluster::builder().processes()")
            }
        }
        life.paused = paused;
        Ok(())
    }

    /// Deletes what it keeps.
    pub(crate) fn wipe(&self) -> anyhow::Result<()> {
        ensure!(!self.is_running(), "node {} runs: kill or stop it first", self.id);
        match fs::remove_dir_all(self.data()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("the data folder"),
            _ => Ok(()),
        }
    }

    /// The folder of one of its replicas.
    pub fn partition(&self, topic: &str, partition: u32) -> anyhow::Result<PathBuf> {
        let topics = self.data().join("topics");
        let prefix = format!("{topic}@");
        for entry in fs::read_dir(&topics).with_context(|| topics.display().to_string())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let folder = entry.path().join(partition.to_string());
                if folder.is_dir() {
                    return Ok(folder);
                }
            }
        }
        bail!("node {} holds nothing of {topic}-{partition}", self.id)
    }
}

/// Puts the CA and its key where a broker with this data folder looks for them, unless it has one.
pub(crate) fn give_ca(ca: &Path, data: &Path) -> anyhow::Result<()> {
    let tls = data.join("tls");
    fs::create_dir_all(&tls)?;
    for name in ["ca.key", "ca.pem"] {
        if !tls.join(name).exists() {
            fs::copy(ca.join(name), tls.join(name)).with_context(|| format!("the cluster's {name}"))?;
        }
    }
    Ok(())
}
