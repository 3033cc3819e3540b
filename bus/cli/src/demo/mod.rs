//! `bus demo`: the product's main job on real data, checked against the same computation done without it.
//!
//! ```text
//!   CSV -> events -> flights ── validate, redact (on the way in) ── stored
//!                                   └─ route (consumer) -> flights.delayed | flights.on-time | flights.cancelled
//!   read all back -> counts, delays, redaction  ==  the same from the CSV, without the bus
//! ```

mod broker;
mod check;
mod flights;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bus_client::{Client, CreateTopic, Error, Record};
use bus_protocol::{Attachment, FunctionSpec, TopicName};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::failure::message;
use crate::interrupt::Interrupt;
use crate::output;
use crate::units::show_count;

use self::broker::Broker;

/// Replay a month of real flights through a broker with functions, and check the result
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  make demo                            # builds the functions, then runs this
  bus demo --components guest-examples/target/components

Runs a broker of its own in a temporary folder and leaves nothing behind. Exit code 0 only where the check holds.")]
pub(crate) struct Demo {
    /// Where validate.wasm, redact.wasm and route.wasm are (`make guests` builds them)
    #[arg(
        long,
        value_name = "DIR",
        env = "BUS_COMPONENTS",
        default_value = "guest-examples/target/components"
    )]
    components: PathBuf,
}

/// Where events go in.
const FLIGHTS: &str = "flights";
/// Where `route` sends them.
const ROUTED: [&str; 3] = ["flights.delayed", "flights.on-time", "flights.cancelled"];
/// An event that lacks an airport.
const INVALID: &str = r#"{"carrier":"UA","flight":1545,"tailnum":"N14228","dest":"IAH","dep_delay":2}"#;

pub(crate) async fn run(args: Demo, interrupt: Interrupt) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("bus-demo-").tempdir();
    let folder = folder.context("cannot make a temporary folder: set TMPDIR to one that can be written")?;
    let result = interrupt.or(Box::pin(replay(&args, folder.path()))).await;
    folder.close().context("cannot delete the temporary folder")?;
    result
}

async fn replay(args: &Demo, folder: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    let broker = Broker::start(folder).await?;
    step(started, &format!("a broker is ready at {}, over QUIC", broker.address()));
    let client = broker.connect().await?;
    for topic in [FLIGHTS].into_iter().chain(ROUTED) {
        create(&client, topic).await?;
    }
    step(started, &format!("topics: {FLIGHTS}, {}", ROUTED.join(", ")));
    deploy(&client, &args.components).await?;
    step(started, "functions inside the broker: validate and redact on the way in, route behind");

    let refusal = refused(&client).await?;
    step(started, &format!("an event without its airport was refused: {refusal}"));

    let csv = flights::csv()?;
    let begun = Instant::now();
    let sent = produce(&client, &csv).await?;
    let produced = begun.elapsed();
    step(started, &format!("{} flights of January 2013 are stored and on the disk", show_count(sent)));

    let routed = check::routed(&client, sent).await?;
    let routed_after = begun.elapsed();
    step(started, &format!("route has sorted them: {}", routed.describe()));
    let (stored, read) = check::stored(&client).await?;
    step(started, "all are read back; now the same from the CSV, without the bus");
    let expected = flights::summarize(&csv)?;
    check::compare(&expected, &stored, &routed)?;

    client.close();
    broker.stop().await?;
    check::table(&stored)?;
    message(&format!(
        "\nThe check holds: {} flights in {} groups by airport and carrier, every sum equal, every tail number redacted.",
        show_count(sent),
        expected.len()
    ));
    message(&format!(
        "Produced in {:.2} s ({} records/s through two functions), routed {:.2} s after the first, read back in {:.2} s.",
        produced.as_secs_f64(),
        show_count((sent as f64 / produced.as_secs_f64()) as u64),
        routed_after.as_secs_f64(),
        read.as_secs_f64()
    ));
    message(
        "\nNext:\n  bus start                        # a broker of your own, data in ./bus-data\n  \
         bus topic create orders && echo hello | bus produce orders && bus consume orders --until end\n  \
         bus function new my-function     # a function of your own\n  \
         bus bench produce                # how fast, beside what the machine can do",
    );
    Ok(())
}

