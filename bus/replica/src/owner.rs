//! The task that owns one partition's log.

use std::sync::{Arc, OnceLock};

use bus_log::{AppendBatch, Log, LogConfig, PartialAppend};
use bus_protocol::produce::{Acks, ProduceAck};
use bus_protocol::{Durability, Offset};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::AppendError;
use crate::leader::{Leader, NotEnoughReplicas};
use crate::partition::{Lane, Role, Runtime};

/// Events taken from the queue at once: one group of writes.
const GROUP: usize = 256;
/// Up to this many bytes not yet synced, the owner syncs itself: two wake-ups less for a lone record. Above it
/// another thread syncs while the owner writes on.
const SYNC_HERE_BYTES: usize = 256 << 10;
/// Bytes written and not yet synced at which the owner takes no more.
const UNSYNCED_BYTES: usize = 32 << 20;

pub(crate) enum Event {
    Append(Append),
    Configure(Role),
    Maintain,
    DeleteBefore(Offset, oneshot::Sender<Result<(), AppendError>>),
    Stop { delete: bool, done: oneshot::Sender<Result<(), AppendError>> },
}

pub(crate) struct Append {
    pub(crate) batch: AppendBatch,
    pub(crate) bytes: usize,
    pub(crate) acks: Acks,
    pub(crate) lane: Lane,
    pub(crate) answer: oneshot::Sender<Result<ProduceAck, AppendError>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// An append that is written and waits for its commit.
struct Written {
    answer: oneshot::Sender<Result<ProduceAck, AppendError>>,
    ack: ProduceAck,
    _permit: OwnedSemaphorePermit,
}

/// Invariant: `leader`'s end is the log's end, and its stored end is what `Durability` calls stored.
pub(crate) struct Owner {
    log: Log,
    leader: Leader<Written>,
    role: Role,
    queue: mpsc::Receiver<Event>,
    high_watermark: watch::Sender<Offset>,
    offline: Arc<OnceLock<String>>,
    runtime: Runtime,
    unsynced: usize,
    /// Whether anything was appended since the last maintenance.
    active: bool,
    /// A sync under way on another thread, and the bytes that it covers.
    syncing: Option<(JoinHandle<Result<Offset, bus_log::Error>>, usize)>,
}

impl Owner {
    pub(crate) fn new(
        log: Log,
        role: Role,
        queue: mpsc::Receiver<Event>,
        offline: Arc<OnceLock<String>>,
        runtime: Runtime,
    ) -> (Self, watch::Receiver<Offset>) {
        let end = log.log_end();
        let min_isr = role.config.min_insync_replicas;
        let leader = Leader::new(role.node, role.epoch, &role.isr, min_isr, end, log.log_start());
        let (high_watermark, watch) = watch::channel(leader.high_watermark());
        (
            Self {
                log,
                leader,
                role,
                queue,
                high_watermark,
                offline,
                runtime,
                unsynced: 0,
                active: true,
                syncing: None,
            },
            watch,
        )
    }

    pub(crate) async fn run(mut self) {
        let mut events = Vec::with_capacity(GROUP);
        let stop = loop {
            // An offline partition refuses everything, and must not leave anybody waiting.
            let room = self.unsynced < UNSYNCED_BYTES || self.offline.get().is_some();
            tokio::select! {
                biased;
                synced = finished(&mut self.syncing) => self.synced(synced),
                count = self.queue.recv_many(&mut events, GROUP), if room => {
                    if count == 0 {
                        break None;
                    }
                    if let Some(stop) = self.take(&mut events).await {
                        break Some(stop);
                    }
                }
            }
            self.start_sync();
        };
        self.stop(stop).await;
    }

    /// Carries out a group of events; consecutive appends become one write.
    async fn take(
        &mut self,
        events: &mut Vec<Event>,
    ) -> Option<(bool, oneshot::Sender<Result<(), AppendError>>)> {
        let mut appends = Vec::with_capacity(events.len());
        for event in events.drain(..) {
            if let Event::Append(append) = event {
                appends.push(append);
                continue;
            }
            self.append(std::mem::take(&mut appends));
            match event {
                Event::Append(_) => unreachable!("taken above"),
                Event::Configure(role) => self.configure(role),
                Event::Maintain => self.maintain(),
                Event::DeleteBefore(offset, done) => {
                    let deleted = self.log.delete_before(offset.min(self.leader.high_watermark()));
                    // Whoever asked may be gone.
                    drop(done.send(deleted.map(drop).map_err(|error| refusal(&error))));
                }
                Event::Stop { delete, done } => return Some((delete, done)),
            }
        }
        self.append(appends);
        None
    }

    fn append(&mut self, appends: Vec<Append>) {
        if appends.is_empty() {
            return;
        }
        let mut batches = Vec::with_capacity(appends.len());
        let mut waiting = Vec::with_capacity(appends.len());
        for Append { batch, bytes, acks, lane, answer, permit } in appends {
            match self.admit(acks, &lane) {
                Ok(()) => {
                    batches.push(batch);
                    waiting.push((acks, lane, answer, permit, bytes));
                }
                Err(error) => refuse(&lane, answer, error),
            }
        }
        if batches.is_empty() {
            return;
        }
        let (appended, failed) = match self.log.append_all(batches, self.leader.epoch()) {
            Ok(appended) => (appended, None),
            Err(PartialAppend { appended, error }) => (appended, Some(error)),
        };
        self.active |= !appended.is_empty();
        let mut waiting = waiting.into_iter();
        for (appended, (acks, _, answer, permit, bytes)) in appended.iter().zip(waiting.by_ref()) {
            self.unsynced += bytes;
            let ack = ProduceAck { base_offset: appended.base_offset, append_time: appended.append_time };
            self.leader.appended(appended.last_offset + 1, acks, Written { answer, ack, _permit: permit });
        }
        if self.role.config.durability == Durability::Replicated {
            self.stored(self.log.log_end());
        }
        let Some(error) = failed else { return };
        let refusal = match error {
            bus_log::Error::Full { .. } => AppendError::Full,
            error => self.go_offline(&error),
        };
        for (_, lane, answer, ..) in waiting {
            refuse(&lane, answer, refusal.clone());
        }
    }

