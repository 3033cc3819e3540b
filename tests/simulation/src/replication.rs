//! What the tasks around a replica do: sync, follow, push, and tell the controller.

use bus_log::LogReader;
use bus_metadata::Command;
use bus_protocol::batch::BatchHeader;
use bus_protocol::replicate::{LeaderFrame, LogEnd, ReplicateOpen};
use bus_protocol::{Clock, Offset};
use bus_replica::{Answer, AppendError, FollowError, IsrProposal};
use bytes::Bytes;

use crate::client::Ticket;
use crate::clock::{MS, Time};
use crate::control::Purpose;
use crate::invariants::{Place, batches, truncation};
use crate::mutation::Mutation;
use crate::node::stay;
use crate::pipe::Pipe;
use crate::stream::{Replication, ToFollower, ToLeader};
use crate::world::{Event, LAG, World};

/// Frames that a leader has under way to one follower.
const FRAMES: usize = 8;
/// Frames without one for so long, and the follower begins anew.
const PATIENCE: Time = 800 * MS;

impl World {
    /// What an owner does after a group of events: sync, report, show, answer, push.
    pub(crate) fn settle(&mut self, node: usize, place: Place, answers: Vec<Answer<Ticket>>) {
        self.start_sync(node, place);
        self.propose_isr(node, place);
        self.observe(node, place);
        self.publish(answers);
        self.tell_stored(node, place);
        self.push(node, place);
    }

    fn start_sync(&mut self, node: usize, place: Place) {
        let delay = self.random.within(0..self.plan.sync) + 20;
        let at = &mut self.nodes[node];
        let Some(hosted) = at.replicas.get_mut(&place) else { return };
        if hosted.syncing.is_some() || hosted.offline {
            return;
        }
        if let Some(job) = hosted.replica.begin_sync() {
            hosted.syncing = Some(job);
            let life = at.life;
            self.schedule(delay, Event::Synced { node, life, place });
        }
    }

    pub(crate) fn synced(&mut self, node: usize, place: Place) {
        let Some(hosted) = self.nodes[node].replicas.get_mut(&place) else { return };
        let Some(job) = hosted.syncing.take() else { return };
        let answers = match job.run() {
            _ if hosted.offline => Vec::new(),
            Ok(_) => hosted.replica.note_stored(),
            Err(error) => {
                self.go_offline(node, place, &error.to_string());
                return;
            }
        };
        self.settle(node, place, answers);
    }

    /// The replica takes nothing any more, and says so; its machine must start anew before anybody knows what it has.
    pub(crate) fn go_offline(&mut self, node: usize, place: Place, why: &str) {
        if self.nodes[node].is_dead() {
            return;
        }
        let running = self.nodes[node].replicas.get_mut(&place);
        let Some(hosted) = running.filter(|hosted| !hosted.offline) else { return };
        hosted.offline = true;
        let failed = !self.damaged.contains(&(node, place));
        let answers = hosted.replica.abandon(&AppendError::Offline(why.to_owned()));
        self.nodes[node].suspect |= failed;
        self.note(format_args!("node {} loses {place:?}: {why}", node + 1));
        self.report_lost(node, place);
        self.settle(node, place, answers);
        let (life, delay) = (self.nodes[node].life, self.random.within(300..4_000) * MS);
        self.schedule(delay, Event::Reboot { node, life });
    }

    pub(crate) fn report_lost(&mut self, node: usize, place: Place) {
        let at = &self.nodes[node];
        let asked = at.pending.values().any(|purpose| *purpose == Purpose::Lost(place));
        if let Some(epoch) = at.registered.filter(|_| !asked) {
            let command = Command::ReportLost { node: at.id, epoch, partitions: vec![place] };
            self.propose(node, command, Purpose::Lost(place));
        }
    }

    pub(crate) fn propose_isr(&mut self, node: usize, place: Place) {
        let now = self.clock.monotonic();
        let Some(hosted) = self.nodes[node].replicas.get_mut(&place) else { return };
        if hosted.offline || hosted.proposed.is_some() {
            return;
        }
        let Some(proposal) = hosted.replica.propose_isr(now, LAG) else { return };
        hosted.proposed = Some(proposal.clone());
        if self.mutation == Some(Mutation::IgnoresProposedIsr) {
            let answers = hosted.replica.proposal_refused(&proposal, now);
            self.publish(answers);
        }
        self.ask_isr(node, place, proposal);
    }

