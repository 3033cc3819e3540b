//! One partition's task: its fetch stream, the credit it gives, and what is done when it breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_protocol::batch::{RecordBatch, split};
use bus_protocol::fetch::{FetchCredit, FetchOpen, FetchPush, Isolation};
use bus_protocol::request::Position;
use bus_protocol::{ErrorCode, Offset, PartitionId, StreamKind, TopicName};
use bus_transport::{RecvStream, SendStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::metadata::is_stale;
use crate::{Client, Error};

/// How long a partition may be out of reach before its reader learns of it.
const GIVE_UP: Duration = Duration::from_secs(120);
/// How long a leader may take to come into reach in one attempt.
const OPEN: Duration = Duration::from_secs(10);

/// What the reader has consumed of a partition's bytes.
#[derive(Debug, Default)]
pub(crate) struct Consumed {
    bytes: AtomicU64,
    told: Notify,
}

impl Consumed {
    /// The reader is through with `bytes`.
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.told.notify_one();
    }
}

/// What one partition's task hands to the reader: the batches of a push.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The partition, by its place in the reader.
    pub(crate) source: usize,
    pub(crate) batches: Vec<RecordBatch>,
    /// What the reader gives back when it is through.
    pub(crate) bytes: u64,
}

pub(crate) struct Fetcher {
    pub(crate) client: Client,
    pub(crate) source: usize,
    pub(crate) topic: TopicName,
    pub(crate) partition: PartitionId,
    pub(crate) isolation: Isolation,
    /// The next offset wanted.
    pub(crate) next: Offset,
    /// Where to stop.
    pub(crate) until: Option<Offset>,
    /// Bytes that may be on their way to the program.
    pub(crate) window: u64,
    pub(crate) consumed: Arc<Consumed>,
    pub(crate) fetched: mpsc::Sender<Result<Fetched, Error>>,
}

/// Bytes, since the fetcher started.
#[derive(Default)]
struct Bytes {
    /// That were pushed.
    pushed: u64,
    /// For which credit was given, those of the first credit not counted.
    credited: u64,
}

/// Why a stream is no more.
enum End {
    /// All that was wanted is read, or nobody reads any more.
    Done,
    Broken(Error),
}

impl Fetcher {
    /// Runs until all that was wanted is read, nobody reads any more, or it cannot go on.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::default();
        let mut bytes = Bytes::default();
        let mut reached = Instant::now();
        let reader = self.fetched.clone();
        loop {
            if self.until.is_some_and(|until| self.next >= until) {
                return;
            }
            let before = bytes.pushed;
            let error = tokio::select! {
                end = self.session(&mut bytes) => match end {
                    End::Done => return,
                    End::Broken(error) => error,
                },
                () = reader.closed() => return,
            };
            tracing::debug!(topic = %self.topic, partition = self.partition, %error, "a fetch stream ended");
            if is_stale(&error) {
                self.client.forget_topic(&self.topic);
            }
            if bytes.pushed != before {
                backoff.reset();
                reached = Instant::now();
            }
            if !error.is_retriable() || reached.elapsed() > GIVE_UP {
                let error = self.explain(error).await;
                // Where nobody reads any more, nobody needs to know.
                let _ = self.fetched.send(Err(error)).await;
                return;
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// One stream, from its opening until it ends.
    async fn session(&mut self, bytes: &mut Bytes) -> End {
        let consumed = self.consumed.bytes.load(Ordering::Acquire);
        bytes.credited = consumed;
        // What was pushed and not consumed yet still counts.
        let credit = self.window.saturating_sub(bytes.pushed.saturating_sub(consumed)).max(1);
        let (mut send, mut recv) = match tokio::time::timeout(OPEN, self.open(credit)).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(error)) => return End::Broken(error),
            Err(_) => {
                return End::Broken(Error::NoAnswer {
                    request: "the opening of a fetch stream",
                    after: OPEN,
                });
            }
        };
        let end = self.receive(&mut send, &mut recv, bytes).await.unwrap_or_else(End::Broken);
        send.reset(0);
        recv.stop(0);
        end
    }

