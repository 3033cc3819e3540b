//! The plan that spreads replicas and leaders evenly.

#[cfg(test)]
mod properties;

use std::collections::{BTreeMap, VecDeque};

use bus_protocol::{NodeId, PartitionId, TopicId};

use crate::{MetadataImage, Partition};

/// What [`balance`] would have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Those partitions that should have other replicas than they have, each with its replicas, the preferred leader
    /// first. Empty when all is even.
    pub changes: Vec<(TopicId, PartitionId, Vec<NodeId>)>,
    /// Partitions that are left as they are, since they are being reassigned.
    pub under_way: usize,
    /// Partitions that are left as they are, since a move would wait for a silent broker.
    pub silent: usize,
}

/// The replicas that partitions should have so that all is even.
///
/// - Only brokers that are up and not drained get replicas. Drained ones give up theirs, up or not, as far as there is
///   somebody to take them; silent ones keep what they have, since they may be back soon.
/// - A partition that is being reassigned goes where it was told to. One with a replica on a broker that is silent and not
///   drained, or drained with nobody to take its place, or with nobody in sync that is up, stays as it is: a move would
///   wait. Both count for how even it is.
/// - A partition's replicas are spread over racks as far as there are racks, and that comes before evenness.
/// - Otherwise the brokers' numbers of replicas differ by one at the most, and so do the numbers of partitions that
///   they are the preferred leader of, where the replicas, and the partitions that stay, allow that.
/// - As few replicas move as that takes. Carried out, it leaves nothing to do.
///
/// A pure function of the image; carried out by [`Command::Reassign`](crate::Command), at most
/// [`limits::PARTITIONS_PER_COMMAND`](crate::limits::PARTITIONS_PER_COMMAND) partitions a command.
pub fn balance(image: &MetadataImage) -> Balance {
    let mut plan = Plan::of(image);
    plan.leave_drained();
    plan.spread_over_racks();
    plan.even_replicas();
    plan.even_leaders();
    let count = |stays| plan.partitions.iter().filter(|planned| planned.stays == Some(stays)).count();
    let (under_way, silent) = (count(Stays::UnderWay), count(Stays::Silent));
    Balance { changes: plan.changes(image), under_way, silent }
}

struct Plan {
    /// Those that can take replicas, by id.
    brokers: Vec<Candidate>,
    /// The way from a node to its place in `brokers`.
    places: BTreeMap<NodeId, usize>,
    /// The rack of every broker; those with none share one.
    racks: BTreeMap<NodeId, usize>,
    /// Those that are to give up what they hold, and whether they are down.
    drained: BTreeMap<NodeId, bool>,
    partitions: Vec<Planned>,
}

struct Candidate {
    node: NodeId,
    /// The partitions that it holds.
    holds: Vec<usize>,
}

struct Planned {
    topic: TopicId,
    number: PartitionId,
    replicas: Vec<NodeId>,
    /// Why nothing is changed, if so.
    stays: Option<Stays>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stays {
    UnderWay,
    Silent,
}

impl Stays {
    /// `takers` brokers could take the place of those that are to give up theirs.
    fn of(image: &MetadataImage, partition: &Partition, takers: usize) -> Option<Self> {
        let silent = |node: &NodeId| !image.is_available(*node) && !image.is_drained(*node);
        if partition.target.is_some() {
            return Some(Self::UnderWay);
        }
        let nobody_to_copy = !partition.isr.iter().any(|member| image.is_available(*member));
        let down = partition.replicas.iter().filter(|node| !image.is_available(**node)).count();
        (nobody_to_copy || down > takers || partition.replicas.iter().any(silent)).then_some(Self::Silent)
    }
}

impl Planned {
    /// What `with` in the place of `without` adds to the partition's neighbours in one rack; less than 0 is better.
    fn crowding(&self, racks: &BTreeMap<NodeId, usize>, without: NodeId, with: NodeId) -> i64 {
        let in_rack_of = |node: NodeId| {
            let mut others = 0;
            for other in self.replicas.iter().filter(|other| **other != without) {
                others += i64::from(racks.get(other) == racks.get(&node));
            }
            others
        };
        in_rack_of(with) - in_rack_of(without)
    }
}

impl Plan {
    fn of(image: &MetadataImage) -> Self {
        let mut names = BTreeMap::new();
        let mut racks = BTreeMap::new();
        for broker in image.brokers() {
            let next = names.len();
            racks.insert(broker.node, *names.entry(broker.rack.as_deref()).or_insert(next));
        }
        let able = image.brokers().filter(|broker| !broker.fenced && !broker.drained);
        let mut brokers: Vec<_> =
            able.map(|broker| Candidate { node: broker.node, holds: Vec::new() }).collect();
        let places: BTreeMap<_, _> =
            brokers.iter().enumerate().map(|(place, broker)| (broker.node, place)).collect();
        let mut partitions = Vec::new();
        for topic in image.topics() {
            for (number, partition) in (0..).zip(&topic.partitions) {
                let replicas = partition.wanted().to_vec();
                for place in replicas.iter().filter_map(|node| places.get(node)) {
                    brokers[*place].holds.push(partitions.len());
                }
                let takers = places.keys().filter(|node| !replicas.contains(node)).count();
                let stays = Stays::of(image, partition, takers);
                partitions.push(Planned { topic: topic.id, number, replicas, stays });
            }
        }
        let drained = image
            .brokers()
            .filter(|broker| broker.drained)
            .map(|broker| (broker.node, broker.fenced))
            .collect();
        Self { brokers, places, racks, drained, partitions }
    }

