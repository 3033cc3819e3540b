//! A full disk: what does not fit is refused with the reason, what was acknowledged stays, reading goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

use std::time::Duration;

use bus_testkit::{BrokerProcess, SmallDisk};

#[test]
fn a_full_disk_refuses_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(&folder.path().join("disk"), 64 << 20) {
        Ok(disk) => disk,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let mut broker = BrokerProcess::builder().data(disk.folder().join("data")).start().unwrap();
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
    disk.resize(128 << 20).unwrap();
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
