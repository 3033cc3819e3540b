//! A broker as its operator meets it: ready at once, stopped cleanly, killed, watched.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bus_testkit::{BrokerProcess, BusCommand};
use serde_json::Value;

fn http(url: &str, path: &str) -> String {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn ready_watched_and_stopped() {
    let mut broker = BrokerProcess::start().unwrap();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert!(http(broker.metrics(), path).starts_with("HTTP/1.1 200"), "{path}");
    }
    let status = broker.bus(["cluster", "status", "-o", "json"]).run().unwrap().success().unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        (&status["node"], &status["state"], &status["controller"]),
        (&1.into(), &"up".into(), &true.into())
    );
    assert_eq!(status["address"], broker.address());
    assert!(broker.terminate().unwrap().success(), "{}", broker.stderr());
    assert!(!broker.stderr().contains("panicked"), "{}", broker.stderr());
}

#[test]
fn topics_and_records_outlive_stops_and_kills() {
    let mut broker = BrokerProcess::start().unwrap();
    let create =
        ["topic", "create", "t", "--partitions", "3", "--config", "retention.ms=-1", "segment.bytes=1048576"];
    broker.bus(create).run().unwrap().success().unwrap();
    broker.bus(["topic", "create", "t", "--if-not-exists"]).run().unwrap().success().unwrap();
    for life in 1..=4_usize {
        broker
            .bus(["produce", "t", "--key", "k"])
            .stdin(format!("life {life}\n"))
            .run()
            .unwrap()
            .success()
            .unwrap();
        if life % 2 == 0 {
            assert!(broker.terminate().unwrap().success());
        } else {
            broker.kill().unwrap();
        }
        broker.restart().unwrap();
        let read = broker.bus(["consume", "t", "--until", "end"]).run().unwrap().success().unwrap();
        assert_eq!(read.lines().len(), life);
    }
    let described = broker.bus(["topic", "describe", "t", "-o", "json"]).run().unwrap().success().unwrap();
    let partitions: Vec<Value> =
        described.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(partitions.len(), 3);
    assert_eq!(partitions.iter().map(|partition| partition["log_end"].as_i64().unwrap()).sum::<i64>(), 4);
    for key in
        ["topic", "partition", "leader", "epoch", "replicas", "isr", "log_start", "high_watermark", "bytes"]
    {
        assert!(!partitions[0][key].is_null(), "{key} is missing");
    }
    assert_eq!(partitions[0]["config"]["retention.ms"], "-1");

    broker
        .bus(["topic", "alter", "t", "--partitions", "5", "--config", "retention.ms="])
        .run()
        .unwrap()
        .success()
        .unwrap();
    let table = broker.bus(["topic", "describe", "t"]).run().unwrap().success().unwrap().text();
    assert!(table.contains("604800000") && table.contains("PARTITION"), "{table}");
    broker.bus(["topic", "delete", "t"]).run().unwrap().success().unwrap();
    let topics = broker.bus(["topic", "list", "-o", "json"]).run().unwrap().success().unwrap();
    assert!(!topics.text().contains("\"t\""), "{}", topics.text());
}

#[test]
fn help_completions_and_usage() {
    let run = |arguments: &[&str]| BusCommand::alone(arguments).unwrap().run().unwrap();
    assert!(run(&["--help"]).success().unwrap().text().contains("Examples:"));
    assert!(run(&["topic", "create", "--help"]).success().unwrap().text().contains("Examples:"));
    assert!(run(&["--version"]).success().unwrap().text().starts_with("bus "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).success().unwrap().text().contains("produce"));
    }
    for wrong in [&["frobnicate"][..], &[], &["topic"], &["produce"], &["consume"], &["topic", "alter", "t"]]
    {
        let finished = run(wrong).exits(2).unwrap();
        assert!(finished.stdout.is_empty() && !finished.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn the_demo_holds_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let components = bus_testkit::components("route").unwrap();
    let demo =
        BusCommand::alone(["demo", "--components", components.parent().unwrap().to_str().unwrap()]).unwrap();
    let demo = demo.env("TMPDIR", folder.path()).env("HOME", folder.path()).directory(folder.path());
    let finished = demo.run().unwrap().success().unwrap();
    assert!(finished.text().contains("27,004"), "{}", finished.text());
    assert!(finished.stderr.contains("The check holds"), "{}", finished.stderr);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_throwaway_broker_leaves_nothing_though_interrupted_twice() {
    let folder = tempfile::tempdir().unwrap();
    let dev = BusCommand::alone(["dev"]).unwrap().env("TMPDIR", folder.path());
    let mut dev = dev.env("BUS_TRUST_DIR", folder.path().join("trust")).spawn().unwrap();
    dev.lines(1).unwrap();
    let left = || std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left().filter(|name| name.to_str().unwrap().starts_with("bus-dev-")).count(), 1);
    dev.signal("INT").unwrap();
    // It may be over by now: then the first was enough.
    let _ = dev.signal("INT");
    let finished = dev.finish().unwrap();
    assert!([0, 130].contains(&finished.code), "{}: {}", finished.code, finished.stderr);
    assert_eq!(left().collect::<Vec<_>>(), ["trust"]);
}
