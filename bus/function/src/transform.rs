//! Transforms: a batch on its way in.

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::batch::{BatchHeader, RecordBatch, RecordSlice, RecordSlices, encode_record};
use bus_protocol::{PartitionId, RecordError, TopicName, limits};

use crate::Function;
use crate::failure::{Failure, FailureKind, cut};
use crate::function::CallError;
use crate::instance::{Input, Instance, Subject, TransformOutput, types};
use crate::typed;

/// The longest reason of a refusal, in bytes.
const REASON_BYTES: usize = 1_024;

/// What a transform made of a batch.
#[derive(Clone, Debug)]
pub struct Transformed {
    /// The batch to store: same base sequence, last offset delta and compression. The batch that came in, not a
    /// copy, where the transform changed nothing.
    pub batch: RecordBatch,
    /// Records that were dropped.
    pub dropped: u32,
}

/// Why a batch was not let through.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransformError {
    /// The function refused records; nothing of the batch is stored. At most
    /// [`limits::REPORTED_RECORD_ERRORS`] of them; an index is the record's place in the producer's batch.
    #[error("{} records refused, the first at {}: {}", .0.len(), .0.first().map_or(0, |r| r.index), .0.first().map_or("", |r| r.reason.as_str()))]
    Refused(Vec<RecordError>),
    /// The call failed. The function is left alone for a while.
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

enum Verdict {
    Stored(Transformed, [u64; 2]),
    Refused(Vec<RecordError>, [u64; 2]),
}

impl Function {
    /// Runs `batch` through the function. `batch` must have passed [`RecordBatch::validate`]: damage would be
    /// blamed on the function. Batches without records, and control batches, come back as they are.
    pub async fn transform(
        self: &Arc<Self>,
        topic: &TopicName,
        partition: PartitionId,
        batch: RecordBatch,
    ) -> Result<Transformed, TransformError> {
        let header = *batch.header();
        if header.record_count == 0 || header.is_control() {
            return Ok(Transformed { batch, dropped: 0 });
        }
        // Where the batch will stand is not known yet. What tells it from others is kept in the stored batch.
        let parts = [
            i64::from(partition),
            header.base_timestamp,
            header.producer_id,
            i64::from(header.base_sequence),
        ];
        let seed = self.seed(&parts);
        let topic = topic.clone();
        let output_bytes = self.shared.options.output_bytes;
        let called = self
            .call(true, move |instance| run(instance, &topic, partition, seed, &batch, output_bytes))
            .await;
        match called {
            Ok(Verdict::Stored(transformed, [records, dropped])) => {
                self.counters.count(records, records - dropped, dropped);
                Ok(transformed)
            }
            Ok(Verdict::Refused(errors, [records, refused])) => {
                self.counters.count(records, 0, refused);
                Err(TransformError::Refused(errors))
            }
            Err(CallError::Failed(failure)) => {
                self.counters.count(0, 0, u64::from(header.record_count.unsigned_abs()));
                Err(TransformError::Failed(failure))
            }
            Err(CallError::Backoff(retry_after)) => Err(TransformError::Backoff { retry_after }),
            Err(CallError::Stopped) => Err(TransformError::Stopped),
        }
    }
}

