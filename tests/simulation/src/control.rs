//! The cluster's metadata, with Raft taken for granted: one log of commands, to which whoever reaches the controller
//! appends, and which every node learns some time later. A proposal may be lost before or after it was applied; then
//! nobody knows.

use std::collections::BTreeMap;

use bus_metadata::{Applied, Command, IsrChange, MetadataImage, Registration, Rejected, controller};
use bus_protocol::NodeId;
use bus_replica::IsrProposal;

use crate::clock::{MS, SECOND, Time};
use crate::invariants::isr_by_compare_and_set::newcomers;
use crate::invariants::ledger::Ledger;
use crate::invariants::{Place, election_from_isr, isr_by_compare_and_set};
use crate::mutation::Mutation;
use crate::world::{Event, World};

const SESSION: Time = SECOND;
const ELECTION: Time = 300 * MS;
const PROPOSAL: Time = 1_500 * MS;

/// What a node has asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Purpose {
    Register,
    Unfence,
    Leave,
    Isr(Place, IsrProposal),
    Lost(Place),
}

/// A command on its way to the controller.
#[derive(Debug)]
pub(crate) struct Proposal {
    id: u64,
    node: usize,
    life: u64,
    command: Command,
}

/// What comes back.
#[derive(Debug)]
pub(crate) struct Answered {
    id: u64,
    node: usize,
    life: u64,
    index: u64,
    result: Result<Applied, Rejected>,
}

/// The log, as the images that it led to: the one at place `i` has index `i`.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) images: Vec<MetadataImage>,
    /// The node that the controller runs on, and since when.
    pub(crate) leader: Option<(usize, Time)>,
    heard: BTreeMap<NodeId, Time>,
    next: u64,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self { images: vec![MetadataImage::default()], leader: None, heard: BTreeMap::new(), next: 0 }
    }

    pub(crate) fn image(&self) -> &MetadataImage {
        &self.images[self.images.len() - 1]
    }
}

impl Answered {
    pub(crate) fn node(&self) -> usize {
        self.node
    }
}

impl World {
    /// Applies a command, and lets all know.
    pub(crate) fn apply(&mut self, command: Command) -> (u64, Result<Applied, Rejected>) {
        let index = self.control.images.len() as u64;
        let before = self.control.image().clone();
        let mut after = before.clone();
        let bent = self.bend(command.clone(), &before);
        let result = after.apply(index, bent);
        self.note(format_args!("#{index} {command:?} -> {result:?}"));
        self.uphold(isr_by_compare_and_set::check(&command, &result, &before, &after));
        self.uphold(election_from_isr::check(&before, &after));
        let newcomers = newcomers(&command, &result, &before);
        newcomers.into_iter().for_each(|newcomer| self.check_newcomer(newcomer));
        self.control.images.push(after);
        for node in 0..self.nodes.len() {
            let late = self.random.permille(50);
            let delay = if late { self.random.within(0..SECOND) } else { self.delay() };
            self.schedule(delay, Event::Learn { node, index });
        }
        let delay = self.delay();
        self.schedule(delay, Event::Decide);
        (index, result)
    }

    /// Looks at a replica that has joined the ISR, where its node runs in the registration in which it was seen in sync.
    fn check_newcomer(&mut self, (place, member, epoch): (Place, NodeId, u64)) {
        let at = &self.nodes[member as usize - 1];
        let Some(demands) = self.watch.demands.get(&place.0).filter(|_| at.registered == Some(epoch)) else {
            return;
        };
        let kept = at.replicas.get(&place).map(|hosted| demands.kept(&hosted.replica));
        let committed = self.watch.ledgers.get(&place).map_or(0, Ledger::end);
        self.uphold(isr_by_compare_and_set::check_newcomer((member, place), kept, committed));
    }

    /// The command as a broken controller takes it.
    fn bend(&self, mut command: Command, image: &MetadataImage) -> Command {
        let partition_of = |topic, number| image.topic_by_id(topic)?.partition(number).cloned();
        match (&mut command, self.mutation) {
            (Command::AlterPartitions { changes, .. }, Some(Mutation::StaleBrokerEpochIntoIsr)) => {
                for (member, epoch) in changes.iter_mut().flat_map(|change| &mut change.isr) {
                    *epoch = image.broker(*member).map_or(*epoch, |broker| broker.epoch);
                }
            }
            (Command::AlterPartitions { changes, .. }, Some(Mutation::CompareAndSetIgnored)) => {
                for change in changes {
                    if let Some(partition) = partition_of(change.topic, change.partition) {
                        change.partition_epoch = partition.partition_epoch;
                    }
                }
            }
            (Command::ChangePartitions { changes }, Some(Mutation::CompareAndSetIgnored)) => {
                for change in changes {
                    if let Some(partition) = partition_of(change.topic, change.partition) {
                        change.partition_epoch = partition.partition_epoch;
                    }
                }
            }
            _ => {}
        }
        command
    }

