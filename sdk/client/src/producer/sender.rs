//! One partition's task: its produce stream, what is under way on it, and what is done when it breaks.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus_protocol::produce::{Acks, ProduceAck, ProduceAnswer, ProduceOpen, ProduceOpened};
use bus_protocol::{ErrorCode, StreamKind, WireError};
use bus_transport::{RecvStream, SendStream};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Shared;
use super::queue::{Open, Queue, Sealed, Take};
use crate::backoff::Backoff;
use crate::metadata::is_stale;
use crate::{Error, client::Client};

/// How often the deadlines of what is under way are looked at.
const WATCH: Duration = Duration::from_millis(500);
/// How long a broker may take to answer the opening of a stream, or to take its end.
const OPEN: Duration = Duration::from_secs(10);

pub(crate) struct Sender {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    flight: Mutex<Flight>,
}

/// What was taken from the queue and is not settled, in order.
#[derive(Default)]
struct Flight {
    batches: VecDeque<Sealed>,
    /// How many of them, from the front, were written to the stream there is now.
    written: usize,
}

/// Why a stream is no more.
enum End {
    /// All is settled, and the producer is closed.
    Closed,
    /// The stream or its partition's leader failed: what is under way is sent again on another.
    Broken(Error),
    /// The oldest batch's time is over.
    Late,
}

impl Sender {
    pub(crate) fn new(shared: Arc<Shared>, queue: Arc<Queue>) -> Self {
        Self { shared, queue, flight: Mutex::default() }
    }

    fn flight(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> &Client {
        &self.shared.client
    }

    /// Runs until the producer is closed and all is settled.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::default();
        let mut cause = None;
        loop {
            if self.flight().batches.is_empty() && !self.gather().await {
                return;
            }
            let before = self.shared.acknowledged.load(Ordering::Relaxed);
            match self.session().await {
                End::Closed => return,
                End::Late => {}
                End::Broken(error) => {
                    let (topic, partition) = (&self.queue.topic, self.queue.partition);
                    tracing::debug!(%topic, partition, %error, "a produce stream ended");
                    if is_stale(&error) {
                        self.client().forget_topic(topic);
                    }
                    if self.shared.settings.acks == Acks::None && is_of_a_batch(&error) {
                        self.drop_culprit(&error);
                    } else if !error.is_retriable() {
                        self.fail_all(&error);
                    }
                    cause = Some(error);
                }
            }
            if self.shared.acknowledged.load(Ordering::Relaxed) != before {
                backoff.reset();
            }
            self.fail_late(cause.as_ref());
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Waits for the first batch; `false` where none comes any more.
    async fn gather(&self) -> bool {
        loop {
            let due = match self.queue.take(true, &self.shared.settings) {
                Take::Batch(open) => match self.seal(open) {
                    Some(sealed) => {
                        self.flight().batches.push_back(sealed);
                        return true;
                    }
                    None => continue,
                },
                Take::Closed => return false,
                Take::Wait(due) => due,
            };
            self.wait(due).await;
        }
    }

    async fn wait(&self, due: Option<Instant>) {
        match due {
            Some(due) => tokio::select! { () = self.queue.work.notified() => {} () = sleep_until(due) => {} },
            None => self.queue.work.notified().await,
        }
    }

    /// Builds a batch: compression and CRC, here rather than where records are sent.
    fn seal(&self, open: Open) -> Option<Sealed> {
        let records = open.builder.len() as u64;
        self.shared.taken.fetch_add(records, Ordering::AcqRel);
        let mut sealed = Sealed {
            bytes: bytes::Bytes::new(),
            outcome: open.outcome,
            charged: open.charged,
            records,
            deadline: open.since + self.shared.settings.delivery_timeout,
            sent: false,
        };
        match open.builder.build() {
            Ok(bytes) => {
                sealed.bytes = bytes;
                Some(sealed)
            }
            Err(error) => {
                self.settle(&sealed, Err(Error::Invalid(error.to_string())));
                None
            }
        }
    }

    /// Settles a batch that is not, or no more, in the flight.
    fn settle(&self, batch: &Sealed, outcome: Result<ProduceAck, Error>) {
        let counter = if outcome.is_ok() { &self.shared.acknowledged } else { &self.shared.failed };
        counter.fetch_add(batch.records, Ordering::AcqRel);
        self.queue.settled(&batch.outcome);
        batch.outcome.settle(outcome);
        self.shared.memory.add_permits(batch.charged);
    }

    /// One stream, from its opening until it ends.
    async fn session(&self) -> End {
        let now = Instant::now();
        let front = {
            let mut flight = self.flight();
            flight.written = 0;
            flight.batches.front().map_or(now, |batch| batch.deadline)
        };
        let (mut send, mut recv) = match timeout_at(front.min(now + OPEN), self.open()).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(error)) => return End::Broken(error),
            Err(_) if front <= Instant::now() => return End::Late,
            Err(_) => {
                return End::Broken(Error::NoAnswer {
                    request: "the opening of a produce stream",
                    after: OPEN,
                });
            }
        };
        let end = tokio::select! {
            end = self.write(&mut send) => end,
            end = self.read(&mut recv) => end,
            () = self.watch() => End::Late,
        };
        match end {
            End::Closed => {
                // With acks none, the last batches may still be on their way.
                if send.finish().is_ok() {
                    let _ = tokio::time::timeout(OPEN, send.received()).await;
                }
            }
            _ => send.reset(ErrorCode::TimedOut as u32),
        }
        end
    }