fn run(
    instance: &mut Instance,
    topic: &TopicName,
    partition: PartitionId,
    seed: u64,
    batch: &RecordBatch,
    output_bytes: usize,
) -> Result<Verdict, Failure> {
    let header = batch.header();
    let subject = Subject {
        topic: topic.as_str(),
        partition,
        base_offset: 0,
        base_timestamp: header.base_timestamp,
        now: header.max_timestamp,
        seed,
    };
    let section = batch.records_bytes().map_err(damaged)?;
    let output = if instance.is_flat() {
        instance.transform(subject, Input::Flat(&section))?
    } else {
        // Offsets on the way in are places within the batch.
        let inward = BatchHeader { base_offset: 0, ..*header };
        typed::with_records(&inward, &section, |records| instance.transform(subject, Input::Typed(records)))?
    };
    match output {
        TransformOutput::Flat(types::Outcome::Unchanged) => Ok(unchanged(batch)),
        TransformOutput::Flat(types::Outcome::Refused(refusals)) => {
            let refusals = refusals.into_iter().map(|refusal| (refusal.index, refusal.reason));
            refused(header, &section, refusals.collect())
        }
        TransformOutput::Flat(types::Outcome::Changed(records)) => {
            check_size(records.len(), output_bytes)?;
            let count = if header.is_dense() { count(&records) } else { check_subset(&section, &records)? };
            stored(batch, &records, count)
        }
        TransformOutput::Typed(verdicts) => apply(batch, &section, &verdicts, output_bytes),
    }
}

fn damaged(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Output, format!("the batch itself is damaged: {error}"))
}

fn invalid(why: impl std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Output, format!("what the function gave back is not valid: {why}"))
}

fn unchanged(batch: &RecordBatch) -> Verdict {
    let records = u64::from(batch.header().record_count.unsigned_abs());
    Verdict::Stored(Transformed { batch: batch.clone(), dropped: 0 }, [records, 0])
}

fn check_size(bytes: usize, limit: usize) -> Result<(), Failure> {
    if bytes <= limit {
        return Ok(());
    }
    Err(invalid(format_args!("{bytes} bytes are over the limit of {limit}")))
}

/// How many records a section seems to hold: hops from length to length. [`RecordBatch::with_records`] looks
/// into them, and refuses where that finds another number.
fn count(mut section: &[u8]) -> i32 {
    let mut count = 0;
    while !section.is_empty() {
        let (mut length, mut shift) = (0u64, 0);
        for &byte in section.iter().take(5) {
            length |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        count += 1;
        // Zig-zag; an odd number is a negative length, which the real check refuses.
        section = section.get(shift / 7 + (length / 2) as usize..).unwrap_or_default();
    }
    count
}

/// Checks that `output` holds only offset deltas that `input` holds, which a batch without gaps needs not.
/// Answers with how many.
fn check_subset(input: &[u8], output: &[u8]) -> Result<i32, Failure> {
    let mut kept = RecordSlices::new(input);
    let mut count = 0;
    for record in RecordSlices::new(output) {
        let delta = record.map_err(invalid)?.offset_delta;
        if !kept.by_ref().flatten().any(|original| original.offset_delta == delta) {
            return Err(invalid(format_args!("the batch has no record with offset delta {delta} there")));
        }
        count += 1;
    }
    Ok(count)
}

fn stored(batch: &RecordBatch, records: &[u8], count: i32) -> Result<Verdict, Failure> {
    let transformed = batch.with_records(records, count).map_err(invalid)?;
    let before = batch.header().record_count.unsigned_abs();
    let dropped = before.saturating_sub(count.unsigned_abs());
    Ok(Verdict::Stored(Transformed { batch: transformed, dropped }, [before.into(), dropped.into()]))
}

fn refused(header: &BatchHeader, section: &[u8], refusals: Vec<(u32, String)>) -> Result<Verdict, Failure> {
    let records = header.record_count.unsigned_abs();
    if refusals.is_empty() {
        return Err(invalid("it refuses the batch and no record of it"));
    }
    if let Some((index, _)) = refusals.iter().find(|(index, _)| *index >= records) {
        return Err(invalid(format_args!("it refuses record {index} of {records}")));
    }
    let total = refusals.len() as u64;
    // An earlier transform may have dropped records: the producer counts in its own batch, by offset deltas.
    let deltas: Option<Vec<i32>> =
        (!header.is_dense()).then(|| RecordSlices::new(section).flatten().map(|r| r.offset_delta).collect());
    let place = |index: u32| match &deltas {
        Some(deltas) => deltas.get(index as usize).map_or(index, |delta| delta.unsigned_abs()),
        None => index,
    };
    let errors = refusals
        .into_iter()
        .take(limits::REPORTED_RECORD_ERRORS)
        .map(|(index, reason)| RecordError {
            index: place(index),
            reason: cut(&reason, REASON_BYTES).replace(['\n', '\r'], " "),
        })
        .collect();
    Ok(Verdict::Refused(errors, [records.into(), total]))
}

/// Does what a typed transform said of each record.
fn apply(
    batch: &RecordBatch,
    section: &[u8],
    verdicts: &[types::Verdict],
    output_bytes: usize,
) -> Result<Verdict, Failure> {
    let slices = typed::slices(section)?;
    if slices.len() != verdicts.len() {
        let (said, records) = (verdicts.len(), slices.len());
        return Err(invalid(format_args!("it says {said} verdicts on {records} records")));
    }
    if verdicts.iter().all(|verdict| matches!(verdict, types::Verdict::Keep)) {
        return Ok(unchanged(batch));
    }
    let refusals: Vec<(u32, String)> = (0u32..)
        .zip(verdicts)
        .filter_map(|(index, verdict)| match verdict {
            types::Verdict::Refuse(reason) => Some((index, reason.clone())),
            _ => None,
        })
        .take(limits::REPORTED_RECORD_ERRORS)
        .collect();
    if !refusals.is_empty() {
        return refused(batch.header(), section, refusals);
    }
    let mut out = Vec::with_capacity(section.len());
    let mut count = 0;
    for (slice, verdict) in slices.iter().zip(verdicts) {
        match verdict {
            types::Verdict::Keep => out.extend_from_slice(slice.raw),
            types::Verdict::Replace(replacement) => replace(&mut out, slice, replacement),
            types::Verdict::Drop | types::Verdict::Refuse(_) => continue,
        }
        count += 1;
        check_size(out.len(), output_bytes)?;
    }
    stored(batch, &out, count)
}

fn replace(out: &mut Vec<u8>, slice: &RecordSlice<'_>, replacement: &types::Replacement) {
    let headers = replacement.headers.iter().map(|h| (h.key.as_bytes(), h.value.as_deref()));
    let (key, value) = (replacement.key.as_deref(), replacement.value.as_deref());
    encode_record(out, slice.offset_delta.unsigned_abs(), slice.timestamp_delta, key, value, headers);
}

/// The transforms of one topic, in order of deployment.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    functions: Vec<Arc<Function>>,
}

