//! One partition's task: its produce stream, and what is done when it breaks, or its leader does.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus_protocol::batch::BatchError;
use bus_protocol::produce::{Acks, ProduceAck, ProduceAnswer, ProduceOpen, ProduceOpened};
use bus_protocol::{ErrorCode, LeaderHint, StreamKind, TopicId, WireError};
use bus_transport::{Connection, RecvStream, SendStream};
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::Shared;
use super::flight::{Flight, Numbers};
use super::give_up::is_of_a_batch;
use super::queue::{Open, Queue, Sealed, Take};
use crate::leader::{Leader, Retry, SILENCE};
use crate::{Error, client::Client};

/// How long a broker may take to answer the opening of a stream, or to take its end.
const OPEN: Duration = Duration::from_secs(10);

pub(crate) struct Sender {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: Arc<Queue>,
    flight: Mutex<Flight>,
    /// The leader owes an answer again.
    owing: Notify,
}

/// Why a stream is no more.
enum End {
    /// All is settled, and the producer is closed.
    Closed,
    /// The stream or its partition's leader failed: what is under way is sent again on another.
    Broken(Error),
    /// The leader is silent, and another leads by now.
    Replaced,
    /// What is under way has other numbers now: it is sent again.
    Renumbered,
    /// The oldest batch's time is over.
    Late,
}

/// A produce stream that its leader takes batches from.
struct Stream {
    connection: Connection,
    send: SendStream,
    recv: RecvStream,
}

impl Sender {
    pub(crate) fn new(shared: Arc<Shared>, queue: Arc<Queue>) -> Self {
        Self { shared, queue, flight: Mutex::default(), owing: Notify::new() }
    }

    pub(super) fn flight(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn client(&self) -> &Client {
        &self.shared.client
    }

    /// Runs until the producer is closed and all is settled.
    pub(crate) async fn run(self) {
        let (mut retry, mut cause, mut hint) = (Retry::default(), None, None);
        loop {
            if self.flight().is_empty() && !self.gather().await {
                return;
            }
            let mut leader = None;
            match self.session(hint.take(), &mut leader, &mut retry).await {
                End::Closed => return,
                End::Renumbered => {}
                End::Late => self.fail_late(cause.as_ref()),
                End::Replaced => {
                    cause = Some(Error::from(bus_transport::Error::Silent));
                    self.fail_late(cause.as_ref());
                }
                End::Broken(error) => {
                    let (topic, partition) = (&self.queue.topic, self.queue.partition);
                    tracing::debug!(%topic, partition, %error, "a produce stream ended");
                    if self.shared.settings.acks == Acks::None && is_of_a_batch(&error) {
                        self.drop_culprit(&error);
                    } else if retry.is_final(&error) {
                        self.fail_all(&error);
                        self.client().forget_topic(topic);
                        retry.reset();
                        continue;
                    }
                    self.fail_late(Some(&error));
                    let wait = retry.wait(self.client(), topic, partition, leader.as_ref(), &error);
                    hint = self.until_late(wait).await.flatten();
                    if let Some(info) = self.client().known_topic(topic) {
                        self.shared.follow(&info);
                    }
                    self.fail_late(Some(&error));
                    cause = Some(error);
                }
            }
        }
    }

    /// `None` where the oldest record's time is over first.
    async fn until_late<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let (deadline, waiting) = {
            let flight = self.flight();
            (flight.deadline(), flight.waiting.as_ref().map(|open| open.since))
        };
        let queued = || {
            let since = waiting.or_else(|| self.queue.oldest())?;
            Some(since + self.shared.settings.delivery_timeout)
        };
        match deadline.or_else(queued) {
            Some(deadline) => timeout_at(deadline, future).await.ok(),
            None => Some(future.await),
        }
    }

    /// Waits for the first batch; `false` where none comes any more.
    async fn gather(&self) -> bool {
        loop {
            match self.queue.take(true, &self.shared.settings) {
                Take::Batch(open) => {
                    self.flight().waiting = Some(open);
                    return true;
                }
                Take::Closed => return false,
                Take::Wait(due) => self.wait(due).await,
            }
        }
    }

    async fn wait(&self, due: Option<Instant>) {
        match due {
            Some(due) => tokio::select! { () = self.queue.work.notified() => {} () = sleep_until(due) => {} },
            None => self.queue.work.notified().await,
        }
    }

    /// Settles records that are not, or no more, in the flight.
    pub(super) fn settle(&self, batch: &Sealed, outcome: Result<ProduceAck, Error>) {
        self.shared.count(batch.records, outcome.is_ok());
        self.queue.settled(&batch.outcome);
        batch.outcome.settle(outcome);
        self.shared.give_back(batch.charged);
    }

