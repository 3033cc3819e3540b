//! Reads everything back, and compares.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bus_client::{Client, From};
use bus_protocol::{Offset, PartitionId};
use tokio::time::Instant;

use super::flights::{Flight, Summary, Sums, count};
use super::{FLIGHTS, ROUTED};
use crate::units::show_count;

/// How long `route` may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What arrived in each of the topics that `route` writes to.
#[derive(Debug, Default)]
pub(super) struct Routed(BTreeMap<String, u64>);

impl Routed {
    fn of(&self, topic: &str) -> u64 {
        self.0.get(topic).copied().unwrap_or_default()
    }

    pub(super) fn describe(&self) -> String {
        let each = ROUTED.iter().map(|topic| format!("{} {topic}", show_count(self.of(topic))));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// Reads `route`'s topics from their start until `wanted` flights have arrived.
pub(super) async fn routed(client: &Client, wanted: u64) -> anyhow::Result<Routed> {
    let mut reader = client.reader(ROUTED).from(From::Start).build().await?;
    let until = Instant::now() + PATIENCE;
    let mut routed = Routed::default();
    for arrived in 0..wanted {
        let next = tokio::time::timeout_at(until, reader.next()).await;
        let next = next
            .with_context(|| format!("route has sorted {arrived} of {wanted} flights within {PATIENCE:?}"))?;
        let record = next.context("the reader ended")??;
        *routed.0.entry(record.topic.to_string()).or_default() += 1;
    }
    Ok(routed)
}

/// Reads all of `flights` back: the sums, and how long it took. Every offset must be there once, and every tail
/// number be redacted.
pub(super) async fn stored(client: &Client) -> anyhow::Result<(Summary, Duration)> {
    let started = Instant::now();
    let mut reader = client.reader([FLIGHTS]).from(From::Start).until_end(true).build().await?;
    let mut summary = Summary::new();
    let mut seen = BTreeSet::<(PartitionId, Offset)>::new();
    while let Some(record) = reader.next().await {
        let record = record?;
        let at = (record.partition, record.offset);
        ensure!(seen.insert(at), "{at:?} was read twice");
        let value = record.value.context("a flight has no value")?;
        let flight: Flight<'_> = serde_json::from_slice(&value).context("a flight is no event")?;
        ensure!(matches!(flight.tailnum, None | Some("***")), "a tail number was not redacted: {flight:?}");
        count(&mut summary, &flight);
    }
    Ok((summary, started.elapsed()))
}

/// Fails where anything differs from what the CSV says.
pub(super) fn compare(expected: &Summary, stored: &Summary, routed: &Routed) -> anyhow::Result<()> {
    for ((origin, carrier), sums) in expected {
        let found = stored.get(&(origin.clone(), carrier.clone())).copied().unwrap_or_default();
        ensure!(found == *sums, "{carrier} from {origin}: the bus says {found:?}, the CSV {sums:?}");
    }
    ensure!(
        expected.len() == stored.len(),
        "the bus knows {} groups, the CSV {}",
        stored.len(),
        expected.len()
    );
    let all = total(expected.values());
    for (topic, wanted) in
        ROUTED.into_iter().zip([all.late, all.flights - all.late - all.cancelled, all.cancelled])
    {
        ensure!(
            routed.of(topic) == wanted,
            "{topic} holds {} flights, the CSV says {wanted}",
            routed.of(topic)
        );
    }
    Ok(())
}

fn total<'a>(sums: impl IntoIterator<Item = &'a Sums>) -> Sums {
    sums.into_iter().fold(Sums::default(), |mut total, sums| {
        total.merge(sums);
        total
    })
}

/// Prints the sums by airport.
pub(super) fn table(summary: &Summary) -> anyhow::Result<()> {
    let mut airports = BTreeMap::<&str, Sums>::new();
    for ((origin, _), sums) in summary {
        airports.entry(origin).or_default().merge(sums);
    }
    let row = |name: &str, sums: &Sums| {
        vec![
            name.to_owned(),
            show_count(sums.flights),
            show_count(sums.late),
            show_count(sums.cancelled),
            format!("{:.1} min", sums.mean_delay()),
        ]
    };
    let mut rows: Vec<_> = airports.iter().map(|(name, sums)| row(name, sums)).collect();
    rows.push(row("all", &total(airports.values())));
    super::print(rows)
}
