//! What producers sent and were told, and whether what is stored agrees with it.
//!
//! ```text
//!   producer: Sent { producer, partition, sequence } ─ value ─▶ cluster ─▶ Outcome: acknowledged at, refused, unknown
//!   checker:  (partition, offset, value) of all that is stored, partition by partition, in the order of reading
//! ```
//!
//! A send that has no answer may or may not be stored: its outcome stays unknown, and both are right, once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bus_client::{Ack, Error};
use bus_protocol::{Offset, PartitionId};

/// Violations that are kept; more are only counted.
const KEPT: usize = 50;

/// What a producer was told of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing, or nothing certain.
    Unknown,
    /// That it is stored, there.
    Acknowledged(Offset),
    /// That it is not stored and never will be.
    Refused,
}

impl Outcome {
    /// What the client's word about a record means. Only where it is certain that the record is not stored, it is
    /// refused: a broker that refuses a retry says nothing of the first attempt.
    pub fn of(delivered: &Result<Ack, Error>) -> Self {
        match delivered {
            Ok(ack) => Self::Acknowledged(ack.offset),
            Err(
                Error::NotSent { .. }
                | Error::RecordRefused { .. }
                | Error::RefusedWithBatch { .. }
                | Error::RecordTooLarge { .. }
                | Error::UnknownPartition { .. },
            ) => Self::Refused,
            Err(_) => Self::Unknown,
        }
    }
}

/// A record that was, or is about to be, sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent {
    /// Who sent it.
    pub producer: u32,
    /// Where to.
    pub partition: PartitionId,
    /// The how-many-th of that producer to that partition, from 0.
    pub sequence: u64,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "producer {}'s record {} to partition {}", self.producer, self.sequence, self.partition)
    }
}

impl Sent {
    /// The record's value: who it is, filled up to `bytes`.
    pub fn value(&self, bytes: usize) -> String {
        let mut value = format!("{} {} {} ", self.producer, self.partition, self.sequence);
        let missing = bytes.saturating_sub(value.len());
        value.extend(std::iter::repeat_n('.', missing));
        value
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(value).ok()?.split(' ');
        let producer = words.next()?.parse().ok()?;
        let partition = words.next()?.parse().ok()?;
        let sequence = words.next()?.parse().ok()?;
        Some(Self { producer, partition, sequence })
    }
}

/// By producer and partition; the place in the list is the sequence.
type Outcomes = BTreeMap<(u32, PartitionId), Vec<Outcome>>;

/// All that was sent to one topic, and what became of it. Cheap to clone; the clones share it.
#[derive(Clone, Debug, Default)]
pub struct History {
    sent: Arc<Mutex<Outcomes>>,
}

/// How many records of each outcome there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Acknowledged.
    pub acknowledged: u64,
    /// Refused for certain.
    pub refused: u64,
    /// Neither.
    pub unknown: u64,
}

impl History {
    /// Notes a record of this producer, before it is sent.
    pub fn send(&self, producer: u32, partition: PartitionId) -> Sent {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let outcomes = sent.entry((producer, partition)).or_default();
        outcomes.push(Outcome::Unknown);
        Sent { producer, partition, sequence: outcomes.len() as u64 - 1 }
    }

    /// Notes what its producer was told.
    pub fn settle(&self, record: Sent, outcome: Outcome) {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let outcomes = sent.get_mut(&(record.producer, record.partition));
        if let Some(noted) = outcomes.and_then(|outcomes| outcomes.get_mut(record.sequence as usize)) {
            *noted = outcome;
        }
    }

    /// How many there are of each.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for outcome in self.sent.lock().unwrap_or_else(PoisonError::into_inner).values().flatten() {
            *match outcome {
                Outcome::Acknowledged(_) => &mut counts.acknowledged,
                Outcome::Refused => &mut counts.refused,
                Outcome::Unknown => &mut counts.unknown,
            } += 1;
        }
        counts
    }

    /// A checker of what is stored, by the history as it is now: producers should be done.
    pub fn checker(&self) -> Checker {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = sent.iter().map(|(who, outcomes)| (*who, Seen::new(outcomes.len()))).collect();
        Checker { sent, seen, last: BTreeMap::new(), records: 0, violations: Violations::default() }
    }
}

