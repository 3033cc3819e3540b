//! A run of the CLI.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

/// How long a command may take unless it says otherwise.
const DEADLINE: Duration = Duration::from_secs(120);

/// A run of `bus`, to be set up and run.
#[derive(Debug)]
pub struct BusCommand {
    command: Command,
    stdin: Vec<u8>,
    deadline: Duration,
}

/// What a run left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; -1 where a signal ended it.
    pub code: i32,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl BusCommand {
    pub(crate) fn new(command: Command) -> Self {
        Self { command, stdin: Vec::new(), deadline: DEADLINE }
    }

    /// `bus ARGUMENTS`. In a binary that cannot be found the error comes with the run.
    pub(crate) fn bus<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(crate::binary().unwrap_or_else(|_| "bus".into()));
        command.args(arguments);
        Self::new(command)
    }

    /// Has it find these brokers, and their CA, without a flag.
    pub(crate) fn against(self, servers: &str, trust: &Path) -> Self {
        self.env("BUS_SERVER", servers).env("BUS_TRUST_DIR", trust)
    }

    /// `bus ARGUMENTS` without a broker, at home in nobody's folder.
    pub fn alone<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> anyhow::Result<Self> {
        let mut command = Command::new(crate::binary()?);
        command.args(arguments).env_remove("BUS_SERVER");
        Ok(Self::new(command))
    }

    /// What it reads from stdin. Nothing unless said.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// A variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// The folder that it runs in.
    pub fn directory(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// How long it may take. Two minutes unless said.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end; past the deadline it is killed, which is an error.
    pub fn run(self) -> anyhow::Result<Finished> {
        self.spawn()?.finish()
    }

    /// As [`Self::run`], for a test whose own tasks must go on meanwhile.
    pub async fn finished(self) -> anyhow::Result<Finished> {
        tokio::task::spawn_blocking(|| self.run()).await?
    }

    /// Starts it.
    pub fn spawn(mut self) -> anyhow::Result<Running> {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().with_context(|| format!("cannot run {:?}", self.command))?;
        let (mut stdin, mut stdout, mut stderr) =
            match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
                (Some(stdin), Some(stdout), Some(stderr)) => (stdin, stdout, stderr),
                _ => bail!("a pipe is missing"),
            };
        let input = self.stdin;
        // A command that does not read all its input has its reasons, and says them.
        thread::spawn(move || stdin.write_all(&input));
        let errors = thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
        });
        // Bounded by what a test has a command print; a test's own memory is its business.
        let (lines, received) = mpsc::channel();
        let output = thread::spawn(move || {
            let mut bytes = Vec::new();
            let mut buffer = vec![0; 64 << 10];
            loop {
                let count = stdout.read(&mut buffer)?;
                if count == 0 {
                    return Ok(bytes);
                }
                bytes.extend_from_slice(&buffer[..count]);
                // The test need not listen.
                let _ = lines.send(buffer[..count].iter().filter(|byte| **byte == b'\n').count());
            }
        });
        Ok(Running { child, output, errors, lines: received, seen: 0, deadline: self.deadline })
    }
}

/// A command under way. Dropping it leaves it running.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: thread::JoinHandle<std::io::Result<Vec<u8>>>,
    errors: thread::JoinHandle<std::io::Result<String>>,
    lines: mpsc::Receiver<usize>,
    seen: usize,
    deadline: Duration,
}

impl Running {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has written at least `count` lines to stdout.
    pub fn lines(&mut self, count: usize) -> anyhow::Result<()> {
        while self.seen < count {
            let more = self.lines.recv_timeout(self.deadline);
            self.seen += more.with_context(|| format!("it wrote {} lines, not {count}", self.seen))?;
        }
        Ok(())
    }

    /// Sends it a signal by name: `INT`, `TERM`, `KILL`.
    pub fn signal(&self, name: &str) -> anyhow::Result<()> {
        signal(self.child.id(), name)
    }

    /// Waits for its end; past the deadline it is killed, which is an error.
    pub fn finish(self) -> anyhow::Result<Finished> {
        let pid = self.child.id();
        let status = wait(self.child, self.deadline).inspect_err(|_| {
            // It may be gone by now.
            let _ = signal(pid, "KILL");
        })?;
        let joined = |_| anyhow::anyhow!("a reader panicked");
        let stdout = self.output.join().map_err(joined)??;
        let stderr = self.errors.join().map_err(joined)??;
        Ok(Finished { code: status.code().unwrap_or(-1), stdout, stderr })
    }
}

impl Finished {
    /// Itself where it ended with 0; else an error with what it said.
    pub fn success(self) -> anyhow::Result<Self> {
        self.exits(0)
    }

    /// Itself where it ended with `code`; else an error with what it said.
    pub fn exits(self, code: i32) -> anyhow::Result<Self> {
        ensure!(
            self.code == code,
            "exit code {}, not {code}; stderr: {}; stdout: {}",
            self.code,
            self.stderr,
            self.text()
        );
        Ok(self)
    }

    /// Checks a refusal: this exit code, nothing on stdout, one line on stderr that starts with `error: ` and
    /// holds all of `words`.
    pub fn refused(self, code: i32, words: &[&str]) -> anyhow::Result<Self> {
        let finished = self.exits(code)?;
        let errors: Vec<_> = finished.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        ensure!(errors.len() == 1, "not one error line: {:?}", finished.stderr);
        for word in words {
            ensure!(finished.stderr.contains(word), "{word:?} is missing: {:?}", finished.stderr);
        }
        ensure!(!finished.stderr.contains("internal fault"), "it panicked: {}", finished.stderr);
        Ok(finished)
    }

    /// Its stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its stdout's lines.
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }
}

/// Waits for a process to end.
pub(crate) fn wait(mut child: Child, deadline: Duration) -> anyhow::Result<ExitStatus> {
    let (done, status) = mpsc::channel();
    thread::spawn(move || done.send(child.wait()));
    Ok(status.recv_timeout(deadline).with_context(|| format!("it has not ended within {deadline:?}"))??)
}

/// Sends a signal. Through the shell: the standard library knows SIGKILL only.
pub(crate) fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status()?;
    ensure!(status.success(), "cannot send {name} to {pid}");
    Ok(())
}