    pub(crate) fn isr_refused(&mut self, node: usize, place: Place, proposal: &IsrProposal) {
        let now = self.clock.monotonic();
        let Some(hosted) = self.nodes[node].replicas.get_mut(&place) else { return };
        hosted.proposed.take_if(|proposed| proposed == proposal);
        let answers = hosted.replica.proposal_refused(proposal, now);
        self.settle(node, place, answers);
    }

    // As a follower.

    /// Opens a stream to the leader, unless there is one.
    pub(crate) fn follow(&mut self, node: usize, place: Place) {
        let Some(hosted) = self.nodes[node].replicas.get_mut(&place) else { return };
        let role = hosted.replica.role().clone();
        if hosted.replica.leads() || hosted.offline || hosted.stream.is_some() {
            return;
        }
        let Some((leader, _, since)) = stay(&role) else { return };
        let leader = leader as usize - 1;
        let Ok(mut end) = hosted.replica.position(role.epoch) else { return };
        if self.mutation == Some(Mutation::TruncatesToHighWatermark) {
            end = self.cut_to_high_watermark(node, place).unwrap_or(end);
        }
        let Some(broker_epoch) = self.nodes[node].registered else { return };
        let (id, life) = (self.next_stream(), self.nodes[node].life);
        let stream = Replication {
            place,
            follower: (node, life),
            leader: (leader, self.nodes[leader].life),
            broker_epoch,
            since,
            epoch: role.epoch,
            to_leader: Pipe::default(),
            held: 0,
            to_follower: Pipe::default(),
            next: None,
            told: (-1, -1),
            settled: false,
            leader_done: false,
            follower_done: false,
        };
        self.note(format_args!("{id}: node {} follows {place:?} from {end:?} in {}", node + 1, role.epoch));
        self.replications.insert(id, stream);
        if let Some(hosted) = self.nodes[node].replicas.get_mut(&place) {
            (hosted.stream, hosted.told) = (Some(id), -1);
        }
        self.send_to_leader(id, ToLeader::Position(end));
        self.schedule(PATIENCE, Event::Impatient { node, life, stream: id });
    }

    fn cut_to_high_watermark(&mut self, node: usize, place: Place) -> Option<LogEnd> {
        let hosted = self.nodes[node].replicas.get(&place)?;
        let (epoch, end) = (hosted.replica.role().epoch, hosted.replica.high_watermark());
        self.take_frame(
            node,
            place,
            epoch,
            LeaderFrame::Diverged { epoch: Some(i32::MAX), end },
            Bytes::new(),
        )
        .ok()?
    }

    /// A follower takes a frame of its stream.
    pub(crate) fn follower_receives(&mut self, id: u64) {
        let Some(stream) = self.replications.get_mut(&id) else { return };
        let ((node, life), place, epoch) = (stream.follower, stream.place, stream.epoch);
        let Some(message) = stream.to_follower.receive() else { return };
        let at = self.nodes[node].replicas.get(&place);
        let current = at.is_some_and(|hosted| hosted.stream == Some(id)) && self.nodes[node].life == life;
        if !current {
            return;
        }
        let (frame, payload) = match message {
            ToFollower::End => return self.leave_stream(id),
            ToFollower::Frame(frame, payload) => (frame, payload),
        };
        if self.mutation == Some(Mutation::SkipsTruncation)
            && let LeaderFrame::Diverged { epoch, .. } = frame
        {
            let end = at.map_or(0, |hosted| hosted.replica.log().log_end());
            self.send_to_leader(id, ToLeader::Position(LogEnd { epoch, end }));
            return;
        }
        let started = frame == LeaderFrame::Start;
        match self.take_frame(node, place, epoch, frame, payload) {
            Ok(Some(end)) => self.send_to_leader(id, ToLeader::Position(end)),
            Ok(None) => {
                if let Some(stream) = self.replications.get_mut(&id) {
                    stream.settled |= started;
                }
            }
            Err(error) => {
                self.note(format_args!("{id}: node {} refuses: {error}", node + 1));
                self.leave_stream(id);
                if let FollowError::Log(
                    error @ (bus_log::Error::Io { .. }
                    | bus_log::Error::Poisoned { .. }
                    | bus_log::Error::Damaged { .. }),
                ) = error
                {
                    self.go_offline(node, place, &error.to_string());
                }
            }
        }
        self.settle(node, place, Vec::new());
    }

