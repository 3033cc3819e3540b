//! `bus topic`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bus_client::{Client, CreateTopic};
use bus_protocol::request::{PartitionInfo, TopicInfo};
use bus_protocol::{PartitionId, TopicName};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::args::Global;
use crate::{connection, failure, output, pairs, units};

/// Create, look at, change and delete topics
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  bus topic create orders --partitions 6 --config retention.ms=86400000
  bus topic list
  bus topic describe orders")]
pub(crate) enum Topic {
    Create(Create),
    /// List the topics
    #[command(after_help = "Examples:
  bus topic list
  bus topic list -o json | jq -r .topic")]
    List,
    /// Show a topic's settings, then a row a partition
    #[command(after_help = "Examples:
  bus topic describe orders
  bus topic describe orders -o json | jq .high_watermark")]
    Describe {
        /// The topic
        name: TopicName,
    },
    Alter(Alter),
    /// Delete a topic and its records
    #[command(after_help = "Examples:
  bus topic delete orders")]
    Delete {
        /// The topic
        name: TopicName,
    },
}

/// Create a topic
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus topic create orders
  bus topic create orders --partitions 6 --config retention.ms=86400000 compression.type=zstd
  bus topic create orders --if-not-exists")]
pub(crate) struct Create {
    /// The topic's name: a-z, A-Z, 0-9, '.', '_' and '-'
    name: TopicName,
    /// How many partitions
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: u32,
    /// How many brokers hold each partition
    #[arg(long, default_value_t = 1, value_name = "N")]
    replicas: u32,
    /// A setting, under Kafka's name; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pairs::pair)]
    config: Vec<(String, String)>,
    /// Do nothing where the topic exists already
    #[arg(long)]
    if_not_exists: bool,
}

/// Change a topic's settings, or add partitions
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus topic alter orders --partitions 12
  bus topic alter orders --config retention.ms=-1
  bus topic alter orders --config retention.ms=      # back to the default")]
pub(crate) struct Alter {
    /// The topic
    name: TopicName,
    /// The new number of partitions: more than now
    #[arg(long, value_name = "N", required_unless_present = "config")]
    partitions: Option<u32>,
    /// A setting; an empty value takes it back to its default; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pairs::pair)]
    config: Vec<(String, String)>,
}

pub(crate) async fn run(global: &Global, verb: Topic) -> anyhow::Result<()> {
    let client = connection::connect(global).await?;
    match verb {
        Topic::Create(args) => {
            let config = pairs::map("--config", args.config)?;
            let Create { name: topic, partitions, replicas, if_not_exists, .. } = args;
            let request = CreateTopic { topic: topic.clone(), partitions, replicas, config, if_not_exists };
            client
                .admin()
                .create_topic(request)
                .await
                .with_context(|| format!("cannot create topic {topic}"))?;
            failure::message(&format!("topic {topic} is ready"));
            Ok(())
        }
        Topic::List => list(global, &client).await,
        Topic::Describe { name } => describe(global, &client, &name).await,
        Topic::Alter(args) => {
            let config = pairs::map("--config", args.config)?;
            let topic = args.name;
            let altered = client.admin().alter_topic(&topic, args.partitions, config).await;
            altered.with_context(|| format!("cannot alter topic {topic}"))?;
            failure::message(&format!("topic {topic} is altered"));
            Ok(())
        }
        Topic::Delete { name } => {
            client
                .admin()
                .delete_topic(&name)
                .await
                .with_context(|| format!("cannot delete topic {name}"))?;
            failure::message(&format!("topic {name} is deleted"));
            Ok(())
        }
    }
}

