//! `bus function deploy`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bus_protocol::{Attachment, FunctionSpec, TopicName, limits};
use bytes::Bytes;
use clap::Args;
use serde::Serialize;

use crate::args::Global;
use crate::failure::usage;
use crate::{connection, output, pairs, units};

/// Deploy a function, or its next version
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus function deploy redact redact.wasm --transform orders
  bus function deploy validate validate.wasm --transform orders --config max=100
  bus function deploy route route.wasm --consume orders,returns --output big
  bus function deploy route route.wasm --consume orders --memory 32MiB

Prints name and version once every broker that must run it can. The same name again: the next version takes over where the \
last stopped.")]
#[command(group(clap::ArgGroup::new("attachment").required(true).args(["transform", "consume"])))]
pub(crate) struct Deploy {
    /// The function's name
    name: String,
    /// The component
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// Stand on this topic's way in, for every producer
    #[arg(long, value_name = "TOPIC")]
    transform: Option<TopicName>,
    /// Consume these topics
    #[arg(long, value_name = "TOPIC,...", value_delimiter = ',')]
    consume: Vec<TopicName>,
    /// The consumer group whose committed offsets are its place [default: the function's name]
    #[arg(long, requires = "consume")]
    group: Option<String>,
    /// A topic that it may emit to; may be repeated
    #[arg(long, value_name = "TOPIC", requires = "consume", value_delimiter = ',')]
    output: Vec<TopicName>,
    /// A setting that the function can read; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pairs::pair)]
    config: Vec<(String, String)>,
    /// The most memory of one instance
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = units::size)]
    memory: u64,
    /// The most fuel that one call may burn (about one unit an instruction)
    #[arg(long, value_name = "N", default_value_t = FunctionSpec::DEFAULT_FUEL)]
    fuel: u64,
    /// The longest that one call may take
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = units::duration)]
    timeout: Duration,
    /// How often a failed call is tried again
    #[arg(long, value_name = "N", default_value_t = FunctionSpec::DEFAULT_RETRIES)]
    retries: u32,
    /// Where records go that fail for good [default: NAME.dead-letter]
    #[arg(long, value_name = "TOPIC", requires = "consume")]
    dead_letter: Option<TopicName>,
}

pub(crate) async fn run(global: &Global, args: Deploy) -> anyhow::Result<()> {
    let attachment = match args.transform {
        Some(topic) => Attachment::Transform { topic },
        None => Attachment::Consumer {
            topics: args.consume,
            group: args.group.unwrap_or_else(|| args.name.clone()),
        },
    };
    let spec = FunctionSpec {
        name: args.name,
        attachment,
        outputs: args.output,
        config: pairs::map("--config", args.config)?,
        memory_bytes: args.memory,
        fuel: args.fuel,
        timeout_ms: u64::try_from(args.timeout.as_millis()).unwrap_or(u64::MAX),
        retries: args.retries,
        dead_letter: args.dead_letter,
    };
    spec.validate().map_err(usage)?;
    let component = read(&args.file)?;
    let name = spec.name.clone();
    let client = connection::connect(global).await?;
    let deployed = client.admin().deploy_function(spec, component).await;
    let version = deployed.with_context(|| format!("cannot deploy {name}"))?;
    if global.format.is_json() {
        #[derive(Serialize)]
        struct Deployed<'a> {
            name: &'a str,
            version: u32,
        }
        return output::json([Deployed { name: &name, version }]);
    }
    output::line(&format!("{name} version {version}"))
}

/// Reads a component; its size is checked before it is sent.
pub(super) fn read(file: &std::path::Path) -> anyhow::Result<Bytes> {
    let component = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    anyhow::ensure!(
        component.len() <= limits::PAYLOAD_BYTES,
        "{} has {} bytes, over the limit of {}: build with --release, and strip it",
        file.display(),
        component.len(),
        limits::PAYLOAD_BYTES
    );
    Ok(component.into())
}