    fn changes(self, image: &MetadataImage) -> Vec<(TopicId, PartitionId, Vec<NodeId>)> {
        let before = image.topics().flat_map(|topic| &topic.partitions);
        let planned = self.partitions.into_iter().zip(before);
        planned
            .filter(|(planned, before)| planned.replicas != before.wanted())
            .map(|(planned, _)| (planned.topic, planned.number, planned.replicas))
            .collect()
    }

    /// The partitions that may be changed.
    fn movable(&self) -> impl Iterator<Item = usize> + use<> {
        let movable = self.partitions.iter().enumerate().filter(|(_, planned)| planned.stays.is_none());
        movable.map(|(partition, _)| partition).collect::<Vec<_>>().into_iter()
    }

    /// Puts a replica of a partition elsewhere.
    fn shift(&mut self, partition: usize, from: NodeId, to: usize) {
        let node = self.brokers[to].node;
        for replica in self.partitions[partition].replicas.iter_mut().filter(|replica| **replica == from) {
            *replica = node;
        }
        if let Some(from) = self.places.get(&from) {
            self.brokers[*from].holds.retain(|held| *held != partition);
        }
        self.brokers[to].holds.push(partition);
    }

    /// The broker that best takes the place of `from` in a partition, and what that adds to crowding.
    fn successor(&self, partition: usize, from: NodeId) -> Option<(i64, usize)> {
        let planned = &self.partitions[partition];
        let outside =
            (0..self.brokers.len()).filter(|place| !planned.replicas.contains(&self.brokers[*place].node));
        outside
            .map(|place| {
                let broker = &self.brokers[place];
                (planned.crowding(&self.racks, from, broker.node), broker.holds.len(), place)
            })
            .min()
            .map(|(crowding, _, place)| (crowding, place))
    }

    fn leave_drained(&mut self) {
        for partition in self.movable() {
            let mut replicas = self.partitions[partition].replicas.clone();
            // Those that are down first: a move would wait for one that stays.
            replicas.sort_by_key(|node| self.drained.get(node) != Some(&true));
            for from in replicas {
                if self.drained.contains_key(&from)
                    && let Some((_, to)) = self.successor(partition, from)
                {
                    self.shift(partition, from, to);
                }
            }
        }
    }

    fn spread_over_racks(&mut self) {
        for partition in self.movable() {
            // Each step leaves fewer pairs in one rack, so this ends.
            loop {
                let held = self.partitions[partition].replicas.iter().copied();
                let movable = held.filter(|node| self.places.contains_key(node));
                let best = movable
                    .filter_map(|from| {
                        let (crowding, to) = self.successor(partition, from)?;
                        (crowding < 0).then_some((crowding, from, to))
                    })
                    .min();
                let Some((_, from, to)) = best else { break };
                self.shift(partition, from, to);
            }
        }
    }

    fn even_replicas(&mut self) {
        // Each step takes from the larger of two numbers that differ by two or more, so this ends.
        while let Some((partition, from, to)) = self.next_move() {
            self.shift(partition, from, to);
        }
    }

