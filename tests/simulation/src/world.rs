//! The world: one queue of events, one clock, one source of chance.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bus_metadata::Command;
use bus_protocol::{NodeId, TopicId};
use std::time::Duration;

use crate::client::Producer;
use crate::clock::{MS, SECOND, Time, VirtualClock};
use crate::control::{Answered, Control, Proposal};
use crate::invariants::high_watermark::HighWatermarks;
use crate::invariants::ledger::Ledger;
use crate::invariants::one_leader_per_epoch::Leaders;
use crate::invariants::{Check, Demands, Place, Violation};
use crate::mutation::Mutation;
use crate::network::Network;
use crate::node::Node;
use crate::plan::Plan;
use crate::random::Random;
use crate::reading::Reader;
use crate::stream::{Produce, Replication, ToFollower, ToLeader};
use crate::trace::Trace;

/// How long a member of the ISR may lack something.
pub(crate) const LAG: Duration = Duration::from_millis(500);

/// What happens at some moment.
#[derive(Debug)]
pub(crate) enum Event {
    // At the controller.
    Controller,
    Propose(Box<Proposal>),
    Decide,
    Decided(Box<Command>),
    // At a node.
    Answer(Box<Answered>),
    TimedOut { node: usize, life: u64, id: u64 },
    Learn { node: usize, index: u64 },
    Start { node: usize },
    Reboot { node: usize, life: u64 },
    Stop { node: usize, life: u64 },
    Tick { node: usize, life: u64 },
    Synced { node: usize, life: u64, place: Place },
    Follow { node: usize, life: u64, place: Place },
    Impatient { node: usize, life: u64, stream: u64 },
    // On a stream.
    ToLeader(u64),
    ToFollower(u64),
    ToBroker(u64),
    ToClient(u64),
    // At the clients.
    Produce(usize),
    Read(usize),
    // From outside.
    Fault,
    BringBack { place: Place, replicas: Vec<NodeId>, until: Time },
    Mend(Mend),
    Scrub { node: usize, place: Place },
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mend {
    Network,
    Room(usize),
    Hearing(usize),
}

struct Scheduled {
    at: Time,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What the invariants remember.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) ledgers: BTreeMap<Place, Ledger>,
    pub(crate) high_watermarks: HighWatermarks,
    pub(crate) leaders: Leaders,
    pub(crate) demands: BTreeMap<TopicId, Demands>,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) clock: VirtualClock,
    pub(crate) random: Random,
    pub(crate) plan: Plan,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) network: Network,
    pub(crate) control: Control,
    pub(crate) nodes: Vec<Node>,
    pub(crate) replications: BTreeMap<u64, Replication>,
    pub(crate) produces: BTreeMap<u64, Produce>,
    pub(crate) producers: Vec<Producer>,
    pub(crate) readers: Vec<Reader>,
    pub(crate) watch: Watch,
    /// Whose disk was replaced last, until all is in sync again.
    pub(crate) wiped: Option<usize>,
    /// Replicas with bytes that are not as they were written, which may not have been noticed yet.
    pub(crate) damaged: BTreeSet<(usize, Place)>,
    /// A leader found such bytes as it read for its followers.
    pub(crate) broken_read: Option<String>,
    pub(crate) violation: Option<Violation>,
    pub(crate) trace: Trace,
    queue: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
    streams: u64,
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Option<Mutation>, keep_lines: bool) -> Self {
        let mut random = Random::new(seed);
        let plan = Plan::of(&mut random);
        let clock = VirtualClock::default();
        let nodes = (1..=plan.nodes as u64).map(|id| Node::new(id, &clock, plan.tail_bytes)).collect();
        let network = Network::new(plan.nodes);
        let mut world = Self {
            now: 0,
            clock,
            random,
            plan,
            mutation,
            network,
            control: Control::new(),
            nodes,
            replications: BTreeMap::new(),
            produces: BTreeMap::new(),
            producers: Vec::new(),
            readers: Vec::new(),
            watch: Watch::default(),
            wiped: None,
            damaged: BTreeSet::new(),
            broken_read: None,
            violation: None,
            trace: Trace::new(keep_lines),
            queue: BinaryHeap::new(),
            number: 0,
            streams: 0,
        };
        let plan = world.plan.clone();
        world.note(format_args!("seed {seed:#x}: {plan:?}"));
        world.found();
        world
    }

    pub(crate) fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.note(self.now, what);
    }

    /// Takes note of a rule that does not hold; the first one ends the simulation.
    pub(crate) fn uphold(&mut self, check: Check) {
        if let Err(violation) = check
            && self.violation.is_none()
        {
            self.note(format_args!("VIOLATION {violation}"));
            self.violation = Some(violation);
        }
    }

    pub(crate) fn schedule(&mut self, delay: Time, event: Event) {
        self.schedule_at(self.now + delay, event);
    }

    pub(crate) fn schedule_at(&mut self, at: Time, event: Event) {
        self.number += 1;
        let at = at.max(self.now);
        self.queue.push(Reverse(Scheduled { at, number: self.number, event }));
    }

    pub(crate) fn delay(&mut self) -> Time {
        50 + self.random.within(0..self.plan.latency)
    }

    pub(crate) fn next_stream(&mut self) -> u64 {
        self.streams += 1;
        self.streams
    }

    /// Whether faults still come.
    pub(crate) fn chaotic(&self) -> bool {
        self.now < self.plan.chaos
    }

    /// Whether a node runs, and is not frozen.
    pub(crate) fn awake(&self, node: usize) -> bool {
        self.nodes[node].up && self.nodes[node].paused <= self.now
    }

    /// Runs until `until`, or until a rule is broken; `false` then.
    pub(crate) fn run_until(&mut self, until: Time) -> bool {
        while self.violation.is_none() && self.queue.peek().is_some_and(|Reverse(next)| next.at <= until) {
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now = next.at;
            self.clock.set(self.now);
            self.trace.happens(self.now, next.number);
            // A frozen node takes up all that came meanwhile, in order, when it goes on.
            let frozen = self.node_of(&next.event).map(|node| self.nodes[node].paused);
            match frozen.filter(|until| *until > self.now) {
                Some(until) => self.schedule_at(until, next.event),
                None => self.happen(next.event),
            }
            self.find_dead();
        }
        self.now = until.max(self.now);
        self.clock.set(self.now);
        self.violation.is_none()
    }

    /// At which node an event happens.
    fn node_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::TimedOut { node, .. }
            | Event::Learn { node, .. }
            | Event::Tick { node, .. }
            | Event::Synced { node, .. }
            | Event::Follow { node, .. }
            | Event::Stop { node, .. }
            | Event::Impatient { node, .. } => Some(*node),
            Event::Answer(answered) => Some(answered.node()),
            Event::ToLeader(id) => self.replications.get(id).map(|stream| stream.leader.0),
            Event::ToFollower(id) => self.replications.get(id).map(|stream| stream.follower.0),
            Event::ToBroker(id) => self.produces.get(id).map(|stream| stream.broker.0),
            _ => None,
        }
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node].up && self.nodes[node].life == life
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Controller => self.watch_over(),
            Event::Propose(proposal) => self.proposed(*proposal),
            Event::Decide => self.decide(),
            Event::Decided(command) => self.decided(*command),
            Event::Answer(answered) => self.answered(*answered),
            Event::TimedOut { node, life, id } => self.timed_out(node, life, id),
            Event::Learn { node, index } => self.learn(node, index),
            Event::Start { node } => self.start(node),
            Event::Reboot { node, life } if self.lives(node, life) => self.reboot(node),
            Event::Stop { node, life } if self.lives(node, life) => self.stop(node),
            Event::Tick { node, life } if self.lives(node, life) => self.tick(node),
            Event::Synced { node, life, place } if self.lives(node, life) => self.synced(node, place),
            Event::Follow { node, life, place } if self.lives(node, life) => self.follow(node, place),
            Event::Impatient { node, life, stream } if self.lives(node, life) => self.impatient(stream),
            Event::ToLeader(id) => self.arrive_at_leader(id),
            Event::ToFollower(id) => self.arrive_at_follower(id),
            Event::ToBroker(id) => self.broker_receives(id),
            Event::ToClient(id) => self.client_receives(id),
            Event::Produce(producer) => self.produce(producer),
            Event::Read(reader) => self.read(reader),
            Event::Fault => self.fault(),
            Event::BringBack { place, replicas, until } => self.bring_back(place, replicas, until),
            Event::Scrub { node, place } => self.scrub(node, place),
            Event::Mend(mend) => self.mend(mend),
            _ => {}
        }
    }

    // Replication streams. What meets a cut link waits, as packets are sent again and again.

    fn arrive_at_leader(&mut self, id: u64) {
        let Some(stream) = self.replications.get(&id) else { return };
        let (from, to, held) = (stream.follower.0, stream.leader.0, stream.held);
        if held > self.now {
            return self.schedule_at(held, Event::ToLeader(id));
        }
        let ends = matches!(stream.to_leader.front(), Some(ToLeader::End));
        if !ends && !self.network.connects(from, to) {
            return self.schedule(30 * MS, Event::ToLeader(id));
        }
        self.leader_receives(id);
    }

    fn arrive_at_follower(&mut self, id: u64) {
        let Some(stream) = self.replications.get(&id) else { return };
        let (from, to) = (stream.leader.0, stream.follower.0);
        let ends = matches!(stream.to_follower.front(), Some(ToFollower::End));
        if !ends && !self.network.connects(from, to) {
            return self.schedule(30 * MS, Event::ToFollower(id));
        }
        self.follower_receives(id);
    }

    pub(crate) fn send_to_leader(&mut self, id: u64, message: ToLeader) {
        let delay = self.delay();
        let Some(stream) = self.replications.get_mut(&id) else { return };
        if self.nodes[stream.follower.0].is_dead() {
            return;
        }
        if let Some(at) = stream.to_leader.send(message, self.now, delay) {
            self.schedule_at(at, Event::ToLeader(id));
        }
    }

    pub(crate) fn send_to_follower(&mut self, id: u64, message: ToFollower) {
        let delay = self.delay();
        let Some(stream) = self.replications.get_mut(&id) else { return };
        if self.nodes[stream.leader.0].is_dead() {
            return;
        }
        if let Some(at) = stream.to_follower.send(message, self.now, delay) {
            self.schedule_at(at, Event::ToFollower(id));
        }
    }

    pub(crate) fn end_to_leader(&mut self, id: u64) {
        let delay = self.end_delay();
        let Some(stream) = self.replications.get_mut(&id) else { return };
        if let Some(at) = stream.to_leader.finish(ToLeader::End, self.now, delay) {
            self.schedule_at(at, Event::ToLeader(id));
        }
    }

    pub(crate) fn end_to_follower(&mut self, id: u64) {
        let delay = self.end_delay();
        let Some(stream) = self.replications.get_mut(&id) else { return };
        stream.leader_done = true;
        if let Some(at) = stream.to_follower.finish(ToFollower::End, self.now, delay) {
            self.schedule_at(at, Event::ToFollower(id));
        }
        self.forget_stream(id);
    }

    /// Most ends are heard at once, some only when the connection has been idle for too long.
    pub(crate) fn end_delay(&mut self) -> Time {
        if self.random.permille(150) { self.random.within(0..2 * SECOND) } else { self.delay() }
    }

    /// Both sides are through with it.
    pub(crate) fn forget_stream(&mut self, id: u64) {
        if self.replications.get(&id).is_some_and(|stream| stream.leader_done && stream.follower_done) {
            self.replications.remove(&id);
        }
    }

    /// The connection of a stream breaks: a part of what is under way arrives, then both sides hear of the end.
    pub(crate) fn tear(&mut self, id: u64) {
        let Some(stream) = self.replications.get_mut(&id) else { return };
        stream.to_leader.tear(&mut self.random);
        stream.to_follower.tear(&mut self.random);
        self.note(format_args!("{id}: torn"));
        self.end_to_leader(id);
        self.end_to_follower(id);
    }

    /// A follower that waits for its stream to begin begins another.
    fn impatient(&mut self, id: u64) {
        if self.replications.get(&id).is_some_and(|stream| !stream.settled) {
            self.leave_stream(id);
        }
    }
}
