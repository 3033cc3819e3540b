//! `bus topic`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bus_client::{Client, CreateTopic};
use bus_protocol::request::{PartitionInfo, TopicInfo};
use bus_protocol::{PartitionId, TopicName};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

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
  bus topic describe orders -o json | jq .high_watermark

What a log holds is its leader's word, and `-` where nobody leads. LAG: a follower's node id, and how many records it has still \
to store. A partition that is being reassigned shows where to: 1,2 > 2,3.")]
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
  bus topic create orders --config retention.ms=86400000 compression.type=zstd
  bus topic create orders --replicas 3 --config min.insync.replicas=2
  bus topic create orders --if-not-exists

In a cluster of three brokers or more, take --replicas 3 and min.insync.replicas=2: any one broker can then be lost, with its \
disk, and no acknowledged record is.")]
pub(crate) struct Create {
    /// The topic's name: a-z, A-Z, 0-9, '.', '_' and '-'
    name: TopicName,
    /// How many partitions
    #[arg(long, default_value_t = 1, value_name = "N")]
    partitions: u32,
    /// How many brokers hold each partition; 3 is right where there are three brokers or more [default: 1]
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
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
            let Create { name: topic, partitions, replicas: wanted, if_not_exists, .. } = args;
            let replicas = wanted.unwrap_or(1);
            let request = CreateTopic { topic: topic.clone(), partitions, replicas, config, if_not_exists };
            client
                .admin()
                .create_topic(request)
                .await
                .with_context(|| format!("cannot create topic {topic}"))?;
            let done = if if_not_exists { "ready" } else { "created" };
            global.format.done(&format!("topic {topic} is ready"), json!({"topic": topic, "done": done}))?;
            // What was there already may have more.
            if wanted.is_none()
                && !if_not_exists
                && client.admin().cluster().await.is_ok_and(|cluster| cluster.brokers.len() >= 3)
            {
                failure::message(&format!(
                    "each partition is on one broker only: `bus topic create {topic} --replicas 3 --config \
                     min.insync.replicas=2` would survive the loss of one"
                ));
            }
            Ok(())
        }
        Topic::List => list(global, &client).await,
        Topic::Describe { name } => describe(global, &client, &name).await,
        Topic::Alter(args) => {
            let config = pairs::map("--config", args.config)?;
            let topic = args.name;
            let altered = client.admin().alter_topic(&topic, args.partitions, config).await;
            altered.with_context(|| format!("cannot alter topic {topic}"))?;
            global
                .format
                .done(&format!("topic {topic} is altered"), json!({"topic": topic, "done": "altered"}))
        }
        Topic::Delete { name } => {
            client
                .admin()
                .delete_topic(&name)
                .await
                .with_context(|| format!("cannot delete topic {name}"))?;
            let object = json!({"topic": name, "done": "deleted"});
            global.format.done(&format!("topic {name} is deleted"), object)
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
    /// The replicas that it is on its way to.
    target: Option<&'a [u64]>,
    log_start: Option<i64>,
    high_watermark: Option<i64>,
    log_end: Option<i64>,
    bytes: Option<u64>,
    followers: Vec<Follower>,
    offline: Option<&'a str>,
    functions: &'a [String],
    config: &'a BTreeMap<String, String>,
}

/// A replica that replicates from the leader now.
#[derive(Serialize)]
struct Follower {
    node: u64,
    log_end: i64,
    lag: i64,
}

fn followers(log: &PartitionInfo) -> Vec<Follower> {
    let follower = |&(node, stored): &(u64, i64)| Follower {
        node,
        log_end: stored,
        lag: log.log_end.saturating_sub(stored).max(0),
    };
    log.followers.iter().map(follower).collect()
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
            target: state.target.as_deref(),
            log_start: log.map(|log| log.log_start),
            high_watermark: log.map(|log| log.high_watermark),
            log_end: log.map(|log| log.log_end),
            bytes: log.map(|log| log.bytes),
            followers: log.map(followers).unwrap_or_default(),
            offline: match (log, state.leader) {
                (Some(log), _) => log.offline.as_deref(),
                (None, None) => Some("no leader"),
                (None, Some(_)) => Some("its leader does not answer"),
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
    print_partitions(&partitions)
}

fn print_partitions(partitions: &[Described<'_>]) -> anyhow::Result<()> {
    let none = || "-".to_owned();
    let known = |offset: Option<i64>| offset.map_or_else(none, |offset| offset.to_string());
    let lag = |followers: &[Follower]| {
        let each: Vec<_> =
            followers.iter().map(|follower| format!("{}:{}", follower.node, follower.lag)).collect();
        if each.is_empty() { none() } else { each.join(",") }
    };
    let heading = [
        "PARTITION",
        "LEADER",
        "EPOCH",
        "REPLICAS",
        "ISR",
        "LOG-START",
        "HW",
        "LEO",
        "SIZE",
        "LAG",
        "OFFLINE",
    ];
    output::table(
        &heading,
        partitions.iter().map(|partition| {
            let replicas = output::list(partition.replicas);
            vec![
                partition.partition.to_string(),
                partition.leader.map_or_else(none, |leader| leader.to_string()),
                partition.epoch.to_string(),
                match partition.target {
                    Some(target) => format!("{replicas} > {}", output::list(target)),
                    None => replicas,
                },
                output::list(partition.isr),
                known(partition.log_start),
                known(partition.high_watermark),
                known(partition.log_end),
                partition.bytes.map_or_else(none, units::show_size),
                lag(&partition.followers),
                partition.offline.unwrap_or("-").to_owned(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use bus_protocol::TopicId;
    use bus_protocol::request::PartitionState;

    use super::*;

    #[test]
    fn a_partition_without_a_leader_has_no_log_to_show() {
        let state =
            |leader| PartitionState { leader, epoch: 3, replicas: vec![1, 2], isr: vec![1], target: None };
        let topic = TopicInfo {
            topic: TopicName::new("t").unwrap(),
            id: TopicId(1),
            config: BTreeMap::new(),
            functions: Vec::new(),
            partitions: vec![state(Some(1)), state(None), state(Some(2))],
        };
        let log = PartitionInfo {
            partition: 0,
            log_start: 0,
            high_watermark: 5,
            log_end: 9,
            bytes: 100,
            offline: None,
            followers: vec![(2, 5), (3, 12)],
        };
        let logs = BTreeMap::from([(0, log)]);
        let rows = described(&topic, &logs);
        let lags: Vec<_> = rows[0].followers.iter().map(|follower| (follower.node, follower.lag)).collect();
        assert_eq!((lags, rows[0].offline), (vec![(2, 4), (3, 0)], None));
        assert_eq!((rows[1].log_end, rows[1].offline), (None, Some("no leader")));
        assert_eq!((rows[2].log_end, rows[2].offline), (None, Some("its leader does not answer")));
        let json = serde_json::to_value(&rows[1]).unwrap();
        assert!(json["leader"].is_null() && json["high_watermark"].is_null() && json["bytes"].is_null());
    }
}
