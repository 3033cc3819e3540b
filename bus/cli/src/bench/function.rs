//! `bus bench function`: the same load without and with a transform that changes nothing.

use anyhow::Context as _;
use bus_client::Record;
use bus_protocol::{Attachment, FunctionSpec, TopicName};
use tokio::time::{Duration, Instant};

use super::Bench;
use super::produce;
use super::report::{FunctionCost, Measured};
use crate::args::Global;
use crate::connection;

/// How long the warm function is timed, a record at a time.
const WARM: Duration = Duration::from_secs(1);

pub(super) async fn run(global: &Global, args: &Bench, topic: &TopicName) -> anyhow::Result<Measured> {
    let file = args.module.as_deref().context("name a component with --module")?;
    let component = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let without = produce::run(global, args, topic).await?;

    let client = connection::connect(global).await?;
    let (producer, to_topic) = produce::producer(&client, args, topic).await?;
    let name = topic.as_str().to_owned();
    let spec = FunctionSpec {
        name: name.clone(),
        attachment: Attachment::Transform { topic: topic.clone() },
        outputs: Vec::new(),
        config: std::collections::BTreeMap::new(),
        memory_bytes: FunctionSpec::DEFAULT_MEMORY_BYTES,
        fuel: FunctionSpec::DEFAULT_FUEL,
        timeout_ms: FunctionSpec::DEFAULT_TIMEOUT_MS,
        retries: FunctionSpec::DEFAULT_RETRIES,
        dead_letter: None,
    };
    client.admin().deploy_function(spec, component.into()).await.context("cannot deploy the component")?;
    if !args.idle.is_zero() {
        tokio::time::sleep(args.idle).await;
    }
    let value = args.value();
    let sent = Instant::now();
    to_topic.send(Record::new().partition(0).value(&value)).await?.await?;
    let first = sent.elapsed();
    let warm = produce::one_at_a_time(&to_topic, &value, Instant::now() + WARM).await?;
    producer.close().await?;

    let mut with = produce::run(global, args, topic).await?;
    client.admin().delete_function(&name).await?;
    let rate = |measured: &Measured| measured.records as f64 / measured.elapsed.as_secs_f64();
    with.function = Some(FunctionCost {
        records_per_s_without: rate(&without).round(),
        throughput_loss: 1.0 - rate(&with) / rate(&without),
        ns_per_record_added: 1e9 / rate(&with) - 1e9 / rate(&without),
        first_record_ms: first.as_secs_f64() * 1e3,
        warm_record_ms: warm.percentiles().map_or(f64::NAN, |percentiles| percentiles.p50),
    });
    Ok(with)
}
