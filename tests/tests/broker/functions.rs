//! Functions through the CLI: deployed, at work, refused, misbehaving, deleted, and tried without a broker.

use std::time::Duration;

use bus_testkit::{BrokerProcess, BusCommand};
use serde_json::Value;

use super::{broker, component, describe};

#[test]
fn transforms_stand_on_the_way_in() {
    let broker = broker(&["flights"]);
    let deployed =
        broker.bus(["function", "deploy", "validate", &component("validate"), "--transform", "flights"]);
    assert_eq!(deployed.run().unwrap().success().unwrap().text(), "validate version 1\n");
    let redact = [
        "function",
        "deploy",
        "redact",
        &component("redact"),
        "--transform",
        "flights",
        "--config",
        "fields=tailnum",
    ];
    broker.bus(redact).run().unwrap().success().unwrap();

    let good = r#"{"carrier":"UA","flight":1,"origin":"EWR","dest":"IAH","tailnum":"N1"}"#;
    broker.bus(["produce", "flights"]).stdin(good).run().unwrap().success().unwrap();
    let bad = r#"{"carrier":"UA","flight":1,"dest":"IAH","tailnum":"N1"}"#;
    let refused = broker.bus(["produce", "flights"]).stdin(bad).run().unwrap();
    refused.refused(1, &["1 of 1", "line 1", "origin is missing"]).unwrap();
    let read = broker.bus(["consume", "flights", "--until", "end"]).run().unwrap().success().unwrap();
    assert_eq!(read.text(), format!("{}\n", good.replace("\"N1\"", "\"***\"")));

    let described =
        broker.bus(["topic", "describe", "flights", "-o", "json"]).run().unwrap().success().unwrap();
    let described: Value = serde_json::from_slice(&described.stdout).unwrap();
    assert_eq!(described["functions"], serde_json::json!(["validate", "redact"]));
    // The same name again is the next version.
    let again = broker.bus(redact).run().unwrap().success().unwrap();
    assert_eq!(again.text(), "redact version 2\n");
    for name in ["validate", "redact"] {
        broker.bus(["function", "delete", name]).run().unwrap().success().unwrap();
    }
    broker.bus(["produce", "flights"]).stdin(bad).run().unwrap().success().unwrap();
}

#[test]
fn a_consumer_emits_and_goes_on_after_a_restart() {
    let mut broker = broker(&["in", "late", "rest"]);
    let arguments = [
        "function",
        "deploy",
        "route",
        &component("route"),
        "--consume",
        "in",
        "--output",
        "late",
        "rest",
        "--config",
        "delayed=late",
        "on-time=rest",
    ];
    broker.bus(arguments).run().unwrap().success().unwrap();
    let emitted = |broker: &BrokerProcess, topic: &str, count: &str| {
        let consume = broker.bus(["consume", topic, "-n", count]).deadline(Duration::from_secs(60));
        consume.run().unwrap().success().unwrap().lines()
    };
    let event = |delay| format!("{{\"dep_delay\":{delay}}}\n");
    let input: String = [5, 20, -3, 15].map(event).concat();
    broker.bus(["produce", "in"]).stdin(input).run().unwrap().success().unwrap();
    assert_eq!(emitted(&broker, "late", "2"), [event(20).trim(), event(15).trim()]);
    assert_eq!(emitted(&broker, "rest", "2"), [event(5).trim(), event(-3).trim()]);

    assert!(broker.terminate().unwrap().success());
    broker.restart().unwrap();
    broker.bus(["produce", "in"]).stdin(event(99)).run().unwrap().success().unwrap();
    // Stopped cleanly, so its place was committed: nothing comes twice.
    assert_eq!(emitted(&broker, "late", "3"), [event(20).trim(), event(15).trim(), event(99).trim()]);
    assert_eq!(describe(&broker, "route")["attached"], "consume in");
}