/// What is stored that should not be so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Acknowledged, and not there.
    #[error("{record} was acknowledged at offset {offset}: it is lost")]
    Lost {
        /// The record.
        record: Sent,
        /// Where it should be.
        offset: Offset,
    },
    /// There more than once.
    #[error("{record} is there twice, the second time at offset {offset}")]
    Doubled {
        /// The record.
        record: Sent,
        /// The second time.
        offset: Offset,
    },
    /// Acknowledged at another offset than it is at.
    #[error("{record} was acknowledged at offset {acknowledged} and is at {found}")]
    Moved {
        /// The record.
        record: Sent,
        /// What its producer was told.
        acknowledged: Offset,
        /// Where it is.
        found: Offset,
    },
    /// Behind a later one of its producer.
    #[error("{record} at offset {offset} comes behind record {before} of the same producer")]
    Disorder {
        /// The record.
        record: Sent,
        /// Where it is.
        offset: Offset,
        /// The later one's sequence.
        before: u64,
    },
    /// Refused, and there.
    #[error("{record} was refused and is there, at offset {offset}")]
    Refused {
        /// The record.
        record: Sent,
        /// Where it is.
        offset: Offset,
    },
    /// There, and sent by nobody.
    #[error("what is at offset {offset} of partition {partition} was never sent there: {value:?}")]
    NeverSent {
        /// The partition.
        partition: PartitionId,
        /// Where it is.
        offset: Offset,
        /// Its beginning.
        value: String,
    },
    /// An offset not above the one before.
    #[error("offset {offset} of partition {partition} comes behind {before}")]
    Offsets {
        /// The partition.
        partition: PartitionId,
        /// The offset.
        offset: Offset,
        /// The one before.
        before: Offset,
    },
}

/// All that was found; the first few, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    /// The first few.
    pub first: Vec<Violation>,
    /// How many in all.
    pub count: usize,
}

impl std::error::Error for Violations {}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} violations", self.count)?;
        self.first.iter().try_for_each(|violation| write!(f, "\n  {violation}"))
    }
}

impl Violations {
    fn note(&mut self, violation: Violation) {
        self.count += 1;
        if self.first.len() < KEPT {
            self.first.push(violation);
        }
    }
}

#[derive(Clone, Debug)]
struct Seen {
    records: Vec<bool>,
    last: Option<u64>,
}

impl Seen {
    fn new(records: usize) -> Self {
        Self { records: vec![false; records], last: None }
    }
}

/// Takes what is stored, record by record, and says what is wrong with it.
#[derive(Clone, Debug)]
pub struct Checker {
    sent: Outcomes,
    seen: BTreeMap<(u32, PartitionId), Seen>,
    last: BTreeMap<PartitionId, Offset>,
    records: u64,
    violations: Violations,
}

impl Checker {
    /// A record as it was read. Those of a partition in the order of reading.
    pub fn read(&mut self, partition: PartitionId, offset: Offset, value: &[u8]) {
        self.records += 1;
        if let Some(before) = self.last.insert(partition, offset).filter(|before| *before >= offset) {
            self.violations.note(Violation::Offsets { partition, offset, before });
        }
        let record = Sent::parse(value).filter(|record| record.partition == partition);
        let known = record.and_then(|record| {
            let who = (record.producer, partition);
            let outcome = *self.sent.get(&who)?.get(usize::try_from(record.sequence).ok()?)?;
            Some((record, outcome, self.seen.get_mut(&who)?))
        });
        let Some((record, outcome, seen)) = known else {
            let value = String::from_utf8_lossy(&value[..value.len().min(60)]).into_owned();
            self.violations.note(Violation::NeverSent { partition, offset, value });
            return;
        };
        match outcome {
            Outcome::Refused => self.violations.note(Violation::Refused { record, offset }),
            Outcome::Acknowledged(acknowledged) if acknowledged != offset => {
                self.violations.note(Violation::Moved { record, acknowledged, found: offset });
            }
            Outcome::Acknowledged(_) | Outcome::Unknown => {}
        }
        if std::mem::replace(&mut seen.records[record.sequence as usize], true) {
            self.violations.note(Violation::Doubled { record, offset });
            return;
        }
        if let Some(before) = seen.last.filter(|last| *last > record.sequence) {
            self.violations.note(Violation::Disorder { record, offset, before });
        }
        seen.last = seen.last.max(Some(record.sequence));
    }

