//! One replica of one partition: its log and its role, with no task, no clock and no network of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_log::{AppendBatch, Log, LogConfig, Outcome, PartialAppend, SyncJob};
use bus_protocol::batch::{RecordBatch, split};
use bus_protocol::produce::{Acks, ProduceAck};
use bus_protocol::replicate::{LeaderFrame, LogEnd, ReplicateOpen};
use bus_protocol::{Durability, Epoch, ErrorCode, NodeId, Offset, Timestamp, TopicConfig, WireError};
use bytes::Bytes;

use crate::AppendError;
use crate::follower::{FollowError, Follower, divergence};
use crate::leader::{Isr, IsrProposal, Leader, NotEnoughReplicas};

/// What metadata says of this replica.
#[derive(Clone, Debug, PartialEq)]
pub struct Role {
    /// This node.
    pub node: NodeId,
    /// Who leads, if anybody does.
    pub leader: Option<NodeId>,
    /// The leader epoch.
    pub epoch: Epoch,
    /// Raised at each change of the partition.
    pub partition_epoch: u32,
    /// Who holds the partition, each since which partition epoch.
    pub replicas: BTreeMap<NodeId, u32>,
    /// The in-sync replicas.
    pub isr: Vec<NodeId>,
    /// How many of those are up, as far as metadata knows.
    pub live: usize,
    /// The topic's settings.
    pub config: TopicConfig,
}

impl Role {
    /// Whether this node leads.
    pub fn leads(&self) -> bool {
        self.leader == Some(self.node)
    }

    fn isr(&self) -> Isr<'_> {
        Isr {
            members: &self.isr,
            replicas: &self.replicas,
            partition_epoch: self.partition_epoch,
            min: self.config.min_insync_replicas,
            live: self.live,
        }
    }
}

/// A batch to be appended, and what its answer goes to.
pub struct Append<T> {
    /// The batch.
    pub batch: AppendBatch,
    /// When it is answered.
    pub acks: Acks,
    /// Comes back with the answer.
    pub ticket: T,
}

/// An answer to an append.
pub type Answer<T> = (T, Result<ProduceAck, AppendError>);

/// One replica: events in, answers and frames out. The owner task drives it, and so does the simulation.
///
/// Invariants:
/// - while it leads, [`Leader`]'s end is the log's, and its stored end is what `durability` calls stored;
/// - `high_watermark` never falls, over all roles, unless an unclean election cuts the log below it;
/// - what it says of its log's end, and the frames that it takes, belong to the leader epoch that they name.
pub struct Replica<T> {
    log: Log,
    role: Role,
    state: State<T>,
    high_watermark: Offset,
}

enum State<T> {
    Leading(Box<Leader<Waiting<T>>>),
    Following(Follower),
}

#[derive(Debug)]
struct Waiting<T> {
    ack: ProduceAck,
    ticket: T,
}

impl<T> Waiting<T> {
    fn done(self) -> Answer<T> {
        (self.ticket, Ok(self.ack))
    }
}

impl<T> Replica<T> {
    /// The replica that `log` holds, in `role`. What the log recovered counts as stored; below `committed`, where it is
    /// so far, it is known to be committed.
    pub fn new(log: Log, role: Role, committed: Offset, now: Duration) -> Self {
        let high_watermark = committed.min(log.stored()).max(log.log_start());
        let state = State::Following(Follower::new(-1));
        let mut replica = Self { log, role: role.clone(), state, high_watermark };
        replica.take_role(role, now);
        replica
    }

