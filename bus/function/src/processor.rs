//! A processor: one consumer function on one partition.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use bus_protocol::batch::RecordBatch;
use bus_protocol::{Attachment, Offset, PartitionId, TopicName, TopicPartition};
use tokio::time::Instant;

use crate::consume::Portion;
use crate::ledger::Ledger;
use crate::ports::{OffsetStore, PortError, Progress, Sink, Source};
use crate::quarantine::{Outcome, Quarantine};
use crate::{Emission, Function};

/// The first and the longest pause before a port is asked again.
const PORT_PAUSE: Duration = Duration::from_millis(10);
const PORT_PAUSE_LAST: Duration = Duration::from_secs(1);
/// The longest pause before what cannot be read is tried again: that is seldom mended without anybody's doing.
const DAMAGE_PAUSE_LAST: Duration = Duration::from_secs(30);
/// How long a processor that is told to stop may take to finish what it has begun.
const GRACE: Duration = Duration::from_secs(1);

/// Why a processor ended, other than by being told to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcessorError {
    /// The function's settings do not make it a consumer.
    #[error("function {0} is not a consumer")]
    NotAConsumer(String),
    /// A port is closed.
    #[error("closed: {0}")]
    Closed(String),
    /// The function host is stopping.
    #[error("the function host is stopping")]
    Stopped,
    /// There is no name for the dead-letter topic.
    #[error("no dead-letter topic: {0}")]
    DeadLetter(String),
}

/// Feeds one partition's committed records to a consumer function, in order and at least once: what the function
/// emitted is stored before the offset behind its input is committed.
pub struct Processor {
    quarantine: Quarantine,
    group: String,
    place: TopicPartition,
    source: Arc<dyn Source>,
    offsets: Arc<dyn OffsetStore>,
    position: Arc<AtomicI64>,
    /// Whether records are being seen through.
    busy: AtomicBool,
}

impl Processor {
    /// A processor of `function` on a partition. It starts at the group's committed offset, or at the log's
    /// start where there is none.
    pub fn new(
        function: Arc<Function>,
        topic: TopicName,
        partition: PartitionId,
        source: Arc<dyn Source>,
        sink: Arc<dyn Sink>,
        offsets: Arc<dyn OffsetStore>,
    ) -> Result<Self, ProcessorError> {
        let Attachment::Consumer { group, .. } = &function.spec().attachment else {
            return Err(ProcessorError::NotAConsumer(function.spec().name.clone()));
        };
        let (group, place) = (group.clone(), TopicPartition::new(topic.clone(), partition));
        let quarantine = Quarantine { function, topic, partition, sink };
        let (position, busy) = (Arc::new(AtomicI64::new(-1)), AtomicBool::new(false));
        Ok(Self { quarantine, group, place, source, offsets, position, busy })
    }

    /// The offset behind the last record that is done with; -1 before the first is known. For the lag.
    pub fn position(&self) -> Arc<AtomicI64> {
        self.position.clone()
    }

