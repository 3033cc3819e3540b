//! Consumer functions: their faults, the dead-letter topic, their place over versions, stops and kills.

use bus_testkit::{BrokerProcess, build_function};
use serde_json::Value;

use super::{broker, component, describe, run, with_topics};

/// A failed function is not left alone for long.
const IMPATIENT: &str = "[functions]\nbackoff_share = 0\nbackoff_first_ms = 5\nbackoff_last_ms = 20\n";

fn produce(broker: &BrokerProcess, topic: &str, lines: &[&str]) {
    broker.bus(["produce", topic]).stdin(lines.join("\n")).run().unwrap().success().unwrap();
}

/// Deploys an example function as a consumer of `in` that emits to `out`; answers with the version.
fn deploy(broker: &BrokerProcess, name: &str, function: &str, more: &[&str]) -> String {
    let deploy = ["function", "deploy", name, &component(function), "--consume", "in", "--output", "out"];
    run(broker, &[&deploy[..], more].concat()).concat()
}

#[test]
fn records_that_a_function_fails_on_go_to_the_dead_letter_topic_and_the_rest_goes_on() {
    let broker = with_topics(BrokerProcess::builder().config(IMPATIENT).start().unwrap(), &["in", "out"]);
    // So much fuel that the one that spins runs out of time first, on any machine.
    let limits = ["--timeout", "200ms", "--fuel", "1000000000000", "--retries", "1", "--memory", "8MiB"];
    deploy(&broker, "faults", "consumer-faults", &limits);
    let faults = [
        ("poison", "trap", "poison at"),
        ("spin", "timeout", "timeout"),
        ("hog", "memory", "memory"),
        ("error", "error", "asked to fail"),
        ("stray", "output", "stray"),
    ];
    // Among others in one batch, and alone in one.
    produce(&broker, "in", &["a", "poison", "b", "c", "spin", "d", "hog", "e", "error", "stray", "f"]);
    let good = run(&broker, &["consume", "out", "-n", "6"]);
    assert_eq!(good, ["a", "b", "c", "d", "e", "f"], "order is kept, and nothing comes twice");
    produce(&broker, "in", &["poison"]);
    produce(&broker, "in", &["g"]);
    assert_eq!(run(&broker, &["consume", "out", "--from", "6", "-n", "1"]), ["g"]);

    let letters = run(&broker, &["consume", "faults.dead-letter", "-n", "6", "-o", "json"]);
    let letters: Vec<Value> = letters.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for ((value, kind, word), (letter, offset)) in faults.iter().zip(letters.iter().zip([1, 4, 6, 8, 9])) {
        assert_eq!(letter["value"], *value);
        let headers = &letter["headers"];
        let error = headers["bus.error"].as_str().unwrap_or_else(|| panic!("no bus.error: {letter}"));
        assert!(error.contains(kind) && error.contains(word), "{value}: {error}");
        assert_eq!(headers["bus.function"], "faults");
        assert_eq!(headers["bus.version"], "1");
        assert_eq!((&headers["bus.topic"], &headers["bus.partition"]), (&"in".into(), &"0".into()));
        assert_eq!(headers["bus.offset"], offset.to_string());
    }
    assert_eq!(
        (&letters[5]["value"], &letters[5]["headers"]["bus.offset"]),
        (&"poison".into(), &"11".into())
    );

    let described = describe(&broker, "faults");
    assert_eq!((&described["failed"], &described["lag"]), (&6.into(), &0.into()), "{described}");
    assert!(described["last_error"]["message"].as_str().unwrap().contains("poison"), "{described}");
    let logs = run(&broker, &["function", "logs", "faults"]).join("\n");
    for (value, ..) in &faults[..1] {
        assert!(logs.contains(value), "{value} is missing: {logs}");
    }
    for offset in [1, 4, 6, 8, 9, 11] {
        assert!(
            logs.contains(&format!("in-0 offset {offset} went to faults.dead-letter")),
            "{offset}: {logs}"
        );
    }
    assert!(!broker.stderr().contains("panicked at"), "{}", broker.stderr());
}

