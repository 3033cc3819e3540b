//! Producers that go on, whatever happens, and note what they are told.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bus_client::{Delivery, Producer, Record};
use bus_protocol::PartitionId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::cluster::Cluster;
use crate::history::{Counts, History, Outcome};
use crate::random::Random;

/// How often each producer sends what is due.
const TICK: Duration = Duration::from_millis(5);
/// Records that one producer may have under way to one partition; then it waits.
const UNDER_WAY: usize = 4 << 10;

/// What a load is made of.
#[derive(Clone, Debug)]
pub struct Load {
    /// The topic, which exists.
    pub topic: String,
    /// How many of its partitions are written to, from 0 on.
    pub partitions: u32,
    /// Producers, each a client of its own, idempotent, with acks=all.
    pub producers: u32,
    /// What each sends, as long as the cluster keeps up.
    pub records_per_second: u32,
    /// Bytes of a record's value.
    pub value_bytes: usize,
    /// From a record's sending until its producer gives it up.
    pub delivery_timeout: Duration,
    /// Decides which partition is next.
    pub seed: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            topic: "load".to_owned(),
            partitions: 1,
            producers: 1,
            records_per_second: 1_000,
            value_bytes: 200,
            delivery_timeout: Duration::from_secs(120),
            seed: 1,
        }
    }
}

/// What the producers' tasks share.
#[derive(Debug)]
struct Shared {
    history: History,
    acknowledged: watch::Sender<u64>,
    /// By partition.
    gaps: Vec<Mutex<Gap>>,
    /// The first error that a record failed with.
    failure: Mutex<Option<String>>,
}

/// How long nothing was acknowledged in a partition.
#[derive(Debug)]
struct Gap {
    last: Instant,
    longest: Duration,
}

/// What a load came to.
#[derive(Clone, Debug)]
pub struct LoadResult {
    /// What was sent, and became of it.
    pub history: History,
    /// How many records of each outcome there are.
    pub counts: Counts,
    /// The first error that a record failed with, if one did.
    pub failure: Option<String>,
}

/// A load under way. Dropping it breaks it off.
#[derive(Debug)]
pub struct LoadUnderWay {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<anyhow::Result<()>>,
    within: Duration,
}

impl Load {
    /// Starts it.
    pub async fn start(self, cluster: &Cluster) -> anyhow::Result<LoadUnderWay> {
        let gap = || Mutex::new(Gap { last: Instant::now(), longest: Duration::ZERO });
        let shared = Arc::new(Shared {
            history: History::default(),
            acknowledged: watch::Sender::new(0),
            gaps: (0..self.partitions).map(|_| gap()).collect(),
            failure: Mutex::default(),
        });
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..self.producers {
            // Each starts at another node.
            let mut servers = cluster.addresses();
            let first = number as usize % servers.len();
            servers.rotate_left(first);
            let client = bus_client::Client::builder().servers(servers.join(",")).trust(cluster.trust());
            let client = client.connect().await.context("a client of the load")?;
            let producer = client.producer().delivery_timeout(self.delivery_timeout).build().await?;
            let task = ProducerTask {
                load: self.clone(),
                number,
                producer,
                shared: Arc::clone(&shared),
                stopped: stopped.clone(),
            };
            tasks.spawn(task.run());
        }
        let within = self.delivery_timeout + Duration::from_secs(30);
        Ok(LoadUnderWay { shared, stop, tasks, within })
    }
}