fn step(started: Instant, what: &str) {
    message(&format!("{:6.2} s  {what}", started.elapsed().as_secs_f64()));
}

async fn create(client: &Client, topic: &str) -> anyhow::Result<()> {
    let topic = TopicName::new(topic)?;
    // The events bear their own time, which is years ago: they are not to age out.
    let config = BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]);
    let wanted = CreateTopic { topic, partitions: 3, replicas: 1, config, if_not_exists: false };
    Ok(client.admin().create_topic(wanted).await?)
}

async fn deploy(client: &Client, components: &Path) -> anyhow::Result<()> {
    let flights = TopicName::new(FLIGHTS)?;
    let transform = || Attachment::Transform { topic: flights.clone() };
    let consumer = Attachment::Consumer { topics: vec![flights.clone()], group: "route".into() };
    let functions = [
        ("validate", transform(), "required", "carrier,flight,origin,dest"),
        ("redact", transform(), "fields", "tailnum"),
        ("route", consumer, "cancelled", "flights.cancelled"),
    ];
    for (name, attachment, key, value) in functions {
        let file = components.join(format!("{name}.wasm"));
        let component = std::fs::read(&file).with_context(|| {
            format!("cannot read {}: build the functions with `make guests`", file.display())
        })?;
        let outputs = match attachment {
            Attachment::Transform { .. } => Vec::new(),
            Attachment::Consumer { .. } => {
                ROUTED.into_iter().map(TopicName::new).collect::<Result<_, _>>()?
            }
        };
        let spec = FunctionSpec {
            name: name.into(),
            attachment,
            outputs,
            config: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            memory_bytes: FunctionSpec::DEFAULT_MEMORY_BYTES,
            fuel: FunctionSpec::DEFAULT_FUEL,
            timeout_ms: FunctionSpec::DEFAULT_TIMEOUT_MS,
            retries: FunctionSpec::DEFAULT_RETRIES,
            dead_letter: None,
        };
        client
            .admin()
            .deploy_function(spec, component.into())
            .await
            .with_context(|| format!("cannot deploy {name}"))?;
    }
    Ok(())
}

/// Produces an event that `validate` has to refuse, and answers its reason.
async fn refused(client: &Client) -> anyhow::Result<String> {
    let producer = client.producer().build().await?;
    let outcome = producer.send(Record::to(FLIGHTS).value(INVALID)).await?.await;
    producer.close().await.or_else(|error| match error {
        Error::RecordRefused { .. } | Error::RefusedWithBatch { .. } => Ok(()),
        other => Err(other),
    })?;
    match outcome {
        Err(Error::RecordRefused { reason }) => Ok(reason),
        Err(other) => Err(other).context("the invalid event failed for another reason"),
        Ok(ack) => {
            anyhow::bail!("the invalid event was stored at offset {}: validate let it through", ack.offset)
        }
    }
}

/// Sends every flight, keyed by carrier and number, at its own time; returns when all are acknowledged.
async fn produce(client: &Client, csv: &str) -> anyhow::Result<u64> {
    let producer = client.producer().build().await?;
    let topic = producer.topic(FLIGHTS).await?;
    let progress = progress(csv.lines().count() as u64 - 1);
    let mut sent = 0;
    for row in csv.lines().skip(1) {
        let (time, flight) = flights::parse(row)?;
        let key = format!("{}{}", flight.carrier, flight.flight);
        let record = Record::new().key(key).value(serde_json::to_vec(&flight)?).timestamp(time);
        drop(topic.send(record).await?);
        sent += 1;
        if sent % 1_000 == 0 {
            progress.set_position(sent);
        }
    }
    producer.close().await.context("not all flights were acknowledged")?;
    progress.finish_and_clear();
    let counts = producer.counts();
    anyhow::ensure!(
        counts.acknowledged == sent,
        "{} of {sent} flights were acknowledged",
        counts.acknowledged
    );
    Ok(sent)
}

fn progress(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template("          {wide_bar} {human_pos} of {human_len} flights") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A row of the table that is the demo's result.
fn print(rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    output::table(&["AIRPORT", "FLIGHTS", "LATE (15 MIN)", "CANCELLED", "MEAN DELAY"], rows)
}