    /// Carries out a frame, and looks at what it cut.
    fn take_frame(
        &mut self,
        node: usize,
        place: Place,
        epoch: i32,
        frame: LeaderFrame,
        payload: Bytes,
    ) -> Result<Option<LogEnd>, FollowError> {
        let Some(hosted) = self.nodes[node].replicas.get_mut(&place).filter(|hosted| !hosted.offline) else {
            return Err(FollowError::Closed);
        };
        let cuts = matches!(frame, LeaderFrame::Diverged { .. } | LeaderFrame::Reset { .. });
        let log = hosted.replica.log();
        let held: Vec<BatchHeader> = match cuts {
            true => {
                let held = batches(log, log.log_start(), log.log_end()).unwrap_or_default();
                held.iter().map(|batch| *batch.header()).collect()
            }
            false => Vec::new(),
        };
        let said = cuts.then(|| format!("{frame:?}"));
        let taken = hosted.replica.follow(epoch, frame, payload);
        let now = (hosted.replica.log().log_start(), hosted.replica.log().log_end());
        if let Some(said) = said.filter(|_| !self.nodes[node].is_dead()) {
            self.note(format_args!("node {} is at {now:?} of {place:?} after {said}", node + 1));
            let id = self.nodes[node].id;
            let leads = |hosted: &&crate::node::Hosted| hosted.replica.leads();
            let leaders = self.nodes.iter().filter_map(|node| node.replicas.get(&place)).filter(leads);
            let deleted = leaders.map(|leader| leader.replica.log().log_start()).max().unwrap_or_default();
            let image = self.control.image();
            let partition = image.topic_by_id(place.0).and_then(|topic| topic.partition(place.1));
            // One that is not in sync may yet be told to cut by an earlier leader what a later one has committed.
            let counts = partition
                .is_none_or(|partition| partition.leader_epoch == epoch || partition.isr.contains(&id));
            let ledger = self.watch.ledgers.entry(place).or_default();
            let check = truncation::check((id, place), ledger, &held, now, deleted);
            self.uphold(check.or_else(|violation| if counts { Err(violation) } else { Ok(()) }));
        }
        taken
    }

    /// Says what is stored, where that is news.
    fn tell_stored(&mut self, node: usize, place: Place) {
        let Some(hosted) = self.nodes[node].replicas.get_mut(&place) else { return };
        let Some(id) = hosted.stream else { return };
        if !self.replications.get(&id).is_some_and(|stream| stream.settled) {
            return;
        }
        let stored = match self.mutation {
            Some(Mutation::FollowerAcksBeforeSync) => hosted.replica.log().log_end(),
            _ => hosted.replica.stored(),
        };
        if stored > hosted.told {
            hosted.told = stored;
            self.send_to_leader(id, ToLeader::Stored(stored));
        }
    }

    /// The follower drops its stream, and opens another one some time later.
    pub(crate) fn leave_stream(&mut self, id: u64) {
        let Some(stream) = self.replications.get_mut(&id).filter(|stream| !stream.follower_done) else {
            return;
        };
        stream.follower_done = true;
        let ((node, life), place) = (stream.follower, stream.place);
        self.end_to_leader(id);
        if self.nodes[node].life == life
            && let Some(hosted) = self.nodes[node].replicas.get_mut(&place)
        {
            hosted.stream.take_if(|stream| *stream == id);
            self.follow_later(node, place);
        }
        self.forget_stream(id);
    }

    pub(crate) fn follow_later(&mut self, node: usize, place: Place) {
        let (life, delay) = (self.nodes[node].life, self.random.within(1..100) * MS);
        self.schedule(delay, Event::Follow { node, life, place });
    }

    // As a leader.

