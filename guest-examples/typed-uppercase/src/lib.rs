//! A transform without any SDK: the bindings come from `wit/function.wit`, as they would in any language. It makes
//! values upper case, drops records whose value is empty, and refuses those that are not text. What is upper case
//! already is kept.

wit_bindgen::generate!({ path: "../../wit", world: "transforming" });

use exports::bus::function::transform::{Context, Guest, Record, Verdict};

use crate::bus::function::types::{Header, Replacement};

struct Uppercase;

impl Guest for Uppercase {
    fn transform(_: Context, records: Vec<Record>) -> Vec<Verdict> {
        records.into_iter().map(uppercase).collect()
    }
}

fn uppercase(record: Record) -> Verdict {
    let value = record.value.unwrap_or_default();
    if value.is_empty() {
        return Verdict::Drop;
    }
    let Ok(text) = String::from_utf8(value) else { return Verdict::Refuse("the value is not text".into()) };
    let upper = text.to_uppercase();
    if upper == text {
        return Verdict::Keep;
    }
    let mut headers = record.headers;
    headers.push(Header { key: "upper".into(), value: None });
    Verdict::Replace(Replacement { key: record.key, value: Some(upper.into_bytes()), headers })
}

export!(Uppercase);
