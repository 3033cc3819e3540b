//! A single broker in a process of its own.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::command::BusCommand;
use crate::process::{Launch, Process};

/// A broker's settings, before it runs.
#[derive(Debug, Default)]
pub struct Builder {
    arguments: Vec<String>,
    config: Option<String>,
    data: Option<PathBuf>,
}

impl Builder {
    /// Flags for `bus start`, on top of the test's own.
    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Its settings file.
    pub fn config(mut self, text: impl Into<String>) -> Self {
        self.config = Some(text.into());
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
        let mut arguments = self.arguments;
        if let Some(config) = self.config {
            let file = folder.path().join("bus.toml");
            fs::write(&file, config)?;
            let file = file.to_str().context("the temporary folder's name is not UTF-8")?;
            arguments.extend(["--config".to_owned(), file.to_owned()]);
        }
        let mut broker = BrokerProcess {
            arguments,
            data,
            folder,
            process: None,
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
    /// Before the folder, so that it is gone when that is deleted.
    process: Option<Process>,
    folder: TempDir,
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
        self.process.as_ref().context("the broker does not run")?.id()
    }

    /// What it wrote to stderr so far, over all its lives.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    /// `bus ARGUMENTS` against this broker. In a binary that cannot be found the error comes with the run.
    pub fn bus<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> BusCommand {
        BusCommand::bus(arguments).against(&self.address, &self.trust())
    }

    /// A line of bash in which `bus` finds this broker without a flag.
    pub fn shell(&self, line: &str) -> BusCommand {
        let mut command = Command::new("bash");
        command.args(["-c", line]);
        BusCommand::new(command).against(&self.address, &self.trust())
    }

    /// SIGKILL, as if its power went; waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("the broker does not run")?.kill()
    }

    /// SIGTERM; waits until it has stopped.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.take().context("the broker does not run")?.terminate()
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
        let launch = Launch {
            listen,
            data: &self.data,
            trust: &self.trust(),
            stderr: &self.folder.path().join("stderr"),
            arguments: self.arguments.iter().map(Into::into).collect(),
        };
        let process = launch.run()?;
        (self.address, self.metrics) = (process.address.clone(), process.metrics.clone());
        self.process = Some(process);
        Ok(())
    }
}