#[test]
fn the_next_version_goes_on_where_the_last_stopped() {
    let broker = broker(&["in", "out"]);
    assert_eq!(deploy(&broker, "faults", "consumer-faults", &[]), "faults version 1");
    produce(&broker, "in", &["a", "b"]);
    assert_eq!(run(&broker, &["consume", "out", "-n", "2"]), ["a", "b"]);
    assert_eq!(deploy(&broker, "faults", "consumer-faults", &["--retries", "1"]), "faults version 2");
    produce(&broker, "in", &["c"]);
    assert_eq!(run(&broker, &["consume", "out", "-n", "3"]), ["a", "b", "c"]);
    // While records come: none is left out, none is done twice.
    let lines: Vec<_> = (0..20_000).map(|number| format!("n{number}")).collect();
    let producer = broker.bus(["produce", "in"]).stdin(lines.join("\n")).spawn().unwrap();
    for version in 3..=5 {
        let deployed = deploy(&broker, "faults", "consumer-faults", &["--retries", "2"]);
        assert_eq!(deployed, format!("faults version {version}"));
    }
    producer.finish().unwrap().success().unwrap();
    let read = run(&broker, &["consume", "out", "--from", "3", "-n", "20000"]);
    assert!(read == lines, "a new version skipped records, or did them twice");

    // Deleted, it stands still; its group keeps its place for the next of that name.
    run(&broker, &["function", "delete", "faults"]);
    let gone = broker.bus(["function", "describe", "faults"]).run().unwrap();
    gone.refused(1, &["faults", "does not exist"]).unwrap();
    produce(&broker, "in", &["while away"]);
    deploy(&broker, "faults", "consumer-faults", &[]);
    assert_eq!(run(&broker, &["consume", "out", "--from", "20003", "-n", "1"]), ["while away"]);
    let all = run(&broker, &["consume", "out", "--until", "end"]);
    assert_eq!(all.len(), 20_004, "it began again: {:?}", &all[20_004..]);
}

#[test]
fn a_kill_leaves_out_no_record() {
    let mut broker = broker(&["in", "out"]);
    deploy(&broker, "faults", "consumer-faults", &[]);
    let lines: Vec<_> = (0..30_000).map(|number| format!("n{number}")).collect();
    broker.bus(["produce", "in"]).stdin(lines.join("\n")).run().unwrap().success().unwrap();
    run(&broker, &["consume", "out", "-n", "1"]);
    broker.kill().unwrap();
    broker.restart().unwrap();
    produce(&broker, "in", &["last"]);
    // At least once: some may come twice, in front of the last.
    let mut consumer = broker.bus(["consume", "out", "--format", "%v\\n"]).spawn().unwrap();
    consumer.lines(lines.len() + 1).unwrap();
    while describe(&broker, "faults")["lag"] != 0 {
        std::thread::yield_now();
    }
    consumer.signal("INT").unwrap();
    consumer.finish().unwrap().exits(130).unwrap();
    let read = run(&broker, &["consume", "out", "--until", "end"]);
    let seen: std::collections::HashSet<_> = read.iter().collect();
    let missing = lines.iter().filter(|line| !seen.contains(line)).count();
    assert_eq!(missing, 0, "records that were never emitted");
    assert_eq!(read.last().map(String::as_str), Some("last"));
}

#[test]
fn a_new_project_deploys_as_it_stands() {
    let broker = broker(&["in", "out", "output"]);
    let folder = tempfile::tempdir().unwrap();
    let new = broker.bus(["function", "new", "my-consumer", "--kind", "consumer"]).directory(folder.path());
    new.run().unwrap().success().unwrap();
    let wasm = build_function(&folder.path().join("my-consumer"), &folder.path().join("target")).unwrap();
    let deploy =
        ["function", "deploy", "mine", wasm.to_str().unwrap(), "--consume", "in", "--output", "output"];
    assert_eq!(run(&broker, &deploy), ["mine version 1"]);
    produce(&broker, "in", &["hello"]);
    assert_eq!(run(&broker, &["consume", "output", "-n", "1"]).len(), 1);
    assert_eq!(describe(&broker, "mine")["failed"], 0);
}