    pub(crate) fn propose(&mut self, node: usize, command: Command, purpose: Purpose) {
        if self.nodes[node].is_dead() {
            return;
        }
        let id = self.control.next;
        self.control.next += 1;
        self.nodes[node].pending.insert(id, purpose);
        let life = self.nodes[node].life;
        let delay = self.delay();
        self.schedule(delay, Event::Propose(Box::new(Proposal { id, node, life, command })));
        self.schedule(PROPOSAL, Event::TimedOut { node, life, id });
    }

    /// A proposal arrives, or does not.
    pub(crate) fn proposed(&mut self, proposal: Proposal) {
        let Proposal { id, node, life, command } = proposal;
        let Some(controller) = self.controller().filter(|at| self.network.connects(node, *at)) else {
            return;
        };
        // What else a machine had asked for that has lost its disk since is of no use to anybody.
        let late = self.nodes[node].life != life && self.wiped == Some(node);
        let registers = matches!(command, Command::RegisterBroker { .. });
        if self.random.permille(self.plan.loss) || (late && !registers) {
            return;
        }
        let (index, result) = self.apply(command);
        if self.random.permille(self.plan.loss) || !self.network.reaches(controller, node) {
            return;
        }
        let delay = self.delay();
        self.schedule(delay, Event::Answer(Box::new(Answered { id, node, life, index, result })));
    }

    /// The node that the controller runs on, if it is in office.
    fn controller(&self) -> Option<usize> {
        let (node, since) = self.control.leader?;
        (self.now >= since + ELECTION && self.awake(node)).then_some(node)
    }

    /// What the controller's node does every now and then: who leads, and who is silent.
    pub(crate) fn watch_over(&mut self) {
        self.schedule(50 * MS, Event::Controller);
        let nodes = self.nodes.len();
        let has_majority = |world: &Self, node: usize| {
            let reached = |other: &usize| world.awake(*other) && world.network.connects(node, *other);
            world.awake(node) && (0..nodes).filter(reached).count() > nodes / 2
        };
        let holds = self.control.leader.is_some_and(|(node, _)| has_majority(self, node));
        if !holds {
            let next = (0..nodes).find(|node| has_majority(self, *node));
            self.control.leader = next.map(|node| (node, self.now));
            self.control.heard.clear();
            if let Some(node) = next {
                self.note(format_args!("node {} is the controller", node + 1));
            }
        }
        let Some(controller) = self.controller() else { return };
        for node in 0..nodes {
            let id = self.nodes[node].id;
            let heard = *self.control.heard.entry(id).or_insert(self.now);
            let alive = self.awake(node) && self.network.connects(node, controller);
            if alive && self.nodes[node].registered.is_some() {
                self.control.heard.insert(id, self.now);
            }
            let wrong = self.random.permille(1) && self.chaotic() && self.wiped.is_none();
            if let Some(broker) = self.control.image().broker(id).filter(|broker| !broker.fenced)
                && (wrong || self.now - heard > SESSION)
            {
                let epoch = broker.epoch;
                drop(self.apply(Command::FenceBroker { node: id, epoch }));
            }
        }
        if controller::decide(self.control.image()).is_some() {
            self.schedule(MS, Event::Decide);
        }
    }

    /// The controller looks at the metadata, which may be newer by the time its choice arrives.
    pub(crate) fn decide(&mut self) {
        if self.controller().is_none() {
            return;
        }
        let newest = self.control.images.len() - 1;
        let old = if self.random.permille(200) { self.random.index(3) } else { 0 };
        let image = &self.control.images[newest.saturating_sub(old)];
        if let Some(command) = controller::decide(image) {
            let delay = self.delay();
            self.schedule(delay, Event::Decided(Box::new(command)));
        }
    }

    pub(crate) fn decided(&mut self, command: Command) {
        if self.controller().is_some() && !self.random.permille(self.plan.loss) {
            drop(self.apply(command));
        }
    }

