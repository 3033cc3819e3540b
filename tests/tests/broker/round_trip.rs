//! What goes in comes out: byte for byte, in order, whatever the compression and wherever the reading starts.

use std::collections::HashMap;
use std::io::Write as _;
use std::time::Duration;

use bus_testkit::BrokerProcess;

/// A million different lines: empty ones, spaces, a carriage return, text that is not ASCII, bytes that are no text;
/// the last without a line feed.
fn million_lines() -> Vec<u8> {
    let mut text = Vec::new();
    for number in 0..1_000_000 {
        match number % 10 {
            0 => text.push(b'\n'),
            1 => writeln!(text, "  {number}\t").unwrap(),
            2 => write!(text, "{number}\r\n").unwrap(),
            3 => writeln!(text, "übertragen {number} \u{1f6eb}").unwrap(),
            4 => {
                write!(text, "{number} \0\u{7f}").unwrap();
                // No UTF-8: a lone continuation byte, a start that nothing follows, an overlong slash.
                text.extend_from_slice(b"\x80\xff\xc0\xaf\xe2\x82\t\r\r\n");
            }
            _ => writeln!(text, "line {number} of a file that is produced and read back").unwrap(),
        }
    }
    text.extend_from_slice(b"the last line");
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
    assert!(read.strip_suffix(b"\n").unwrap() == text, "what came back differs");
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
fn several_partitions_hold_all_and_keep_each_keys_order() {
    let broker = BrokerProcess::start().unwrap();
    broker.bus(["topic", "create", "t", "--partitions", "4"]).run().unwrap().success().unwrap();
    let lines: Vec<_> = (0..50_000).map(|number| format!("key-{} {number}", number % 97)).collect();
    let produce = broker.bus(["produce", "t", "--key-separator", " ", "-o", "json"]);
    let acks = produce.stdin(lines.join("\n")).run().unwrap().success().unwrap().lines();
    assert_eq!(acks.len(), lines.len());

    let format = ["consume", "t", "--until", "end", "--format", "%p %o %k %v\\n"];
    let read = broker.bus(format).run().unwrap().success().unwrap().lines();
    let mut partition_of = HashMap::new();
    let mut last_of = HashMap::new();
    let mut found = Vec::new();
    for line in &read {
        let parts: Vec<_> = line.split(' ').collect();
        let (partition, key, number) = (parts[0], parts[2], parts[3].parse::<u64>().unwrap());
        assert_eq!(*partition_of.entry(key).or_insert(partition), partition, "{key} is in two partitions");
        let last = last_of.insert(key, number);
        assert!(last.is_none_or(|last| last < number), "{key}: {number} came after {last:?}");
        found.push(format!("{key} {number}"));
    }
    let used: std::collections::HashSet<_> = partition_of.values().collect();
    assert_eq!(used.len(), 4, "97 keys left a partition empty");
    let mut sent = lines.clone();
    sent.sort();
    found.sort();
    assert!(sent == found, "other records came back than were sent");

    let one = ["consume", "t", "--until", "end", "--partition", "2", "--format", "%p\\n"];
    let of_one = broker.bus(one).run().unwrap().success().unwrap().lines();
    assert_eq!(of_one.len(), read.iter().filter(|line| line.starts_with("2 ")).count());
    assert!(of_one.iter().all(|partition| partition == "2"));
}

#[test]
fn every_compression_gives_back_what_it_was_given() {
    let broker = BrokerProcess::start().unwrap();
    let text: String =
        (0..20_000).map(|n| format!("a line that repeats itself, line {}\n", n % 50)).collect();
    let bytes_of = |topic: &str| {
        let described =
            broker.bus(["topic", "describe", topic, "-o", "json"]).run().unwrap().success().unwrap();
        let described: serde_json::Value = serde_json::from_slice(&described.stdout).unwrap();
        described["bytes"].as_u64().unwrap()
    };
    let read_of = |topic: &str| {
        broker.bus(["consume", topic, "--until", "end"]).run().unwrap().success().unwrap().stdout
    };
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        broker.bus(["topic", "create", codec]).run().unwrap().success().unwrap();
        let produce = broker.bus(["produce", codec, "--compression", codec, "--key", "k", "--header", "h=v"]);
        produce.stdin(text.clone()).run().unwrap().success().unwrap();
        assert!(read_of(codec) == text.as_bytes(), "{codec}: what came back differs");
        let json = ["consume", codec, "-n", "1", "-o", "json"];
        let json = broker.bus(json).run().unwrap().success().unwrap().text();
        assert!(json.contains(r#""key":"k""#) && json.contains(r#"{"h":"v"}"#), "{codec}: {json}");
        if codec != "none" {
            assert!(bytes_of(codec) < text.len() as u64 / 3, "{codec} took {} bytes", bytes_of(codec));
        }
    }
    // The topic has the last word.
    let create = ["topic", "create", "zipped", "--config", "compression.type=zstd"];
    broker.bus(create).run().unwrap().success().unwrap();
    broker.bus(["produce", "zipped"]).stdin(text.clone()).run().unwrap().success().unwrap();
    assert!(read_of("zipped") == text.as_bytes());
    assert!(bytes_of("zipped") < text.len() as u64 / 3);
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