    /// Whether an append may be ordered now.
    fn admit(&self, acks: Acks, lane: &Lane) -> Result<(), AppendError> {
        if let Some(why) = self.offline.get() {
            return Err(AppendError::Offline(why.clone()));
        }
        if lane.is_broken() {
            return Err(AppendError::Behind);
        }
        self.leader.admit(acks).map_err(|NotEnoughReplicas { in_sync, wanted }| {
            AppendError::NotEnoughReplicas { in_sync, wanted }
        })
    }

    fn configure(&mut self, role: Role) {
        self.log.set_config(LogConfig::from(&role.config));
        let answered = self.leader.reconfigure(&role.isr, role.config.min_insync_replicas);
        self.role = role;
        publish(&self.leader, &self.high_watermark, answered);
    }

    fn maintain(&mut self) {
        let now = self.runtime.clock.timestamp();
        match self.log.apply_retention(now, self.leader.high_watermark()) {
            Ok(0) => {}
            Ok(segments) => {
                tracing::info!(log = %self.log.dir().display(), segments, "retention deleted segments")
            }
            Err(error) => tracing::warn!(log = %self.log.dir().display(), %error, "retention failed"),
        }
        // Nobody has written since the last time: whoever still reads here reads the disk.
        if !std::mem::take(&mut self.active) {
            self.log.trim_tail();
        }
    }

    /// Starts the next group sync unless one is under way.
    fn start_sync(&mut self) {
        if self.syncing.is_some() || self.unsynced == 0 || self.offline.get().is_some() {
            return;
        }
        let job = self.log.begin_sync();
        if self.unsynced <= SYNC_HERE_BYTES {
            let covered = self.unsynced;
            self.synced((job.run(), covered));
        } else {
            self.syncing = Some((self.runtime.disk.spawn_blocking(move || job.run()), self.unsynced));
        }
    }

    fn synced(&mut self, (synced, covered): (Result<Offset, bus_log::Error>, usize)) {
        // Once offline, everybody has been told that it is not known what is stored.
        if self.offline.get().is_some() {
            return;
        }
        self.unsynced -= covered;
        match synced {
            Ok(until) => self.stored(until),
            Err(error) => drop(self.go_offline(&error)),
        }
    }

    fn stored(&mut self, until: Offset) {
        let answered = self.leader.stored(until);
        publish(&self.leader, &self.high_watermark, answered);
    }

    /// Takes nothing any more, and answers all who wait; their batches' permits go back to the others.
    fn go_offline(&mut self, error: &bus_log::Error) -> AppendError {
        let why = error.to_string();
        if self.offline.set(why.clone()).is_ok() {
            tracing::error!(log = %self.log.dir().display(), %error, "partition goes offline");
        }
        self.unsynced = 0;
        for written in self.leader.abandon() {
            drop(written.answer.send(Err(AppendError::Offline(why.clone()))));
        }
        AppendError::Offline(why)
    }

    async fn stop(mut self, stop: Option<(bool, oneshot::Sender<Result<(), AppendError>>)>) {
        if self.syncing.is_some() {
            let synced = finished(&mut self.syncing).await;
            self.synced(synced);
        }
        let delete = matches!(stop, Some((true, _)));
        let ended = if delete {
            self.log.delete()
        } else {
            let end = self.log.log_end();
            let closed = self.log.close();
            if closed.is_ok() {
                let answered = self.leader.stored(end);
                publish(&self.leader, &self.high_watermark, answered);
            }
            closed
        };
        for written in self.leader.abandon() {
            drop(written.answer.send(Err(AppendError::Closed)));
        }
        if let Some((_, done)) = stop {
            drop(done.send(ended.map_err(|error| refusal(&error))));
        }
    }
}

/// Shows the high watermark, then answers: whoever is told "committed" can read it at once.
fn publish(leader: &Leader<Written>, shown: &watch::Sender<Offset>, answered: Vec<Written>) {
    let high_watermark = leader.high_watermark();
    shown.send_if_modified(|shown| std::mem::replace(shown, high_watermark) != high_watermark);
    for written in answered {
        // A producer that went away does not want to know.
        drop(written.answer.send(Ok(written.ack)));
    }
}

/// Resolves when the sync under way is done; never, while none is.
async fn finished(
    syncing: &mut Option<(JoinHandle<Result<Offset, bus_log::Error>>, usize)>,
) -> (Result<Offset, bus_log::Error>, usize) {
    let Some((job, covered)) = syncing else { return std::future::pending().await };
    let covered = *covered;
    let synced = job.await;
    *syncing = None;
    match synced {
        Ok(synced) => (synced, covered),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Refuses an append, and with it all that come behind it in its lane.
fn refuse(lane: &Lane, answer: oneshot::Sender<Result<ProduceAck, AppendError>>, error: AppendError) {
    lane.break_off();
    // A producer that went away does not want to know.
    drop(answer.send(Err(error)));
}

fn refusal(error: &bus_log::Error) -> AppendError {
    match error {
        bus_log::Error::Full { .. } => AppendError::Full,
        other => AppendError::Offline(other.to_string()),
    }
}
