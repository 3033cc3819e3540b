//! Sends the flights, and loses a broker on the way.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use bus_client::{Ack, Client, Delivery, Error, Record};
use bus_protocol::{NodeId, PartitionId, TopicName};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::cluster::Cluster;
use super::{FLIGHTS, INVALID, flights};

/// The partition whose leader is killed.
const HIT: PartitionId = 0;
/// Flights that are timed from the kill on: with so many, some are for [`HIT`].
const TIMED: usize = 300;

/// How it went.
#[derive(Debug)]
pub(super) struct Produced {
    pub(super) sent: u64,
    pub(super) elapsed: Duration,
    /// Who was killed, and is still dead.
    pub(super) killed: NodeId,
    /// From the kill until the partition that it had led acknowledged again.
    pub(super) pause: Option<Duration>,
}

/// Sends every flight, keyed by carrier and number, at its own time, and kills a leader when a third is sent, `kill -9`,
/// with more under way to it; `tell` hears of that. Returns when all flights are acknowledged.
pub(super) async fn produce(
    client: &Client,
    csv: &str,
    cluster: &mut Cluster,
    tell: impl Fn(&str),
) -> anyhow::Result<Produced> {
    let begun = Instant::now();
    let producer = client.producer().build().await?;
    let topic = producer.topic(FLIGHTS).await?;
    let flights = csv.lines().count() as u64 - 1;
    let progress = progress(flights);
    let (mut sent, mut hit) = (0, None);
    let mut timed = JoinSet::new();
    for row in csv.lines().skip(1) {
        let (time, flight) = flights::parse(row)?;
        let (_, key) = flight.id(time);
        let record = Record::new().key(key).value(serde_json::to_vec(&flight)?).timestamp(time);
        let delivery = topic.send(record).await?;
        match hit {
            Some((_, since)) if timed.len() < TIMED => drop(timed.spawn(acknowledged(delivery, since))),
            _ => drop(delivery),
        }
        sent += 1;
        if sent % 1_000 == 0 {
            progress.set_position(sent);
        }
        if sent == flights / 3 {
            let leader = leader(client).await?;
            // The disks are slower than this loop: the broker dies with batches of ours unanswered.
            cluster.kill(leader)?;
            hit = Some((leader, Instant::now()));
            let known = producer.counts().acknowledged;
            progress.suspend(|| {
                tell(&format!(
                    "{sent} flights are sent, {known} acknowledged: kill -9 for node {leader}, which leads \
                     {FLIGHTS}-{HIT}"
                ));
            });
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
    let (killed, _) = hit.context("there are too few flights to kill a broker on the way")?;
    Ok(Produced { sent, elapsed: begun.elapsed(), killed, pause: pause(timed).await? })
}

async fn leader(client: &Client) -> anyhow::Result<NodeId> {
    let topics = client.admin().topics(Some(vec![TopicName::new(FLIGHTS)?])).await?;
    let partition = topics.first().and_then(|topic| topic.partitions.get(HIT as usize));
    partition.and_then(|partition| partition.leader).with_context(|| format!("nobody leads {FLIGHTS}-{HIT}"))
}

type Acknowledged = Result<(Ack, Duration), Error>;

async fn acknowledged(delivery: Delivery, since: Instant) -> Acknowledged {
    delivery.await.map(|ack| (ack, since.elapsed()))
}

/// When the partition that was hit acknowledged first.
async fn pause(mut timed: JoinSet<Acknowledged>) -> anyhow::Result<Option<Duration>> {
    let mut first: Option<Duration> = None;
    while let Some(acknowledged) = timed.join_next().await {
        let (ack, after) = acknowledged.context("internal fault: please report it")??;
        if ack.partition == HIT {
            first = Some(first.map_or(after, |first| first.min(after)));
        }
    }
    Ok(first)
}

/// Produces an event that `validate` has to refuse, and answers its reason.
pub(super) async fn refused(client: &Client) -> anyhow::Result<String> {
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
