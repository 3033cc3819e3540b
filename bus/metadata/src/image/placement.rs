//! Which brokers hold a new partition.

use std::collections::BTreeMap;

use bus_protocol::NodeId;

use super::MetadataImage;
use crate::{Broker, Rejected, limits};

/// Places partitions one after the other, each where the fewest are.
///
/// Each replica goes to the broker with the fewest replicas, of those whose rack holds the fewest of this
/// partition. Of several, the first replica goes to who is the first choice of the fewest partitions, the others
/// to who is it of the most: who leads little stays free to lead the next. Of those chosen, the one that is the
/// first choice of the fewest stands first, and leads. Ties go to the lower id.
///
/// As long as no rack is smaller than the others, and nothing else was placed, replicas per broker differ by at
/// most one, and preferred leaders by at most two, whatever topics of whatever replication come in whatever order
/// (`every_order_of_topics_is_spread_evenly` walks through all states that up to six brokers can be in).
///
/// Applied commands depend on this rule: it can never change, only be joined by another (see [`crate::Command`]).
#[derive(Clone)]
pub(crate) struct Placement {
    candidates: Vec<Candidate>,
    /// The brokers that are up and take no replicas; and those that are not up.
    drained: Vec<NodeId>,
    down: Vec<NodeId>,
}

#[derive(Clone)]
struct Candidate {
    node: NodeId,
    /// Equal for brokers of one rack; brokers with none share one too.
    rack: usize,
    replicas: u64,
    /// Partitions that it is the preferred leader of.
    preferred: i64,
}

impl Placement {
    /// The brokers that can take replicas, with what they hold now.
    pub(crate) fn of(image: &MetadataImage) -> Self {
        let mut held: BTreeMap<NodeId, (u64, i64)> = BTreeMap::new();
        for partition in image.topics().flat_map(|topic| &topic.partitions) {
            for (place, node) in partition.replicas.iter().enumerate() {
                let (replicas, preferred) = held.entry(*node).or_default();
                *replicas += 1;
                *preferred += i64::from(place == 0);
            }
        }
        let mut racks = BTreeMap::new();
        let candidates = image
            .brokers()
            .filter(|broker| !broker.fenced && !broker.drained)
            .map(|broker| {
                let next = racks.len();
                let rack = *racks.entry(broker.rack.as_deref()).or_insert(next);
                let (replicas, preferred) = held.get(&broker.node).copied().unwrap_or_default();
                Candidate { node: broker.node, rack, replicas, preferred }
            })
            .collect();
        let others = |is: fn(&Broker) -> bool| {
            image.brokers().filter(|broker| is(broker)).map(|broker| broker.node).collect()
        };
        Self {
            candidates,
            drained: others(|broker| !broker.fenced && broker.drained),
            down: others(|broker| broker.fenced),
        }
    }

    /// The replicas of the next partition, the preferred leader first.
    pub(crate) fn next(&mut self, replicas: u32) -> Result<Vec<NodeId>, Rejected> {
        let brokers = u32::try_from(self.candidates.len()).unwrap_or(u32::MAX);
        if replicas == 0 || replicas > limits::REPLICAS_PER_PARTITION {
            let why = format!("it is out of range: 1 to {}", limits::REPLICAS_PER_PARTITION);
            return Err(Rejected::Invalid { what: format!("a number of {replicas} replicas"), why });
        }
        if replicas > brokers {
            let (drained, down) = (self.drained.clone(), self.down.clone());
            return Err(Rejected::TooFewBrokers { replicas, brokers, drained, down });
        }
        let mut chosen: Vec<usize> = Vec::with_capacity(replicas as usize);
        for _ in 0..replicas {
            let best =
                (0..self.candidates.len()).filter(|index| !chosen.contains(index)).min_by_key(|index| {
                    let candidate = &self.candidates[*index];
                    let in_rack =
                        chosen.iter().filter(|other| self.candidates[**other].rack == candidate.rack).count();
                    let leads = if chosen.is_empty() { candidate.preferred } else { -candidate.preferred };
                    (in_rack, candidate.replicas, leads, candidate.node)
                });
            chosen.extend(best);
        }
        // By preference, so that the followers of one leader do not all stand in the same order.
        chosen.sort_by_key(|index| (self.candidates[*index].preferred, self.candidates[*index].node));
        for (place, index) in chosen.iter().enumerate() {
            self.candidates[*index].replicas += 1;
            self.candidates[*index].preferred += i64::from(place == 0);
        }
        Ok(chosen.into_iter().map(|index| self.candidates[index].node).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    impl Placement {
        /// Replicas and preferred leaders of each broker, beyond what every broker has: all that decides what comes next.
        fn state(&self) -> Vec<(u64, i64)> {
            let replicas = self.candidates.iter().map(|candidate| candidate.replicas).min();
            let preferred = self.candidates.iter().map(|candidate| candidate.preferred).min();
            let above = |candidate: &Candidate| {
                (candidate.replicas - replicas.unwrap_or(0), candidate.preferred - preferred.unwrap_or(0))
            };
            self.candidates.iter().map(above).collect()
        }
    }

    #[test]
    fn every_order_of_topics_is_spread_evenly() {
        for brokers in 1..=6u32 {
            let broker = |node| Candidate { node, rack: 0, replicas: 0, preferred: 0 };
            let candidates = (1..=u64::from(brokers)).map(broker).collect();
            let empty = Placement { candidates, drained: Vec::new(), down: Vec::new() };
            let mut seen = BTreeSet::from([empty.state()]);
            let mut open = vec![empty];
            while let Some(placement) = open.pop() {
                for replicas in 1..=brokers {
                    let mut next = placement.clone();
                    assert_eq!(next.next(replicas).map(|chosen| chosen.len()), Ok(replicas as usize));
                    let state = next.state();
                    assert!(state.iter().all(|(replicas, leads)| *replicas <= 1 && *leads <= 2), "{state:?}");
                    if seen.insert(state) {
                        open.push(next);
                    }
                }
            }
        }
    }
}