    /// Runs until `shutdown` resolves or a port closes. What was begun when `shutdown` resolves is finished
    /// where that takes less than a second, and the offset committed. Answers with the committed offset. May be
    /// run again after an error, or a panic, and begins at the committed offset then; never twice at once.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) -> Result<Offset, ProcessorError> {
        let mut shutdown = pin!(shutdown);
        let mut place = tokio::select! {
            place = self.begin() => place?,
            () = &mut shutdown => return Ok(-1),
        };
        loop {
            let mut step = pin!(self.step(&mut place));
            let done = tokio::select! {
                done = &mut step => Some(done),
                () = &mut shutdown => None,
            };
            match done {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(error),
                None => {
                    if self.busy.load(Ordering::Relaxed) {
                        let _ = tokio::time::timeout(GRACE, step).await;
                    }
                    break;
                }
            }
        }
        // A commit that fails now costs records that are done once more, no more than that.
        let _ = tokio::time::timeout(GRACE, self.commit(&mut place)).await;
        Ok(place.committed)
    }

    async fn begin(&self) -> Result<Place, ProcessorError> {
        self.busy.store(false, Ordering::Relaxed);
        let committed = retry(|| self.offsets.load(&self.group, &self.place)).await?;
        let position = match committed {
            Some(offset) => offset,
            None => retry(|| self.source.start()).await?,
        };
        self.position.store(position, Ordering::Relaxed);
        let committed = committed.unwrap_or(-1);
        Ok(Place { position, committed, last_commit: Instant::now(), damage: None })
    }

    /// Reads once, and sees through what it read; commits when it is time to.
    async fn step(&self, place: &mut Place) -> Result<(), ProcessorError> {
        let options = &self.quarantine.function.shared.options;
        let read = match self.source.read(place.position, options.read_bytes).await {
            Err(PortError::OutOfRange { start, end }) => {
                let to = if place.position < start { start } else { end };
                let from = place.position;
                tracing::warn!(partition = %self.place, group = self.group, from, to, "offset out of range: moved");
                self.advance(place, to);
                return Ok(());
            }
            Err(PortError::Closed(why)) => return Err(ProcessorError::Closed(why)),
            Err(PortError::Transient(why)) => {
                tracing::debug!(partition = %self.place, why, "read waits");
                tokio::time::sleep(PORT_PAUSE_LAST / 10).await;
                return Ok(());
            }
            Err(PortError::Damaged(why)) => {
                self.wait_for_repair(place, why).await;
                return Ok(());
            }
            Ok(read) => read,
        };
        if read.is_empty() {
            self.commit(place).await?;
            return retry(|| self.source.wait(place.position)).await;
        }
        self.busy.store(true, Ordering::Relaxed);
        let processed = self.process(&read, place.position).await;
        self.busy.store(false, Ordering::Relaxed);
        let (next, damage) = processed?;
        if next > place.position {
            self.advance(place, next);
        }
        if place.last_commit.elapsed() >= Duration::from_millis(options.commit_ms) {
            self.commit(place).await?;
        }
        match damage {
            Some(why) => self.wait_for_repair(place, why).await,
            None => place.damage = None,
        }
        Ok(())
    }

    fn advance(&self, place: &mut Place, to: Offset) {
        place.position = to;
        self.position.store(to, Ordering::Relaxed);
    }

    /// Says once what cannot be read, and pauses: longer each time.
    async fn wait_for_repair(&self, place: &mut Place, why: String) {
        let pause = match place.damage.take() {
            Some((known, pause)) if known == why => (pause * 2).min(DAMAGE_PAUSE_LAST),
            _ => {
                let (function, at) = (&self.quarantine.function, place.position);
                let what = format!("{} cannot be read at offset {at}, and waits: {why}", self.place);
                tracing::error!(function = function.spec().name, "{what}");
                function.trouble(&what);
                PORT_PAUSE
            }
        };
        place.damage = Some((why, pause));
        tokio::time::sleep(pause).await;
    }

    /// Calls the function with each batch, and delivers what they emit in one go, or in several where it is much.
    /// Where a batch fails, those before it are delivered first. Answers with the offset behind what is seen
    /// through, and with why what follows cannot be read.
    async fn process(
        &self,
        batches: &[RecordBatch],
        from: Offset,
    ) -> Result<(Offset, Option<String>), ProcessorError> {
        let mut gathered = Gathered::default();
        let mut next = from;
        for batch in batches {
            let behind = batch.header().next_offset();
            if batch.header().is_control() || batch.header().record_count == 0 {
                next = behind;
                continue;
            }
            let portion = match Portion::new(batch, from) {
                Ok(portion) => portion,
                Err(failure) => {
                    self.deliver(gathered).await?;
                    return Ok((next, Some(failure.to_string())));
                }
            };
            match self.quarantine.consume(&portion, true).await? {
                Outcome::Done(emissions) => gathered.add(emissions, portion),
                Outcome::Failed(_) | Outcome::Refused(_) => {
                    self.deliver(std::mem::take(&mut gathered)).await?;
                    self.quarantine.see_through(portion).await?;
                }
            }
            if gathered.bytes >= self.quarantine.function.shared.options.output_bytes {
                self.deliver(std::mem::take(&mut gathered)).await?;
            }
            next = behind;
        }
        self.deliver(gathered).await?;
        Ok((next, None))
    }

    async fn deliver(&self, gathered: Gathered) -> Result<(), ProcessorError> {
        let mut progress = Progress::default();
        let failure = match self.quarantine.deliver(&gathered.emissions, &mut progress).await? {
            Outcome::Done(()) => return Ok(()),
            Outcome::Failed(failure) | Outcome::Refused(failure) => failure,
        };
        self.quarantine.function.log_line("error", &failure.to_string());
        let mut ledger = Ledger::default();
        ledger.note(gathered.emissions, &progress);
        for portion in gathered.portions {
            self.quarantine.take_apart(portion, &mut ledger).await?;
        }
        Ok(())
    }

    async fn commit(&self, place: &mut Place) -> Result<(), ProcessorError> {
        if place.position != place.committed {
            retry(|| self.offsets.commit(&self.group, &self.place, place.position)).await?;
            place.committed = place.position;
        }
        place.last_commit = Instant::now();
        Ok(())
    }
}

impl std::fmt::Debug for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Processor")
            .field("group", &self.group)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// Where a processor is.
struct Place {
    /// The next offset to read.
    position: Offset,
    /// What is committed; -1 for nothing.
    committed: Offset,
    last_commit: Instant,
    /// What cannot be read, and how long the last pause was.
    damage: Option<(String, Duration)>,
}

/// What was emitted and is not delivered yet, and what it came of.
#[derive(Default)]
struct Gathered {
    emissions: Vec<Emission>,
    portions: Vec<Portion>,
    bytes: usize,
}

impl Gathered {
    /// Adds what a portion made behind the rest, topic by topic.
    fn add(&mut self, emissions: Vec<Emission>, portion: Portion) {
        for emission in emissions {
            self.bytes += emission.size();
            match self.emissions.iter_mut().find(|known| known.topic == emission.topic) {
                Some(known) => known.records.extend(emission.records),
                None => self.emissions.push(emission),
            }
        }
        self.portions.push(portion);
    }
}

/// Asks a port until it answers; `OutOfRange` here is as good as transient, for the next read says it again.
async fn retry<T, F: Future<Output = Result<T, PortError>>>(
    mut ask: impl FnMut() -> F,
) -> Result<T, ProcessorError> {
    let mut pause = PORT_PAUSE;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(PortError::Closed(why)) => return Err(ProcessorError::Closed(why)),
            Err(PortError::Transient(_) | PortError::Damaged(_) | PortError::OutOfRange { .. }) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PORT_PAUSE_LAST);
            }
        }
    }
}
