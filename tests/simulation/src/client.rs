//! Producers: what they send, and what they were told of it.

use std::collections::{BTreeMap, VecDeque};

use bus_protocol::Offset;
use bus_protocol::batch::{BatchBuilder, Compression, RecordBatch};
use bus_protocol::produce::Acks;

use crate::clock::Time;
use crate::invariants::Place;
use crate::plan::ProducerPlan;
use crate::random::Random;

/// What a batch holds: `count` records of one producer, numbered from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) producer: u32,
    pub(crate) first: u64,
    pub(crate) count: u32,
}

impl Content {
    /// From a batch's records, or why they are not what a producer here sends.
    pub(crate) fn read(batch: &RecordBatch) -> Result<Self, String> {
        let mut content: Option<Self> = None;
        for record in batch.records().map_err(|error| error.to_string())? {
            let record = record.map_err(|error| error.to_string())?;
            let value = record.value.unwrap_or_default();
            let (Some(producer), Some(number)) = (value.first_chunk(), value[4..].first_chunk()) else {
                return Err("a record too short for its numbers".into());
            };
            let (producer, number) = (u32::from_be_bytes(*producer), u64::from_be_bytes(*number));
            let begun = content.get_or_insert(Self { producer, first: number, count: 0 });
            if (begun.producer, begun.first + u64::from(begun.count)) != (producer, number) {
                return Err(format!("record {number} of producer {producer} in {begun:?}"));
            }
            begun.count += 1;
        }
        content.ok_or_else(|| "an empty batch".into())
    }

    fn batch(self, numbers: Option<(i64, i16, i32)>, time: i64, bytes: u64) -> RecordBatch {
        let mut builder = BatchBuilder::new(Compression::None);
        if let Some((id, epoch, sequence)) = numbers {
            builder.set_producer(id, epoch, sequence);
        }
        let mut value = vec![0; 12 + bytes as usize];
        for number in self.first..self.first + u64::from(self.count) {
            value[..4].copy_from_slice(&self.producer.to_be_bytes());
            value[4..12].copy_from_slice(&number.to_be_bytes());
            builder.push(time, None, Some(&value), &[]);
        }
        // Small, and of at least one record.
        builder.build_batch().unwrap_or_else(|error| unreachable!("a batch of its own making: {error}"))
    }
}

/// What an append's answer goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) stream: u64,
    /// The batch's place on its stream.
    pub(crate) number: u64,
    pub(crate) content: Content,
    pub(crate) acks: Acks,
    pub(crate) place: Place,
}

/// What a producer knows of a batch in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Acknowledged,
    /// It may be stored or not.
    Unknown,
    /// It is not stored.
    Refused,
}

/// A batch that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledged {
    pub(crate) content: Content,
    pub(crate) base: Offset,
}

/// A batch under way.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) content: Content,
    pub(crate) batch: RecordBatch,
}

/// A producer's records for one partition.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) place: Place,
    epoch: i16,
    sequence: i32,
    next: u64,
    pub(crate) left: u64,
    /// Not answered, oldest first; the first `sent` of them are on the stream.
    pub(crate) unanswered: VecDeque<Sent>,
    pub(crate) sent: usize,
    pub(crate) stream: Option<u64>,
    /// When something was last answered, or nothing was under way.
    pub(crate) heard: Time,
    fates: BTreeMap<u64, Fate>,
    acknowledged: Vec<Acknowledged>,
}

/// A producer over all partitions of a topic.
#[derive(Debug)]
pub(crate) struct Producer {
    pub(crate) plan: ProducerPlan,
    index: u32,
    pub(crate) lanes: Vec<Lane>,
}

impl Producer {
    pub(crate) fn new(index: u32, plan: ProducerPlan, places: &[Place]) -> Self {
        let lanes = places.iter().map(|place| Lane {
            place: *place,
            epoch: 0,
            sequence: 0,
            next: 0,
            left: plan.batches,
            unanswered: VecDeque::new(),
            sent: 0,
            stream: None,
            heard: 0,
            fates: BTreeMap::new(),
            acknowledged: Vec::new(),
        });
        Self { index, lanes: lanes.collect(), plan }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.lanes.iter().all(|lane| lane.left == 0 && lane.unanswered.is_empty())
    }

    /// Makes the next batch of a lane; `numbered`: with the sequences of an idempotent producer.
    pub(crate) fn make(&mut self, lane: usize, numbered: bool, time: i64, random: &mut Random) {
        let (id, bytes) = (i64::from(self.index) + 100, self.plan.record_bytes);
        let lane = &mut self.lanes[lane];
        let count = random.within(1..4) as u32;
        let content = Content { producer: self.index, first: lane.next, count };
        let numbers = numbered.then_some((id, lane.epoch, lane.sequence));
        let batch = content.batch(numbers, time, random.within(0..bytes));
        lane.next += u64::from(count);
        lane.sequence += count as i32;
        lane.left -= 1;
        lane.unanswered.push_back(Sent { content, batch });
    }

    /// Faults are over: a few more batches are enough to show that all is well.
    pub(crate) fn hurry(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.left = lane.left.min(5));
    }

    pub(crate) fn fate(&self, place: Place, first: u64) -> Option<Fate> {
        let lane = self.lanes.iter().find(|lane| lane.place == place)?;
        if lane.unanswered.iter().any(|sent| sent.content.first == first) {
            return Some(Fate::Unknown);
        }
        lane.fates.get(&first).copied()
    }

    /// What must be there in the end.
    pub(crate) fn acknowledged(&self) -> impl Iterator<Item = (Place, Acknowledged)> {
        let lasting = self.plan.acks == Acks::All;
        let lanes = self.lanes.iter().filter(move |_| lasting);
        lanes.flat_map(|lane| lane.acknowledged.iter().map(|sent| (lane.place, *sent)))
    }
}

impl Lane {
    /// The oldest batch under way was acknowledged.
    pub(crate) fn acknowledge(&mut self, base: Offset) {
        if let Some(Sent { content, .. }) = self.unanswered.pop_front() {
            self.sent -= 1;
            self.fates.insert(content.first, Fate::Acknowledged);
            self.acknowledged.push(Acknowledged { content, base });
        }
    }

    /// What is on the stream will not be answered; `refused`: the oldest is not stored for sure. An idempotent
    /// producer sends all of it again, another only what is not stored.
    pub(crate) fn lose_stream(&mut self, refused: bool, idempotent: bool) {
        self.stream = None;
        let sent = std::mem::take(&mut self.sent);
        if idempotent {
            return;
        }
        let again = if refused { self.unanswered.pop_front() } else { None };
        for _ in usize::from(refused)..sent {
            if let Some(Sent { content, .. }) = self.unanswered.pop_front() {
                self.fates.insert(content.first, Fate::Unknown);
            }
        }
        if let Some(again) = again {
            self.unanswered.push_front(again);
        }
    }

    /// Gives up on all that is under way, and numbers anew in the next epoch (KIP-360).
    pub(crate) fn give_up(&mut self) {
        (self.stream, self.sent) = (None, 0);
        for Sent { content, .. } in self.unanswered.drain(..) {
            self.fates.insert(content.first, Fate::Unknown);
        }
        self.epoch += 1;
        self.sequence = 0;
    }
}