impl LoadUnderWay {
    /// What was sent so far, and became of it.
    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// Records acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        *self.shared.acknowledged.borrow()
    }

    /// Waits until so many more records are acknowledged.
    pub async fn wait_for_acks(&self, more: u64, within: Duration) -> anyhow::Result<()> {
        let mut acknowledged = self.shared.acknowledged.subscribe();
        let wanted = *acknowledged.borrow() + more;
        // The value is let go of at once: while it is held, nothing is counted.
        let reached = async { acknowledged.wait_for(|count| *count >= wanted).await.map(drop) };
        let waited = tokio::time::timeout(within, reached).await;
        waited.with_context(|| {
            format!("{} of {wanted} acknowledged within {within:?}", self.acknowledged())
        })??;
        Ok(())
    }

    /// The longest time in which no record of some partition was acknowledged, since this was asked last; that under
    /// way counts too.
    pub fn take_longest_gap(&self) -> Duration {
        let now = Instant::now();
        let gaps = self.shared.gaps.iter().map(|gap| {
            let mut gap = gap.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut gap.longest).max(now - gap.last)
        });
        gaps.max().unwrap_or_default()
    }

    /// Forgets the gaps so far, that under way as well.
    pub fn forget_gaps(&self) {
        for gap in &self.shared.gaps {
            let mut gap = gap.lock().unwrap_or_else(PoisonError::into_inner);
            *gap = Gap { last: Instant::now(), longest: Duration::ZERO };
        }
    }

    /// The first error that a record failed with so far, if one did.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends no more, and waits until every record's fate is known or given up.
    pub async fn stop(mut self) -> anyhow::Result<LoadResult> {
        self.stop.send_replace(true);
        let ended = async {
            while let Some(task) = self.tasks.join_next().await {
                task??;
            }
            anyhow::Ok(())
        };
        let ended = tokio::time::timeout(self.within, ended).await;
        ended.with_context(|| format!("the producers have not ended within {:?}", self.within))??;
        let history = self.shared.history.clone();
        let (counts, failure) = (history.counts(), self.failure());
        Ok(LoadResult { history, counts, failure })
    }
}

struct ProducerTask {
    load: Load,
    number: u32,
    producer: Producer,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
}

/// A record under way.
type UnderWay = (crate::Sent, Delivery);

impl ProducerTask {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut settlers = JoinSet::new();
        let mut lanes = Vec::new();
        for partition in 0..self.load.partitions {
            let (lane, under_way) = mpsc::channel(UNDER_WAY);
            settlers.spawn(settle(under_way, partition, Arc::clone(&self.shared)));
            lanes.push(lane);
        }
        self.produce(&lanes).await?;
        drop(lanes);
        // What could not be delivered was noted with its record.
        let _ = self.producer.close().await;
        settlers.join_all().await;
        Ok(())
    }

    async fn produce(&mut self, lanes: &[mpsc::Sender<UnderWay>]) -> anyhow::Result<()> {
        ensure!(!lanes.is_empty(), "a load has at least one partition");
        let mut random = Random::new(self.load.seed.wrapping_add(u64::from(self.number)));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        // In thousandths of a record.
        let (mut due, a_tick) = (0, u64::from(self.load.records_per_second) * TICK.as_millis() as u64);
        loop {
            tokio::select! {
                _ = ticks.tick() => due += a_tick,
                _ = self.stopped.wait_for(|stopped| *stopped) => return Ok(()),
            }
            while due >= 1_000 && !*self.stopped.borrow() {
                due -= 1_000;
                let partition = random.below(lanes.len() as u64) as PartitionId;
                let lane = lanes[partition as usize].reserve().await?;
                let record = self.shared.history.send(self.number, partition);
                let value = record.value(self.load.value_bytes);
                let produced = Record::to(&self.load.topic).partition(partition).value(value);
                match self.producer.send(produced).await {
                    Ok(delivery) => lane.send((record, delivery)),
                    // It was not even queued.
                    Err(error) => {
                        self.shared.history.settle(record, Outcome::Refused);
                        self.shared.fail(&error);
                    }
                }
            }
        }
    }
}

impl Shared {
    fn fail(&self, error: &bus_client::Error) {
        tracing::warn!(%error, "a record of the load failed");
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
    }
}

/// Notes what becomes of one producer's records to one partition, in order.
async fn settle(mut under_way: mpsc::Receiver<UnderWay>, partition: PartitionId, shared: Arc<Shared>) {
    while let Some((record, delivery)) = under_way.recv().await {
        let delivered = delivery.await;
        shared.history.settle(record, Outcome::of(&delivered));
        match delivered {
            Ok(_) => {
                shared.acknowledged.send_modify(|count| *count += 1);
                let now = Instant::now();
                let mut gap = shared.gaps[partition as usize].lock().unwrap_or_else(PoisonError::into_inner);
                gap.longest = gap.longest.max(now - gap.last);
                gap.last = now;
            }
            Err(error) => shared.fail(&error),
        }
    }
}