    /// An entry of the log reaches a node.
    pub(crate) fn learn(&mut self, node: usize, index: u64) {
        let at = &self.nodes[node];
        if !at.up || index <= at.learned || at.deaf > self.now {
            return;
        }
        let reached = self.controller().is_some_and(|at| self.network.reaches(at, node));
        if reached {
            self.learn_to(node, index);
        } else {
            let delay = self.random.within(20..100) * MS;
            self.schedule(delay, Event::Learn { node, index });
        }
    }

    pub(crate) fn learn_to(&mut self, node: usize, index: u64) {
        if index > self.nodes[node].learned {
            self.nodes[node].learned = index;
            self.reconcile(node);
        }
    }

    /// What the controller answers. Whoever asked looks at the metadata first, up to where the answer was given: what
    /// was refused may have been applied the time before, when the answer was lost.
    pub(crate) fn answered(&mut self, answered: Answered) {
        let Answered { id, node, life, index, result } = answered;
        if self.nodes[node].life != life || !self.nodes[node].up {
            return;
        }
        let Some(purpose) = self.nodes[node].pending.remove(&id) else { return };
        if let (Purpose::Register, Ok(Applied::Broker { epoch })) = (&purpose, &result) {
            self.nodes[node].registered = Some(*epoch);
        }
        self.learn_to(node, index);
        match purpose {
            Purpose::Register if result.is_err() => self.register(node),
            Purpose::Register => {
                self.reconcile(node);
                self.unfence(node);
            }
            Purpose::Isr(place, proposal) => {
                let applied =
                    matches!(&result, Ok(Applied::Partitions(results)) if results.iter().all(Result::is_ok));
                if !applied {
                    self.isr_refused(node, place, &proposal);
                }
            }
            Purpose::Lost(place) => {
                if let Some(hosted) = self.nodes[node].replicas.get_mut(&place) {
                    hosted.reported = true;
                }
            }
            Purpose::Unfence | Purpose::Leave => {}
        }
    }

    /// Nobody knows what became of it.
    pub(crate) fn timed_out(&mut self, node: usize, life: u64, id: u64) {
        if self.nodes[node].life != life {
            return;
        }
        let Some(purpose) = self.nodes[node].pending.remove(&id) else { return };
        match purpose {
            Purpose::Register => self.register(node),
            Purpose::Isr(place, proposal) => {
                let hosted = self.nodes[node].replicas.get(&place);
                if hosted.is_some_and(|hosted| hosted.proposed.as_ref() == Some(&proposal)) {
                    self.ask_isr(node, place, proposal);
                }
            }
            Purpose::Unfence | Purpose::Leave | Purpose::Lost(_) => {}
        }
    }

    pub(crate) fn register(&mut self, node: usize) {
        let at = &self.nodes[node];
        let broker = Registration {
            node: at.id,
            address: format!("node-{}:9092", at.id),
            rack: None,
            directory: at.directory_id(),
            clean: at.clean,
            renewed: true,
        };
        let known = self.control.images[at.learned as usize].broker(at.id);
        let follows = known.map(|before| before.epoch);
        self.propose(node, Command::RegisterBroker { broker, follows }, Purpose::Register);
    }

    /// Asks to be counted in, where the metadata that the node knows has it fenced.
    pub(crate) fn unfence(&mut self, node: usize) {
        let at = &self.nodes[node];
        let Some(epoch) = at.registered.filter(|_| !at.stopping) else { return };
        let known = self.control.images[at.learned as usize].broker(at.id);
        let asked = at.pending.values().any(|purpose| *purpose == Purpose::Unfence);
        if !asked && known.is_some_and(|broker| broker.fenced && broker.epoch == epoch) {
            let id = at.id;
            self.propose(node, Command::UnfenceBroker { node: id, epoch }, Purpose::Unfence);
        }
    }

    pub(crate) fn ask_isr(&mut self, node: usize, place: Place, proposal: IsrProposal) {
        let at = &self.nodes[node];
        let Some(epoch) = at.registered else { return };
        let change = IsrChange {
            topic: place.0,
            partition: place.1,
            leader_epoch: proposal.leader_epoch,
            partition_epoch: proposal.partition_epoch,
            isr: proposal.isr.clone(),
        };
        let command = Command::AlterPartitions { node: at.id, epoch, changes: vec![change] };
        self.propose(node, command, Purpose::Isr(place, proposal));
    }
}