    /// All is read: how many records there were, or what is wrong.
    pub fn finish(mut self) -> Result<u64, Violations> {
        for ((producer, partition), outcomes) in &self.sent {
            let seen = self.seen.get(&(*producer, *partition)).map_or(&[][..], |seen| &seen.records);
            for ((sequence, outcome), seen) in (0..).zip(outcomes).zip(seen) {
                if let (Outcome::Acknowledged(offset), false) = (outcome, seen) {
                    let record = Sent { producer: *producer, partition: *partition, sequence };
                    self.violations.note(Violation::Lost { record, offset: *offset });
                }
            }
        }
        if self.violations.count == 0 { Ok(self.records) } else { Err(self.violations) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// Two producers to partition 0: one's records acknowledged at 0, 2, 4, the other's unknown, unknown, refused.
    fn history() -> (History, [Vec<Sent>; 2]) {
        let history = History::default();
        let sent = [1, 2].map(|producer| (0..3).map(|_| history.send(producer, 0)).collect::<Vec<_>>());
        for (record, offset) in sent[0].iter().zip([0, 2, 4]) {
            history.settle(*record, Outcome::Acknowledged(offset));
        }
        history.settle(sent[1][2], Outcome::Refused);
        (history, sent)
    }

    fn check(history: &History, stored: &[(Offset, &Sent)]) -> Result<u64, Vec<Violation>> {
        let mut checker = history.checker();
        for (offset, record) in stored {
            checker.read(0, *offset, record.value(40).as_bytes());
        }
        checker.finish().map_err(|violations| violations.first)
    }

    #[test]
    fn what_is_right_passes_with_unknown_ones_there_or_not() {
        let (history, [one, two]) = history();
        assert_eq!(history.counts(), Counts { acknowledged: 3, refused: 1, unknown: 2 });
        assert_eq!(check(&history, &[(0, &one[0]), (2, &one[1]), (4, &one[2])]), Ok(3));
        let with_unknown = [(0, &one[0]), (1, &two[0]), (2, &one[1]), (4, &one[2]), (5, &two[1])];
        assert_eq!(check(&history, &with_unknown), Ok(5));
    }

    #[test]
    fn each_kind_of_wrong_is_found() {
        let (history, [one, two]) = history();
        let found = |stored: &[(Offset, &Sent)]| check(&history, stored).unwrap_err();
        assert_eq!(found(&[(0, &one[0]), (4, &one[2])]), [Violation::Lost { record: one[1], offset: 2 }]);
        assert_eq!(
            found(&[(0, &one[0]), (2, &one[1]), (4, &one[2]), (5, &two[0]), (6, &two[0])]),
            [Violation::Doubled { record: two[0], offset: 6 }]
        );
        assert_eq!(
            found(&[(0, &one[0]), (3, &one[1]), (4, &one[2])]),
            [Violation::Moved { record: one[1], acknowledged: 2, found: 3 }]
        );
        assert_eq!(
            found(&[(0, &one[0]), (2, &one[1]), (4, &one[2]), (5, &two[1]), (6, &two[0])]),
            [Violation::Disorder { record: two[0], offset: 6, before: 1 }]
        );
        assert_eq!(
            found(&[(0, &one[0]), (2, &one[1]), (4, &one[2]), (5, &two[2])]),
            [Violation::Refused { record: two[2], offset: 5 }]
        );
        assert_eq!(
            found(&[(0, &one[0]), (2, &one[1]), (4, &one[2]), (4, &two[0])]),
            [Violation::Offsets { partition: 0, offset: 4, before: 4 }]
        );
        let stranger = Sent { producer: 3, partition: 0, sequence: 0 };
        let elsewhere = Sent { partition: 1, ..one[0] };
        for never in [stranger, elsewhere, Sent { sequence: 3, ..one[0] }] {
            let found = found(&[(0, &one[0]), (2, &one[1]), (4, &one[2]), (5, &never)]);
            assert!(matches!(found[..], [Violation::NeverSent { offset: 5, .. }]), "{found:?}");
        }
    }
}
