//! What goes in comes out: byte for byte, in order, and also where the broker is killed on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fmt::Write as _;
use std::time::Duration;

use bus_testkit::BrokerProcess;

/// A million different lines: empty ones, spaces, a carriage return, text that is not ASCII; the last without a line
/// feed.
fn million_lines() -> String {
    let mut text = String::new();
    for number in 0..1_000_000 {
        match number % 10 {
            0 => text.push('\n'),
            1 => writeln!(text, "  {number}\t").unwrap(),
            2 => write!(text, "{number}\r\n").unwrap(),
            3 => writeln!(text, "übertragen {number} \u{1f6eb}").unwrap(),
            _ => writeln!(text, "line {number} of a file that is produced and read back").unwrap(),
        }
    }
    text.push_str("the last line");
    text
}

#[test]
fn a_million_lines_come_back_byte_for_byte() {
    let broker = BrokerProcess::start().unwrap();
    broker.bus(["topic", "create", "lines"]).run().unwrap().success().unwrap();
    let file = broker.scratch().join("lines.txt");
    let text = million_lines();
    std::fs::write(&file, &text).unwrap();

    let produced = broker.bus(["produce", "lines", file.to_str().unwrap()]).run().unwrap().success().unwrap();
    assert!(produced.stderr.starts_with("1000001 records, "), "{}", produced.stderr);
    assert!(produced.stdout.is_empty());

    let read = broker.bus(["consume", "lines", "--from", "start", "--until", "end"]).run().unwrap();
    // The line feed that the last line lacked is consume's own.
    let read = read.success().unwrap().stdout;
    assert_eq!(read.len(), text.len() + 1);
    assert!(read.strip_suffix(b"\n").unwrap() == text.as_bytes(), "what came back differs");
}

#[test]
fn what_was_acknowledged_before_a_kill_is_where_it_was_said_to_be() {
    let mut broker = BrokerProcess::start().unwrap();
    broker.bus(["topic", "create", "lines"]).run().unwrap().success().unwrap();
    let text: String = (0..1_000_000).map(|number| format!("record {number}\n")).collect();
    let lines: Vec<_> = text.lines().collect();
    let arguments = ["produce", "lines", "-o", "json", "--timeout", "2s"];
    let mut producer = broker.bus(arguments).stdin(text.clone()).spawn().unwrap();
    producer.lines(20_000).unwrap();
    broker.kill().unwrap();
    let produced = producer.finish().unwrap().exits(1).unwrap();
    assert!(produced.stderr.contains("were not acknowledged"), "{}", produced.stderr);

    broker.restart().unwrap();
    let read = broker.bus(["consume", "lines", "--until", "end", "--format", "%p %o %v\\n"]).run().unwrap();
    let stored = read.success().unwrap().lines();
    let acknowledged = produced.lines();
    assert!(acknowledged.len() >= 20_000 && acknowledged.len() < lines.len(), "{}", acknowledged.len());
    for (line, ack) in lines.iter().zip(&acknowledged) {
        let ack: serde_json::Value = serde_json::from_str(ack).unwrap();
        let (partition, offset) = (ack["partition"].as_u64().unwrap(), ack["offset"].as_u64().unwrap());
        let stored = &stored[usize::try_from(offset).unwrap()];
        assert_eq!(*stored, format!("{partition} {offset} {line}"));
    }
    let health = broker.bus(["topic", "describe", "lines", "-o", "json"]).run().unwrap().success().unwrap();
    let partition: serde_json::Value = serde_json::from_slice(&health.stdout).unwrap();
    assert_eq!(partition["offline"], serde_json::Value::Null);
}

