//! One seed, from the first event to the verdict.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bus_protocol::Offset;

use crate::clock::{MS, SECOND};
use crate::invariants::convergence::unsettled;
use crate::invariants::{Place, Violation, no_loss_no_duplicate_in_order, violated};
use crate::mutation::Mutation;
use crate::world::World;

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The first rule that did not hold.
    pub violation: Option<Violation>,
    /// A hash over all that happened: the same seed gives the same.
    pub trace: u64,
    /// How many things happened.
    pub events: u64,
    /// Batches that were committed.
    pub committed: usize,
    /// What happened, line by line, if that was wanted.
    pub lines: Vec<String>,
}

/// Simulates a seed, with one rule broken if `mutation` says so. A panic of the product is a violation too.
pub fn run(seed: u64, mutation: Option<Mutation>) -> Outcome {
    simulate(seed, mutation, false)
}

/// Simulates a seed again and keeps what happened.
pub fn replay(seed: u64, mutation: Option<Mutation>) -> Outcome {
    simulate(seed, mutation, true)
}

fn simulate(seed: u64, mutation: Option<Mutation>, keep_lines: bool) -> Outcome {
    let mut world = World::new(seed, mutation, keep_lines);
    // What is left of the world after a panic is looked at, and used no more.
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err();
    if let Some(panic) = panicked {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|what| (*what).to_owned()));
        let check = violated("panic", what.unwrap_or_default());
        world.violation = None;
        world.uphold(check);
    }
    Outcome {
        seed,
        violation: world.violation.take(),
        trace: world.trace.hash(),
        events: world.trace.events(),
        committed: world.watch.ledgers.values().map(|ledger| ledger.entries().len()).sum(),
        lines: world.trace.take_lines(),
    }
}

impl World {
    /// Faults, and then the time that it takes to come back.
    fn run(&mut self) {
        let chaos = self.plan.chaos + SECOND;
        if !self.run_until(chaos) {
            return;
        }
        let deadline = chaos + 90 * SECOND;
        loop {
            let until = self.now + 200 * MS;
            if !self.run_until(until) {
                return;
            }
            let left = self.left();
            match left {
                None => break,
                Some(what) if self.now > deadline => {
                    self.describe();
                    return self.uphold(violated("convergence", what));
                }
                Some(_) => {}
            }
        }
        let mut deleted: BTreeMap<Place, Offset> = BTreeMap::new();
        for (place, hosted) in self.nodes.iter().flat_map(|node| &node.replicas) {
            let start = deleted.entry(*place).or_default();
            *start = hosted.replica.log().log_start().max(*start);
        }
        let (producers, ledgers) = (&self.producers, &self.watch.ledgers);
        self.uphold(no_loss_no_duplicate_in_order::check(producers, ledgers, &deleted));
    }

    /// How things stand, for whoever looks into it.
    fn describe(&mut self) {
        let mut said = Vec::new();
        for node in &self.nodes {
            for (place, hosted) in &node.replicas {
                let (log, replica) = (hosted.replica.log(), &hosted.replica);
                said.push(format!(
                    "node {} {place:?}: {}..{} stored {} committed {} stream {:?} offline {} followers {:?} proposed {:?}",
                    node.id,
                    log.log_start(),
                    log.log_end(),
                    log.stored(),
                    replica.high_watermark(),
                    hosted.stream,
                    hosted.offline,
                    replica.followers(),
                    hosted.proposed,
                ));
            }
        }
        said.extend(self.replications.iter().map(|(id, stream)| format!("{id}: {stream:?}")));
        for line in said {
            self.note(format_args!("{line}"));
        }
    }

    /// What has not come back yet.
    fn left(&mut self) -> Option<String> {
        // A scrub, as it were: what nobody has read yet. What a node still has of a partition that was taken from it while
        // it was down is nobody's any more.
        let image = self.control.image();
        let held = |(node, (topic, number)): &(usize, Place)| {
            let partition =
                image.topic_by_id(*topic).and_then(|topic| topic.partitions.get(*number as usize));
            partition.is_some_and(|partition| partition.replicas.contains(&(*node as u64 + 1)))
        };
        if let Some((node, place)) = self.damaged.iter().copied().find(held) {
            self.go_offline(node, place, "a byte has turned over");
            return Some(format!("{place:?} on node {} is damaged", node + 1));
        }
        if let Some(what) = unsettled(self.control.image()) {
            return Some(what);
        }
        if let Some(producer) = self.producers.iter().position(|producer| !producer.is_done()) {
            return Some(format!("producer {producer} is not through: {:?}", self.producers[producer].lanes));
        }
        let image = self.control.image().clone();
        for topic in image.topics() {
            for (number, partition) in (0..).zip(&topic.partitions) {
                for node in &partition.replicas {
                    if let Some(what) = self.unequal(*node as usize - 1, (topic.id, number)) {
                        return Some(what);
                    }
                }
            }
        }
        None
    }

    /// In what a replica differs from what is committed.
    fn unequal(&self, node: usize, place: Place) -> Option<String> {
        let Some(hosted) = self.nodes[node].replicas.get(&place) else {
            return Some(format!("node {} does not run {place:?}", node + 1));
        };
        let (log, ledger) = (hosted.replica.log(), self.watch.ledgers.get(&place)?);
        let (end, committed) = (log.log_end(), hosted.replica.high_watermark());
        if end != ledger.end() || committed != end {
            return Some(format!(
                "{place:?} on node {} ends at {end}, committed {committed} of {}",
                node + 1,
                ledger.end()
            ));
        }
        ledger.check(log, 0, end).err().map(|what| format!("{place:?} on node {}: {what}", node + 1))
    }
}
