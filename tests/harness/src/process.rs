//! A `bus start` in a process of its own, from its launch to its end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::command::{signal, wait};

/// How long a broker may take to start or to stop.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What a broker is started with.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    /// Where it listens.
    pub(crate) listen: &'a str,
    /// Its data folder.
    pub(crate) data: &'a Path,
    /// The folder in which brokers of this machine leave their CA.
    pub(crate) trust: &'a Path,
    /// The file that its stderr is appended to.
    pub(crate) stderr: &'a Path,
    /// More flags.
    pub(crate) arguments: Vec<OsString>,
}

/// A broker that is ready. Killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Option<Child>,
    stderr: PathBuf,
    pub(crate) address: String,
    pub(crate) metrics: String,
}

impl Launch<'_> {
    /// Starts it, and waits until it says that it is ready. The error holds what it wrote to stderr.
    pub(crate) fn run(self) -> anyhow::Result<Process> {
        let stderr = File::options().create(true).append(true).open(self.stderr)?;
        // What earlier lives wrote there is not this one's.
        let written = stderr.metadata()?.len();
        let mut child = Command::new(crate::binary()?)
            .arg("start")
            .args(["--listen", self.listen, "--http", "127.0.0.1:0", "--until-stdin-closes", "--data"])
            .arg(self.data)
            .args(&self.arguments)
            .env("BUS_TRUST_DIR", self.trust)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()?;
        let stdout = child.stdout.take().context("its stdout is missing")?;
        let mut process = Process {
            child: Some(child),
            stderr: self.stderr.to_owned(),
            address: String::new(),
            metrics: String::new(),
        };
        let (ready, line) = mpsc::channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let first = lines.next().and_then(Result::ok).unwrap_or_default();
            // Read on: a full pipe would hold the broker up.
            let _ = ready.send(first);
            lines.for_each(drop);
        });
        let said = || {
            let all = fs::read(&process.stderr).unwrap_or_default();
            let from = usize::try_from(written).unwrap_or_default().min(all.len());
            String::from_utf8_lossy(&all[from..]).into_owned()
        };
        let Ok(line) = line.recv_timeout(DEADLINE) else {
            bail!("not ready within {DEADLINE:?}; stderr: {}", said());
        };
        // ready: node 1 at HOST:PORT, metrics at URL, data in FOLDER
        let after = |what: &str| line.split_once(what).and_then(|(_, rest)| rest.split([',', ' ']).next());
        match (after(" at "), after("metrics at ")) {
            (Some(address), Some(metrics)) if line.starts_with("ready: ") => {
                (process.address, process.metrics) = (address.to_owned(), metrics.to_owned());
                Ok(process)
            }
            _ => bail!("not ready: {line:?}; stderr: {}", said()),
        }
    }
}

impl Process {
    /// Its process id.
    pub(crate) fn id(&self) -> anyhow::Result<u32> {
        Ok(self.child.as_ref().context("the broker does not run")?.id())
    }

    /// SIGKILL; waits until it is gone.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the broker does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM; waits until it has stopped.
    pub(crate) fn terminate(mut self) -> anyhow::Result<ExitStatus> {
        let child = self.child.take().context("the broker does not run")?;
        let id = child.id();
        signal(id, "TERM")?;
        wait(child, DEADLINE).map_err(|error| {
            // It may be gone by now.
            let _ = signal(id, "KILL");
            error.context(fs::read_to_string(&self.stderr).unwrap_or_default())
        })
    }

    /// Another signal, by name.
    pub(crate) fn signal(&self, name: &str) -> anyhow::Result<()> {
        signal(self.id()?, name)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may be gone already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Milliseconds of a tick of `/proc/PID/stat`: USER_HZ is 100 on every Linux.
const TICK_MS: u64 = 10;

/// The CPU time that a process of this machine has used, its own and the kernel's on its behalf.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    ticks(&stat)
        .map(|ticks| Duration::from_millis(ticks * TICK_MS))
        .context("/proc/PID/stat is not as it was")
}

/// The second field is the program's name, which may hold spaces and brackets.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read_whatever_the_programs_name() {
        let stat = "1 (a b) c) S 0 1 1 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 1 0 5";
        assert_eq!(ticks(stat), Some(300));
        assert!(cpu_time(std::process::id()).is_ok());
    }
}