#[test]
fn keys_headers_times_and_raw_bytes_come_back_as_json_and_go_in_again() {
    let broker = BrokerProcess::start().unwrap();
    for topic in ["first", "second"] {
        broker.bus(["topic", "create", topic, "--partitions", "3"]).run().unwrap().success().unwrap();
    }
    let input = concat!(
        r#"{"key":"a","value":"1","headers":{"h":"x","n":null},"timestamp":1357034400000,"partition":2}"#,
        "\n",
        r#"{"key":{"base64":"/w=="},"value":null,"partition":2}"#,
        "\n",
        r#"{"value":{"base64":"AP/+"},"headers":[["h","1"],["h","2"]],"timestamp":5,"partition":0}"#,
        "\n"
    );
    broker.bus(["produce", "first", "--json"]).stdin(input).run().unwrap().success().unwrap();
    let consume = |topic| {
        let read =
            broker.bus(["consume", topic, "--until", "end", "-o", "json"]).run().unwrap().success().unwrap();
        let mut lines = read.lines();
        lines.sort();
        lines
    };
    let first = consume("first");
    assert_eq!(first.len(), 3);
    assert!(
        first[1]
            .starts_with(r#"{"topic":"first","partition":2,"offset":0,"timestamp":1357034400000,"key":"a""#)
    );
    broker.bus(["produce", "second", "--json"]).stdin(first.join("\n")).run().unwrap().success().unwrap();
    let second: Vec<_> = consume("second").iter().map(|line| line.replace("second", "first")).collect();
    assert_eq!(first, second);
}

#[test]
fn reading_starts_where_it_is_told_to_and_stops_there_too() {
    let broker = BrokerProcess::start().unwrap();
    broker.bus(["topic", "create", "t"]).run().unwrap().success().unwrap();
    let input: String =
        (0..10).map(|n| format!("{{\"value\":\"{n}\",\"timestamp\":{}}}\n", 1_000 * n)).collect();
    broker.bus(["produce", "t", "--json"]).stdin(input).run().unwrap().success().unwrap();
    for (arguments, expected) in [
        (vec!["--until", "end"], "0 1 2 3 4 5 6 7 8 9"),
        (vec!["--from", "7", "--until", "end"], "7 8 9"),
        (vec!["--from", "@4500", "-n", "2"], "5 6"),
        (vec!["--from", "1970-01-01T00:00:08Z", "--until", "end"], "8 9"),
        (vec!["--from", "end", "--until", "end"], ""),
        (vec!["--from", "start", "--partition", "0", "-n", "1"], "0"),
        (vec!["-n", "0"], ""),
    ] {
        let all: Vec<_> = ["consume", "t"].into_iter().chain(arguments.iter().copied()).collect();
        let read = broker.bus(all).run().unwrap().success().unwrap();
        assert_eq!(read.lines().join(" "), expected, "{arguments:?}");
    }
}

#[test]
fn an_interrupted_consumer_has_printed_what_it_read() {
    let broker = BrokerProcess::start().unwrap();
    broker.bus(["topic", "create", "t"]).run().unwrap().success().unwrap();
    let mut consumer = broker.bus(["consume", "t"]).deadline(Duration::from_secs(30)).spawn().unwrap();
    broker.bus(["produce", "t"]).stdin("one\ntwo\n").run().unwrap().success().unwrap();
    consumer.lines(2).unwrap();
    consumer.signal("INT").unwrap();
    let read = consumer.finish().unwrap().exits(130).unwrap();
    assert_eq!(read.stdout, b"one\ntwo\n");
    assert!(read.stderr.is_empty(), "{}", read.stderr);
}

#[test]
fn a_reader_that_goes_away_ends_consume_quietly() {
    let broker = BrokerProcess::start().unwrap();
    broker.bus(["topic", "create", "t"]).run().unwrap().success().unwrap();
    let lines = "a line that is long enough to fill a pipe soon\n".repeat(100_000);
    broker.bus(["produce", "t"]).stdin(lines).run().unwrap().success().unwrap();
    let bus = bus_testkit::binary().unwrap();
    let pipeline = format!("set -o pipefail; '{}' consume t | head -n 1", bus.display());
    let read = broker.shell(&pipeline).run().unwrap().success().unwrap();
    assert_eq!(read.lines().len(), 1);
    assert!(read.stderr.is_empty(), "{}", read.stderr);
}
