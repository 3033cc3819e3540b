//! Reads everything back, and compares: with the CSV, not with what was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bus_client::{Client, ConsumerRecord, From};
use tokio::time::Instant;

use super::flights::{self, Flight, Id, Summary, Sums, count};
use super::{FLIGHTS, ROUTED};
use crate::units::show_count;

/// How long `route` may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every flight of the CSV, and the topic that it belongs to.
#[derive(Debug)]
pub(super) struct Ledger(BTreeMap<Id, &'static str>);

impl Ledger {
    /// Fails where two flights cannot be told apart.
    pub(super) fn new(csv: &str) -> anyhow::Result<Self> {
        let mut ledger = BTreeMap::new();
        for row in csv.lines().skip(1) {
            let (time, flight) = flights::parse(row)?;
            let topic = ROUTED[flight.departure() as usize];
            ensure!(ledger.insert(flight.id(time), topic).is_none(), "the CSV holds a flight twice: {row}");
        }
        Ok(Self(ledger))
    }

    fn topic_of(&self, id: &Id) -> anyhow::Result<&'static str> {
        self.0.get(id).copied().with_context(|| format!("flight {id:?} is not in the CSV"))
    }
}

/// The flight that a record is of.
fn id_of(record: &ConsumerRecord) -> anyhow::Result<Id> {
    let key = record.key.as_deref().context("a flight has no key")?;
    Ok((record.timestamp, String::from_utf8(key.to_vec())?))
}

/// What arrived in the topics that `route` writes to.
#[derive(Debug, Default)]
pub(super) struct Routed {
    /// Flights by topic, each counted once.
    flights: BTreeMap<&'static str, u64>,
    /// Records beyond those.
    repeated: u64,
}

impl Routed {
    pub(super) fn describe(&self) -> String {
        let of = |topic| self.flights.get(topic).copied().unwrap_or_default();
        let each = ROUTED.iter().map(|topic| format!("{} {topic}", show_count(of(topic))));
        let each = each.collect::<Vec<_>>().join(", ");
        match self.repeated {
            0 => each,
            repeated => {
                format!("{each} ({} of them twice, as its work was handed over)", show_count(repeated))
            }
        }
    }
}

/// Waits until every flight has arrived in the topic that it belongs to, then reads these topics from their start to
/// their end. A flight in another topic, or that the CSV does not know, fails. One may be there more than once: what a
/// consumer function emits is stored at least once when its work passes to another broker, until transactions come.
pub(super) async fn routed(client: &Client, ledger: &Ledger) -> anyhow::Result<Routed> {
    let mut reader = client.reader(ROUTED).from(From::Start).build().await?;
    let until = Instant::now() + PATIENCE;
    let (mut arrived, wanted) = (BTreeSet::new(), ledger.0.len());
    while arrived.len() < wanted {
        let next = tokio::time::timeout_at(until, reader.next()).await;
        let next = next.with_context(|| {
            format!("route has sorted {} of {wanted} flights within {PATIENCE:?}", arrived.len())
        })?;
        arrived.insert(id_of(&next.context("the reader ended")??)?);
    }
    drop(reader);
    let mut reader = client.reader(ROUTED).from(From::Start).until_end(true).build().await?;
    let (mut routed, mut seen) = (Routed::default(), BTreeSet::new());
    while let Some(record) = reader.next().await {
        let record = record?;
        let id = id_of(&record)?;
        let topic = ledger.topic_of(&id)?;
        ensure!(record.topic.as_str() == topic, "flight {id:?} is in {}, not in {topic}", record.topic);
        if seen.insert(id) {
            *routed.flights.entry(topic).or_default() += 1;
        } else {
            routed.repeated += 1;
        }
    }
    ensure!(seen.len() == wanted, "{} of {wanted} flights are in route's topics", seen.len());
    Ok(routed)
}

/// Reads all of `flights` back: the sums, and how long it took. Every flight of the CSV must be there exactly once,
/// whatever became of the broker that it was first sent to, and every tail number be redacted.
pub(super) async fn stored(client: &Client, ledger: &Ledger) -> anyhow::Result<(Summary, Duration)> {
    let started = Instant::now();
    let mut reader = client.reader([FLIGHTS]).from(From::Start).until_end(true).build().await?;
    let mut summary = Summary::new();
    let mut seen = BTreeSet::new();
    while let Some(record) = reader.next().await {
        let record = record?;
        let id = id_of(&record)?;
        ledger.topic_of(&id)?;
        let value = record.value.context("a flight has no value")?;
        let flight: Flight<'_> = serde_json::from_slice(&value).context("a flight is no event")?;
        ensure!(matches!(flight.tailnum, None | Some("***")), "a tail number was not redacted: {flight:?}");
        count(&mut summary, &flight);
        ensure!(
            seen.insert(id),
            "flight {flight:?} is stored twice, again at {}-{}",
            record.partition,
            record.offset
        );
    }
    let (stored, wanted) = (seen.len(), ledger.0.len());
    ensure!(stored == wanted, "{stored} of {wanted} acknowledged flights are stored");
    Ok((summary, started.elapsed()))
}

/// Fails where anything differs from what the CSV says.
pub(super) fn compare(expected: &Summary, stored: &Summary) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_knows_every_flight_and_where_it_belongs() {
        let csv = flights::csv().unwrap();
        let ledger = Ledger::new(&csv).unwrap();
        assert_eq!(ledger.0.len(), 27_004);
        let all = total(flights::summarize(&csv).unwrap().values());
        let of = |wanted| ledger.0.values().filter(|topic| **topic == wanted).count() as u64;
        assert_eq!(ROUTED.map(of), [all.late, all.flights - all.late - all.cancelled, all.cancelled]);
        assert!(ledger.topic_of(&(0, "UA1".to_owned())).is_err());
    }
}
