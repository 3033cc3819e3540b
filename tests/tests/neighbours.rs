//! Functions that misbehave beside one that does not: how much of its throughput that costs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

use bus_testkit::{BrokerProcess, Running, components};

/// Records of one producer.
const RECORDS: usize = 150_000;
/// What one figure is taken over at least: longer than the pause after a call of `loop` that failed.
const SECONDS: f64 = 2.5;
const ROUNDS: usize = 3;
/// What is left at least, of the quiet throughput. The aim is 0.9; the rest is the noise of a machine that does other
/// things as well, and of a build that is not optimised.
const LEAST: f64 = 0.6;

/// A broker that leaves a failed function alone for two seconds at most: poison meets it in each measurement.
fn broker() -> BrokerProcess {
    BrokerProcess::builder().config("[functions]\nbackoff_last_ms = 1000\n").start().unwrap()
}

fn deploy(broker: &BrokerProcess, name: &str) {
    let component = components(name).unwrap();
    broker.bus(["topic", "create", name]).run().unwrap().success().unwrap();
    let deploy =
        ["function", "deploy", name, component.to_str().unwrap(), "--transform", name, "--timeout", "100ms"];
    broker.bus(deploy).run().unwrap().success().unwrap();
}

/// Records a second, by the producer's own times.
fn measure(broker: &BrokerProcess, input: &[u8]) -> f64 {
    let (mut records, mut seconds) = (0, 0.0);
    while seconds < SECONDS {
        let produced = broker.bus(["produce", "identity"]).stdin(input).run().unwrap().success().unwrap();
        // 150000 records, 15000000 bytes, 0.512 s
        let took = produced.stderr.trim().rsplit(", ").next().and_then(|last| last.strip_suffix(" s"));
        seconds += took.unwrap().parse::<f64>().unwrap();
        records += RECORDS;
    }
    records as f64 / seconds
}

fn poisoned(broker: &BrokerProcess) -> Vec<Running> {
    let poison = |name| broker.bus(["produce", name, "--timeout", "60s"]).stdin("poison\n").spawn().unwrap();
    ["loop", "trap", "hog"].map(poison).into()
}

/// When a call of the function failed last; 0 where none has.
fn last_failure(broker: &BrokerProcess, name: &str) -> u64 {
    let described =
        broker.bus(["function", "describe", name, "-o", "json"]).run().unwrap().success().unwrap();
    let described: serde_json::Value = serde_json::from_slice(&described.stdout).unwrap();
    described["last_error"]["timestamp"].as_u64().unwrap_or(0)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[test]
fn misbehaving_functions_cost_their_neighbours_little() {
    let broker = broker();
    for name in ["identity", "loop", "trap", "hog"] {
        deploy(&broker, name);
    }
    let line = format!("{}\n", "x".repeat(99));
    let input = line.repeat(RECORDS).into_bytes();
    measure(&broker, &input);
    let (mut quiet, mut disturbed) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        quiet.push(measure(&broker, &input));
        let before = last_failure(&broker, "loop");
        let producers = poisoned(&broker);
        disturbed.push(measure(&broker, &input));
        assert!(last_failure(&broker, "loop") > before, "round {round}: poison did not meet the function");
        for producer in producers {
            producer.signal("KILL").unwrap();
            let finished = producer.finish().unwrap();
            assert_eq!(finished.code, -1, "round {round}: poison did not stay unacknowledged");
        }
    }
    eprintln!("quiet: {quiet:.0?} records/s, disturbed: {disturbed:.0?} records/s");
    let (quiet, disturbed) = (median(quiet), median(disturbed));
    let left = disturbed / quiet;
    eprintln!(
        "beside loop, trap and hog: {disturbed:.0} of {quiet:.0} records/s, {:.1} % (aim: 90 %)",
        100.0 * left
    );
    assert!(left > LEAST, "{:.1} % of the neighbour's throughput is left", 100.0 * left);
    assert_eq!(last_failure(&broker, "identity"), 0);
}
