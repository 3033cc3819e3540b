//! Produce streams, at the client and at the broker.

use std::collections::BTreeMap;

use bus_log::AppendBatch;
use bus_protocol::Clock;
use bus_protocol::produce::Acks;
use bus_replica::{Answer, Append, AppendError};

use crate::client::Ticket;
use crate::clock::{MS, SECOND, Time};
use crate::invariants::{Place, acknowledged_is_committed};
use crate::mutation::Mutation;
use crate::pipe::Pipe;
use crate::stream::{Produce, ToBroker, ToClient};
use crate::world::{Event, World};

/// Without an answer for so long, and a client asks elsewhere.
const PATIENCE: Time = 2 * SECOND;

impl World {
    /// Answers appends, in the order of each stream.
    pub(crate) fn publish(&mut self, answers: Vec<Answer<Ticket>>) {
        for (ticket, answer) in answers {
            let stream = self.produces.get(&ticket.stream);
            if stream.is_some_and(|stream| self.nodes[stream.broker.0].is_dead()) {
                continue;
            }
            if let (Ok(ack), Acks::All) = (&answer, ticket.acks) {
                let ledger = self.watch.ledgers.entry(ticket.place).or_default();
                let check =
                    acknowledged_is_committed::check(ticket.place, ledger, ack.base_offset, ticket.content);
                self.uphold(check);
            }
            let Some(stream) = self.produces.get_mut(&ticket.stream) else { continue };
            stream.broken |= answer.is_err();
            stream.answers.insert(ticket.number, answer);
            while let Some(answer) = self.take_answer(ticket.stream) {
                let delay = self.delay();
                let Some(stream) = self.produces.get_mut(&ticket.stream) else { break };
                if let Some(at) = stream.to_client.send(ToClient::Answer(answer), self.now, delay) {
                    self.schedule_at(at, Event::ToClient(ticket.stream));
                }
            }
        }
    }

    fn take_answer(&mut self, id: u64) -> Option<Result<bus_protocol::produce::ProduceAck, AppendError>> {
        let stream = self.produces.get_mut(&id)?;
        let answer = stream.answers.remove(&stream.answered)?;
        stream.answered += 1;
        Some(answer)
    }

    /// A broker takes batches off a stream: those that have arrived together are appended together.
    pub(crate) fn broker_receives(&mut self, id: u64) {
        let together = 1 + self.random.index(3);
        let Some(stream) = self.produces.get_mut(&id) else { return };
        let ((node, life), place) = (stream.broker, stream.place);
        if !self.nodes[node].up || self.nodes[node].life != life {
            return;
        }
        let mut appends = Vec::new();
        let mut refused = Vec::new();
        for _ in 0..together {
            let Some(stream) = self.produces.get_mut(&id) else { return };
            let (content, batch, acks) = match stream.to_broker.receive() {
                Some(ToBroker::Batch { content, batch, acks }) => (content, batch, acks),
                Some(ToBroker::End) => {
                    self.produces.remove(&id);
                    break;
                }
                None => break,
            };
            let ticket = Ticket { stream: id, number: stream.taken, content, acks, place };
            stream.taken += 1;
            match self.admit(id, node, place) {
                Ok(()) => {
                    let early = self.mutation == Some(Mutation::AcksBeforeHighWatermark);
                    let acks = if early { Acks::Leader } else { acks };
                    appends.push(Append { batch: AppendBatch::from(batch), acks, ticket });
                }
                Err(error) => refused.push((ticket, Err(error))),
            }
        }
        if !appends.is_empty() {
            self.append(node, place, appends);
        }
        self.publish(refused);
    }

