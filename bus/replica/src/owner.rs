//! The task that owns one replica: events in from a queue, syncs and answers out.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bus_log::Log;
use bus_protocol::replicate::LeaderFrame;
use bus_protocol::{Epoch, Offset, PartitionId, TopicId};
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::runtime::RuntimeFlavor;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::event::{Done, Event, Queued};
use crate::following::Failure;
use crate::partition::{Committed, Lane, Matter, Report, Runtime, Shown};
use crate::replica::{Answer, Append, Replica, Role};
use crate::room::Room;
use crate::{AppendError, Fault, FollowError};

/// Events taken from the queue at once: one group of writes.
const GROUP: usize = 256;
/// Up to this many bytes not yet synced, the owner syncs itself: two wake-ups less for a lone record. Above it
/// another thread syncs while the owner writes on.
const SYNC_HERE_BYTES: usize = 256 << 10;
/// Bytes written and not yet synced at which the owner takes no more.
const UNSYNCED_BYTES: usize = 32 << 20;

pub(crate) struct Owner {
    id: (TopicId, PartitionId),
    replica: Replica<Queued>,
    queue: mpsc::Receiver<Event>,
    committed: watch::Sender<Committed>,
    appended: watch::Sender<Offset>,
    /// With the leader epoch: what is stored in another role is nothing that this role's leader may count.
    stored: watch::Sender<(Epoch, Offset)>,
    offline: Arc<OnceLock<Fault>>,
    waiting: Arc<AtomicBool>,
    runtime: Runtime,
    /// Answers that leave once what they tell of is shown.
    answers: Vec<Answer<Queued>>,
    unsynced: usize,
    /// Whether anything was appended since the last maintenance.
    active: bool,
    /// Whether it is still to be reported that this replica is offline.
    unreported: bool,
    /// Whether this memory may be as a panic has left it: then nothing of it may come to the disk.
    panicked: bool,
    /// Whether to delete the log, and who is told when this has ended; `None` until that is asked for.
    stop: Option<(bool, Done)>,
    room: Room,
    /// A sync under way on another thread, and the bytes that it covers.
    syncing: Option<(JoinHandle<Result<Offset, bus_log::Error>>, usize)>,
}

impl Owner {
    pub(crate) fn new(
        id: (TopicId, PartitionId),
        log: Log,
        (role, known): (Role, Offset),
        queue: mpsc::Receiver<Event>,
        runtime: Runtime,
    ) -> (Self, Shown) {
        let replica = Replica::new(log, role, known, runtime.clock.monotonic());
        let (committed, committed_shown) = watch::channel(committed(&replica));
        let (appended, appended_shown) = watch::channel(replica.log().log_end());
        let (stored, stored_shown) = watch::channel((replica.role().epoch, replica.stored()));
        let (offline, waiting) = (Arc::default(), Arc::new(AtomicBool::new(replica.is_waiting())));
        let shown = Shown {
            committed: committed_shown,
            appended: appended_shown,
            stored: stored_shown,
            offline: Arc::clone(&offline),
            waiting: Arc::clone(&waiting),
        };
        let owner = Self {
            id,
            replica,
            queue,
            committed,
            appended,
            stored,
            offline,
            waiting,
            runtime,
            answers: Vec::new(),
            unsynced: 0,
            active: true,
            unreported: false,
            panicked: false,
            stop: None,
            room: Room::default(),
            syncing: None,
        };
        (owner, shown)
    }

    pub(crate) async fn run(mut self) {
        while AssertUnwindSafe(self.serve()).catch_unwind().await.is_err() {
            self.panicked().await;
            if self.stop.is_some() {
                break;
            }
        }
        self.end().await;
    }

    /// As one whose disk fails, everybody is told, and others go on without it; but what is stored stays as it is.
    async fn panicked(&mut self) {
        self.panicked = true;
        if let Some((sync, _)) = self.syncing.take() {
            // It writes to the folder, which may be another owner's next.
            sync.await.ok();
        }
        self.go_offline(Fault::Panicked);
        self.report();
        self.publish();
    }

