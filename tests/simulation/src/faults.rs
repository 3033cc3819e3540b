//! What goes wrong, within the bounds that the crate's README states.

use bus_log::storage::{Crash, Storage};
use bus_metadata::Command;
use bus_protocol::Durability;

use crate::clock::{MS, SECOND};
use crate::invariants::Place;
use crate::invariants::convergence::unsettled;
use crate::node::Node;
use crate::world::{Event, Mend, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    PowerLoss,
    DieWriting,
    Blackout,
    Wipe,
    Pause,
    Isolate,
    OneWayCut,
    TearReplication,
    TearProduce,
    FullDisk,
    FailedSync,
    Damage,
    CleanRestart,
    Drain,
    Reassign,
    AwayAndBack,
    DeleteBefore,
}

/// As often as they stand here.
const FAULTS: [Fault; 35] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Kill,
    Fault::PowerLoss,
    Fault::PowerLoss,
    Fault::PowerLoss,
    Fault::DieWriting,
    Fault::DieWriting,
    Fault::DieWriting,
    Fault::Blackout,
    Fault::Wipe,
    Fault::Wipe,
    Fault::Wipe,
    Fault::Pause,
    Fault::Pause,
    Fault::Isolate,
    Fault::Isolate,
    Fault::OneWayCut,
    Fault::OneWayCut,
    Fault::TearReplication,
    Fault::TearReplication,
    Fault::TearReplication,
    Fault::TearProduce,
    Fault::TearProduce,
    Fault::FullDisk,
    Fault::FailedSync,
    Fault::Damage,
    Fault::Damage,
    Fault::CleanRestart,
    Fault::CleanRestart,
    Fault::Drain,
    Fault::Reassign,
    Fault::AwayAndBack,
    Fault::AwayAndBack,
    Fault::DeleteBefore,
];

impl World {
    pub(crate) fn fault(&mut self) {
        if !self.chaotic() {
            return self.heal();
        }
        let delay = 10 * MS + self.random.within(0..self.plan.calm);
        self.schedule(delay, Event::Fault);
        let fault = *self.random.pick(&FAULTS);
        let node = self.random.index(self.nodes.len());
        if self.is_quiet() {
            self.wiped = None;
        }
        match fault {
            Fault::TearReplication => self.tear_some(),
            Fault::TearProduce => {
                let streams: Vec<u64> = self.produces.keys().copied().collect();
                if !streams.is_empty() {
                    let id = *self.random.pick(&streams);
                    self.tear_produce(id);
                }
            }
            Fault::Drain | Fault::Reassign | Fault::AwayAndBack | Fault::DeleteBefore => {
                self.administer(fault, node);
            }
            // One machine at a time: until the one that lost its disk, or a part of it, has said so.
            _ if !self.damaged.is_empty() => {}
            _ if self.wiped.is_some_and(|node| self.nodes[node].registered.is_none()) => {}
            Fault::FullDisk | Fault::FailedSync => self.hurt_disk(fault, node),
            Fault::Damage => self.damage(node),
            Fault::Pause | Fault::Isolate | Fault::OneWayCut => self.disturb(fault, node),
            _ => self.end(fault, node),
        }
    }

    /// Everything up, connected and in sync: what one machine has, others have.
    pub(crate) fn is_quiet(&self) -> bool {
        let whole = |node: usize| {
            let at = &self.nodes[node];
            let broker = self.control.image().broker(at.id);
            self.awake(node)
                && !at.suspect
                && !at.stopping
                && at.registered.is_some()
                && broker.is_some_and(|broker| Some(broker.epoch) == at.registered)
        };
        let nodes = 0..self.nodes.len();
        let connected = nodes.clone().all(|a| nodes.clone().all(|b| self.network.connects(a, b)));
        connected
            && self.damaged.is_empty()
            && nodes.clone().all(whole)
            && unsettled(self.control.image()).is_none()
    }

    fn durability_is_memory(&self) -> bool {
        self.watch.demands.values().any(|demands| demands.durability == Durability::Replicated)
    }

