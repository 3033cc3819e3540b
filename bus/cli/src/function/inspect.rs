//! `bus function list | describe | logs`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use bus_protocol::Attachment;
use bus_protocol::request::{FunctionInfo, LogLine};
use clap::Args;
use serde::Serialize;

use crate::args::Global;
use crate::units::{show_count, show_size};
use crate::{connection, output, rfc3339};

/// How often `logs -f` asks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);

/// Show a function's log: what it logged, and its stdout and stderr
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus function logs route
  bus function logs route -f
  bus function logs route -o json | jq -r 'select(.level == \"error\") | .message'")]
pub(crate) struct Logs {
    /// The function
    name: String,
    /// Go on as lines come
    #[arg(short, long)]
    follow: bool,
}

/// A function as JSON; `attached` reads `transform TOPIC` or `consume TOPIC,..`.
#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    version: u32,
    state: &'a str,
    attached: String,
    group: Option<&'a str>,
    outputs: Vec<&'a str>,
    interface: &'a str,
    module: &'a str,
    records_in: u64,
    records_out: u64,
    failed: u64,
    lag: u64,
    instances: u32,
    memory_bytes: u64,
    fuel: u64,
    memory_limit_bytes: u64,
    fuel_limit: u64,
    timeout_ms: u64,
    retries: u32,
    dead_letter: Option<&'a str>,
    config: &'a BTreeMap<String, String>,
    last_error: Option<LastError<'a>>,
}

#[derive(Serialize)]
struct LastError<'a> {
    timestamp: i64,
    message: &'a str,
}

impl<'a> From<&'a FunctionInfo> for Row<'a> {
    fn from(info: &'a FunctionInfo) -> Self {
        let spec = &info.spec;
        let (attached, group) = match &spec.attachment {
            Attachment::Transform { topic } => (format!("transform {topic}"), None),
            Attachment::Consumer { topics, group } => {
                let topics: Vec<_> = topics.iter().map(|topic| topic.as_str()).collect();
                (format!("consume {}", topics.join(",")), Some(group.as_str()))
            }
        };
        Self {
            name: &spec.name,
            version: info.version,
            state: &info.state,
            attached,
            group,
            outputs: spec.outputs.iter().map(|topic| topic.as_str()).collect(),
            interface: &info.interface,
            module: &info.module,
            records_in: info.records_in,
            records_out: info.records_out,
            failed: info.failed,
            lag: info.lag,
            instances: info.instances,
            memory_bytes: info.memory_bytes,
            fuel: info.fuel,
            memory_limit_bytes: spec.memory_bytes,
            fuel_limit: spec.fuel,
            timeout_ms: spec.timeout_ms,
            retries: spec.retries,
            dead_letter: spec.dead_letter.as_ref().map(|topic| topic.as_str()),
            config: &spec.config,
            last_error: info
                .last_error
                .as_ref()
                .map(|(timestamp, message)| LastError { timestamp: *timestamp, message }),
        }
    }
}

pub(super) async fn list(global: &Global) -> anyhow::Result<()> {
    let mut functions = connection::connect(global).await?.admin().list_functions(None).await?;
    functions.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let rows = functions.iter().map(Row::from);
    if global.format.is_json() {
        return output::json(rows);
    }
    let heading =
        ["NAME", "VERSION", "STATE", "ATTACHED", "IN", "OUT", "FAILED", "LAG", "INSTANCES", "MEMORY", "FUEL"];
    output::table(
        &heading,
        rows.map(|row| {
            vec![
                row.name.to_owned(),
                row.version.to_string(),
                row.state.to_owned(),
                row.attached,
                row.records_in.to_string(),
                row.records_out.to_string(),
                row.failed.to_string(),
                row.lag.to_string(),
                row.instances.to_string(),
                show_size(row.memory_bytes),
                row.fuel.to_string(),
            ]
        }),
    )
}

pub(super) async fn describe(global: &Global, name: String) -> anyhow::Result<()> {
    let functions = connection::connect(global).await?.admin().list_functions(Some(name.clone())).await?;
    let info = functions
        .first()
        .with_context(|| format!("function {name} does not exist: see `bus function list`"))?;
    let row = Row::from(info);
    if global.format.is_json() {
        return output::json([row]);
    }
    let mut fields = vec![
        ("name", row.name.to_owned()),
        ("version", row.version.to_string()),
        ("state", row.state.to_owned()),
        ("attached", row.attached),
    ];
    fields.extend(row.group.map(|group| ("group", group.to_owned())));
    if !row.outputs.is_empty() {
        fields.push(("outputs", row.outputs.join(", ")));
    }
    fields.extend(row.dead_letter.map(|topic| ("dead letter", topic.to_owned())));
    if !row.config.is_empty() {
        let pairs: Vec<_> = row.config.iter().map(|(key, value)| format!("{key}={value}")).collect();
        fields.push(("config", pairs.join(" ")));
    }
    fields.extend([
        ("interface", row.interface.to_owned()),
        ("module", row.module.to_owned()),
        ("records in", show_count(row.records_in)),
        ("records out", show_count(row.records_out)),
        ("failed", show_count(row.failed)),
        ("lag", show_count(row.lag)),
        ("instances", row.instances.to_string()),
        ("memory", format!("{} of {} each", show_size(row.memory_bytes), show_size(row.memory_limit_bytes))),
        ("fuel", format!("{}, at most {} a call", show_count(row.fuel), show_count(row.fuel_limit))),
        ("timeout", format!("{} ms", row.timeout_ms)),
        ("retries", row.retries.to_string()),
    ]);
    if let Some(LastError { timestamp, message }) = row.last_error {
        fields.push(("last error", format!("{} {message}", rfc3339::show(timestamp))));
    }
    output::fields(&fields)
}

pub(super) async fn logs(global: &Global, args: Logs) -> anyhow::Result<()> {
    let client = connection::connect(global).await?;
    let mut after = 0;
    loop {
        let lines = client.admin().function_logs(&args.name, after).await?;
        after = lines.last().map_or(after, |line| line.sequence);
        print(global, &lines)?;
        if !args.follow {
            return Ok(());
        }
        if lines.is_empty() {
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
    }
}

fn print(global: &Global, lines: &[LogLine]) -> anyhow::Result<()> {
    if global.format.is_json() {
        return output::json(lines);
    }
    lines.iter().try_for_each(|LogLine { timestamp, level, message, .. }| {
        output::line(&format!("{} {level:6} {message}", rfc3339::show(*timestamp)))
    })
}