    /// Serves until it is told to stop, or nobody is left to be served.
    async fn serve(&mut self) {
        let mut events = Vec::with_capacity(GROUP);
        loop {
            // An offline partition refuses everything, and must not leave anybody waiting.
            let room = self.unsynced < UNSYNCED_BYTES || self.is_offline();
            tokio::select! {
                biased;
                synced = finished(&mut self.syncing) => self.synced(synced),
                count = self.queue.recv_many(&mut events, GROUP), if room => {
                    if count == 0 {
                        return;
                    }
                    self.take(&mut events);
                    if self.stop.is_some() {
                        return;
                    }
                }
            }
            // Followers are sent what is written while it is synced here.
            self.show_end();
            self.start_sync();
            self.report();
            self.publish();
        }
    }

    /// Carries out a group of events; consecutive appends become one write.
    fn take(&mut self, events: &mut Vec<Event>) {
        // Noted first: whatever becomes of those before it, whoever asked for it counts on an end.
        if let Some(at) = events.iter().position(|event| matches!(event, Event::Stop { .. }))
            && let Some(Event::Stop { delete, done }) = events.drain(at..).next()
        {
            self.stop = Some((delete, done));
        }
        let mut appends = Vec::with_capacity(events.len());
        // The memory of what is written here is the log's from then on: the permits go back.
        let mut permits = Vec::with_capacity(events.len());
        for event in events.drain(..) {
            match event {
                Event::Append { append, permit } => match self.check(&append.ticket.lane) {
                    Ok(()) => {
                        self.unsynced += permit.num_permits();
                        permits.push(permit);
                        appends.push(append);
                    }
                    Err(error) => self.answered(vec![(append.ticket, Err(error))]),
                },
                // A follower has not stored what is not written yet.
                event @ (Event::FollowerStored { .. } | Event::FollowerGone { .. } | Event::Tick) => {
                    self.carry_out(event);
                }
                event => {
                    self.append(std::mem::take(&mut appends));
                    permits.clear();
                    self.carry_out(event);
                }
            }
        }
        self.append(appends);
    }

    /// Whoever asks may be gone and not want to know any more: answers that cannot be left are dropped.
    fn carry_out(&mut self, event: Event) {
        let now = self.runtime.clock.monotonic();
        match event {
            Event::Append { .. } | Event::Stop { .. } => unreachable!("taken before"),
            Event::Configure(role, done) => {
                let answers = self.replica.configure(role, now);
                self.answered(answers);
                // Whoever waits for it looks at what is shown.
                self.publish();
                done.send(()).ok();
            }
            Event::ProposalRefused(proposal) => {
                let answers = self.replica.proposal_refused(&proposal, now);
                self.answered(answers);
            }
            // What time calls for is looked at after every group of events.
            Event::Tick => {}
            Event::Maintain => self.maintain(),
            Event::Fault(fault) => self.go_offline(fault),
            Event::FollowerOpened { open, answer } => {
                drop(answer.send(self.replica.follower_opened(&open, now)));
            }
            Event::FollowerStored { follower, stream, epoch, end } => {
                let answers = self.replica.follower_stored(follower, stream, epoch, end, now);
                self.answered(answers);
            }
            Event::FollowerGone { follower, stream } => self.replica.follower_gone(follower, stream, now),
            Event::Followers(answer) => drop(answer.send(self.replica.followers())),
            Event::Position(epoch, answer) => {
                let room = self.room.look(self.replica.log(), now, self.runtime.lag);
                let position = room.and_then(|()| self.follow(|replica| replica.position(epoch)));
                drop(answer.send(position));
            }
            Event::Settle(epoch, frame, answer) => {
                let settled = self.follow(|replica| replica.follow(epoch, frame, Bytes::new()));
                // What is shown as stored must not be what was cut: it is told to the leader next.
                self.publish();
                drop(answer.send(settled));
            }
            Event::Replicate { epoch, frame, payload, failure, permit } => {
                self.replicate(epoch, frame, payload, &failure);
                drop(permit);
            }
            Event::DeleteBefore(offset, done) => {
                drop(done.send(self.delete_before(offset)));
            }
        }
    }

