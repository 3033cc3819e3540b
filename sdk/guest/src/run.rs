//! Runs an author's function over the records of a call.

use crate::codec::Slice;
use crate::record::{Origin, Record};
use crate::{Batch, Context, Error, Reject};

/// Refusals that are worth carrying back; the producer is shown no more.
const REFUSALS: usize = 100;

/// What a transform made of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing changed.
    Unchanged,
    /// These records, as they lie in a batch.
    Changed(Vec<u8>),
    /// Refused: place and reason.
    Refused(Vec<(u32, String)>),
}

#[cfg(target_arch = "wasm32")]
impl From<Outcome> for crate::bindings::transform::Outcome {
    fn from(outcome: Outcome) -> Self {
        use crate::bindings::transform::bus::function::types::Refusal;
        match outcome {
            Outcome::Unchanged => Self::Unchanged,
            Outcome::Changed(records) => Self::Changed(records),
            Outcome::Refused(refusals) => {
                Self::Refused(refusals.into_iter().map(|(index, reason)| Refusal { index, reason }).collect())
            }
        }
    }
}

/// Runs `function` on each record. Runs of records that it leaves as they are are copied as one.
pub fn transform<F>(
    topic: &str,
    partition: u32,
    base_offset: i64,
    base_timestamp: i64,
    records: &[u8],
    function: F,
) -> Outcome
where
    F: for<'a> Fn(Record<'a>) -> Result<Option<Record<'a>>, Reject>,
{
    let origin = Origin { topic, partition, base_offset, base_timestamp };
    let mut rest = records;
    let mut out: Option<Vec<u8>> = None;
    // From here on the input is kept as it is, and not yet copied.
    let mut kept = 0;
    let mut refusals = Vec::new();
    let mut index = 0;
    while !rest.is_empty() {
        let start = records.len() - rest.len();
        let Some(slice) = Slice::take(&mut rest) else { panic!("the host gave a broken batch") };
        match function(Record::new(slice, &origin)) {
            Ok(Some(record)) if record.is_still(slice.raw) => {}
            Ok(changed) => {
                let out = out.get_or_insert_with(|| Vec::with_capacity(records.len() + 64));
                out.extend_from_slice(&records[kept..start]);
                kept = start + slice.raw.len();
                if let Some(record) = changed {
                    record.put(out, &slice);
                }
            }
            Err(reject) => {
                refusals.push((index, reject.into_reason()));
                if refusals.len() == REFUSALS {
                    break;
                }
            }
        }
        index += 1;
    }
    if !refusals.is_empty() {
        return Outcome::Refused(refusals);
    }
    match out {
        None => Outcome::Unchanged,
        Some(mut out) => {
            out.extend_from_slice(&records[kept..]);
            Outcome::Changed(out)
        }
    }
}

/// What a consumer emitted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Emitted {
    pub(crate) topics: Vec<String>,
    pub(crate) records: Vec<u8>,
}

#[cfg(target_arch = "wasm32")]
impl From<Emitted> for crate::bindings::consumer::Emissions {
    fn from(emitted: Emitted) -> Self {
        Self { topics: emitted.topics, records: emitted.records }
    }
}

/// Runs `function` on all records of a call.
pub fn consume<F>(
    topic: &str,
    partition: u32,
    base_offset: i64,
    base_timestamp: i64,
    records: &[u8],
    function: F,
) -> Result<Emitted, String>
where
    F: for<'a> FnOnce(Batch<'a>, &mut Context) -> Result<(), Error>,
{
    let origin = Origin { topic, partition, base_offset, base_timestamp };
    let batch = Batch { origin: &origin, records };
    let mut context = Context::new(&origin);
    context.timestamp_delta = batch.iter().last().map_or(0, |record| record.timestamp_delta());
    function(batch, &mut context).map_err(Error::into_reason)?;
    let (topics, records) = context.into_parts();
    Ok(Emitted { topics, records })
}
