//! One broker from end to end, through the command line and over the wire.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

mod bad_input;
mod consumers;
mod crash;
mod disk;
mod functions;
mod operator;
mod round_trip;
mod wire;

use bus_testkit::{BrokerProcess, components};
use serde_json::Value;

/// A broker with topics.
fn broker(topics: &[&str]) -> BrokerProcess {
    with_topics(BrokerProcess::start().unwrap(), topics)
}

fn with_topics(broker: BrokerProcess, topics: &[&str]) -> BrokerProcess {
    for topic in topics {
        run(&broker, &["topic", "create", topic]);
    }
    broker
}

/// What a command prints that must succeed.
fn run(broker: &BrokerProcess, arguments: &[&str]) -> Vec<String> {
    let finished = broker.bus(arguments).run().unwrap();
    finished.success().unwrap_or_else(|error| panic!("{arguments:?}: {error}")).lines()
}

fn describe(broker: &BrokerProcess, name: &str) -> Value {
    serde_json::from_str(&run(broker, &["function", "describe", name, "-o", "json"])[0]).unwrap()
}

/// Where an example function lies.
fn component(name: &str) -> String {
    components(name).unwrap().to_str().unwrap().to_owned()
}