    fn append(&mut self, appends: Vec<Append<Queued>>) {
        if appends.is_empty() {
            return;
        }
        self.active = true;
        let now = self.runtime.clock.monotonic();
        let bytes = appends.iter().map(|append| append.batch.header().size()).sum();
        let (answers, failed) = on_disk(bytes, || self.replica.append(appends, now));
        self.answered(answers);
        match failed {
            None => self.room.found(self.replica.log()),
            Some(bus_log::Error::Full { .. }) => self.room.ended(self.replica.log(), now),
            Some(error) => self.go_offline(Fault::from(&error)),
        }
    }

    /// Keeps answers until what they tell of is shown. With a refused batch all that come behind it in its lane are
    /// refused, from this very moment on.
    fn answered(&mut self, answers: Vec<Answer<Queued>>) {
        let refused = answers.iter().filter(|(_, answered)| answered.is_err());
        refused.for_each(|(queued, _)| queued.lane.break_off());
        self.answers.extend(answers);
    }

    /// Whether an append that came by this lane may be ordered now.
    fn check(&self, lane: &Lane) -> Result<(), AppendError> {
        self.check_online()?;
        if lane.is_broken() {
            return Err(AppendError::Behind);
        }
        if !self.replica.leads() || lane.epoch() != self.replica.role().epoch {
            return Err(AppendError::NotLeader);
        }
        Ok(())
    }

    fn check_online(&self) -> Result<(), AppendError> {
        self.offline.get().map_or(Ok(()), |fault| Err(AppendError::Offline(fault.to_string())))
    }

    fn replicate(&mut self, epoch: Epoch, frame: LeaderFrame, payload: Bytes, failure: &Failure) {
        // What came behind a batch that could not be taken does not follow on the log.
        if failure.is_set() {
            return;
        }
        let bytes = payload.len();
        match on_disk(bytes, || self.follow(|replica| replica.follow(epoch, frame, payload))) {
            Ok(_) => {
                self.unsynced += bytes;
                if bytes > 0 {
                    self.active = true;
                    self.room.found(self.replica.log());
                }
            }
            Err(error) => {
                if let FollowError::Log(bus_log::Error::Full { .. }) = &error {
                    self.room.ended(self.replica.log(), self.runtime.clock.monotonic());
                }
                failure.set(&error);
            }
        }
    }

    /// Does something as a follower. A disk that is full may have room again; any other failure of it is for good.
    fn follow<R>(
        &mut self,
        work: impl FnOnce(&mut Replica<Queued>) -> Result<R, FollowError>,
    ) -> Result<R, FollowError> {
        if self.is_offline() {
            return Err(FollowError::Closed);
        }
        let done = work(&mut self.replica);
        if let Err(FollowError::Log(
            error @ (bus_log::Error::Io { .. }
            | bus_log::Error::Poisoned { .. }
            | bus_log::Error::Damaged { .. }),
        )) = &done
        {
            self.go_offline(Fault::from(error));
        }
        done
    }

    fn delete_before(&mut self, offset: Offset) -> Result<(), AppendError> {
        self.check_online()?;
        let deleted = self.replica.delete_before(offset);
        self.committed.send_modify(|_| {});
        deleted.map_err(|error| AppendError::of(&error))
    }

    fn maintain(&mut self) {
        if self.is_offline() {
            return;
        }
        let log = self.replica.log().dir().to_owned();
        match self.replica.maintain(self.runtime.clock.timestamp()) {
            Ok(0) => {}
            Ok(segments) => {
                tracing::info!(log = %log.display(), segments, "retention deleted segments");
                // Followers are told where the log starts now.
                self.committed.send_modify(|_| {});
            }
            Err(error) => tracing::warn!(log = %log.display(), %error, "retention failed"),
        }
        // Nobody has written since the last time: whoever still reads here reads the disk.
        if !std::mem::take(&mut self.active) {
            self.replica.trim_tail();
        }
    }

    /// Starts the next group sync unless one is under way.
    fn start_sync(&mut self) {
        if self.syncing.is_some() || self.is_offline() {
            return;
        }
        let covered = self.unsynced;
        match self.replica.begin_sync() {
            // Refused, or truncated since.
            None => self.unsynced = 0,
            Some(job) if covered <= SYNC_HERE_BYTES => self.synced((job.run(), covered)),
            Some(job) => {
                self.syncing = Some((self.runtime.disk.spawn_blocking(move || job.run()), covered));
            }
        }
    }

