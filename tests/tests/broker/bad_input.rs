//! What bad input gets: one line that says what and why, the right exit code, and no harm to anybody else.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use bus_testkit::{BrokerProcess, BusCommand, components};

/// A broker with a topic `t` of one partition, with one record.
fn broker() -> BrokerProcess {
    let broker = BrokerProcess::start().unwrap();
    broker.bus(["topic", "create", "t"]).run().unwrap().success().unwrap();
    broker.bus(["produce", "t"]).stdin("one\n").run().unwrap().success().unwrap();
    broker
}

/// The broker still takes and gives records, and has logged no panic.
fn still_serves(broker: &BrokerProcess) {
    broker.bus(["produce", "t"]).stdin("still here\n").run().unwrap().success().unwrap();
    let read = broker.bus(["consume", "t", "--until", "end"]).run().unwrap().success().unwrap();
    assert!(read.text().starts_with("one\n") && read.text().ends_with("still here\n"));
    assert!(!broker.stderr().contains("panicked"), "{}", broker.stderr());
}

#[test]
fn requests_that_cannot_be_met() {
    let broker = broker();
    broker.bus(["topic", "create", "two", "--partitions", "2"]).run().unwrap().success().unwrap();
    for (arguments, code, words) in [
        (vec!["topic", "create", "t"], 1, vec!["exists"]),
        (vec!["topic", "create", "a b"], 2, vec!["a b", "only a-z"]),
        (vec!["topic", "create", "x", "--partitions", "0"], 1, vec!["partitions"]),
        (vec!["topic", "create", "x", "--partitions", "999999"], 1, vec!["partitions"]),
        (vec!["topic", "create", "x", "--replicas", "3"], 1, vec!["replicas"]),
        (
            vec!["topic", "create", "x", "--config", "retention.msec=1"],
            1,
            vec!["retention.msec", "retention.ms?"],
        ),
        (vec!["topic", "create", "x", "--config", "retention.ms=soon"], 1, vec!["retention.ms", "soon"]),
        (vec!["topic", "alter", "two", "--partitions", "1"], 1, vec!["partitions"]),
        (vec!["topic", "alter", "t", "--config", "durabilty=fsync"], 1, vec!["durability?"]),
        (vec!["topic", "describe", "nosuch"], 1, vec!["nosuch"]),
        (vec!["topic", "delete", "nosuch"], 1, vec!["nosuch"]),
        (vec!["produce", "nosuch"], 1, vec!["nosuch"]),
        (vec!["consume", "nosuch", "--until", "end"], 1, vec!["nosuch"]),
        (vec!["produce", "t", "--partition", "7"], 1, vec!["partition 7"]),
        (vec!["consume", "t", "--partition", "7", "--until", "end"], 1, vec!["partition 7"]),
        (vec!["consume", "t", "--from", "99", "--until", "end"], 1, vec!["99", "out of range"]),
        (vec!["consume", "t", "--from", "yesterday"], 2, vec!["yesterday", "an offset"]),
        (vec!["consume", "t", "--format", "%x"], 2, vec!["%x"]),
        (vec!["produce", "t", "/no/such/file"], 1, vec!["/no/such/file"]),
        (vec!["produce", "t", "/"], 1, vec!["directory"]),
        (vec!["produce", "t", "--key-separator", ":"], 1, vec!["line 1", "\":\""]),
        (vec!["produce", "t", "--json"], 1, vec!["line 1", "not a record"]),
        (vec!["produce", "t", "--acks", "some"], 2, vec!["some"]),
        (vec!["function", "describe", "nosuch"], 1, vec!["nosuch"]),
        (vec!["function", "logs", "nosuch"], 1, vec!["nosuch"]),
        (vec!["function", "delete", "nosuch"], 1, vec!["nosuch"]),
        (vec!["dev", "--nodes", "0"], 2, vec!["nodes"]),
    ] {
        let finished = broker.bus(arguments.clone()).stdin("a record\n").run().unwrap();
        assert!(finished.stdout.is_empty(), "{arguments:?}: {}", finished.text());
        let refused = finished.refused(code, &words);
        refused.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    }
    still_serves(&broker);
}