    /// Whether a batch of this stream may be ordered now: as an owner decides by its lane.
    fn admit(&mut self, id: u64, node: usize, place: Place) -> Result<(), AppendError> {
        let Some(stream) = self.produces.get_mut(&id) else { return Err(AppendError::Closed) };
        let Some(hosted) = self.nodes[node].replicas.get(&place) else {
            stream.broken = true;
            return Err(AppendError::NotLeader);
        };
        let now = hosted.replica.leads().then(|| hosted.replica.role().epoch);
        if stream.epoch.is_none() && now.is_none() {
            stream.broken = true;
            return Err(AppendError::NotLeader);
        }
        let opened = stream.epoch.or(now);
        stream.epoch = opened;
        if hosted.offline {
            return Err(AppendError::Offline("its storage failed".into()));
        }
        if stream.broken {
            return Err(AppendError::Behind);
        }
        if now.is_none() || now != opened { Err(AppendError::NotLeader) } else { Ok(()) }
    }

    fn append(&mut self, node: usize, place: Place, appends: Vec<Append<Ticket>>) {
        let now = self.clock.monotonic();
        let Some(hosted) = self.nodes[node].replicas.get_mut(&place) else { return };
        let (answers, failed) = hosted.replica.append(appends, now);
        self.settle(node, place, answers);
        match failed {
            None | Some(bus_log::Error::Full { .. }) => {}
            Some(error) => self.go_offline(node, place, &error.to_string()),
        }
    }

    /// A client's turn: it makes batches, and sends what it can.
    pub(crate) fn produce(&mut self, producer: usize) {
        for lane in 0..self.producers[producer].lanes.len() {
            self.produce_to(producer, lane);
        }
        if !self.producers[producer].is_done() {
            let delay = MS + self.random.within(0..self.producers[producer].plan.pace);
            self.schedule(delay, Event::Produce(producer));
        }
    }

    fn produce_to(&mut self, number: usize, lane: usize) {
        let time = self.clock.timestamp();
        let numbered = self.mutation != Some(Mutation::NoSequenceCheck);
        let producer = &mut self.producers[number];
        let plan = producer.plan.clone();
        let at = &mut producer.lanes[lane];
        let waited = self.now - at.heard;
        if at.unanswered.is_empty() {
            at.heard = self.now;
        } else if waited > PATIENCE && at.stream.is_some() {
            at.heard = self.now;
            let idempotent = plan.idempotent;
            self.drop_stream(number, lane, false, idempotent);
        } else if plan.gives_up && waited > SECOND && self.random.permille(100) {
            if let Some(stream) = self.producers[number].lanes[lane].stream {
                self.end_produce(stream);
            }
            self.producers[number].lanes[lane].give_up();
        }
        let producer = &mut self.producers[number];
        if producer.lanes[lane].left > 0
            && producer.lanes[lane].unanswered.len() < plan.in_flight
            && self.random.permille(700)
        {
            producer.make(lane, plan.idempotent && numbered, time, &mut self.random);
        }
        self.send(number, lane, plan.acks);
    }

    fn send(&mut self, number: usize, lane: usize, acks: Acks) {
        let at = &self.producers[number].lanes[lane];
        if at.unanswered.len() == at.sent || (at.stream.is_none() && !self.open_produce(number, lane)) {
            return;
        }
        let at = &mut self.producers[number].lanes[lane];
        let Some(id) = at.stream else { return };
        let fresh: Vec<_> = at.unanswered.iter().skip(at.sent).cloned().collect();
        at.sent = at.unanswered.len();
        for sent in fresh {
            let delay = self.delay();
            let Some(stream) = self.produces.get_mut(&id) else { return };
            let message = ToBroker::Batch { content: sent.content, batch: sent.batch, acks };
            if let Some(at) = stream.to_broker.send(message, self.now, delay) {
                self.schedule_at(at, Event::ToBroker(id));
            }
        }
    }