    /// A replica on one of the fullest brokers that can be on one of the emptiest.
    fn next_move(&self) -> Option<(usize, NodeId, usize)> {
        let mut by_load: Vec<usize> = (0..self.brokers.len()).collect();
        by_load.sort_by_key(|place| (self.brokers[*place].holds.len(), *place));
        for from in by_load.iter().rev().map(|place| &self.brokers[*place]) {
            for to in &by_load {
                let into = &self.brokers[*to];
                if from.holds.len() < into.holds.len() + 2 {
                    break;
                }
                let fits = |partition: &usize| {
                    let planned = &self.partitions[*partition];
                    planned.stays.is_none()
                        && !planned.replicas.contains(&into.node)
                        && planned.crowding(&self.racks, from.node, into.node) <= 0
                };
                let follows = |partition: &usize| self.first(*partition) != Some(from.node);
                // Rather one that it does not lead: then nobody's clients have to move.
                let found = from.holds.iter().copied().find(|held| follows(held) && fits(held));
                if let Some(partition) = found.or_else(|| from.holds.iter().copied().find(fits)) {
                    return Some((partition, from.node, *to));
                }
            }
        }
        None
    }

    fn first(&self, partition: usize) -> Option<NodeId> {
        self.partitions[partition].replicas.first().copied()
    }

    /// Evens out who is preferred by changing the order within partitions.
    fn even_leaders(&mut self) {
        let mut leads = vec![Vec::new(); self.brokers.len()];
        for partition in 0..self.partitions.len() {
            let Planned { replicas, stays, .. } = &mut self.partitions[partition];
            // One that could not be moved off a drained broker is not preferred.
            if stays.is_none()
                && replicas.first().is_some_and(|first| self.drained.contains_key(first))
                && let Some(able) = replicas.iter().position(|node| self.places.contains_key(node))
            {
                replicas.swap(0, able);
            }
            if let Some(place) = self.first(partition).and_then(|first| self.places.get(&first)) {
                leads[*place].push(partition);
            }
        }
        while let Some(chain) = self.next_chain(&leads) {
            for (partition, from, to) in chain {
                let (from_node, to_node) = (self.brokers[from].node, self.brokers[to].node);
                let replicas = &mut self.partitions[partition].replicas;
                let find = |node| replicas.iter().position(|replica| *replica == node);
                if let (Some(from), Some(to)) = (find(from_node), find(to_node)) {
                    replicas.swap(from, to);
                }
                leads[from].retain(|led| *led != partition);
                leads[to].push(partition);
            }
        }
    }

    /// Partitions each of which passes from one broker to the next, so that the first leads one fewer, the last one
    /// more, and they were two or more apart. Where there is no such chain the leaders are as even as they can be.
    fn next_chain(&self, leads: &[Vec<usize>]) -> Option<Vec<(usize, usize, usize)>> {
        let mut by_load: Vec<usize> = (0..leads.len()).collect();
        by_load.sort_by_key(|place| (std::cmp::Reverse(leads[*place].len()), *place));
        let fewest = by_load.last().map_or(0, |place| leads[*place].len());
        by_load.into_iter().take_while(|start| leads[*start].len() >= fewest + 2).find_map(|start| {
            let mut reached_by: Vec<Option<(usize, usize)>> = vec![None; leads.len()];
            let mut queue = VecDeque::from([start]);
            while let Some(from) = queue.pop_front() {
                let movable = leads[from].iter().filter(|led| self.partitions[**led].stays.is_none());
                for &partition in movable {
                    for to in
                        self.partitions[partition].replicas.iter().filter_map(|node| self.places.get(node))
                    {
                        if *to == start || reached_by[*to].is_some() {
                            continue;
                        }
                        reached_by[*to] = Some((partition, from));
                        if leads[*to].len() + 2 <= leads[start].len() {
                            return Some(chain(&reached_by, *to));
                        }
                        queue.push_back(*to);
                    }
                }
            }
            None
        })
    }
}

/// The way back from where the search has come to.
fn chain(reached_by: &[Option<(usize, usize)>], end: usize) -> Vec<(usize, usize, usize)> {
    let mut chain = Vec::new();
    let mut to = end;
    while let Some((partition, from)) = reached_by[to] {
        chain.push((partition, from, to));
        to = from;
    }
    chain
}
