//! A full disk: what does not fit is refused with the reason, what was acknowledged stays, reading goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bus_testkit::BrokerProcess;

/// A file system of its own, in memory; gone when it is dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None`, and why on stderr, where this user may mount nothing.
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "bus-test"]).arg(folder);
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(folder.to_owned())),
            Ok(output) => {
                eprintln!("skipped: cannot mount a small disk: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                eprintln!("skipped: cannot run mount: {error}");
                None
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the broker on it may be ending still.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(&folder.path().join("disk"), "64m") else { return };
    let mut broker = BrokerProcess::builder().data(disk.0.join("data")).start().unwrap();
    let run = |broker: &BrokerProcess, arguments: &[&str]| {
        let finished = broker.bus(arguments).run().unwrap();
        // What it printed would be megabytes.
        assert_eq!(finished.code, 0, "{arguments:?}: {}", finished.stderr);
        finished
    };
    for topic in ["small", "big"] {
        run(&broker, &["topic", "create", topic, "--config", "segment.bytes=4194304"]);
    }
    broker.bus(["produce", "small"]).stdin("kept\n").run().unwrap().success().unwrap();

    let filler = "x".repeat(1_000);
    let lines: Vec<_> = (0..100_000).map(|number| format!("{number} {filler}")).collect();
    let produce = broker.bus(["produce", "big", "-o", "json", "--timeout", "2s"]);
    let full = produce.stdin(lines.join("\n")).run().unwrap();
    assert_eq!(full.code, 1, "{}", full.stderr);
    for word in ["were not acknowledged", "disk is full"] {
        assert!(full.stderr.contains(word), "{word} is missing: {}", full.stderr);
    }
    let acknowledged = full.lines().len();
    assert!(acknowledged > 1_000 && acknowledged < lines.len(), "{acknowledged}");

    let check = |broker: &BrokerProcess| {
        let read = run(broker, &["consume", "big", "-n", &acknowledged.to_string()]).lines();
        assert!(read[..] == lines[..acknowledged], "what was acknowledged is not what is stored");
        assert_eq!(run(broker, &["consume", "small", "--until", "end"]).text(), "kept\n");
        assert!(!broker.stderr().contains("panicked"), "{}", broker.stderr());
    };
    check(&broker);

    // Room again: the same broker goes on, without a restart.
    resize(&disk.0, "128m");
    let produce = broker.bus(["produce", "small", "--timeout", "20s"]).deadline(Duration::from_secs(60));
    produce.stdin("more\n").run().unwrap().success().unwrap();
    let produce = broker.bus(["produce", "big", "--timeout", "20s"]).deadline(Duration::from_secs(60));
    produce.stdin("more\n").run().unwrap().success().unwrap();
    assert_eq!(run(&broker, &["consume", "small", "--until", "end"]).text(), "kept\nmore\n");
    broker.kill().unwrap();
    broker.restart().unwrap();
    let read = run(&broker, &["consume", "big", "-n", &acknowledged.to_string()]).lines();
    assert!(read[..] == lines[..acknowledged], "a restart lost what was acknowledged");
    drop(broker);
}

fn resize(folder: &Path, size: &str) {
    let status =
        Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(folder).status().unwrap();
    assert!(status.success());
}
