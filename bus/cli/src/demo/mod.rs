//! `bus demo`: the product's main job on real data, checked against the same computation done without it.
//!
//! ```text
//!   CSV -> events -> flights ── validate, redact (on the way in) ── stored, on three brokers
//!          kill -9 ─────┘           └─ route (consumer) -> flights.delayed | flights.on-time | flights.cancelled
//!   read all back -> counts, delays, redaction  ==  the same from the CSV, without the bus
//! ```
//!
//! What is checked: each flight is stored exactly once, though a leader was killed with flights under way to it, and each
//! is where `route` has to send it, at least once: that what a consumer function emits is exactly-once takes transactions.

mod check;
mod cluster;
mod flights;
mod produce;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bus_client::{Client, CreateTopic};
use bus_protocol::{Attachment, FunctionSpec, TopicName};
use clap::Args;
use tokio::time::Instant;

use crate::cluster::Status;
use crate::failure::message;
use crate::interrupt::Interrupt;
use crate::output::{self, Format};
use crate::scratch::Scratch;
use crate::units::show_count;

use self::check::Ledger;
use self::cluster::Cluster;
use self::produce::Produced;

/// Replay a month of real flights through a cluster with functions, kill a broker on the way, and check the result
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  make demo                            # builds the functions, then runs this
  bus demo --components guest-examples/target/components

Runs three brokers of its own in a temporary folder and leaves nothing behind. Exit code 0 only where the check holds.")]
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

/// Brokers of the cluster.
const NODES: usize = 3;
/// How long it may take until all replicas are in sync again.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where events go in.
const FLIGHTS: &str = "flights";
/// Where `route` sends them, by how they left: see [`flights::Departure`].
const ROUTED: [&str; 3] = ["flights.delayed", "flights.on-time", "flights.cancelled"];
/// An event that lacks an airport.
const INVALID: &str = r#"{"carrier":"UA","flight":1545,"tailnum":"N14228","dest":"IAH","dep_delay":2}"#;

pub(crate) async fn run(args: Demo, interrupt: Interrupt, scratch: &Scratch) -> anyhow::Result<()> {
    let folder = scratch.folder("bus-demo-")?;
    interrupt.or(Box::pin(replay(&args, &folder))).await
}

async fn replay(args: &Demo, folder: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    let tell = |what: &str| step(started, what);
    let mut cluster = Cluster::start(folder, NODES).await?;
    tell(&format!("a cluster of {NODES} brokers is ready at {}, over QUIC", cluster.servers()));
    let client = cluster.connect().await?;
    for topic in [FLIGHTS].into_iter().chain(ROUTED) {
        create(&client, topic).await?;
    }
    tell(&format!("topics, 3 replicas each, of which 2 must be in sync: {FLIGHTS}, {}", ROUTED.join(", ")));
    deploy(&client, &args.components).await?;
    tell("functions inside the brokers: validate and redact on the way in, route behind");
    let refusal = produce::refused(&client).await?;
    tell(&format!("an event without its airport was refused: {refusal}"));

    let csv = flights::csv()?;
    let ledger = Ledger::new(&csv)?;
    let begun = Instant::now();
    let produced = produce::produce(&client, &csv, &mut cluster, tell).await?;
    tell(&format!("all {} flights of January 2013 are acknowledged", show_count(produced.sent)));
    let killed = produced.killed;
    cluster.start_again(killed).await?;
    tell(&format!("node {killed} is started again, with what its disk holds"));
    let routed = check::routed(&client, &ledger).await?;
    let routed_after = begun.elapsed();
    tell(&format!("route has sorted them: {}", routed.describe()));
    let (stored, read) = check::stored(&client, &ledger).await?;
    tell("all are read back; now the same from the CSV, without the bus");
    let expected = flights::summarize(&csv)?;
    check::compare(&expected, &stored)?;
    let status = in_sync(&client).await?;
    tell("all brokers are up, all replicas in sync");
    client.close();
    cluster.stop().await?;

    check::table(&stored)?;
    output::line("")?;
    status.print(Format::Table)?;
    sum_up(&produced, expected.len(), routed_after, read);
    Ok(())
}

fn sum_up(produced: &Produced, groups: usize, routed_after: Duration, read: Duration) {
    let Produced { sent, elapsed, killed, pause } = produced;
    message(&format!(
        "\nThe check holds: {} flights, each stored exactly once; {groups} groups by airport and carrier, every sum equal, \
         every tail number redacted; each flight in the topic where route had to send it, at least once.",
        show_count(*sent),
    ));
    let pause = pause.map_or_else(String::new, |pause| {
        format!(" Node {killed} killed: its partition acknowledged again {:.2} s later.", pause.as_secs_f64())
    });
    message(&format!(
        "Produced in {:.2} s, through two functions and the loss of a broker.{pause} Routed {:.2} s after the first, read \
         back in {:.2} s.",
        elapsed.as_secs_f64(),
        routed_after.as_secs_f64(),
        read.as_secs_f64()
    ));
    message(
        "\nNext:\n  bus start                        # a broker of your own, data in ./bus-data\n  \
         bus topic create orders && echo hello | bus produce orders && bus consume orders --until end\n  \
         bus dev --nodes 3                # a cluster of your own, to try things on\n  \
         bus function new my-function     # a function of your own\n  \
         bus bench produce                # how fast, beside what the machine can do",
    );
}

/// Waits until nothing is missing any more.
async fn in_sync(client: &Client) -> anyhow::Result<Status> {
    let until = Instant::now() + PATIENCE;
    loop {
        let status = Status::ask(client).await?;
        if status.is_well() {
            return Ok(status);
        }
        if Instant::now() >= until {
            status.print(Format::Table)?;
            anyhow::bail!("not all replicas are in sync within {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn step(started: Instant, what: &str) {
    message(&format!("{:6.2} s  {what}", started.elapsed().as_secs_f64()));
}

async fn create(client: &Client, topic: &str) -> anyhow::Result<()> {
    let topic = TopicName::new(topic)?;
    // The events bear their own time, which is years ago: they are not to age out.
    let config = [("retention.ms", "-1"), ("min.insync.replicas", "2")];
    let config = config.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let wanted = CreateTopic { topic, partitions: 3, replicas: 3, config, if_not_exists: false };
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

/// A row of the table that is the demo's result.
fn print(rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    output::table(&["AIRPORT", "FLIGHTS", "LATE (15 MIN)", "CANCELLED", "MEAN DELAY"], rows)
}