    /// One stream, from its opening until it ends.
    async fn session(&self, hint: Option<LeaderHint>, target: &mut Option<Leader>, retry: &mut Retry) -> End {
        self.flight().begin();
        let opened = self.until_late(async {
            let (topic, partition) = (&self.queue.topic, self.queue.partition);
            self.identify().await?;
            let found = self.client().leader(topic, partition, hint).await?;
            let leader = target.insert(found);
            let address = leader.address.clone();
            tokio::select! {
                stream = self.open(&address, leader.topic) => stream.map(Some),
                () = async {
                    sleep(self.client().patience(leader)).await;
                    self.client().until_replaced(topic, partition, leader).await;
                } => Ok(None),
                () = sleep(OPEN) => {
                    Err(Error::NoAnswer { request: "the opening of a produce stream", after: OPEN })
                }
            }
        });
        let Stream { connection, mut send, mut recv } = match opened.await {
            Some(Ok(Some(stream))) => stream,
            Some(Ok(None)) => return End::Replaced,
            Some(Err(error)) => return End::Broken(error),
            None => return End::Late,
        };
        let Some(leader) = target.as_ref() else { unreachable!("a stream is opened to a leader") };
        let end = tokio::select! {
            end = self.write(&mut send) => end,
            end = self.read(&mut recv, retry) => end,
            end = self.watch(leader, &connection) => end,
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

    /// Makes sure that batches can be numbered.
    async fn identify(&self) -> Result<(), Error> {
        if !self.shared.settings.numbers_batches() || self.flight().numbers().is_some() {
            return Ok(());
        }
        let spent = self.flight().spent();
        let id = self.shared.producer_id(spent).await?;
        self.flight().restart(Numbers::new(id));
        Ok(())
    }

    /// Whether nothing can be numbered: the id's epochs are used up, or it is somebody else's. The next stream starts
    /// under another.
    fn lacks_id(&self, flight: &Flight) -> bool {
        self.shared.settings.numbers_batches() && flight.numbers().is_none()
    }

    async fn open(&self, address: &str, id: TopicId) -> Result<Stream, Error> {
        let (topic, partition) = (self.queue.topic.clone(), self.queue.partition);
        let connection = self.client().pool().get(address).await?;
        let (mut send, mut recv) = connection.open(StreamKind::Produce).await?;
        let acks = self.shared.settings.acks;
        let open = ProduceOpen { topic, partition, acks, id: Some(id) };
        send.write_frame(&open, &[]).await?;
        let answer = recv.read_frame::<Result<ProduceOpened, WireError>>().await?;
        let (opened, _) = answer.ok_or(bus_transport::Error::Truncated)?;
        self.queue.set_limit(opened?.max_message_bytes as usize);
        Ok(Stream { connection, send, recv })
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
                let batch = self.flight().answered();
                if let Some(batch) = batch {
                    self.settle(&batch, Ok(ProduceAck { base_offset: -1, append_time: None }));
                }
            }
        }
    }

    /// The next batch to write, or what to wait for.
    fn next(&self) -> Result<Bytes, Take> {
        let settings = &self.shared.settings;
        let mut flight = self.flight();
        let idle = flight.owed_since().is_none();
        if self.lacks_id(&flight) {
            return Err(Take::Wait(None));
        }
        if flight.takes_new() {
            if flight.len() >= settings.in_flight {
                return Err(Take::Wait(None));
            }
            let taken = match flight.waiting.take() {
                Some(open) => Take::Batch(open),
                None => self.queue.take(flight.is_empty(), settings),
            };
            match taken {
                Take::Batch(open) => {
                    if let Err((sealed, error)) = self.seal(&mut flight, open) {
                        drop(flight);
                        self.settle(&sealed, Err(Error::Invalid(error.to_string())));
                        // On to the next.
                        return Err(Take::Wait(Some(Instant::now())));
                    }
                }
                Take::Closed if !flight.is_empty() => return Err(Take::Wait(None)),
                other => return Err(other),
            }
        }
        let Some(bytes) = flight.write() else { return Err(Take::Wait(None)) };
        if idle {
            self.owing.notify_one();
        }
        Ok(bytes)
    }

    /// Numbers a batch and builds it: compression and CRC, here rather than where records are sent.
    fn seal(&self, flight: &mut Flight, mut open: Open) -> Result<(), (Box<Sealed>, BatchError)> {
        let records = open.builder.len() as u64;
        self.shared.count_taken(records);
        let numbered = flight.number(records);
        if let Some((numbers, first)) = numbered {
            open.builder.set_producer(numbers.id, numbers.epoch, first);
        }
        let mut sealed = Sealed {
            bytes: Bytes::new(),
            outcome: open.outcome,
            charged: open.charged,
            records,
            deadline: open.since + self.shared.settings.delivery_timeout,
            sent: false,
        };
        match open.builder.build() {
            Ok(bytes) => {
                sealed.bytes = bytes;
                flight.push(sealed);
                Ok(())
            }
            Err(error) => {
                if let Some((_, first)) = numbered {
                    flight.unnumber(first);
                }
                Err((Box::new(sealed), error))
            }
        }
    }

