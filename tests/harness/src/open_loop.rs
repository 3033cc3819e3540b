//! A producer that sends at its moments, whatever is acknowledged, and how long each record took from its moment on.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bus_client::{Delivery, Record, TopicProducer};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::Cluster;

/// How often it sends what is due; as fine as the timer is.
const TICK: Duration = Duration::from_millis(1);
/// Records whose acknowledgement is awaited; beyond them it waits, and what it sends late counts from its moment.
const UNDER_WAY: usize = 1 << 16;

/// The element of an ascending list that this share of all does not exceed: 0.5 is the median. Zero for an empty list.
pub(crate) fn quantile(ascending: &[Duration], share: f64) -> Duration {
    let place = (ascending.len() as f64 * share).ceil() as usize;
    ascending.get(place.max(1) - 1).copied().unwrap_or_default()
}

/// How long acknowledgements took, from the moment at which a record was to be sent: with the timer's lateness, which
/// is up to a millisecond, and the producer's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// In ascending order.
    took: Vec<Duration>,
}

impl Latencies {
    /// The latency that this share of all does not exceed: 0.5 is the median. Zero where nothing was measured.
    pub fn quantile(&self, share: f64) -> Duration {
        quantile(&self.took, share)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |share| self.quantile(share).as_secs_f64() * 1e3;
        write!(f, "p50 {:.1} ms p99 {:.1} ms ({} records)", ms(0.5), ms(0.99), self.took.len())
    }
}

/// When a record was to be sent, and how long its acknowledgement took from then on.
type Taken = (Instant, Duration);

/// One under way. Dropping it breaks it off.
#[derive(Debug)]
pub(crate) struct OpenLoop {
    stop: watch::Sender<bool>,
    taken: Arc<Mutex<Vec<Taken>>>,
    sender: JoinHandle<anyhow::Result<()>>,
    settler: JoinHandle<anyhow::Result<()>>,
}

impl OpenLoop {
    /// Starts it, on the first partition of a topic that exists, with acks=all.
    pub(crate) async fn start(
        cluster: &Cluster,
        topic: &str,
        records_per_second: u32,
        value_bytes: usize,
    ) -> anyhow::Result<Self> {
        let producer = cluster.client().await?.producer().build().await?;
        let topic = producer.topic(topic).await?;
        let value = vec![0x5a; value_bytes];
        // The stream is open, and the leader known, once one is through.
        topic.send(Record::new().partition(0).value(&value)).await?.await?;
        let (stop, stopped) = watch::channel(false);
        let (lane, under_way) = mpsc::channel(UNDER_WAY);
        let taken = Arc::<Mutex<Vec<Taken>>>::default();
        let settler = tokio::spawn(settle(under_way, Arc::clone(&taken)));
        let sender = tokio::spawn(async move {
            send(&topic, &value, records_per_second, &lane, stopped).await?;
            drop(lane);
            Ok(producer.close().await?)
        });
        Ok(Self { stop, taken, sender, settler })
    }

    /// The latencies of the records that were to be sent within this time, and are acknowledged.
    pub(crate) fn between(&self, from: Instant, to: Instant) -> Latencies {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut took: Vec<_> =
            taken.iter().filter(|(due, _)| (from..to).contains(due)).map(|(_, took)| *took).collect();
        took.sort_unstable();
        Latencies { took }
    }

    /// Sends no more, and waits until all is acknowledged; an error where a record failed.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        (&mut self.settler).await??;
        (&mut self.sender).await?
    }
}

impl Drop for OpenLoop {
    fn drop(&mut self) {
        self.sender.abort();
        self.settler.abort();
    }
}

async fn send(
    topic: &TopicProducer,
    value: &[u8],
    records_per_second: u32,
    lane: &mpsc::Sender<(Instant, Delivery)>,
    mut stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    // A tick that was missed is made up for, under the moment that it had.
    let mut ticks = tokio::time::interval(TICK);
    // In thousandths of a record.
    let (mut owed, a_tick) = (0, u64::from(records_per_second) * TICK.as_millis() as u64);
    loop {
        let due = tokio::select! {
            due = ticks.tick() => due,
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        };
        owed += a_tick;
        while owed >= 1_000 {
            owed -= 1_000;
            let delivery = topic.send(Record::new().partition(0).value(value)).await?;
            lane.send((due, delivery)).await.context("a record failed")?;
        }
    }
}

/// Notes what became of the records, in their order, which is that of their acknowledgements.
async fn settle(
    mut under_way: mpsc::Receiver<(Instant, Delivery)>,
    taken: Arc<Mutex<Vec<Taken>>>,
) -> anyhow::Result<()> {
    while let Some((due, delivery)) = under_way.recv().await {
        delivery.await?;
        taken.lock().unwrap_or_else(PoisonError::into_inner).push((due, due.elapsed()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_list() {
        let took: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&took, 0.5), Duration::from_millis(50));
        assert_eq!(quantile(&took, 0.99), Duration::from_millis(99));
        assert_eq!(quantile(&took, 1.0), Duration::from_millis(100));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
        assert_eq!(Latencies { took }.to_string(), "p50 50.0 ms p99 99.0 ms (100 records)");
    }
}
