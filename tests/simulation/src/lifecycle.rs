//! Nodes start, run what the metadata says, and end in all the ways there are.

use bus_log::storage::Crash;
use bus_log::{Log, LogConfig};
use bus_metadata::Command;
use bus_protocol::Clock;
use bus_protocol::request::CreateTopic;
use bus_replica::{Replica, Role};

use crate::client::Producer;
use crate::clock::{MS, SECOND};
use crate::control::Purpose;
use crate::invariants::{Demands, Place, Seen, election_from_isr, violated};
use crate::mutation::Mutation;
use crate::node::{Hosted, Node, stay};
use crate::reading::Reader;
use crate::world::{Event, World};

/// A role, in short.
struct Said<'a>(&'a Role);

impl std::fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Role { leader, epoch, partition_epoch, replicas, isr, .. } = self.0;
        write!(f, "leader {leader:?}, epochs {epoch} {partition_epoch}, replicas {replicas:?}, ISR {isr:?}")
    }
}

impl World {
    /// The cluster is formed, its topics made, its clients started.
    pub(crate) fn found(&mut self) {
        for node in 0..self.nodes.len() {
            self.schedule(MS, Event::Start { node });
        }
        self.schedule(2 * MS, Event::Controller);
        let up = |world: &Self| world.control.image().brokers().filter(|broker| !broker.fenced).count();
        while up(self) < self.nodes.len() && self.now < 60 * SECOND {
            let until = self.now + 100 * MS;
            self.run_until(until);
        }
        let topics = self.plan.topics.clone();
        let mut places = Vec::new();
        for (number, topic) in topics.iter().enumerate() {
            let mut config = vec![
                ("min.insync.replicas".to_owned(), topic.min_isr.to_string()),
                ("segment.bytes".to_owned(), (16 << 10).to_string()),
                ("durability".to_owned(), format!("{:?}", topic.durability).to_lowercase()),
            ];
            if let Some(bytes) = topic.retention_bytes {
                config.push(("retention.bytes".to_owned(), bytes.to_string()));
            }
            if let Some(ms) = topic.retention_ms {
                config.push(("retention.ms".to_owned(), ms.to_string()));
            }
            if self.mutation == Some(Mutation::ElectionOutsideIsr) {
                config.push(("unclean.leader.election.enable".to_owned(), "true".to_owned()));
            }
            let name = format!("topic-{number}");
            let command = Command::CreateTopic(CreateTopic {
                topic: name.parse().unwrap_or_else(|error| unreachable!("a plain name: {error}")),
                partitions: topic.partitions,
                replicas: topic.replicas,
                config: config.into_iter().collect(),
                if_not_exists: false,
            });
            let (_, applied) = self.apply(command);
            let Ok(bus_metadata::Applied::Topic { id, .. }) = applied else {
                let check = violated("convergence", format!("no topic can be made: {applied:?}"));
                return self.uphold(check);
            };
            let demands = Demands { min_isr: topic.min_isr as usize, durability: topic.durability };
            self.watch.demands.insert(id, demands);
            places.extend((0..topic.partitions).map(|partition| (id, partition)));
        }
        for (number, plan) in self.plan.producers.clone().into_iter().enumerate() {
            self.producers.push(Producer::new(number as u32, plan, &places));
            self.schedule(100 * MS, Event::Produce(number));
        }
        for number in 0..self.plan.readers {
            self.readers.push(Reader::new(&places));
            self.schedule(200 * MS, Event::Read(number));
        }
        self.plan.chaos += self.now;
        self.schedule(200 * MS, Event::Fault);
    }

    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        self.nodes[node].begin();
        let life = self.nodes[node].life;
        self.note(format_args!("node {} starts, life {life}", node + 1));
        self.register(node);
        self.schedule(100 * MS, Event::Tick { node, life });
    }

    /// Starts and stops replicas until they are what the metadata that the node knows says.
    pub(crate) fn reconcile(&mut self, node: usize) {
        let Some(epoch) = self.nodes[node].registered else { return };
        let image = self.control.images[self.nodes[node].learned as usize].clone();
        // An image from before this life says nothing of it.
        let known = image.broker(self.nodes[node].id).is_some_and(|broker| broker.epoch >= epoch);
        if !known && self.mutation != Some(Mutation::LeadsInOldEpoch) {
            return;
        }
        let places: Vec<Place> = image
            .topics()
            .flat_map(|topic| (0..topic.partitions.len() as u32).map(|number| (topic.id, number)))
            .collect();
        for place in places {
            let role = self.nodes[node].role(&image, place, self.mutation);
            match (role, self.nodes[node].replicas.contains_key(&place)) {
                (Some(role), true) if self.is_offline(node, place) => self.repair(node, place, role),
                (Some(role), true) => self.configure(node, place, role),
                (Some(role), false) => self.open(node, place, role),
                (None, true) => self.delete(node, place),
                (None, false) => {}
            }
        }
    }

    fn is_offline(&self, node: usize, place: Place) -> bool {
        self.nodes[node].replicas.get(&place).is_some_and(|hosted| hosted.offline)
    }

    fn open(&mut self, node: usize, place: Place, role: Role) {
        let now = self.clock.monotonic();
        let at = &mut self.nodes[node];
        if at.suspect || at.is_dead() {
            return;
        }
        let log = match Log::open(&at.env, Node::dir(place), LogConfig::from(&role.config)) {
            Ok(log) => log,
            Err(_) if at.is_dead() => return,
            Err(error @ bus_log::Error::Damaged { .. }) => {
                let check = violated("recovery", format!("of {place:?} on node {}: {error}", node + 1));
                return self.uphold(check);
            }
            Err(error) => {
                // A full disk is tried again; after a failed sync only a machine that has started anew knows more.
                at.suspect = !matches!(error, bus_log::Error::Full { .. });
                if at.suspect {
                    let (life, delay) = (at.life, self.random.within(300..4_000) * MS);
                    self.schedule(delay, Event::Reboot { node, life });
                }
                return self.note(format_args!("node {} cannot open {place:?}: {error}", node + 1));
            }
        };
        let lost = log.recovery().lost_stored;
        let (start, end) = (log.log_start(), log.log_end());
        let hint = at.hints.get(&place).copied().unwrap_or_default();
        let hosted = Hosted::new(Replica::new(log, role.clone(), hint, now));
        at.replicas.insert(place, hosted);
        let id = at.id;
        self.watch.high_watermarks.forget(id, place);
        self.note(format_args!("node {id} opens {place:?} with {start}..{end} as {}", Said(&role)));
        if let Some(stored) = lost {
            let what = format!("{place:?} on node {id} ends at {end}, and {stored} had been stored");
            self.uphold(violated("recovery", what));
        }
        self.took_role(node, place);
        self.settle(node, place, Vec::new());
    }

    /// A replica that is offline is told no role. A damaged one is emptied, to be had anew from its leader: once it is
    /// out of the ISR, and follows as another than it last did. Before, its leader may take it for in sync by what it
    /// said, and an empty one in the ISR could be elected.
    fn repair(&mut self, node: usize, place: Place, role: Role) {
        let Some(hosted) = self.nodes[node].replicas.get(&place) else { return };
        let counts =
            self.mutation != Some(Mutation::SinceIgnored) && stay(hosted.replica.role()) == stay(&role);
        let in_sync = role.isr.contains(&role.node);
        if !self.damaged.contains(&(node, place)) || in_sync || stay(&role).is_none() || counts {
            return;
        }
        self.end_streams(node, place);
        self.nodes[node].replicas.remove(&place);
        self.nodes[node].hints.remove(&place);
        let discarded = bus_log::discard(&self.nodes[node].disk, &Node::dir(place));
        self.note(format_args!("node {} empties {place:?}: {discarded:?}", node + 1));
        if discarded.is_ok() {
            self.damaged.remove(&(node, place));
            self.open(node, place, role);
        }
    }

    /// Ends what a replica follows on, and what follows on it.
    fn end_streams(&mut self, node: usize, place: Place) {
        if let Some(stream) = self.nodes[node].replicas.get(&place).and_then(|hosted| hosted.stream) {
            self.leave_stream(stream);
        }
        self.end_pushes(node, place);
    }

    fn configure(&mut self, node: usize, place: Place, role: Role) {
        let now = self.clock.monotonic();
        let Some(hosted) = self.nodes[node].replicas.get_mut(&place) else { return };
        if *hosted.replica.role() == role {
            return;
        }
        let (moved, stays) = {
            let old = hosted.replica.role();
            ((old.epoch, old.leader) != (role.epoch, role.leader), stay(old) == stay(&role))
        };
        let answers = hosted.replica.configure(role.clone(), now);
        hosted.proposed.take_if(|proposed| moved || proposed.partition_epoch < role.partition_epoch);
        self.note(format_args!("node {} takes on {place:?} {}", node + 1, Said(&role)));
        if moved {
            self.end_streams(node, place);
            self.took_role(node, place);
        } else if !stays
            && let Some(stream) = self.nodes[node].replicas.get(&place).and_then(|hosted| hosted.stream)
        {
            self.leave_stream(stream);
        }
        self.settle(node, place, answers);
    }

    fn took_role(&mut self, node: usize, place: Place) {
        self.follow_later(node, place);
        let partition = self.control.image().topic_by_id(place.0).and_then(|topic| topic.partition(place.1));
        let newest = partition.map_or(-1, |partition| partition.leader_epoch);
        self.seen(node, place, |seen, watch| {
            watch.leaders.observe(seen)?;
            // One that hears late that it led has less than its successors.
            if seen.replica.leads() && seen.replica.role().epoch == newest {
                let ledger = watch.ledgers.entry(place).or_default();
                election_from_isr::check_leader(seen, ledger)?;
            }
            Ok(())
        });
    }

    /// Looks at a replica after an event.
    pub(crate) fn observe(&mut self, node: usize, place: Place) {
        self.seen(node, place, |seen, watch| {
            let ledger = watch.ledgers.entry(place).or_default();
            watch.high_watermarks.observe(seen, ledger)
        });
    }

    fn seen(
        &mut self,
        node: usize,
        place: Place,
        check: impl FnOnce(&Seen<'_>, &mut crate::world::Watch) -> crate::invariants::Check,
    ) {
        let damaged = self.damaged.contains(&(node, place));
        let at = &self.nodes[node];
        let (Some(hosted), Some(demands)) = (at.replicas.get(&place), self.watch.demands.get(&place.0))
        else {
            return;
        };
        let proposed = hosted.proposed.as_ref().map(|proposal| &proposal.isr[..]);
        let (node, life, replica, demands) = (at.id, at.life, &hosted.replica, *demands);
        let seen = Seen { node, life, place, replica, demands, proposed, damaged };
        let check = check(&seen, &mut self.watch);
        self.uphold(check);
    }

    fn delete(&mut self, node: usize, place: Place) {
        self.end_streams(node, place);
        let Some(hosted) = self.nodes[node].replicas.remove(&place) else { return };
        self.nodes[node].hints.remove(&place);
        self.damaged.remove(&(node, place));
        let (answers, deleted) = hosted.replica.delete();
        self.note(format_args!("node {} deletes {place:?}: {deleted:?}", node + 1));
        let id = self.nodes[node].id;
        self.watch.high_watermarks.forget(id, place);
        self.publish(answers);
    }

    /// What a broker does a few times a second.
    pub(crate) fn tick(&mut self, node: usize) {
        let life = self.nodes[node].life;
        self.schedule(100 * MS, Event::Tick { node, life });
        self.unfence(node);
        let hints = self.random.permille(100);
        let places: Vec<Place> = self.nodes[node].replicas.keys().copied().collect();
        for place in places {
            let now = self.clock.timestamp();
            let Some(hosted) = self.nodes[node].replicas.get_mut(&place) else { continue };
            let high_watermark = hosted.replica.high_watermark();
            if hosted.offline {
                if !hosted.reported {
                    self.report_lost(node, place);
                }
                continue;
            }
            if hints {
                // Full disks and the like: it is tried again.
                let _ = hosted.replica.maintain(now);
                self.nodes[node].hints.insert(place, high_watermark);
            }
            self.follow(node, place);
            self.settle(node, place, Vec::new());
        }
        // Replicas that could not be opened.
        self.reconcile(node);
    }

    /// The process dies at once; `crash` says what its machine keeps.
    pub(crate) fn kill(&mut self, node: usize, crash: Crash) {
        if !self.nodes[node].up {
            return;
        }
        // A page that a failed sync marked clean must not be taken for one that is on the disk.
        let crash = if self.nodes[node].suspect { Crash::DropUnsynced } else { crash };
        self.note(format_args!("node {} dies: {crash:?}", node + 1));
        let life = self.nodes[node].life;
        self.nodes[node].die();
        self.nodes[node].suspect = false;
        self.nodes[node].disk.crash(crash);
        let ids: Vec<u64> = self.replications.keys().copied().collect();
        for id in ids {
            let Some(stream) = self.replications.get_mut(&id) else { continue };
            if stream.follower == (node, life) {
                stream.follower_done = true;
                stream.to_leader.tear(&mut self.random);
                self.end_to_leader(id);
            } else if stream.leader == (node, life) {
                stream.to_follower.tear(&mut self.random);
                self.end_to_follower(id);
            }
        }
        let ids: Vec<u64> = self.produces.keys().copied().collect();
        for id in ids {
            if self.produces.get(&id).is_some_and(|stream| stream.broker == (node, life)) {
                self.tear_produce(id);
            }
        }
    }

    /// A machine whose disk failed starts anew; one whose replicas were all repaired meanwhile need not.
    pub(crate) fn reboot(&mut self, node: usize) {
        let at = &self.nodes[node];
        if !at.suspect && at.replicas.values().all(|hosted| !hosted.offline) {
            return;
        }
        self.kill(node, Crash::DropUnsynced);
        let delay = self.random.within(100..1_000) * MS;
        self.schedule(delay, Event::Start { node });
    }

    /// A graceful stop begins: it hands its leadership over first.
    pub(crate) fn leave(&mut self, node: usize) {
        let at = &mut self.nodes[node];
        let Some(epoch) = at.registered else { return };
        at.stopping = true;
        let (id, life) = (at.id, at.life);
        self.note(format_args!("node {id} leaves"));
        self.propose(node, Command::FenceBroker { node: id, epoch }, Purpose::Leave);
        let delay = self.random.within(100..2_000) * MS;
        self.schedule(delay, Event::Stop { node, life });
    }

    pub(crate) fn stop(&mut self, node: usize) {
        let mut clean = !self.nodes[node].suspect;
        let places: Vec<Place> = self.nodes[node].replicas.keys().copied().collect();
        for place in places {
            let Some(hosted) = self.nodes[node].replicas.remove(&place) else { continue };
            self.nodes[node].hints.insert(place, hosted.replica.high_watermark());
            let (answers, closed) = hosted.replica.close();
            clean &= closed.is_ok();
            // Those whom the last sync would have committed: the world does not look at a closed replica.
            let answers =
                answers.into_iter().map(|(ticket, _)| (ticket, Err(bus_replica::AppendError::Closed)));
            self.publish(answers.collect());
        }
        let dead = self.nodes[node].is_dead().then(|| self.crash());
        self.kill(node, dead.unwrap_or(if clean { Crash::ProcessOnly } else { Crash::DropUnsynced }));
        self.nodes[node].clean = clean;
        let delay = self.random.within(50..2_000) * MS;
        self.schedule(delay, Event::Start { node });
    }
}
