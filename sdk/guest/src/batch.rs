//! The records that a consumer gets in one call.

use crate::codec::Slice;
use crate::record::{Origin, Record};

/// Some records of one partition, in order. A loop over it gives each [`Record`].
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    pub(crate) origin: &'a Origin<'a>,
    pub(crate) records: &'a [u8],
}

impl<'a> Batch<'a> {
    /// The topic.
    pub fn topic(&self) -> &'a str {
        self.origin.topic
    }

    /// The partition.
    pub fn partition(&self) -> u32 {
        self.origin.partition
    }

    /// The records, from the first.
    pub fn iter(&self) -> Records<'a> {
        Records { origin: self.origin, rest: self.records }
    }
}

impl<'a> IntoIterator for Batch<'a> {
    type Item = Record<'a>;
    type IntoIter = Records<'a>;
    fn into_iter(self) -> Records<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &Batch<'a> {
    type Item = Record<'a>;
    type IntoIter = Records<'a>;
    fn into_iter(self) -> Records<'a> {
        self.iter()
    }
}

/// The records of a batch.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    origin: &'a Origin<'a>,
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    #[inline]
    fn next(&mut self) -> Option<Record<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        // The host gives nothing that does not decode; should it, that ends this instance and not the broker.
        let Some(slice) = Slice::take(&mut self.rest) else { panic!("the host gave a broken batch") };
        Some(Record::new(slice, self.origin))
    }
}
