//! A processor: one consumer function on one partition.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bus_protocol::batch::RecordBatch;
use bus_protocol::{Attachment, Offset, PartitionId, TopicName, TopicPartition};
use tokio::time::Instant;

use crate::consume::Portion;
use crate::ports::{OffsetStore, PortError, Sink, Source};
use crate::quarantine::{Outcome, Quarantine};
use crate::{Emission, Function};

/// The first and the longest pause before a port is asked again.
const PORT_PAUSE: Duration = Duration::from_millis(10);
const PORT_PAUSE_LAST: Duration = Duration::from_secs(1);
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
        Ok(Self { quarantine, group, place, source, offsets, position: Arc::new(AtomicI64::new(-1)) })
    }

    /// The offset behind the last record that is done with; -1 before the first is known. For the lag.
    pub fn position(&self) -> Arc<AtomicI64> {
        self.position.clone()
    }

    /// Runs until `shutdown` resolves or a port closes. What was begun when `shutdown` resolves is finished
    /// where that takes less than a second, and the offset committed. Answers with the committed offset.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<Offset, ProcessorError> {
        let mut shutdown = pin!(shutdown);
        let mut progress = tokio::select! {
            progress = self.begin() => progress?,
            () = &mut shutdown => return Ok(-1),
        };
        loop {
            let mut step = pin!(self.step(&mut progress));
            let done = tokio::select! {
                done = &mut step => Some(done),
                () = &mut shutdown => None,
            };
            match done {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(error),
                None => {
                    if self.is_busy() {
                        let _ = tokio::time::timeout(GRACE, step).await;
                    }
                    break;
                }
            }
        }
        // A commit that fails now costs records that are done once more, no more than that.
        let _ = tokio::time::timeout(GRACE, self.commit(&mut progress)).await;
        Ok(progress.committed)
    }

    fn is_busy(&self) -> bool {
        self.position.load(Ordering::Relaxed) >= 0
    }

    async fn begin(&self) -> Result<Progress, ProcessorError> {
        let committed = retry(|| self.offsets.load(&self.group, &self.place)).await?;
        let position = match committed {
            Some(offset) => offset,
            None => retry(|| self.source.start()).await?,
        };
        self.position.store(position, Ordering::Relaxed);
        Ok(Progress { position, committed: committed.unwrap_or(-1), last_commit: Instant::now() })
    }

    /// Reads once, and sees through what it read; commits when it is time to.
    async fn step(&self, progress: &mut Progress) -> Result<(), ProcessorError> {
        let options = &self.quarantine.function.shared.options;
        let read = match self.source.read(progress.position, options.read_bytes).await {
            Err(PortError::OutOfRange { start, end }) => {
                let to = if progress.position < start { start } else { end };
                let from = progress.position;
                tracing::warn!(partition = %self.place, group = self.group, from, to, "offset out of range: moved");
                progress.position = to;
                self.position.store(to, Ordering::Relaxed);
                return Ok(());
            }
            Err(PortError::Closed(why)) => return Err(ProcessorError::Closed(why)),
            Err(PortError::Transient(why)) => {
                tracing::debug!(partition = %self.place, why, "read waits");
                tokio::time::sleep(PORT_PAUSE_LAST / 10).await;
                return Ok(());
            }
            Ok(read) => read,
        };
        let Some(last) = read.last() else {
            self.commit(progress).await?;
            return retry(|| self.source.wait(progress.position)).await;
        };
        let next = last.header().next_offset().max(progress.position);
        self.process(&read, progress.position).await?;
        progress.position = next;
        self.position.store(next, Ordering::Relaxed);
        if progress.last_commit.elapsed() >= Duration::from_millis(options.commit_ms) {
            self.commit(progress).await?;
        }
        Ok(())
    }

    /// Calls the function with each batch, and delivers what they emit in one go. Where a batch fails, those
    /// before it are delivered first.
    async fn process(&self, batches: &[RecordBatch], from: Offset) -> Result<(), ProcessorError> {
        let mut emissions: Vec<Emission> = Vec::new();
        let mut held: Vec<Portion> = Vec::new();
        for batch in batches {
            if batch.header().is_control() || batch.header().record_count == 0 {
                continue;
            }
            let portion = match Portion::new(batch, from) {
                Ok(portion) => portion,
                // The log checks what it stores: this is a disk gone bad, which the partition's owner reports.
                Err(failure) => return Err(ProcessorError::Closed(failure.to_string())),
            };
            match self.quarantine.consume(&portion, true).await? {
                Outcome::Done(more) => {
                    merge(&mut emissions, more);
                    held.push(portion);
                }
                Outcome::Failed(_) => {
                    self.deliver(std::mem::take(&mut emissions), std::mem::take(&mut held)).await?;
                    self.quarantine.see_through(portion).await?;
                }
            }
        }
        self.deliver(emissions, held).await
    }

    async fn deliver(&self, emissions: Vec<Emission>, held: Vec<Portion>) -> Result<(), ProcessorError> {
        let Outcome::Failed(failure) = self.quarantine.deliver(&emissions).await? else { return Ok(()) };
        self.quarantine.function.log_line("error", &failure.to_string());
        for portion in held {
            self.quarantine.see_through(portion).await?;
        }
        Ok(())
    }

    async fn commit(&self, progress: &mut Progress) -> Result<(), ProcessorError> {
        if progress.position != progress.committed {
            retry(|| self.offsets.commit(&self.group, &self.place, progress.position)).await?;
            progress.committed = progress.position;
        }
        progress.last_commit = Instant::now();
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
struct Progress {
    /// The next offset to read.
    position: Offset,
    /// What is committed; -1 for nothing.
    committed: Offset,
    last_commit: Instant,
}

/// Adds `more` behind `emissions`, topic by topic.
fn merge(emissions: &mut Vec<Emission>, more: Vec<Emission>) {
    for emission in more {
        match emissions.iter_mut().find(|known| known.topic == emission.topic) {
            Some(known) => known.records.extend(emission.records),
            None => emissions.push(emission),
        }
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
            Err(PortError::Transient(_) | PortError::OutOfRange { .. }) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PORT_PAUSE_LAST);
            }
        }
    }
}
