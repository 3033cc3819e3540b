//! What of a refused delivery is stored already.

use std::collections::{HashMap, VecDeque};

use bus_protocol::TopicName;

use crate::ports::Progress;
use crate::{Emission, EmittedRecord};

/// Deliveries that were refused in part. Their input is given to the function again, in parts and in order, and emits
/// the same again: what of it is stored is told apart here. A function that emits something else costs its records a
/// second copy, no more than that.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// A topic's records that are to come again, in order, and whether each is stored.
    topics: HashMap<TopicName, VecDeque<(EmittedRecord, bool)>>,
}

impl Ledger {
    /// Notes a refused delivery, whose input is what comes next.
    pub(crate) fn note(&mut self, emissions: Vec<Emission>, progress: &Progress) {
        for (place, emission) in emissions.into_iter().enumerate() {
            let coming = self.topics.entry(emission.topic).or_default();
            for (index, record) in emission.records.into_iter().enumerate().rev() {
                coming.push_front((record, progress.is_committed(place, index)));
            }
        }
    }

    /// What of `emissions`, which come next, is stored. Each noted record is recalled once.
    pub(crate) fn recall(&mut self, emissions: &[Emission]) -> Progress {
        let mut progress = Progress::default();
        for (place, emission) in emissions.iter().enumerate() {
            let Some(coming) = self.topics.get_mut(&emission.topic) else { continue };
            for (index, record) in emission.records.iter().enumerate() {
                match coming.pop_front() {
                    Some((known, stored)) if known == *record => {
                        if stored {
                            progress.commit(place, index);
                        }
                    }
                    // Not what was emitted before: there is no telling what the rest stands for.
                    _ => {
                        coming.clear();
                        break;
                    }
                }
            }
        }
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emission(values: &[&'static str]) -> Emission {
        let record = |value: &&'static str| EmittedRecord {
            timestamp: 0,
            key: None,
            value: Some((*value).into()),
            headers: vec![],
        };
        Emission { topic: TopicName::new("out").unwrap(), records: values.iter().map(record).collect() }
    }

    fn recalled(ledger: &mut Ledger, values: &[&'static str]) -> Vec<bool> {
        let progress = ledger.recall(&[emission(values)]);
        (0..values.len()).map(|index| progress.is_committed(0, index)).collect()
    }

    #[test]
    fn parts_recall_what_is_stored_of_them_once() {
        let (mut ledger, mut progress) = (Ledger::default(), Progress::default());
        progress.commit(0, 0);
        progress.commit(0, 2);
        ledger.note(vec![emission(&["a", "b", "a", "d"])], &progress);
        // The first half is refused again, and comes in quarters.
        let mut half = ledger.recall(&[emission(&["a", "b"])]);
        assert_eq!((half.is_committed(0, 0), half.is_committed(0, 1)), (true, false));
        half.commit(0, 1);
        ledger.note(vec![emission(&["a", "b"])], &half);
        assert_eq!(recalled(&mut ledger, &["a"]), [true]);
        assert_eq!(recalled(&mut ledger, &["b"]), [true]);
        assert_eq!(recalled(&mut ledger, &["a", "d"]), [true, false]);
        assert_eq!(recalled(&mut ledger, &["a"]), [false], "each is recalled once");
    }

    #[test]
    fn another_output_counts_as_not_stored() {
        let (mut ledger, mut progress) = (Ledger::default(), Progress::default());
        (0..3).for_each(|index| progress.commit(0, index));
        ledger.note(vec![emission(&["a", "b", "c"])], &progress);
        assert_eq!(recalled(&mut ledger, &["a", "x", "c"]), [true, false, false]);
        assert_eq!(recalled(&mut ledger, &["b", "c"]), [false, false]);
    }
}