    async fn open(&self, credit: u64) -> Result<(SendStream, RecvStream), Error> {
        let leader = self.client.leader(&self.topic, self.partition).await?;
        let connection = self.client.pool().get(&leader).await?;
        let (mut send, recv) = connection.open(StreamKind::Fetch).await?;
        let open = FetchOpen {
            topic: self.topic.clone(),
            partition: self.partition,
            from: self.next,
            isolation: self.isolation,
            credit,
        };
        send.write_frame(&open, &[]).await?;
        Ok((send, recv))
    }

    async fn receive(
        &mut self,
        send: &mut SendStream,
        recv: &mut RecvStream,
        bytes: &mut Bytes,
    ) -> Result<End, Error> {
        let consumed = self.consumed.clone();
        loop {
            let frame = tokio::select! {
                frame = recv.read_frame::<FetchPush>() => frame?,
                () = consumed.told.notified() => {
                    self.give_credit(send, bytes).await?;
                    continue;
                }
            };
            let (push, payload) = frame.ok_or(bus_transport::Error::Truncated)?;
            match push {
                FetchPush::Error(refusal) => return Err(refusal.into()),
                FetchPush::Batches { .. } => {}
            }
            let pushed = payload.len() as u64;
            bytes.pushed += pushed;
            let batches = self.check(payload)?;
            let fetched = Fetched { source: self.source, batches, bytes: pushed };
            if self.fetched.send(Ok(fetched)).await.is_err() {
                return Ok(End::Done);
            }
            if self.until.is_some_and(|until| self.next >= until) {
                return Ok(End::Done);
            }
        }
    }

    /// Gives back what was consumed, a quarter of the window at a time.
    async fn give_credit(&self, send: &mut SendStream, bytes: &mut Bytes) -> Result<(), Error> {
        let consumed = self.consumed.bytes.load(Ordering::Acquire);
        let more = consumed.saturating_sub(bytes.credited);
        if more >= self.window / 4 || more > 0 && consumed == bytes.pushed {
            bytes.credited = consumed;
            send.write_frame(&FetchCredit { bytes: more }, &[]).await?;
        }
        Ok(())
    }

    /// The batches of a push, their CRCs checked; moves on behind them.
    fn check(&mut self, payload: bytes::Bytes) -> Result<Vec<RecordBatch>, Error> {
        let mut batches = Vec::new();
        for batch in split(payload) {
            let batch = batch.map_err(|error| {
                let (topic, partition, next) = (&self.topic, self.partition, self.next);
                Error::Protocol(format!("{topic}-{partition} at offset {next}: {error}"))
            })?;
            let end = batch.header().next_offset();
            // The first push may begin before the offset wanted.
            if end > self.next {
                self.next = end;
                batches.push(batch);
            }
        }
        Ok(batches)
    }

    /// Adds the range there is to an offset that is out of it.
    async fn explain(&self, error: Error) -> Error {
        if error.code() != Some(ErrorCode::OffsetOutOfRange) {
            return error;
        }
        match range(&self.client, &self.topic, self.partition).await {
            Ok((start, end)) => Error::OffsetOutOfRange {
                topic: self.topic.clone(),
                partition: self.partition,
                offset: self.next,
                start,
                end,
            },
            Err(_) => error,
        }
    }
}

/// The offsets that can be read: from the first, to behind the last.
pub(crate) async fn range(
    client: &Client,
    topic: &TopicName,
    partition: PartitionId,
) -> Result<(Offset, Offset), Error> {
    let at = async |position| {
        let offsets = client.list_offsets(topic, &[partition], position).await?;
        let none = || Error::Protocol(format!("it names no offset for {topic}-{partition}"));
        offsets.first().map(|(_, offset)| *offset).ok_or_else(none)
    };
    Ok((at(Position::Start).await?, at(Position::End).await?))
}
