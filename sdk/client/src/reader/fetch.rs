//! One partition's task: its fetch stream, the credit it gives, and what is done when it breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_protocol::batch::{RecordBatch, split};
use bus_protocol::fetch::{FetchCredit, FetchOpen, FetchPush, Isolation};
use bus_protocol::request::Position;
use bus_protocol::{ErrorCode, LeaderHint, Offset, PartitionId, StreamKind, TopicId, TopicName};
use bus_transport::{Connection, RecvStream, SendStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use super::Event;
use crate::leader::{Leader, Retry, SILENCE};
use crate::{Client, Error};

/// How long a partition may be out of reach before its reader learns of it.
const GIVE_UP: Duration = Duration::from_secs(120);
/// How long a leader may take to come into reach in one attempt.
const OPEN: Duration = Duration::from_secs(10);
/// A leader that could push, and has pushed nothing for so long, has no records, or is gone, or leads no more.
const QUIET: Duration = Duration::from_secs(1);
/// The same, where its broker did not answer when it was asked.
const SUSPICIOUS: Duration = Duration::from_millis(100);

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
    /// Which topic of that name: the offsets are this one's.
    pub(crate) id: TopicId,
    pub(crate) partition: PartitionId,
    pub(crate) isolation: Isolation,
    /// The next offset wanted.
    pub(crate) next: Offset,
    /// Where to stop.
    pub(crate) until: Option<Offset>,
    /// Bytes that may be on their way to the program.
    pub(crate) window: u64,
    pub(crate) consumed: Arc<Consumed>,
    pub(crate) fetched: mpsc::Sender<Result<Event, Error>>,
}

/// Bytes, since the fetcher started, and of the stream there is.
#[derive(Default)]
struct Bytes {
    /// That were pushed.
    pushed: u64,
    /// For which credit was given, those of the first credit not counted.
    credited: u64,
    /// That may still be pushed on this stream.
    left: u64,
}

/// Why a stream is no more.
enum End {
    /// All that was wanted is read, or nobody reads any more.
    Done,
    /// The leader is silent, and another leads by now.
    Replaced,
    Broken(Error),
}

/// A fetch stream.
struct Stream {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

impl Fetcher {
    /// Runs until all that was wanted is read, nobody reads any more, or it cannot go on.
    pub(crate) async fn run(mut self) {
        let (mut retry, mut hint) = (Retry::default(), None);
        let mut bytes = Bytes::default();
        let mut reached = Instant::now();
        let reader = self.fetched.clone();
        loop {
            if self.until.is_some_and(|until| self.next >= until) {
                return;
            }
            let before = bytes.pushed;
            let mut leader = None;
            let end = tokio::select! {
                end = self.session(hint.take(), &mut leader, &mut bytes) => end,
                () = reader.closed() => return,
            };
            if bytes.pushed != before {
                retry.reset();
                reached = Instant::now();
            }
            let error = match end {
                End::Done => return,
                End::Replaced => continue,
                End::Broken(error) => error,
            };
            tracing::debug!(topic = %self.topic, partition = self.partition, %error, "a fetch stream ended");
            let error = self.explain(error).await;
            let out_of_reach = reached.elapsed() > GIVE_UP;
            if retry.is_final(&error) && !is_behind(&error) || out_of_reach {
                // Where nobody reads any more, nobody needs to know.
                let _ = self.fetched.send(Err(self.client.majority_or(error))).await;
                return;
            }
            let wait = retry.wait(&self.client, &self.topic, self.partition, leader.as_ref(), &error);
            hint = tokio::select! { hint = wait => hint, () = reader.closed() => return };
        }
    }

    /// One stream, from its opening until it ends.
    async fn session(
        &mut self,
        hint: Option<LeaderHint>,
        target: &mut Option<Leader>,
        bytes: &mut Bytes,
    ) -> End {
        let (client, topic, partition) = (self.client.clone(), self.topic.clone(), self.partition);
        let consumed = self.consumed.bytes.load(Ordering::Acquire);
        bytes.credited = consumed;
        // What was pushed and not consumed yet still counts.
        bytes.left = self.window.saturating_sub(bytes.pushed.saturating_sub(consumed)).max(1);
        let opened = async {
            let leader = target.insert(self.leader(hint).await?);
            let address = leader.address.clone();
            tokio::select! {
                stream = self.open(&address, bytes.left) => stream.map(Some),
                () = async {
                    sleep(client.patience(leader)).await;
                    client.until_replaced(&topic, partition, leader).await;
                } => Ok(None),
            }
        };
        let mut stream = match tokio::time::timeout(OPEN, opened).await {
            Ok(Ok(Some(stream))) => stream,
            Ok(Ok(None)) => return End::Replaced,
            Ok(Err(error)) => return End::Broken(error),
            Err(_) => {
                return End::Broken(Error::NoAnswer {
                    request: "the opening of a fetch stream",
                    after: OPEN,
                });
            }
        };
        let Some(leader) = target.as_ref() else { unreachable!("a stream is opened to a leader") };
        let end = self.receive(&mut stream, leader, bytes).await.unwrap_or_else(End::Broken);
        stream.send.reset(0);
        stream.recv.stop(0);
        end
    }