    pub(crate) fn leader_receives(&mut self, id: u64) {
        let now = self.clock.monotonic();
        let Some(stream) = self.replications.get_mut(&id) else { return };
        let ((node, life), place) = (stream.leader, stream.place);
        let Some(message) = stream.to_leader.receive() else { return };
        if self.nodes[node].life != life || !self.nodes[node].up {
            return self.end_to_follower(id);
        }
        let follower = (self.nodes[stream.follower.0].id, stream.broker_epoch);
        let Some(hosted) = self.nodes[node].replicas.get_mut(&place) else { return self.end_to_follower(id) };
        match message {
            ToLeader::Position(log) => {
                let open = ReplicateOpen {
                    topic: place.0,
                    partition: place.1,
                    node: follower.0,
                    broker_epoch: follower.1,
                    since: stream.since,
                    stream: id,
                    leader_epoch: stream.epoch,
                    log,
                };
                let frame = hosted.replica.follower_opened(&open, now);
                stream.next = (frame == LeaderFrame::Start).then_some(log.end);
                let refused = matches!(frame, LeaderFrame::Refused(_));
                self.send_to_follower(id, ToFollower::Frame(frame, Bytes::new()));
                if refused {
                    self.end_to_follower(id);
                }
                self.settle(node, place, Vec::new());
            }
            ToLeader::Stored(end) => {
                let epoch = stream.epoch;
                let answers = hosted.replica.follower_stored(follower, id, epoch, end, now);
                self.settle(node, place, answers);
            }
            ToLeader::End => {
                hosted.replica.follower_gone(follower, id, now);
                self.end_to_follower(id);
                self.settle(node, place, Vec::new());
            }
        }
    }

    /// Sends followers what they lack, as far as there is room on their streams.
    fn push(&mut self, node: usize, place: Place) {
        let Some(hosted) = self.nodes[node].replicas.get(&place).filter(|hosted| hosted.replica.leads())
        else {
            return;
        };
        let epoch = hosted.replica.role().epoch;
        let (high_watermark, log_start) = (hosted.replica.high_watermark(), hosted.replica.log().log_start());
        let reader = hosted.replica.log().reader();
        let at = (node, self.nodes[node].life);
        let mine = |stream: &Replication| {
            (stream.leader, stream.place, stream.epoch) == (at, place, epoch) && !stream.leader_done
        };
        let streams: Vec<u64> =
            self.replications.iter().filter(|(_, stream)| mine(stream)).map(|(id, _)| *id).collect();
        for id in streams {
            while self.push_frame(id, &reader, (high_watermark, log_start)) {}
        }
        if let Some(error) = self.broken_read.take() {
            self.go_offline(node, place, &error);
        }
    }

    /// Sends the next frame on a stream; `false` where there is nothing to send, or no room.
    fn push_frame(&mut self, id: u64, reader: &LogReader, told: (Offset, Offset)) -> bool {
        let Some(stream) = self.replications.get_mut(&id) else { return false };
        let Some(next) = stream.next.filter(|_| stream.to_follower.len() < FRAMES) else { return false };
        let bytes = self.random.within(1..8_000) as usize;
        let read = match reader.read(next, bytes, Offset::MAX) {
            Ok(read) => read,
            Err(error) => {
                if matches!(error, bus_log::Error::Damaged { .. }) {
                    self.broken_read = Some(error.to_string());
                }
                self.end_to_follower(id);
                return false;
            }
        };
        if read.chunks.is_empty() && stream.told == told {
            return false;
        }
        stream.next = Some(read.next_offset);
        stream.told = told;
        let frame = LeaderFrame::Batches { high_watermark: told.0, log_start: told.1 };
        self.send_to_follower(id, ToFollower::Frame(frame, Bytes::from(read.chunks.concat())));
        true
    }

    /// The leader's role has changed: streams of the old one end.
    pub(crate) fn end_pushes(&mut self, node: usize, place: Place) {
        let at = (node, self.nodes[node].life);
        let mine = |stream: &Replication| (stream.leader, stream.place) == (at, place) && !stream.leader_done;
        let streams: Vec<u64> =
            self.replications.iter().filter(|(_, stream)| mine(stream)).map(|(id, _)| *id).collect();
        streams.into_iter().for_each(|id| self.end_to_follower(id));
    }
}
