//! What a line of the input becomes.

use bus_client::Record;
use bus_protocol::PartitionId;

use crate::jsonl::{self, JsonRecord};

/// How lines are read.
#[derive(Debug)]
pub(super) enum Shape {
    /// The line is the value, or holds key and value.
    Line {
        key: Option<String>,
        separator: Option<String>,
        headers: Vec<(String, String)>,
        partition: Option<PartitionId>,
    },
    /// The line is a JSON object.
    Json,
}

impl Shape {
    pub(super) fn new(
        json: bool,
        key: Option<String>,
        separator: Option<String>,
        headers: Vec<(String, String)>,
        partition: Option<PartitionId>,
    ) -> Self {
        if json { Self::Json } else { Self::Line { key, separator, headers, partition } }
    }

    /// The record of a line (without its line feed), or why there is none.
    pub(super) fn record<'a>(&'a self, line: &'a [u8]) -> Result<Record<'a>, String> {
        let Self::Line { key, separator, headers, partition } = self else { return json(line) };
        let mut record = Record::new();
        let mut value = line;
        if let Some(key) = key {
            record = record.key(key);
        } else if let Some(separator) = separator {
            let separator = separator.as_bytes();
            let at = line.windows(separator.len()).position(|window| window == separator);
            let at = at.ok_or_else(|| {
                format!("there is no {:?} between a key and a value", String::from_utf8_lossy(separator))
            })?;
            record = record.key(&line[..at]);
            value = &line[at + separator.len()..];
        }
        if let Some(partition) = partition {
            record = record.partition(*partition);
        }
        for (name, value) in headers {
            record = record.header(name, value.clone());
        }
        Ok(record.value(value))
    }
}

fn json(line: &[u8]) -> Result<Record<'static>, String> {
    let JsonRecord { key, value, headers, timestamp, partition } = jsonl::parse(line)?;
    let mut record = Record::new();
    if let Some(key) = key {
        record = record.key(key);
    }
    if let Some(value) = value {
        record = record.value(value);
    }
    for (name, value) in headers {
        record = record.nullable_header(name, value.map(Into::into));
    }
    if let Some(timestamp) = timestamp {
        record = record.timestamp(timestamp);
    }
    if let Some(partition) = partition {
        record = record.partition(partition);
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(separator: Option<&str>) -> Shape {
        Shape::new(false, None, separator.map(str::to_owned), Vec::new(), None)
    }

    #[test]
    fn a_line_splits_at_the_first_separator() {
        let shape = shape(Some("::"));
        let record = format!("{:?}", shape.record(b"a::b::c").unwrap());
        assert!(record.contains(&format!("{:?}", b"a")), "{record}");
        assert!(record.contains(&format!("{:?}", b"b::c")), "{record}");
        assert!(shape.record(b"a:b").unwrap_err().contains("\"::\""));
    }
}
