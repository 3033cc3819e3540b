//! Consumer functions: committed records in, emitted records out.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bus_protocol::batch::{BatchHeader, Header, RecordBatch, RecordSlices};
use bus_protocol::{Offset, PartitionId, Timestamp, TopicName};
use bytes::Bytes;

use crate::Function;
use crate::failure::{Failure, FailureKind};
use crate::function::CallError;
use crate::instance::{ConsumerOutput, Input, Instance, Subject, types};
use crate::typed;

/// Records on their way to one topic, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emission {
    /// The topic: one of the function's outputs, or its dead-letter topic.
    pub topic: TopicName,
    /// The records.
    pub records: Vec<EmittedRecord>,
}

/// A record on its way to a topic. Slices of what the guest gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmittedRecord {
    /// Milliseconds since the Unix epoch.
    pub timestamp: Timestamp,
    /// The key, by which the sink chooses the partition.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// The headers.
    pub headers: Vec<Header>,
}

/// Why a batch was not consumed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsumeError {
    /// The call failed.
    #[error("{0}")]
    Failed(Failure),
    /// The function is being left alone after a failure.
    #[error("the function failed and is left alone for another {} ms", .retry_after.as_millis())]
    Backoff {
        /// How long yet.
        retry_after: Duration,
    },
    /// The host is stopping.
    #[error("the function host is stopping")]
    Stopped,
}

/// Some records of a batch, one behind the other.
#[derive(Clone, Debug)]
pub(crate) struct Portion {
    pub(crate) header: BatchHeader,
    /// The batch's whole records section, decompressed.
    pub(crate) section: Bytes,
    /// Where each record of the portion lies in the section.
    pub(crate) records: Vec<Range<usize>>,
}

impl Emission {
    /// What its records take in memory, in bytes, about.
    pub(crate) fn size(&self) -> usize {
        let length = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        let size = |record: &EmittedRecord| {
            let headers = record.headers.iter().map(|header| header.key.len() + length(&header.value));
            size_of::<EmittedRecord>() + length(&record.key) + length(&record.value) + headers.sum::<usize>()
        };
        self.records.iter().map(size).sum()
    }
}

impl Portion {
    /// The records of `batch` from the offset `from` on.
    pub(crate) fn new(batch: &RecordBatch, from: Offset) -> Result<Self, Failure> {
        let header = *batch.header();
        let section = batch.records_bytes().map_err(|error| damaged(&error))?;
        let mut records = Vec::with_capacity(header.record_count.unsigned_abs() as usize);
        let mut position = 0;
        for record in RecordSlices::new(&section) {
            let record = record.map_err(|error| damaged(&error))?;
            let start = position;
            position += record.raw.len();
            if header.base_offset + i64::from(record.offset_delta) >= from {
                records.push(start..position);
            }
        }
        Ok(Self { header, section, records })
    }

    /// The bytes of its records.
    pub(crate) fn bytes(&self) -> Bytes {
        match (self.records.first(), self.records.last()) {
            (Some(first), Some(last)) => self.section.slice(first.start..last.end),
            _ => Bytes::new(),
        }
    }

    /// Two halves, the first first.
    pub(crate) fn split(mut self) -> (Self, Self) {
        let second = self.records.split_off(self.records.len() / 2);
        let other = Self { header: self.header, section: self.section.clone(), records: second };
        (self, other)
    }
}

pub(crate) fn damaged(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Output, format!("the batch itself is damaged: {error}"))
}

impl Function {
    /// Gives `batch` to the function and answers with what it emits, which is stored nowhere yet. Batches
    /// without records, and control batches, emit nothing.
    pub async fn consume(
        self: &Arc<Self>,
        topic: &TopicName,
        partition: PartitionId,
        batch: &RecordBatch,
    ) -> Result<Vec<Emission>, ConsumeError> {
        if batch.header().record_count == 0 || batch.header().is_control() {
            return Ok(Vec::new());
        }
        let section = batch.records_bytes().map_err(|error| ConsumeError::Failed(damaged(&error)))?;
        self.consume_section(topic, partition, *batch.header(), section, true).await
    }

    /// Gives some records of a batch to the function. `whole`: see [`Function::call`].
    pub(crate) async fn consume_section(
        self: &Arc<Self>,
        topic: &TopicName,
        partition: PartitionId,
        header: BatchHeader,
        section: Bytes,
        whole: bool,
    ) -> Result<Vec<Emission>, ConsumeError> {
        let seed = self.seed(&[i64::from(partition), header.base_offset]);
        let topic = topic.clone();
        let function = self.clone();
        let work = move |instance: &mut Instance| {
            function.run_consumer(instance, &topic, partition, seed, &header, &section)
        };
        match self.call(whole, work).await {
            Ok(emissions) => Ok(emissions),
            Err(CallError::Failed(failure)) => Err(ConsumeError::Failed(failure)),
            Err(CallError::Backoff(retry_after)) => Err(ConsumeError::Backoff { retry_after }),
            Err(CallError::Stopped) => Err(ConsumeError::Stopped),
        }
    }

