//! What a seed asks for: how large the cluster is, what its topics demand, and how rough its world is.

use bus_protocol::Durability;
use bus_protocol::produce::Acks;

use crate::clock::{MS, SECOND, Time};
use crate::random::Random;

/// All that is chosen before the first event.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) topics: Vec<TopicPlan>,
    pub(crate) producers: Vec<ProducerPlan>,
    pub(crate) readers: usize,
    /// How long faults come.
    pub(crate) chaos: Time,
    /// Time between two faults, at the most.
    pub(crate) calm: Time,
    /// The longest a message takes.
    pub(crate) latency: Time,
    /// The longest a sync takes.
    pub(crate) sync: Time,
    /// Messages to the controller that are lost, of a thousand.
    pub(crate) loss: u64,
    /// What leaders keep in memory; small, so that followers are fed from the disk.
    pub(crate) tail_bytes: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct TopicPlan {
    pub(crate) partitions: u32,
    pub(crate) replicas: u32,
    pub(crate) min_isr: u32,
    pub(crate) durability: Durability,
    pub(crate) retention_bytes: Option<u64>,
    pub(crate) retention_ms: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct ProducerPlan {
    pub(crate) idempotent: bool,
    pub(crate) acks: Acks,
    pub(crate) in_flight: usize,
    pub(crate) batches: u64,
    /// Time between two steps, at the most.
    pub(crate) pace: Time,
    pub(crate) record_bytes: u64,
    /// Whether it gives up on batches now and then.
    pub(crate) gives_up: bool,
}

impl Plan {
    pub(crate) fn of(random: &mut Random) -> Self {
        let nodes = if random.permille(200) { 5 } else { 3 };
        let mut topics = vec![TopicPlan::replicated(random)];
        if random.permille(250) {
            topics.push(TopicPlan::lone(random));
        }
        let chaos = random.within(6..16) * SECOND;
        let count = random.within(1..5);
        let producers = (0..count).map(|n| ProducerPlan::of(random, n == 0, chaos)).collect();
        Self {
            nodes,
            topics,
            producers,
            readers: random.within(1..3) as usize,
            chaos,
            calm: *random.pick(&[300 * MS, SECOND, 3 * SECOND]),
            latency: *random.pick(&[2 * MS, 10 * MS, 60 * MS]),
            sync: *random.pick(&[MS, 10 * MS, 100 * MS, 400 * MS]),
            loss: *random.pick(&[0, 20, 150]),
            tail_bytes: *random.pick(&[0, 4 << 10, 8 << 20]),
        }
    }
}

impl TopicPlan {
    fn replicated(random: &mut Random) -> Self {
        let durability = if random.permille(200) { Durability::Replicated } else { Durability::Fsync };
        Self {
            partitions: random.within(1..4) as u32,
            replicas: 3,
            min_isr: if random.permille(150) { 1 } else { 2 },
            durability,
            retention_bytes: random.permille(200).then_some(24 << 10),
            retention_ms: random.permille(200).then_some(1_500),
        }
    }

    fn lone(random: &mut Random) -> Self {
        let retention_bytes = random.permille(200).then_some(24 << 10);
        Self {
            partitions: 1,
            replicas: 1,
            min_isr: 1,
            durability: Durability::Fsync,
            retention_bytes,
            retention_ms: None,
        }
    }
}

impl ProducerPlan {
    fn of(random: &mut Random, first: bool, chaos: Time) -> Self {
        let idempotent = first || random.permille(600);
        let acks = if first || random.permille(700) { Acks::All } else { Acks::Leader };
        let pace = random.within(20..160) * MS;
        Self {
            idempotent,
            acks,
            in_flight: random.within(1..6) as usize,
            // About as long as there are faults.
            batches: chaos * 2 / pace,
            pace,
            record_bytes: *random.pick(&[20, 400, 1_500]),
            gives_up: !first && random.permille(300),
        }
    }
}