#[test]
fn components_that_cannot_run() {
    let broker = broker();
    let write = |name: &str, bytes: &[u8]| {
        let file = broker.scratch().join(name);
        fs::write(&file, bytes).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let text = write("text.wasm", b"this is no component");
    let module = write("module.wasm", b"\0asm\x01\0\0\0");
    let empty = write("empty.wasm", b"\0asm\x0d\0\x01\0");
    let cut = fs::read(components("redact").unwrap()).unwrap();
    let cut = write("cut.wasm", &cut[..cut.len() / 2]);
    for (file, word) in [(&text, "Wasm"), (&module, "component"), (&empty, "export"), (&cut, "Wasm")] {
        let finished = broker.bus(["function", "deploy", "f", file, "--transform", "t"]).run().unwrap();
        let refused = finished.refused(1, &[]).unwrap_or_else(|error| panic!("{file}: {error}"));
        let said = refused.stderr.to_lowercase();
        assert!(said.contains(&word.to_lowercase()), "{file}: {word} is missing: {said}");
    }
    let redact = components("redact").unwrap();
    let redact = redact.to_str().unwrap();
    for (arguments, code, words) in [
        (vec!["--transform", "nosuch"], 1, vec!["nosuch"]),
        (vec!["--consume", "t", "--output", "t"], 1, vec!["transform"]),
        (vec![], 2, vec!["--transform"]),
        (vec!["--transform", "t", "--memory", "lots"], 2, vec!["lots", "64MiB"]),
        (vec!["--transform", "t", "--memory", "1KiB"], 2, vec!["1MiB"]),
        (vec!["--transform", "t", "--timeout", "soon"], 2, vec!["soon"]),
        (vec!["--transform", "t", "--config", "novalue"], 2, vec!["KEY=VALUE"]),
    ] {
        let all: Vec<_> =
            ["function", "deploy", "f", redact].into_iter().chain(arguments.iter().copied()).collect();
        let refused = broker.bus(all).run().unwrap().refused(code, &words);
        refused.unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    }
    assert!(
        broker.bus(["function", "list", "-o", "json"]).run().unwrap().success().unwrap().stdout.is_empty()
    );
    still_serves(&broker);
}

#[test]
fn a_second_broker_on_the_same_data_or_port() {
    let broker = broker();
    let trust = broker.scratch().join("trust");
    let start = |arguments: &[&str]| {
        let all: Vec<_> = ["start"].into_iter().chain(arguments.iter().copied()).collect();
        BusCommand::alone(all)
            .unwrap()
            .env("BUS_TRUST_DIR", &trust)
            .deadline(Duration::from_secs(20))
            .run()
            .unwrap()
    };
    let data = broker.data().to_str().unwrap();
    let other = broker.scratch().join("other");
    let other = other.to_str().unwrap();
    start(&["--data", data, "--listen", "127.0.0.1:0", "--http", "none"])
        .refused(1, &["in use", "--data"])
        .unwrap();
    start(&["--data", other, "--listen", broker.address(), "--http", "none"])
        .refused(1, &[broker.address(), "in use"])
        .unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let held = held.local_addr().unwrap().to_string();
    let known = || fs::read_dir(&trust).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let before = known();
    let joining = ["--join", "127.0.0.1:1,127.0.0.1:2", "--data", other];
    start(&[&joining[..], &["--listen", "127.0.0.1:0", "--http", &held]].concat())
        .refused(1, &[&held, "--http"])
        .unwrap();
    assert!(
        !fs::exists(other).unwrap() && known() == before,
        "what fails to start leaves nothing: {:?}",
        known()
    );
    start(&["--data", data, "--node-id", "0"]).exits(2).unwrap();
    start(&["--data", "/proc/no/such"]).refused(1, &["/proc/no/such"]).unwrap();
    still_serves(&broker);
}

#[test]
fn settings_files_that_make_no_sense() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bus.toml");
    for (text, words) in [
        ("lisen = \"127.0.0.1:0\"\n", vec!["line 1", "lisen", "did you mean listen?"]),
        ("\nnode_id = \"one\"\n", vec!["line 2", "invalid type"]),
        ("node_id = 0\n", vec!["node_id"]),
        ("[transport]\nstreams = 0\n", vec!["streams"]),
        ("= 1\n", vec!["line 1"]),
    ] {
        fs::write(&file, text).unwrap();
        let arguments = ["start", "--config", file.to_str().unwrap(), "--data", "data"];
        let start = BusCommand::alone(arguments).unwrap().directory(folder.path());
        let refused =
            start.env("BUS_TRUST_DIR", folder.path()).deadline(Duration::from_secs(20)).run().unwrap();
        refused.refused(1, &words).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    }
    BusCommand::alone(["start", "--config", "/no/such.toml"])
        .unwrap()
        .run()
        .unwrap()
        .refused(1, &["/no/such.toml"])
        .unwrap();
}

