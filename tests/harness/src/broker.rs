//! A broker in a process of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use crate::command::{BusCommand, signal, wait};

/// How long a broker may take to start or to stop.
const DEADLINE: Duration = Duration::from_secs(60);

/// A broker's settings, before it runs.
#[derive(Debug, Default)]
pub struct Builder {
    arguments: Vec<String>,
    data: Option<PathBuf>,
}

impl Builder {
    /// Flags for `bus start`, on top of the test's own.
    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Where it keeps its data; in a folder of its own, deleted with it, unless said.
    pub fn data(mut self, folder: impl Into<PathBuf>) -> Self {
        self.data = Some(folder.into());
        self
    }

    /// Starts it, and waits until it is ready.
    pub fn start(self) -> anyhow::Result<BrokerProcess> {
        let folder = tempfile::Builder::new().prefix("bus-test-").tempdir()?;
        let data = self.data.unwrap_or_else(|| folder.path().join("data"));
        let mut broker = BrokerProcess {
            arguments: self.arguments,
            data,
            folder,
            child: None,
            address: String::new(),
            metrics: String::new(),
        };
        broker.launch("127.0.0.1:0")?;
        Ok(broker)
    }
}

/// A running `bus start`. Killed, and its folder deleted, when it is dropped.
#[derive(Debug)]
pub struct BrokerProcess {
    arguments: Vec<String>,
    data: PathBuf,
    folder: TempDir,
    child: Option<Child>,
    address: String,
    metrics: String,
}

impl BrokerProcess {
    /// A broker with the default settings on free ports.
    pub fn start() -> anyhow::Result<Self> {
        Self::builder().start()
    }

    /// A broker with settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where clients reach it: `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its metrics' address: `http://HOST:PORT/metrics`.
    pub fn metrics(&self) -> &str {
        &self.metrics
    }

    /// Where it keeps its data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A folder for the test's own files, deleted with the broker.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id.
    pub fn id(&self) -> anyhow::Result<u32> {
        Ok(self.child.as_ref().context("the broker does not run")?.id())
    }

    /// What it wrote to stderr so far, over all its lives.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    /// `bus ARGUMENTS` against this broker. In a binary that cannot be found the error comes with the run.
    pub fn bus<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> BusCommand {
        let mut command = Command::new(crate::binary().unwrap_or_else(|_| "bus".into()));
        command.args(arguments);
        self.client(command)
    }

    /// A line of bash in which `bus` finds this broker without a flag.
    pub fn shell(&self, line: &str) -> BusCommand {
        let mut command = Command::new("bash");
        command.args(["-c", line]);
        self.client(command)
    }

    fn client(&self, mut command: Command) -> BusCommand {
        command.env("BUS_SERVER", &self.address).env("BUS_TRUST_DIR", self.trust());
        BusCommand::new(command)
    }

    /// SIGKILL, as if its power went; waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the broker does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM; waits until it has stopped.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        let child = self.child.take().context("the broker does not run")?;
        signal(child.id(), "TERM")?;
        wait(child, DEADLINE).with_context(|| self.stderr())
    }

    /// Starts it again on the same data and address, after [`Self::kill`] or [`Self::terminate`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        let address = self.address.clone();
        self.launch(&address)
    }

    fn trust(&self) -> PathBuf {
        self.folder.path().join("trust")
    }

    fn launch(&mut self, listen: &str) -> anyhow::Result<()> {
        let stderr = File::options().create(true).append(true).open(self.folder.path().join("stderr"))?;
        let mut child = Command::new(crate::binary()?)
            .arg("start")
            .args(["--listen", listen, "--http", "127.0.0.1:0", "--until-stdin-closes", "--data"])
            .arg(&self.data)
            .args(&self.arguments)
            .env("BUS_TRUST_DIR", self.trust())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()?;
        let stdout = child.stdout.take().context("its stdout is missing")?;
        self.child = Some(child);
        let (ready, line) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let first = lines.next().and_then(Result::ok).unwrap_or_default();
            // Read on: a full pipe would hold the broker up.
            let _ = ready.send(first);
            lines.for_each(drop);
        });
        let line = line.recv_timeout(DEADLINE).with_context(|| format!("not ready: {}", self.stderr()))?;
        // ready: node 1 at HOST:PORT, metrics at URL, data in FOLDER
        let after = |what: &str| line.split_once(what).and_then(|(_, rest)| rest.split([',', ' ']).next());
        match (after(" at "), after("metrics at ")) {
            (Some(address), Some(metrics)) if line.starts_with("ready: ") => {
                self.address = address.to_owned();
                self.metrics = metrics.to_owned();
                Ok(())
            }
            _ => bail!("not ready: {line:?}; stderr: {}", self.stderr()),
        }
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