/// Which function of a chain did not let a batch through, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("function {function}: {error}")]
pub struct ChainError {
    /// The function's name.
    pub function: String,
    /// Why.
    pub error: TransformError,
}

impl Chain {
    /// The transforms `functions`, the first deployed first.
    pub fn new(functions: Vec<Arc<Function>>) -> Self {
        Self { functions }
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    /// The functions in order.
    pub fn functions(&self) -> &[Arc<Function>] {
        &self.functions
    }

    /// Runs `batch` through all of them in turn; see [`Function::transform`].
    pub async fn transform(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        batch: RecordBatch,
    ) -> Result<Transformed, ChainError> {
        let mut whole = Transformed { batch, dropped: 0 };
        for function in &self.functions {
            let Transformed { batch, dropped } = function
                .transform(topic, partition, whole.batch)
                .await
                .map_err(|error| ChainError { function: function.spec().name.clone(), error })?;
            whole = Transformed { batch, dropped: whole.dropped + dropped };
        }
        Ok(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_records_by_their_lengths() {
        let mut section = Vec::new();
        for (n, size) in [0usize, 1, 60, 200, 70_000].into_iter().enumerate() {
            assert_eq!(count(&section), n as i32);
            encode_record(&mut section, n as u32, 0, None, Some(&vec![7; size]), [].into_iter());
        }
        // Garbage ends the count, and is for the real check to refuse.
        assert!(count(&[0xff; 40]) > 0);
    }
}