#[test]
fn nobody_at_the_other_end() {
    let folder = tempfile::tempdir().unwrap();
    // Bound, and silent: a port that nobody else takes meanwhile.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let run = |arguments: &[&str]| {
        let all: Vec<_> = arguments.iter().copied().chain(["--server", &address]).collect();
        BusCommand::alone(all).unwrap().env("BUS_TRUST_DIR", folder.path()).run().unwrap()
    };
    // That its CA is not known is no matter as long as nobody is there.
    run(&["topic", "list"]).refused(1, &[&address, "no broker answers"]).unwrap();
    run(&["topic", "list", "--insecure"]).refused(1, &[&address]).unwrap();
    run(&["topic", "list", "--ca", "/no/such.pem"]).refused(1, &["/no/such.pem"]).unwrap();
    run(&["topic", "list", "--ca", "/no/such.pem", "--insecure"]).exits(2).unwrap();
    run(&["bench", "produce"]).refused(1, &[&address]).unwrap();
}

#[test]
fn a_throttle_is_in_bytes_and_nobody_means_fifty() {
    let rebalance = |throttle: &str| {
        BusCommand::alone(["cluster", "rebalance", "--throttle", throttle]).unwrap().run().unwrap()
    };
    for wrong in ["50", "50/s", "50MiB/m", "fast"] {
        rebalance(wrong).refused(2, &["50MiB"]).unwrap_or_else(|error| panic!("{wrong}: {error}"));
    }
}

#[test]
fn garbage_on_the_port_harms_nobody() {
    let broker = broker();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 0x5eed_u32;
    for length in (0..1_400).step_by(7) {
        let datagram: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(length)
        .collect();
        socket.send_to(&datagram, broker.address()).unwrap();
    }
    still_serves(&broker);
}

#[test]
fn components_that_want_what_functions_do_not_have() {
    let broker = broker();
    for (name, text, words) in [
        (
            "network",
            r#"(component (import "wasi:http/outgoing-handler@0.2.0" (instance (export "f" (func)))))"#,
            ["imports wasi:http/outgoing-handler@0.2.0", "no network"],
        ),
        ("surprise", r#"(component (import "surprise" (func)))"#, ["imports surprise", "do not have"]),
        (
            "both",
            r#"(component (instance $i) (export "bus:function/transform@0.1.0" (instance $i))
                (export "bus:function/consumer@0.1.0" (instance $i)))"#,
            ["exports", "exactly one"],
        ),
    ] {
        let file = broker.scratch().join(name);
        fs::write(&file, wat::parse_str(text).unwrap()).unwrap();
        let deploy = ["function", "deploy", name, file.to_str().unwrap(), "--transform", "t"];
        let refused = broker.bus(deploy).run().unwrap().refused(1, &words);
        refused.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    still_serves(&broker);
}

#[test]
fn records_that_are_too_large_are_refused_and_their_neighbours_stored() {
    let broker = broker();
    let large = "x".repeat(5 << 20);
    let input = format!("before\n{large}\nafter\n");
    let refused = broker.bus(["produce", "t"]).stdin(input).run().unwrap();
    refused.refused(1, &["1 of 3 records", "line 2", "over the limit of", "max.message.bytes"]).unwrap();
    let read = broker.bus(["consume", "t", "--until", "end"]).run().unwrap().success().unwrap();
    assert_eq!(read.text(), "one\nbefore\nafter\n");
    still_serves(&broker);
}

#[test]
fn brokers_whose_certificate_is_not_trusted() {
    let (broker, other) = (broker(), broker());
    let trust = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let all: Vec<_> = ["topic", "list"].iter().chain(arguments).collect();
        broker.bus(all).env("BUS_TRUST_DIR", trust.path()).run().unwrap()
    };
    run(&[]).refused(1, &["--ca"]).unwrap();
    let ca_of = |broker: &BrokerProcess| {
        let entry = fs::read_dir(broker.scratch().join("trust")).unwrap().next().unwrap();
        entry.unwrap().path().to_str().unwrap().to_owned()
    };
    run(&["--ca", &ca_of(&other)]).refused(1, &["not trusted", "--ca"]).unwrap();
    run(&["--ca", &ca_of(&broker)]).success().unwrap();
    run(&["--insecure"]).success().unwrap();
    let no_certificate = trust.path().join("empty.pem");
    fs::write(&no_certificate, "nothing").unwrap();
    run(&["--ca", no_certificate.to_str().unwrap()]).refused(1, &["empty.pem"]).unwrap();
    still_serves(&broker);
}