#[test]
fn functions_that_misbehave_are_stopped_and_named() {
    let broker = broker(&["trap", "loop", "hog", "good"]);
    let deploy = |name: &str, file: &str| {
        let arguments =
            ["function", "deploy", name, &component(file), "--transform", name, "--timeout", "500ms"];
        broker.bus(arguments).run().unwrap().success().unwrap();
    };
    deploy("good", "identity");
    for name in ["trap", "loop", "hog"] {
        deploy(name, name);
        let produce = broker.bus(["produce", name, "--timeout", "3s"]).stdin("poison\n").run().unwrap();
        produce.refused(1, &["1 of 1 records were not acknowledged"]).unwrap();
        let described = describe(&broker, name);
        assert_eq!(described["state"], "failing", "{described}");
        assert!(described["last_error"]["message"].is_string(), "{described}");
        let logs = broker.bus(["function", "logs", name]).run().unwrap().success().unwrap();
        assert!(!logs.stdout.is_empty(), "{name} has logged nothing");
        // The neighbour does not notice.
        broker.bus(["produce", "good"]).stdin("fine\n").run().unwrap().success().unwrap();
    }
    assert_eq!(describe(&broker, "good")["failed"], 0);
    let stored = broker.bus(["consume", "trap", "--until", "end"]).run().unwrap().success().unwrap();
    assert!(stored.stdout.is_empty(), "a poisoned record was stored");
}

#[test]
fn a_component_is_tried_without_a_broker() {
    let test = |name: &str, arguments: &[&str], input: &str| {
        let component = component(name);
        let all: Vec<_> =
            ["function", "test", &component].into_iter().chain(arguments.iter().copied()).collect();
        BusCommand::alone(all).unwrap().stdin(input).run().unwrap()
    };
    let out = test(
        "redact",
        &["--config", "fields=name"],
        "{\"key\":\"k\",\"value\":\"{\\\"name\\\":\\\"x\\\"}\"}\n",
    );
    let record: Value = serde_json::from_slice(&out.success().unwrap().stdout).unwrap();
    assert_eq!((&record["key"], &record["value"]), (&"k".into(), &"{\"name\":\"***\"}".into()));

    let good = r#"{"value":"{\"carrier\":1,\"flight\":1,\"origin\":1,\"dest\":1}"}"#;
    let mixed = format!("{good}\n{{\"value\":\"{{}}\"}}\n{good}\n");
    let out = test("validate", &[], &mixed).refused(1, &["1 of 3", "line 2", "carrier is missing"]).unwrap();
    assert_eq!(out.lines().len(), 2);

    let out = test("route", &["--output", "flights.delayed"], "{\"value\":\"{\\\"dep_delay\\\":60}\"}\n");
    let record: Value = serde_json::from_slice(&out.success().unwrap().stdout).unwrap();
    assert_eq!(record["topic"], "flights.delayed");
    test("redact", &[], "not json\n").refused(1, &["line 1", "not a record"]).unwrap();
    test("trap", &[], "{\"value\":\"poison\"}\n").refused(1, &["line 1"]).unwrap();
}

#[test]
fn a_new_project_builds_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    for (name, kind) in [("my-transform", "transform"), ("my-consumer", "consumer")] {
        let new =
            BusCommand::alone(["function", "new", name, "--kind", kind]).unwrap().directory(folder.path());
        new.run().unwrap().success().unwrap();
        let again = BusCommand::alone(["function", "new", name]).unwrap().directory(folder.path());
        again.run().unwrap().refused(1, &[name]).unwrap();
        let project = folder.path().join(name);
        let wasm = bus_testkit::build_function(&project, &folder.path().join("target")).unwrap();
        let test =
            BusCommand::alone(["function", "test", wasm.to_str().unwrap(), "--output", "output"]).unwrap();
        let out = test.stdin("{\"value\":\"hello\"}\n").run().unwrap().success().unwrap();
        assert_eq!(out.lines().len(), 1);
    }
}