async fn list(global: &Global, client: &Client) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Row<'a> {
        topic: &'a str,
        partitions: usize,
        replicas: usize,
        internal: bool,
        functions: &'a [String],
    }
    let mut topics = client.admin().topics(None).await?;
    topics.sort_by(|a, b| a.topic.cmp(&b.topic));
    let rows = topics.iter().map(|topic| Row {
        topic: topic.topic.as_str(),
        partitions: topic.partitions.len(),
        replicas: topic.partitions.first().map_or(0, |partition| partition.replicas.len()),
        internal: topic.topic.is_internal(),
        functions: &topic.functions,
    });
    if global.format.is_json() {
        return output::json(rows);
    }
    output::table(
        &["TOPIC", "PARTITIONS", "REPLICAS", "FUNCTIONS"],
        rows.map(|row| {
            let functions = if row.functions.is_empty() { "-".to_owned() } else { row.functions.join(",") };
            vec![row.topic.to_owned(), row.partitions.to_string(), row.replicas.to_string(), functions]
        }),
    )
}

/// A partition as `topic describe` shows it. What only its leader knows is missing where nobody leads it.
#[derive(Serialize)]
struct Described<'a> {
    topic: &'a str,
    partition: PartitionId,
    leader: Option<u64>,
    epoch: i32,
    replicas: &'a [u64],
    isr: &'a [u64],
    log_start: Option<i64>,
    high_watermark: Option<i64>,
    log_end: Option<i64>,
    bytes: Option<u64>,
    offline: Option<&'a str>,
    functions: &'a [String],
    config: &'a BTreeMap<String, String>,
}

fn described<'a>(topic: &'a TopicInfo, logs: &'a BTreeMap<PartitionId, PartitionInfo>) -> Vec<Described<'a>> {
    let row = |(partition, state): (PartitionId, &'a bus_protocol::request::PartitionState)| {
        let log = logs.get(&partition);
        Described {
            topic: topic.topic.as_str(),
            partition,
            leader: state.leader,
            epoch: state.epoch,
            replicas: &state.replicas,
            isr: &state.isr,
            log_start: log.map(|log| log.log_start),
            high_watermark: log.map(|log| log.high_watermark),
            log_end: log.map(|log| log.log_end),
            bytes: log.map(|log| log.bytes),
            offline: match log {
                Some(log) => log.offline.as_deref(),
                None => Some("no leader"),
            },
            functions: &topic.functions,
            config: &topic.config,
        }
    };
    (0..).zip(&topic.partitions).map(row).collect()
}

async fn describe(global: &Global, client: &Client, name: &TopicName) -> anyhow::Result<()> {
    let admin = client.admin();
    let topics = admin.topics(Some(vec![name.clone()])).await?;
    let topic =
        topics.first().with_context(|| format!("topic {name} does not exist: see `bus topic list`"))?;
    let logs = admin.describe_partitions(name).await?;
    let logs = logs.into_iter().map(|log| (log.partition, log)).collect();
    let partitions = described(topic, &logs);
    if global.format.is_json() {
        return output::json(&partitions);
    }
    let mut settings = vec![("topic", name.to_string())];
    if !topic.functions.is_empty() {
        settings.push(("functions", topic.functions.join(", ")));
    }
    settings.extend(topic.config.iter().map(|(key, value)| (key.as_str(), value.clone())));
    output::fields(&settings)?;
    output::line("")?;
    let nodes = |nodes: &[u64]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let known = |offset: Option<i64>| offset.map_or_else(|| "?".to_owned(), |offset| offset.to_string());
    let heading =
        ["PARTITION", "LEADER", "EPOCH", "REPLICAS", "ISR", "LOG-START", "HW", "LEO", "SIZE", "OFFLINE"];
    output::table(
        &heading,
        partitions.iter().map(|partition| {
            vec![
                partition.partition.to_string(),
                partition.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string()),
                partition.epoch.to_string(),
                nodes(partition.replicas),
                nodes(partition.isr),
                known(partition.log_start),
                known(partition.high_watermark),
                known(partition.log_end),
                partition.bytes.map_or_else(|| "?".to_owned(), units::show_size),
                partition.offline.unwrap_or("-").to_owned(),
            ]
        }),
    )
}