    /// Matches answers with batches, in order.
    async fn read(&self, recv: &mut RecvStream, retry: &mut Retry) -> End {
        loop {
            let answer = match recv.read_frame::<ProduceAnswer>().await {
                Ok(Some((answer, _))) => answer,
                Ok(None) => return End::Broken(bus_transport::Error::Truncated.into()),
                Err(error) => return End::Broken(error.into()),
            };
            match answer {
                Err(refusal) => {
                    if let Some(end) = self.refused(refusal) {
                        return end;
                    }
                }
                Ok(ack) => {
                    let (batch, lacks_id) = {
                        let mut flight = self.flight();
                        let batch = flight.answered();
                        flight.close_gap();
                        (batch, self.lacks_id(&flight))
                    };
                    let Some(batch) = batch else { return unasked() };
                    self.settle(&batch, Ok(ack));
                    retry.reset();
                    if lacks_id {
                        return End::Renumbered;
                    }
                }
            }
            // A place is free.
            self.queue.work.notify_one();
        }
    }

    /// A batch is refused: for now, which ends the stream; or for good, and then those behind it have no number any
    /// more that follows on another.
    fn refused(&self, refusal: WireError) -> Option<End> {
        let settings = &self.shared.settings;
        let mut flight = self.flight();
        match refusal.code {
            ErrorCode::OutOfOrderSequence if flight.has_gap() => {
                flight.raise_epoch();
                return Some(End::Renumbered);
            }
            ErrorCode::OutOfOrderSequence if settings.numbers_batches() => {
                let Some(batch) = flight.answered() else { return Some(unasked()) };
                flight.raise_epoch();
                drop(flight);
                let (topic, partition) = (self.queue.topic.clone(), self.queue.partition);
                tracing::warn!(%topic, partition, error = %refusal, "the partition has lost records of this producer");
                let error = Error::SequenceLost { topic, partition, message: refusal.message };
                self.settle(&batch, Err(error));
                return Some(End::Renumbered);
            }
            ErrorCode::FencedProducer if settings.numbers_batches() => {
                let fenced = flight.fail_sent();
                flight.lose_id();
                drop(flight);
                tracing::warn!(topic = %self.queue.topic, error = %refusal, "somebody else has this producer's id");
                let error = Error::from(refusal);
                fenced.iter().for_each(|batch| self.settle(batch, Err(error.clone())));
                return Some(End::Renumbered);
            }
            // What follows it is refused too, or would be stored before it: all of it is sent again.
            code if code.is_retriable() => return Some(End::Broken(refusal.into())),
            _ if settings.acks == Acks::None => return Some(End::Broken(refusal.into())),
            _ => {}
        }
        let asked = flight.owed_since().is_some();
        let Some(batch) = asked.then(|| flight.fail_front()).flatten() else { return Some(unasked()) };
        flight.close_gap();
        let end = self.lacks_id(&flight).then_some(End::Renumbered);
        drop(flight);
        self.settle(&batch, Err(refusal.into()));
        end
    }

    /// Waits until the oldest batch under way is late, or its leader has been silent and is replaced.
    async fn watch(&self, leader: &Leader, connection: &Connection) -> End {
        let (topic, partition) = (&self.queue.topic, self.queue.partition);
        loop {
            let (owed, deadline) = {
                let flight = self.flight();
                (flight.owed_since(), flight.deadline())
            };
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return End::Late;
            }
            let deadline = deadline.unwrap_or(now + OPEN);
            let Some(owed) = owed else {
                tokio::select! { () = self.owing.notified() => {} () = sleep_until(deadline) => {} }
                continue;
            };
            if owed + SILENCE > now {
                sleep_until((owed + SILENCE).min(deadline)).await;
                continue;
            }
            let heard = connection.stats().received_bytes;
            tokio::select! {
                () = self.client().until_replaced(topic, partition, leader) => {
                    if connection.stats().received_bytes == heard {
                        self.client().pool().abandon(&leader.address, connection);
                    }
                    return End::Replaced;
                }
                () = self.until_answered(owed) => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Resolves some time after the leader has answered.
    async fn until_answered(&self, owed: Instant) {
        while self.flight().owed_since() == Some(owed) {
            sleep(SILENCE).await;
        }
    }
}

fn unasked() -> End {
    End::Broken(Error::Protocol("it acknowledges what was not sent".to_owned()))
}