    fn synced(&mut self, (synced, covered): (Result<Offset, bus_log::Error>, usize)) {
        // Once offline, everybody has been told that it is not known what is stored.
        if self.is_offline() {
            return;
        }
        self.unsynced = self.unsynced.saturating_sub(covered);
        match synced {
            Ok(_) => {
                let answers = self.replica.note_stored();
                self.answered(answers);
            }
            Err(error) => self.go_offline(Fault::from(&error)),
        }
    }

    /// Takes nothing any more, and answers all who wait.
    fn go_offline(&mut self, fault: Fault) {
        let why = fault.to_string();
        if self.offline.set(fault).is_err() {
            return;
        }
        tracing::error!(log = %self.replica.log().dir().display(), error = why, "partition goes offline");
        self.unsynced = 0;
        self.unreported = true;
        let answers = self.replica.abandon(&AppendError::Offline(why));
        self.answered(answers);
    }

    fn is_offline(&self) -> bool {
        self.offline.get().is_some()
    }

    /// Leaves what metadata must hear; where there is no room for it now, it is said again later.
    fn report(&mut self) {
        let (topic, partition) = self.id;
        let leave = |matter| self.runtime.reports.try_send(Report { topic, partition, matter }).is_ok();
        if let Some(fault) = self.offline.get() {
            if self.unreported {
                self.unreported = !leave(Matter::Offline(fault.clone()));
            }
            return;
        }
        self.room.report(|| leave(Matter::Full));
        let now = self.runtime.clock.monotonic();
        if let Some(proposal) = self.replica.propose_isr(now, self.runtime.lag)
            && !leave(Matter::Isr(proposal.clone()))
        {
            let answers = self.replica.proposal_refused(&proposal, now);
            self.answered(answers);
        }
    }

    fn show_end(&self) {
        show(&self.appended, self.replica.log().log_end());
    }

    /// Shows how far the replica is, then answers: whoever is told "committed" can read it at once.
    fn publish(&mut self) {
        self.show_end();
        show(&self.stored, (self.replica.role().epoch, self.replica.stored()));
        show(&self.committed, committed(&self.replica));
        self.waiting.store(self.replica.is_waiting() || self.unreported, Ordering::Relaxed);
        for (Queued { answer, .. }, answered) in self.answers.drain(..) {
            // A producer that went away does not want to know.
            drop(answer.send(answered));
        }
    }

    async fn end(mut self) {
        if self.syncing.is_some() {
            let synced = finished(&mut self.syncing).await;
            self.synced(synced);
        }
        self.publish();
        let Self { replica, panicked, stop, .. } = self;
        let delete = matches!(stop, Some((true, _)));
        let ended = if panicked && !delete {
            // Dropped, as a process that dies does it: recovery says what the files hold.
            drop(replica);
            Err(AppendError::Offline(Fault::Panicked.to_string()))
        } else {
            let (answers, ended) = if delete { replica.delete() } else { replica.close() };
            for (Queued { answer, .. }, answered) in answers {
                drop(answer.send(answered));
            }
            ended.map_err(|error| AppendError::of(&error))
        };
        if let Some((_, done)) = stop {
            drop(done.send(ended));
        }
    }
}

fn committed<T>(replica: &Replica<T>) -> Committed {
    Committed {
        epoch: replica.role().epoch,
        leads: replica.leads(),
        settled: replica.is_settled(),
        high_watermark: replica.high_watermark(),
    }
}

/// Writes so many bytes. The disk takes them at its own speed: where they are many, this thread's other tasks go on on
/// another meanwhile.
fn on_disk<R>(bytes: usize, write: impl FnOnce() -> R) -> R {
    let threads = tokio::runtime::Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    if threads && bytes > SYNC_HERE_BYTES { tokio::task::block_in_place(write) } else { write() }
}

/// Wakes nobody where nothing has changed.
fn show<T: PartialEq + Copy>(shown: &watch::Sender<T>, now: T) {
    shown.send_if_modified(|shown| std::mem::replace(shown, now) != now);
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
