//! Records for the typed interfaces: views of the batch, nothing copied before wasmtime lowers them.

use bus_protocol::batch::{BatchHeader, RecordSlice, RecordSlices};

use crate::failure::{Failure, FailureKind};
use crate::instance::types;

/// Calls `with` with the records of `section`, whose batch's header is `header`.
pub(crate) fn with_records<T>(
    header: &BatchHeader,
    section: &[u8],
    with: impl FnOnce(&[types::Record<'_>]) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let slices = slices(section)?;
    // All headers lie in one list, so that a record without any costs no allocation.
    let mut headers = Vec::new();
    for slice in &slices {
        headers.extend(slice.headers().map(|(key, value)| types::HeaderParam { key, value }));
    }
    let mut rest = headers.as_slice();
    let mut records = Vec::with_capacity(slices.len());
    for slice in &slices {
        let (own, others) = rest.split_at((slice.header_count as usize).min(rest.len()));
        rest = others;
        records.push(types::Record {
            offset: header.base_offset + i64::from(slice.offset_delta),
            timestamp: header.timestamp_of(slice.timestamp_delta),
            key: slice.key,
            value: slice.value,
            headers: own,
        });
    }
    with(&records)
}

/// The records of a section, or a failure that says the batch is damaged.
pub(crate) fn slices(section: &[u8]) -> Result<Vec<RecordSlice<'_>>, Failure> {
    RecordSlices::new(section)
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::new(FailureKind::Output, format!("the batch itself is damaged: {error}")))
}