    async fn open(&self) -> Result<(SendStream, RecvStream), Error> {
        let (topic, partition) = (self.queue.topic.clone(), self.queue.partition);
        let leader = self.client().leader(&topic, partition).await?;
        let connection = self.client().pool().get(&leader).await?;
        let (mut send, mut recv) = connection.open(StreamKind::Produce).await?;
        let acks = self.shared.settings.acks;
        send.write_frame(&ProduceOpen { topic, partition, acks }, &[]).await?;
        let answer = recv.read_frame::<Result<ProduceOpened, WireError>>().await?;
        let (opened, _) = answer.ok_or(bus_transport::Error::Truncated)?;
        opened?;
        Ok((send, recv))
    }

    /// Sends what is due, as long as no more is under way than may be.
    async fn write(&self, send: &mut SendStream) -> End {
        loop {
            let bytes = match self.next() {
                Ok(bytes) => bytes,
                Err(Take::Closed) => return End::Closed,
                Err(Take::Wait(due)) => {
                    self.wait(due).await;
                    continue;
                }
                Err(Take::Batch(_)) => continue,
            };
            if let Err(error) = send.write_frame(&(), &[bytes]).await {
                return End::Broken(error.into());
            }
            if self.shared.settings.acks == Acks::None {
                let batch = self.take_front();
                if let Some(batch) = batch {
                    self.settle(&batch, Ok(ProduceAck { base_offset: -1, append_time: None }));
                }
            }
        }
    }

    /// The next batch to write, or what to wait for.
    fn next(&self) -> Result<bytes::Bytes, Take> {
        let settings = &self.shared.settings;
        let mut flight = self.flight();
        if flight.written == flight.batches.len() {
            if flight.batches.len() >= settings.in_flight {
                return Err(Take::Wait(None));
            }
            match self.queue.take(flight.batches.is_empty(), settings) {
                Take::Batch(open) => match self.seal(open) {
                    Some(sealed) => flight.batches.push_back(sealed),
                    // Settled as failed: on to the next.
                    None => return Err(Take::Wait(Some(Instant::now()))),
                },
                Take::Closed if !flight.batches.is_empty() => return Err(Take::Wait(None)),
                other => return Err(other),
            }
        }
        let index = flight.written;
        flight.written += 1;
        match flight.batches.get_mut(index) {
            Some(batch) => {
                batch.sent = true;
                Ok(batch.bytes.clone())
            }
            None => unreachable!("fewer batches are written than there are"),
        }
    }