    /// Whether `node` alone holds something, or may come to before it is found to have lost it: an ISR that one replica is
    /// enough for shrinks to it while nobody knows.
    fn is_alone(&self, node: usize) -> bool {
        let id = self.nodes[node].id;
        self.control.image().topics().any(|topic| {
            let enough = self.watch.demands.get(&topic.id).map_or(1, |demands| demands.min_isr);
            let mut partitions = topic.partitions.iter();
            partitions
                .any(|partition| partition.replicas.contains(&id) && partition.isr.len().min(enough) < 2)
        })
    }

    fn end(&mut self, fault: Fault, node: usize) {
        let seed = self.random.next();
        let power = if self.random.permille(300) { Crash::DropUnsynced } else { Crash::Torn(seed) };
        let losing = self.is_quiet() && !self.is_alone(node);
        match fault {
            Fault::Kill => self.kill(node, Crash::ProcessOnly),
            Fault::PowerLoss if !self.durability_is_memory() => self.kill(node, power),
            Fault::DieWriting => {
                let changes = self.random.within(0..40) as u32;
                self.note(format_args!("node {} dies after {changes} more changes of its disk", node + 1));
                self.nodes[node].disk.die_after(Some(changes));
                self.nodes[node].dying = true;
                return;
            }
            Fault::PowerLoss if losing => {
                self.kill(node, power);
                self.loses(node);
            }
            Fault::Blackout if !self.durability_is_memory() => {
                for node in 0..self.nodes.len() {
                    self.kill(node, power);
                    let delay = self.random.within(50..3_000) * MS;
                    self.schedule(delay, Event::Start { node });
                }
                return;
            }
            Fault::Wipe if losing => {
                self.kill(node, Crash::ProcessOnly);
                self.nodes[node].wipe();
                self.damaged.retain(|(damaged, _)| *damaged != node);
                self.loses(node);
                self.note(format_args!("node {} loses its disk", node + 1));
            }
            Fault::CleanRestart if self.nodes[node].up && !self.nodes[node].stopping => {
                return self.leave(node);
            }
            _ => return,
        }
        let delay = self.random.within(20..3_000) * MS;
        self.schedule(delay, Event::Start { node });
    }

    /// Who died in the middle of what it wrote is found dead.
    pub(crate) fn find_dead(&mut self) {
        for node in 0..self.nodes.len() {
            if !self.nodes[node].up || !self.nodes[node].is_dead() {
                continue;
            }
            let crash = self.crash();
            self.kill(node, crash);
            let delay = self.random.within(20..3_000) * MS;
            self.schedule(delay, Event::Start { node });
        }
    }

    /// How a machine dies in the middle of what it writes.
    pub(crate) fn crash(&mut self) -> Crash {
        let seed = self.random.next();
        match seed % 3 {
            1 if !self.durability_is_memory() => Crash::DropUnsynced,
            2 if !self.durability_is_memory() => Crash::Torn(seed),
            _ => Crash::ProcessOnly,
        }
    }

    /// One machine at a time: what was yet to come over another does not.
    fn loses(&mut self, node: usize) {
        self.wiped = Some(node);
        self.nodes.iter_mut().for_each(Node::spare);
    }

    fn disturb(&mut self, fault: Fault, node: usize) {
        let span = self.random.within(20..4_000) * MS;
        self.note(format_args!("{fault:?} of node {} for {span}", node + 1));
        match fault {
            Fault::Pause => self.nodes[node].paused = self.now + span,
            Fault::Isolate => self.network.isolate(node),
            _ => {
                let other = self.random.index(self.nodes.len());
                self.network.cut(node, other);
            }
        }
        if fault != Fault::Pause {
            self.schedule(span, Event::Mend(Mend::Network));
            // The transport finds a peer silent in the end.
            if self.random.permille(600) {
                self.tear_some();
            }
        }
    }

    fn tear_some(&mut self) {
        let streams: Vec<u64> = self.replications.keys().copied().collect();
        if !streams.is_empty() {
            let id = *self.random.pick(&streams);
            self.tear(id);
        }
    }

    fn hurt_disk(&mut self, fault: Fault, node: usize) {
        if fault == Fault::FullDisk {
            let room = self.random.within(0..20_000);
            self.note(format_args!("node {} has room for {room} bytes", node + 1));
            self.nodes[node].disk.set_room(Some(room));
            let span = self.random.within(100..3_000) * MS;
            self.schedule(span, Event::Mend(Mend::Room(node)));
        } else if !self.durability_is_memory() && self.nodes[node].up {
            self.note(format_args!("a sync of node {} will fail", node + 1));
            self.nodes[node].disk.fail_syncs(1);
        }
    }

