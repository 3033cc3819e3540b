//! Runs functions on records in an author's own unit tests, on the author's machine.
//!
//! ```
//! use bus_guest::{Record, Reject, testing};
//!
//! fn drop_empty(record: Record) -> Result<Option<Record>, Reject> {
//!     Ok(record.value().is_some_and(|value| !value.is_empty()).then_some(record))
//! }
//!
//! let kept = testing::transform(drop_empty, &["a", "", "b"]).unwrap();
//! assert_eq!(kept, [Some("a".into()), None, Some("b".into())]);
//! ```

use crate::codec::{self, Slice};
use crate::record::Record;
use crate::run::{self, Outcome};
use crate::{Batch, Context, Error, Reject};

/// Sets what [`crate::config()`] answers on this thread, once, before it is first asked; `false` if it is set
/// already.
pub fn set_config(settings: &[(&str, &str)]) -> bool {
    crate::config::set(settings.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()).is_ok()
}

fn encode(values: &[&str]) -> Vec<u8> {
    let mut section = Vec::new();
    for (offset, value) in (0i64..).zip(values) {
        codec::put_record(&mut section, 0, offset, None, Some(value.as_bytes()), 0, &[]);
    }
    section
}

/// Runs a transform on records of these values; the values that are stored, `None` for those dropped, or the
/// places and reasons of those refused.
pub fn transform<F>(function: F, values: &[&str]) -> Result<Vec<Option<String>>, Vec<(u32, String)>>
where
    F: for<'a> Fn(Record<'a>) -> Result<Option<Record<'a>>, Reject>,
{
    let section = encode(values);
    let stored = match run::transform("test", 0, 0, 0, &section, function) {
        Outcome::Unchanged => section,
        Outcome::Changed(stored) => stored,
        Outcome::Refused(refusals) => return Err(refusals),
    };
    let mut out = vec![None; values.len()];
    let mut rest = stored.as_slice();
    while let Some(slice) = Slice::take(&mut rest) {
        let text = String::from_utf8_lossy(slice.value.unwrap_or_default()).into_owned();
        if let Some(place) = usize::try_from(slice.offset_delta).ok().and_then(|place| out.get_mut(place)) {
            *place = Some(text);
        }
    }
    Ok(out)
}

/// Runs a consumer on records of these values; topic and value of each record that it emits, or why it failed.
pub fn consume<F>(function: F, values: &[&str]) -> Result<Vec<(String, String)>, String>
where
    F: for<'a> FnOnce(Batch<'a>, &mut Context) -> Result<(), Error>,
{
    let section = encode(values);
    let emitted = run::consume("test", 0, 0, 0, &section, function)?;
    let mut out = Vec::new();
    let mut rest = emitted.records.as_slice();
    // Places of topics are below 128 here unless a test emits to more topics than that.
    while let Some((&place, after)) = rest.split_first() {
        rest = after;
        let Some(slice) = Slice::take(&mut rest) else { break };
        let topic = emitted.topics.get(usize::from(place)).cloned().unwrap_or_default();
        out.push((topic, String::from_utf8_lossy(slice.value.unwrap_or_default()).into_owned()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transform_that_keeps_all_copies_nothing() {
        let section = encode(&["a", "b"]);
        assert_eq!(run::transform("t", 0, 0, 0, &section, |r| Ok(Some(r))), Outcome::Unchanged);
    }

    #[test]
    fn kept_changed_and_dropped_records_stay_in_their_places() {
        fn f(mut record: Record) -> Result<Option<Record>, Reject> {
            match record.text() {
                Some("drop") => return Ok(None),
                Some("change") => {
                    record.set_value("changed");
                    record.add_header("why", "test");
                    assert_eq!(record.header("why"), Some(&b"test"[..]));
                    record.remove_header("why");
                    assert_eq!(record.headers().count(), 0);
                }
                _ => {}
            }
            Ok(Some(record))
        }
        let out = transform(f, &["a", "drop", "b", "change", "c", "drop"]).unwrap();
        let text: Vec<Option<&str>> = out.iter().map(Option::as_deref).collect();
        assert_eq!(text, [Some("a"), None, Some("b"), Some("changed"), Some("c"), None]);
    }

    #[test]
    fn refusals_name_their_records() {
        fn f(record: Record) -> Result<Option<Record>, Reject> {
            if record.text() == Some("bad") { Err("bad".into()) } else { Ok(Some(record)) }
        }
        let refused = transform(f, &["a", "bad", "bad"]).unwrap_err();
        assert_eq!(refused, [(1, "bad".to_owned()), (2, "bad".to_owned())]);
    }

    #[test]
    fn a_consumer_emits_in_order() {
        let out = consume(
            |batch, context| {
                for (n, record) in batch.into_iter().enumerate() {
                    context.emit("count", record.key(), n)?;
                    context.forward("copy", &record)?;
                }
                Ok(())
            },
            &["a", "b"],
        );
        let expected = [("count", "0"), ("copy", "a"), ("count", "1"), ("copy", "b")];
        assert_eq!(out.unwrap(), expected.map(|(t, v)| (t.to_owned(), v.to_owned())));
    }
}