    fn take_front(&self) -> Option<Sealed> {
        let mut flight = self.flight();
        let batch = flight.batches.pop_front();
        flight.written = flight.written.saturating_sub(1);
        batch
    }

    /// Matches answers with batches, in order.
    async fn read(&self, recv: &mut RecvStream) -> End {
        loop {
            let answer = match recv.read_frame::<ProduceAnswer>().await {
                Ok(Some((answer, _))) => answer,
                Ok(None) => return End::Broken(bus_transport::Error::Truncated.into()),
                Err(error) => return End::Broken(error.into()),
            };
            match answer {
                // What follows it is refused too, or would be stored before it: all of it is sent again.
                Err(refusal) if refusal.code.is_retriable() => return End::Broken(refusal.into()),
                Err(refusal) if self.shared.settings.acks == Acks::None => {
                    return End::Broken(refusal.into());
                }
                answer => {
                    if self.flight().written == 0 {
                        let error = Error::Protocol("it acknowledges what was not sent".to_owned());
                        return End::Broken(error);
                    }
                    if let Some(batch) = self.take_front() {
                        self.settle(&batch, answer.map_err(Error::from));
                    }
                    // A place is free.
                    self.queue.work.notify_one();
                }
            }
        }
    }

    /// Waits until the oldest batch under way is late.
    async fn watch(&self) {
        loop {
            let now = Instant::now();
            let deadline = self.flight().batches.front().map(|batch| batch.deadline);
            if deadline.is_some_and(|deadline| deadline <= now) {
                return;
            }
            sleep_until(deadline.map_or(now + WATCH, |deadline| deadline.min(now + WATCH))).await;
        }
    }

    /// Fails what is late, with the last cause.
    fn fail_late(&self, cause: Option<&Error>) {
        let after = self.shared.settings.delivery_timeout;
        let late = |since: Instant| since <= Instant::now();
        let cause = cause.map_or_else(|| "the broker does not answer".to_owned(), ToString::to_string);
        loop {
            let front = self.flight().batches.front().map(|batch| late(batch.deadline));
            match front {
                Some(true) => {
                    let Some(batch) = self.take_front() else { return };
                    let cause = cause.clone();
                    let error = if batch.sent {
                        Error::NotAcknowledged { after, cause }
                    } else {
                        Error::NotSent { after, cause }
                    };
                    self.settle(&batch, Err(error));
                }
                Some(false) => return,
                None if self.queue.oldest().is_some_and(|since| late(since + after)) => {
                    if let Take::Batch(open) = self.queue.take(true, &self.shared.settings)
                        && let Some(sealed) = self.seal(open)
                    {
                        self.flight().batches.push_back(sealed);
                    }
                }
                None => return,
            }
        }
    }

    /// Without acknowledgements a refusal ends the stream, and what it refuses was settled when it was written. Only
    /// where it is too large may it be refused while it is being written still.
    fn drop_culprit(&self, error: &Error) {
        let being_written = self.flight().written > 0;
        if being_written
            && error.code() == Some(ErrorCode::MessageTooLarge)
            && let Some(batch) = self.take_front()
        {
            self.settle(&batch, Err(error.clone()));
        }
    }

    /// Fails everything there is: nothing of it can succeed.
    fn fail_all(&self, error: &Error) {
        loop {
            while let Some(batch) = self.take_front() {
                self.settle(&batch, Err(error.clone()));
            }
            self.queue.hurry();
            let Take::Batch(open) = self.queue.take(true, &self.shared.settings) else { return };
            if let Some(sealed) = self.seal(open) {
                self.flight().batches.push_back(sealed);
            }
        }
    }
}

/// Whether it is one batch that was refused, and not the stream: the next batch may well be taken.
fn is_of_a_batch(error: &Error) -> bool {
    let codes = [ErrorCode::RecordRefused, ErrorCode::MessageTooLarge, ErrorCode::CorruptBatch];
    error.code().is_some_and(|code| codes.contains(&code))
}