    /// A byte of one replica's oldest segment turns over, without anybody noticing.
    fn damage(&mut self, node: usize) {
        if !self.is_quiet() || self.is_alone(node) {
            return;
        }
        let places: Vec<Place> = self.nodes[node].replicas.keys().copied().collect();
        if places.is_empty() {
            return;
        }
        let place = *self.random.pick(&places);
        let disk = self.nodes[node].disk.clone();
        let dir = Node::dir(place);
        let mut files: Vec<String> = disk.list(&dir).unwrap_or_default();
        files.retain(|name| name.ends_with(".log"));
        files.sort_unstable();
        // All of a segment that has a successor: what comes next lies elsewhere, and can be read.
        let [first, next, ..] = &files[..] else { return };
        let ledger = self.watch.ledgers.entry(place).or_default();
        if next.trim_end_matches(".log").parse::<i64>().is_ok_and(|base| base > ledger.end()) {
            return;
        }
        let path = dir.join(first);
        let Some(mut bytes) = disk.contents(&path).filter(|bytes| !bytes.is_empty()) else { return };
        let at = self.random.index(bytes.len());
        bytes[at] ^= 1 << self.random.index(8);
        self.note(format_args!("byte {at} of {} turns over on node {}", path.display(), node + 1));
        disk.set_contents(&path, bytes);
        self.damaged.insert((node, place));
        self.loses(node);
        let delay = self.random.within(10..2_000) * MS;
        self.schedule(delay, Event::Scrub { node, place });
    }

    /// Somebody reads what is damaged, if nobody has yet.
    pub(crate) fn scrub(&mut self, node: usize, place: Place) {
        if self.damaged.contains(&(node, place)) {
            self.go_offline(node, place, "a byte has turned over");
        }
    }

    fn administer(&mut self, fault: Fault, node: usize) {
        let image = self.control.image().clone();
        let places: Vec<Place> = image
            .topics()
            .flat_map(|topic| (0..topic.partitions.len() as u32).map(|number| (topic.id, number)))
            .collect();
        if places.is_empty() {
            return;
        }
        let place = *self.random.pick(&places);
        match fault {
            Fault::AwayAndBack => self.send_away(place),
            Fault::Drain => {
                let id = self.nodes[node].id;
                let drained = !image.is_drained(id);
                drop(self.apply(Command::DrainBroker { node: id, drained }));
            }
            Fault::Reassign => {
                let Some(partition) = image.topic_by_id(place.0).and_then(|topic| topic.partition(place.1))
                else {
                    return;
                };
                let wanted = partition.wanted().len();
                let mut nodes: Vec<u64> = self.nodes.iter().map(|node| node.id).collect();
                let replicas = (0..wanted).map(|_| nodes.remove(self.random.index(nodes.len()))).collect();
                drop(self.apply(Command::Reassign {
                    changes: vec![(place.0, place.1, replicas)],
                    throttle: None,
                }));
            }
            _ => {
                let Some(leader) = self.ask_for_leader(place).filter(|leader| self.awake(*leader)) else {
                    return;
                };
                let Some(hosted) = self.nodes[leader].replicas.get_mut(&place) else { return };
                if hosted.replica.leads() && !hosted.offline {
                    let below = hosted.replica.high_watermark() / 2;
                    let done = hosted.replica.delete_before(below);
                    self.note(format_args!("{place:?} is to start at {below}: {done:?}"));
                    self.settle(leader, place, Vec::new());
                }
            }
        }
    }

    pub(crate) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Network => {
                self.note(format_args!("the network is whole"));
                self.network.heal();
            }
            Mend::Room(node) => self.nodes[node].disk.set_room(None),
            Mend::Hearing(node) => self.learn(node, self.control.image().index()),
        }
    }

    /// All faults are over.
    fn heal(&mut self) {
        self.note(format_args!("faults are over"));
        self.network.heal();
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.set_room(None);
            self.nodes[node].spare();
            self.nodes[node].paused = self.now;
            self.schedule(4 * SECOND, Event::Start { node });
        }
        self.producers.iter_mut().for_each(crate::client::Producer::hurry);
        self.plan.loss = 0;
        self.plan.sync = self.plan.sync.min(20 * MS);
    }
}
