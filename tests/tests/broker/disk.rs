//! A full disk: what does not fit is refused with the reason, what was acknowledged stays, reading goes on.

use std::time::Duration;

use bus_testkit::{BrokerProcess, SmallDisk};

/// The numbers in a line: "4,112 of 69907" has two.
fn numbers(line: &str) -> Vec<usize> {
    line.replace(',', "")
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

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
    // Each record is acknowledged, or counts as failed. What is given up does not keep what is smaller, and was sent
    // later, from finding room.
    let told = full.stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
    let [failed, sent, ..] = numbers(told)[..] else { panic!("{told}") };
    let first_failed = told.split("from line ").skip(1).map(|reason| numbers(reason)[0]).min().unwrap();
    assert_eq!(acknowledged + failed, sent, "{}", full.stderr);

    let read = |broker: &BrokerProcess| {
        let read = run(broker, &["consume", "big", "-n", &acknowledged.to_string()]).lines();
        let places: Vec<_> = read.iter().map(|line| numbers(line)[0]).collect();
        assert!(places.is_sorted_by(|a, b| a < b), "out of order, or stored twice");
        assert!(
            places.iter().zip(&read).all(|(place, line)| *line == lines[*place]),
            "a line is not as it was"
        );
        assert!(
            places[..first_failed - 1].iter().enumerate().all(|(n, place)| n == *place),
            "one is missing"
        );
        read
    };
    let stored = read(&broker);
    let check = |broker: &BrokerProcess| {
        assert_eq!(run(broker, &["consume", "small", "--until", "end"]).text(), "kept\n");
        assert!(!broker.stderr().contains("panicked"), "{}", broker.stderr());
    };
    check(&broker);
    // Logs leave some of the disk to the metadata.
    run(&broker, &["topic", "create", "another"]);

    // Room again: the same broker goes on, without a restart.
    disk.resize(128 << 20).unwrap();
    let produce = broker.bus(["produce", "small", "--timeout", "20s"]).deadline(Duration::from_secs(60));
    produce.stdin("more\n").run().unwrap().success().unwrap();
    let produce = broker.bus(["produce", "big", "--timeout", "20s"]).deadline(Duration::from_secs(60));
    produce.stdin("more\n").run().unwrap().success().unwrap();
    assert_eq!(run(&broker, &["consume", "small", "--until", "end"]).text(), "kept\nmore\n");
    broker.kill().unwrap();
    broker.restart().unwrap();
    assert!(read(&broker) == stored, "a restart lost what was acknowledged");
    drop(broker);
}