    /// Notes what stands in the way of the function's records, though no call failed: in its log, and as its last
    /// error.
    pub(crate) fn trouble(&self, what: &str) {
        self.log_line("error", what);
        self.counters.trouble(self.shared.clock.timestamp(), what.to_owned());
    }

    fn run_consumer(
        &self,
        instance: &mut Instance,
        topic: &TopicName,
        partition: PartitionId,
        seed: u64,
        header: &BatchHeader,
        section: &[u8],
    ) -> Result<Vec<Emission>, Failure> {
        let subject = Subject {
            topic: topic.as_str(),
            partition,
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            now: header.max_timestamp,
            seed,
        };
        let output = if instance.is_flat() {
            instance.consume(subject, Input::Flat(section))?
        } else {
            typed::with_records(header, section, |records| instance.consume(subject, Input::Typed(records)))?
        };
        let mut gathered = Gathered { outputs: &self.spec().outputs, emissions: Vec::new() };
        match output {
            ConsumerOutput::Typed(emissions) => gathered.typed(emissions, header.max_timestamp)?,
            ConsumerOutput::Flat(emissions) => gathered.flat(emissions, header)?,
        }
        let emissions = gathered.emissions;
        let out: usize = emissions.iter().map(|emission| emission.records.len()).sum();
        let records = RecordSlices::new(section).count();
        self.counters.count(records as u64, out as u64, 0);
        Ok(emissions)
    }
}

/// Emitted records, by topic.
struct Gathered<'a> {
    outputs: &'a [TopicName],
    emissions: Vec<Emission>,
}

impl Gathered<'_> {
    /// The place in `emissions` of `topic`.
    fn place(&mut self, topic: &str) -> Result<usize, Failure> {
        if let Some(place) = self.emissions.iter().position(|emission| emission.topic.as_str() == topic) {
            return Ok(place);
        }
        let Some(known) = self.outputs.iter().find(|output| output.as_str() == topic) else {
            let outputs: Vec<&str> = self.outputs.iter().map(TopicName::as_str).collect();
            let shown = crate::failure::cut(topic, 249);
            return Err(invalid(format_args!(
                "it emits to topic {shown:?}, which is not among its outputs ({}); deploy it with --output",
                outputs.join(", ")
            )));
        };
        self.emissions.push(Emission { topic: known.clone(), records: Vec::new() });
        Ok(self.emissions.len() - 1)
    }

    fn typed(&mut self, emissions: Vec<types::Emission>, now: Timestamp) -> Result<(), Failure> {
        for emission in emissions {
            let place = self.place(&emission.topic)?;
            let headers = emission.headers.into_iter().map(|header| Header {
                key: Bytes::from(header.key.into_bytes()),
                value: header.value.map(Bytes::from),
            });
            self.emissions[place].records.push(EmittedRecord {
                timestamp: emission.timestamp.unwrap_or(now),
                key: emission.key.map(Bytes::from),
                value: emission.value.map(Bytes::from),
                headers: headers.collect(),
            });
        }
        Ok(())
    }

    fn flat(&mut self, emissions: types::Emissions, header: &BatchHeader) -> Result<(), Failure> {
        let topics = emissions.topics;
        // Topics are looked up once each, when they are first spoken of.
        let mut places: Vec<Option<usize>> = vec![None; topics.len()];
        let bytes = Bytes::from(emissions.records);
        let mut rest: &[u8] = &bytes;
        while !rest.is_empty() {
            let topic = take_index(&mut rest).ok_or_else(|| invalid("a topic's place is cut short"))?;
            let (Some(name), Some(place)) = (topics.get(topic), places.get_mut(topic)) else {
                return Err(invalid(format_args!("it emits to topic {topic} of {}", topics.len())));
            };
            let place = match *place {
                Some(place) => place,
                None => *place.insert(self.place(name)?),
            };
            let record = RecordSlices::new(rest)
                .next()
                .ok_or_else(|| invalid("a topic without a record"))?
                .map_err(invalid)?;
            rest = &rest[record.raw.len()..];
            let owned = |part: &[u8]| bytes.slice_ref(part);
            let headers = record
                .headers()
                .map(|(key, value)| Header { key: owned(key.as_bytes()), value: value.map(owned) });
            self.emissions[place].records.push(EmittedRecord {
                timestamp: header.base_timestamp.saturating_add(record.timestamp_delta),
                key: record.key.map(owned),
                value: record.value.map(owned),
                headers: headers.collect(),
            });
        }
        Ok(())
    }
}

fn invalid(why: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Output, format!("what the function gave back is not valid: {why}"))
}

/// An unsigned varint of at most 32 bits.
fn take_index(rest: &mut &[u8]) -> Option<usize> {
    let mut index = 0u64;
    for shift in 0..5 {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        index |= u64::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            return usize::try_from(index).ok();
        }
    }
    None
}