    /// Who leads the partition, as long as the topic is the one whose offsets these are.
    async fn leader(&self, hint: Option<LeaderHint>) -> Result<Leader, Error> {
        let (topic, partition) = (&self.topic, self.partition);
        if self.client.topic(topic).await?.id > self.id {
            return Err(Error::TopicReplaced { topic: topic.clone(), partition, offset: self.next });
        }
        self.client.leader(topic, partition, hint).await
    }

    async fn open(&self, address: &str, credit: u64) -> Result<Stream, Error> {
        let connection = self.client.pool().get(address).await?;
        let (mut send, recv) = connection.open(StreamKind::Fetch).await?;
        let open = FetchOpen {
            topic: self.topic.clone(),
            partition: self.partition,
            from: self.next,
            isolation: self.isolation,
            credit,
            id: Some(self.id),
        };
        send.write_frame(&open, &[]).await?;
        Ok(Stream { connection, send, recv })
    }

    async fn receive(
        &mut self,
        Stream { connection, send, recv }: &mut Stream,
        leader: &Leader,
        bytes: &mut Bytes,
    ) -> Result<End, Error> {
        let consumed = self.consumed.clone();
        let (mut heard, mut received) = (Instant::now(), 0);
        let mut quiet = self.quiet(leader);
        loop {
            let frame = tokio::select! {
                frame = recv.read_frame::<FetchPush>() => frame?,
                () = consumed.told.notified() => {
                    self.give_credit(send, bytes).await?;
                    continue;
                }
                () = sleep_until(heard + quiet) => {
                    if bytes.left > 0 && self.is_replaced(leader, connection, quiet / 2).await {
                        return Ok(End::Replaced);
                    }
                    let now = connection.stats().received_bytes;
                    let silent = std::mem::replace(&mut received, now) == now;
                    heard = Instant::now();
                    quiet = self.quiet(leader).min(if silent { SILENCE } else { QUIET });
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
            bytes.left = bytes.left.saturating_sub(pushed);
            let batches = self.check(payload)?;
            let fetched = Fetched { source: self.source, batches, bytes: pushed };
            if self.fetched.send(Ok(Event::Fetched(fetched))).await.is_err() {
                return Ok(End::Done);
            }
            if self.until.is_some_and(|until| self.next >= until) {
                return Ok(End::Done);
            }
            (heard, quiet) = (Instant::now(), self.quiet(leader));
        }
    }

    /// How long to wait for a push before somebody is asked who leads.
    fn quiet(&self, leader: &Leader) -> Duration {
        if self.client.pool().is_suspect(&leader.address) { SUSPICIOUS } else { QUIET }
    }

    /// Asks who leads, no longer ago than `age`, and has it made sure that the connection carries something still; a
    /// question a second for all partitions of a topic, and one for all streams of a connection.
    async fn is_replaced(&self, leader: &Leader, connection: &Connection, age: Duration) -> bool {
        let before = connection.stats().received_bytes;
        self.client.pool().look_after(&leader.address);
        let replaced = self.client.is_replaced(&self.topic, self.partition, leader, age).await;
        if replaced && connection.stats().received_bytes == before {
            self.client.pool().abandon(&leader.address, connection);
        }
        replaced
    }

    /// Gives back what was consumed, a quarter of the window at a time.
    async fn give_credit(&self, send: &mut SendStream, bytes: &mut Bytes) -> Result<(), Error> {
        let consumed = self.consumed.bytes.load(Ordering::Acquire);
        let more = consumed.saturating_sub(bytes.credited);
        if more >= self.window / 4 || more > 0 && consumed == bytes.pushed {
            bytes.credited = consumed;
            bytes.left += more;
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

/// Whether a partition ended before the offset that its reader has come to: its new leader did not know yet that
/// records before it are committed, and will. By the time that its range is asked for it may know.
fn is_behind(error: &Error) -> bool {
    matches!(error, Error::OffsetOutOfRange { offset, start, .. } if offset >= start)
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