    /// Opens a stream to whom some broker takes for the leader.
    fn open_produce(&mut self, number: usize, lane: usize) -> bool {
        let place = self.producers[number].lanes[lane].place;
        let Some(broker) = self.ask_for_leader(place) else { return false };
        let id = self.next_stream();
        let stream = Produce {
            producer: number,
            lane,
            place,
            broker: (broker, self.nodes[broker].life),
            to_broker: Pipe::default(),
            to_client: Pipe::default(),
            epoch: None,
            broken: false,
            taken: 0,
            answers: BTreeMap::new(),
            answered: 0,
        };
        self.produces.insert(id, stream);
        let at = &mut self.producers[number].lanes[lane];
        (at.stream, at.sent, at.heard) = (Some(id), 0, self.now);
        true
    }

    /// The leader of a partition as one of the brokers knows it, if it runs.
    pub(crate) fn ask_for_leader(&mut self, place: Place) -> Option<usize> {
        let asked = self.random.index(self.nodes.len());
        let image = &self.control.images[self.nodes[asked].learned as usize];
        let leader = image.topic_by_id(place.0)?.partition(place.1)?.leader? as usize - 1;
        (self.nodes[asked].up && self.nodes[leader].up).then_some(leader)
    }

    pub(crate) fn client_receives(&mut self, id: u64) {
        let Some(stream) = self.produces.get_mut(&id) else { return };
        let (number, lane, place) = (stream.producer, stream.lane, stream.place);
        let Some(message) = stream.to_client.receive() else { return };
        let plan = self.producers[number].plan.clone();
        let at = &mut self.producers[number].lanes[lane];
        if at.stream != Some(id) {
            return;
        }
        match message {
            ToClient::Answer(Ok(ack)) => {
                at.heard = self.now;
                at.acknowledge(ack.base_offset);
            }
            ToClient::Answer(Err(error)) => {
                self.note(format_args!("producer {number} is refused on {id}: {error}"));
                let unsure =
                    matches!(error, AppendError::NotLeader | AppendError::Offline(_) | AppendError::Closed);
                // What a leader alone acknowledged may be lost; and of batches that were deleted a replica that was
                // made since knows nothing. Neither can be made up for.
                let hopeless = plan.acks != Acks::All || self.has_deleted(place);
                let stuck = matches!(error, AppendError::Sequence(_)) && hopeless;
                self.drop_stream(number, lane, !unsure, plan.idempotent);
                if stuck && self.random.permille(300) {
                    self.producers[number].lanes[lane].give_up();
                }
            }
            ToClient::End => self.drop_stream(number, lane, false, plan.idempotent),
        }
    }

    /// Whether any replica's log starts after its first record.
    fn has_deleted(&self, place: Place) -> bool {
        let mut hosted = self.nodes.iter().filter_map(|node| node.replicas.get(&place));
        hosted.any(|hosted| hosted.replica.log().log_start() > 0)
    }

    fn drop_stream(&mut self, number: usize, lane: usize, refused: bool, idempotent: bool) {
        let at = &mut self.producers[number].lanes[lane];
        let stream = at.stream;
        at.lose_stream(refused, idempotent);
        if let Some(stream) = stream {
            self.end_produce(stream);
        }
    }

    /// The client's side of a stream ends; what is under way may arrive all the same.
    fn end_produce(&mut self, id: u64) {
        let delay = self.end_delay();
        let Some(stream) = self.produces.get_mut(&id) else { return };
        if self.random.permille(300) {
            stream.to_broker.tear(&mut self.random);
        }
        if let Some(at) = stream.to_broker.finish(ToBroker::End, self.now, delay) {
            self.schedule_at(at, Event::ToBroker(id));
        }
    }

    /// The connection breaks: the client hears of it, and of some of the answers that are under way.
    pub(crate) fn tear_produce(&mut self, id: u64) {
        let delay = self.end_delay();
        let Some(stream) = self.produces.get_mut(&id) else { return };
        stream.to_client.tear(&mut self.random);
        stream.to_broker.tear(&mut self.random);
        if let Some(at) = stream.to_client.finish(ToClient::End, self.now, delay) {
            self.schedule_at(at, Event::ToClient(id));
        }
    }
}