    /// The log.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// What metadata said last.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        matches!(self.state, State::Leading(_))
    }

    /// Below it all is committed, as far as is known here.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Whether the high watermark covers all that earlier leaders may have committed; only a leader can know.
    pub fn is_settled(&self) -> bool {
        matches!(&self.state, State::Leading(leader) if leader.is_settled())
    }

    /// The end of what counts as stored by the topic's `durability`.
    pub fn stored(&self) -> Offset {
        match self.role.config.durability {
            Durability::Fsync => self.log.stored(),
            Durability::Replicated => self.log.log_end(),
        }
    }

    /// Whether time passing can call for a change of the ISR.
    pub fn is_waiting(&self) -> bool {
        matches!(&self.state, State::Leading(leader) if leader.is_waiting())
    }

    /// What the followers that replicate from here now have stored.
    pub fn followers(&self) -> Vec<(NodeId, Offset)> {
        match &self.state {
            State::Leading(leader) => leader.followers(),
            State::Following(_) => Vec::new(),
        }
    }

    /// Takes on what metadata says; an older word than the last changes nothing. A leader that leads no more
    /// answers all who wait.
    pub fn configure(&mut self, role: Role, now: Duration) -> Vec<Answer<T>> {
        if role.epoch < self.role.epoch || role.partition_epoch < self.role.partition_epoch {
            return Vec::new();
        }
        self.log.set_config(LogConfig::from(&role.config));
        if role.epoch == self.role.epoch && role.leader == self.role.leader {
            self.role = role;
            return match &mut self.state {
                State::Leading(leader) => {
                    let answered = leader.reconfigure(self.role.isr(), now);
                    self.lead(answered)
                }
                State::Following(_) => Vec::new(),
            };
        }
        let left = self.abandon(&AppendError::NotLeader);
        self.take_role(role, now);
        left
    }

    fn take_role(&mut self, role: Role, now: Duration) {
        self.role = role;
        let role = &self.role;
        self.state = if role.leads() {
            // Where the topic turned from `durability=replicated` just now, what is committed may not be synced yet.
            let ends = (self.stored().max(self.high_watermark), self.log.log_end());
            let leader = Leader::new(role.node, role.epoch, role.isr(), ends, self.high_watermark, now);
            self.high_watermark = leader.high_watermark();
            State::Leading(Box::new(leader))
        } else {
            State::Following(Follower::new(role.epoch))
        };
    }

    /// All who wait are told `why`: the leader steps down, or the storage failed.
    pub fn abandon(&mut self, why: &AppendError) -> Vec<Answer<T>> {
        match &mut self.state {
            State::Leading(leader) => {
                leader.abandon().into_iter().map(|waiting| (waiting.ticket, Err(why.clone()))).collect()
            }
            State::Following(_) => Vec::new(),
        }
    }

    /// Appends batches in order, as the leader. Answered at once is what is refused; the rest when it is committed
    /// as its `acks` wants. An error is the storage's, and has been answered to those whom it met.
    pub fn append(
        &mut self,
        appends: Vec<Append<T>>,
        now: Duration,
    ) -> (Vec<Answer<T>>, Option<bus_log::Error>) {
        let mut answers = Vec::new();
        let State::Leading(leader) = &mut self.state else {
            let refused = appends.into_iter().map(|append| (append.ticket, Err(AppendError::NotLeader)));
            return (refused.collect(), None);
        };
        let mut batches = Vec::with_capacity(appends.len());
        let mut waiting = Vec::with_capacity(appends.len());
        for Append { batch, acks, ticket } in appends {
            match leader.admit(acks, now) {
                Ok(()) => {
                    batches.push(batch);
                    waiting.push((acks, ticket));
                }
                Err(NotEnoughReplicas { in_sync, wanted }) => {
                    answers.push((ticket, Err(AppendError::NotEnoughReplicas { in_sync, wanted })));
                }
            }
        }
        if batches.is_empty() {
            return (answers, None);
        }
        let (outcomes, failed) = match self.log.append_all(batches, leader.epoch()) {
            Ok(outcomes) => (outcomes, None),
            Err(PartialAppend { outcomes, error }) => (outcomes, Some(error)),
        };
        let mut waiting = waiting.into_iter();
        for (outcome, (acks, ticket)) in outcomes.into_iter().zip(waiting.by_ref()) {
            match outcome {
                Outcome::Appended(done) => {
                    let ack = ProduceAck { base_offset: done.base_offset, append_time: done.append_time };
                    leader.appended(done.last_offset + 1, acks, Waiting { ack, ticket }, now);
                }
                Outcome::Duplicate(done) => {
                    let ack = ProduceAck { base_offset: done.base_offset, append_time: done.append_time };
                    leader.repeated(done.last_offset + 1, acks, Waiting { ack, ticket });
                }
                Outcome::Refused(error) => answers.push((ticket, Err(AppendError::Sequence(error)))),
            }
        }
        if let Some(error) = &failed {
            let refusal = AppendError::of(error);
            answers.extend(waiting.map(|(_, ticket)| (ticket, Err(refusal.clone()))));
        }
        answers.extend(self.note_stored());
        (answers, failed)
    }

    /// Begins a sync of what is appended; `None` where all is synced.
    pub fn begin_sync(&self) -> Option<SyncJob> {
        (self.log.stored() < self.log.log_end()).then(|| self.log.begin_sync())
    }

    /// What is stored may have moved: a sync has ended.
    pub fn note_stored(&mut self) -> Vec<Answer<T>> {
        let stored = self.stored();
        match &mut self.state {
            State::Leading(leader) => {
                let answered = leader.stored(stored);
                self.lead(answered)
            }
            State::Following(follower) => {
                // Never more than what is stored here, as this replica may lead next.
                self.high_watermark = follower.told().min(stored).max(self.high_watermark);
                Vec::new()
            }
        }
    }

    fn lead(&mut self, answered: Vec<Waiting<T>>) -> Vec<Answer<T>> {
        if let State::Leading(leader) = &self.state {
            assert!(leader.high_watermark() >= self.high_watermark, "the high watermark fell");
            self.high_watermark = leader.high_watermark();
        }
        answered.into_iter().map(Waiting::done).collect()
    }

    /// A follower opens its stream, or says again where its log ends after it was told to cut it: what the leader
    /// answers. After [`LeaderFrame::Start`] it is sent what follows on its log's end. `stream` rises with each stream
    /// that the follower opens.
    pub fn follower_opened(&mut self, open: &ReplicateOpen, now: Duration) -> LeaderFrame {
        let refuse = |code, message: String| LeaderFrame::Refused(WireError::new(code, message));
        let State::Leading(leader) = &mut self.state else {
            return refuse(ErrorCode::NotLeader, "this broker does not lead the partition".into());
        };
        let epoch = leader.epoch();
        if open.leader_epoch != epoch {
            let message = format!("the leader epoch is {epoch} here, not {}", open.leader_epoch);
            return refuse(ErrorCode::FencedEpoch, message);
        }
        if self.role.replicas.get(&open.node) != Some(&open.since) {
            let message =
                format!("node {} holds no replica since partition epoch {} here", open.node, open.since);
            return refuse(ErrorCode::FencedEpoch, message);
        }
        let log_start = self.log.log_start();
        // An empty log that ends within this one had no more than what was committed and then deleted (or nothing at
        // all): it goes on from there. Taken back to this log's start it would have less than it said it has stored.
        if open.log.end < log_start || (open.log.epoch.is_none() && open.log.end > self.log.log_end()) {
            return LeaderFrame::Reset { log_start };
        }
        match divergence(open.log, |epoch| self.log.epoch_end_offset(epoch)) {
            None => {}
            // All that this log holds was written later, or what it held is deleted, and who wrote it forgotten.
            Some((None, _)) => return LeaderFrame::Reset { log_start },
            Some((epoch, end)) => return LeaderFrame::Diverged { epoch, end },
        }
        if leader.follower_started((open.node, open.broker_epoch), open.stream, open.log.end, now) {
            LeaderFrame::Start
        } else {
            refuse(ErrorCode::InvalidRequest, format!("node {} has a later stream", open.node))
        }
    }

    /// The follower, on this stream, has stored all below `end`.
    pub fn follower_stored(
        &mut self,
        follower: (NodeId, u64),
        stream: u64,
        leader_epoch: Epoch,
        end: Offset,
        now: Duration,
    ) -> Vec<Answer<T>> {
        match &mut self.state {
            State::Leading(leader) if leader.epoch() == leader_epoch => {
                let answered = leader.follower_stored(follower, stream, end, now);
                self.lead(answered)
            }
            _ => Vec::new(),
        }
    }

    /// The follower's stream has ended.
    pub fn follower_gone(&mut self, follower: (NodeId, u64), stream: u64, now: Duration) {
        if let State::Leading(leader) = &mut self.state {
            leader.follower_gone(follower, stream, now);
        }
    }

    /// The change of the ISR to be asked for now, if any: see [`Leader::propose`].
    pub fn propose_isr(&mut self, now: Duration, lag: Duration) -> Option<IsrProposal> {
        match &mut self.state {
            State::Leading(leader) => leader.propose(now, lag),
            State::Following(_) => None,
        }
    }

    /// The controller has refused the change, for sure.
    pub fn proposal_refused(&mut self, proposal: &IsrProposal, now: Duration) -> Vec<Answer<T>> {
        match &mut self.state {
            State::Leading(leader) if leader.epoch() == proposal.leader_epoch => {
                let answered = leader.proposal_refused(proposal.partition_epoch, now);
                self.lead(answered)
            }
            _ => Vec::new(),
        }
    }

    /// As a follower that opens a stream in `epoch`: where its log ends.
    pub fn position(&mut self, epoch: Epoch) -> Result<LogEnd, FollowError> {
        self.following(epoch)?.restart();
        Ok(self.log.end_with_epoch())
    }

    /// Does what the leader of `epoch` answered. A [`LogEnd`] is to be sent back; nothing after
    /// [`LeaderFrame::Start`]. Batches that were appended are stored once a sync has ended.
    pub fn follow(
        &mut self,
        epoch: Epoch,
        frame: LeaderFrame,
        payload: Bytes,
    ) -> Result<Option<LogEnd>, FollowError> {
        match frame {
            LeaderFrame::Start => {
                self.following(epoch)?.settled();
                Ok(None)
            }
            LeaderFrame::Diverged { epoch: diverged, end } => {
                self.following(epoch)?;
                let end = self.truncate(diverged, end)?;
                Ok(Some(end))
            }
            LeaderFrame::Reset { log_start } => {
                self.following(epoch)?;
                self.log.reset_to(log_start)?;
                self.high_watermark = log_start;
                Ok(Some(self.log.end_with_epoch()))
            }
            LeaderFrame::Batches { high_watermark, log_start } => {
                self.replicate(epoch, payload, high_watermark, log_start)?;
                Ok(None)
            }
            LeaderFrame::Refused(_) => Err(FollowError::Stale(epoch)),
        }
    }

    fn truncate(&mut self, diverged: Option<Epoch>, end: Offset) -> Result<LogEnd, FollowError> {
        let cut = self.log.truncate_by(diverged, end)?;
        if cut.end < self.high_watermark {
            // Only an unclean election asks for it; the topic allowed that.
            tracing::warn!(log = %self.log.dir().display(), end = cut.end, committed = self.high_watermark,
                "the new leader lacks records that were committed: they are cut");
            self.high_watermark = cut.end;
        }
        Ok(cut)
    }

    fn replicate(
        &mut self,
        epoch: Epoch,
        payload: Bytes,
        high_watermark: Offset,
        log_start: Offset,
    ) -> Result<(), FollowError> {
        let batches: Vec<RecordBatch> = split(payload)
            .collect::<Result<_, _>>()
            .map_err(|error| FollowError::Damaged(error.to_string()))?;
        let newest = batches.last().map(|batch| batch.header().leader_epoch);
        self.following(epoch)?.admit(newest)?;
        if let Some(first) = batches.first().map(RecordBatch::header) {
            let (start, end) = (self.log.log_start(), self.log.log_end());
            // The leader's log starts within a batch, so this one was emptied there; the batch comes whole.
            if start == end && (first.base_offset + 1..first.next_offset()).contains(&end) {
                self.log.reset_to(first.base_offset)?;
            }
            if let Err(PartialAppend { error, .. }) = self.log.append_as_is(batches) {
                // What the leader has dropped makes room for the next attempt.
                self.drop_below(log_start)?;
                return Err(error.into());
            }
        }
        self.following(epoch)?.tell(high_watermark);
        self.note_stored();
        self.drop_below(log_start)?;
        Ok(())
    }

    /// As a follower: drops what the leader has dropped.
    fn drop_below(&mut self, log_start: Offset) -> Result<(), bus_log::Error> {
        if log_start > self.log.log_start() {
            self.log.delete_before(log_start.min(self.high_watermark))?;
        }
        Ok(())
    }

    fn following(&mut self, epoch: Epoch) -> Result<&mut Follower, FollowError> {
        match &mut self.state {
            State::Following(follower) => {
                follower.check(epoch)?;
                Ok(follower)
            }
            State::Leading(_) => Err(FollowError::Stale(epoch)),
        }
    }

    /// As the leader, applies retention; gives the number of segments that went. A follower drops what its leader
    /// has dropped, and asks no clock: one that goes wrong must not cost records on the others.
    pub fn maintain(&mut self, now: Timestamp) -> Result<usize, bus_log::Error> {
        if self.leads() { self.log.apply_retention(now, self.high_watermark) } else { Ok(0) }
    }

    /// Gives the memory of the log's hot tail back.
    pub fn trim_tail(&mut self) {
        self.log.trim_tail();
    }

    /// Drops what lies below `offset` from the log's start, as far as it is committed.
    pub fn delete_before(&mut self, offset: Offset) -> Result<(), bus_log::Error> {
        self.log.delete_before(offset.min(self.high_watermark)).map(drop)
    }

    /// Ends with a clean close: what was appended is synced, and counts. Those who wait on are answered as closed.
    pub fn close(mut self) -> (Vec<Answer<T>>, Result<(), bus_log::Error>) {
        let synced = self.log.sync().map(drop);
        let mut answers = if synced.is_ok() { self.note_stored() } else { Vec::new() };
        answers.extend(self.abandon(&AppendError::Closed));
        (answers, synced.and_then(|()| self.log.close()))
    }

    /// Ends, and removes the log from the disk.
    pub fn delete(mut self) -> (Vec<Answer<T>>, Result<(), bus_log::Error>) {
        (self.abandon(&AppendError::Closed), self.log.delete())
    }
}
