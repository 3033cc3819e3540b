//! How a record is printed.

use std::io::{self, Write};

use bus_client::ConsumerRecord;

use crate::jsonl::Line;

/// A parsed `--format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Timestamp,
    Key,
    Value,
    Headers,
}

impl Template {
    /// Parses `%t %p %o %T %k %v %h %%` and the escapes `\n \t \r \0 \\`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let part = match character {
                '\\' => {
                    literal.push(match characters.next() {
                        Some('n') => b'\n',
                        Some('t') => b'\t',
                        Some('r') => b'\r',
                        Some('0') => 0,
                        Some('\\') => b'\\',
                        other => {
                            return Err(format!(
                                "\\{} is none of \\n, \\t, \\r, \\0, \\\\",
                                other.unwrap_or(' ')
                            ));
                        }
                    });
                    continue;
                }
                '%' => match characters.next() {
                    Some('t') => Part::Topic,
                    Some('p') => Part::Partition,
                    Some('o') => Part::Offset,
                    Some('T') => Part::Timestamp,
                    Some('k') => Part::Key,
                    Some('v') => Part::Value,
                    Some('h') => Part::Headers,
                    Some('%') => {
                        literal.push(b'%');
                        continue;
                    }
                    other => {
                        return Err(format!(
                            "%{} is none of %t, %p, %o, %T, %k, %v, %h, %%",
                            other.unwrap_or(' ')
                        ));
                    }
                },
                other => {
                    literal.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(part);
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self(parts))
    }

    /// Writes one record; keys, values and headers as the bytes that they are.
    pub(super) fn write(&self, record: &ConsumerRecord, out: &mut impl Write) -> io::Result<()> {
        for part in &self.0 {
            match part {
                Part::Literal(text) => out.write_all(text)?,
                Part::Topic => out.write_all(record.topic.as_str().as_bytes())?,
                Part::Partition => write!(out, "{}", record.partition)?,
                Part::Offset => write!(out, "{}", record.offset)?,
                Part::Timestamp => write!(out, "{}", record.timestamp)?,
                Part::Key => out.write_all(record.key.as_deref().unwrap_or_default())?,
                Part::Value => out.write_all(record.value.as_deref().unwrap_or_default())?,
                Part::Headers => {
                    for (place, header) in record.headers.iter().enumerate() {
                        if place > 0 {
                            out.write_all(b",")?;
                        }
                        out.write_all(&header.key)?;
                        out.write_all(b"=")?;
                        out.write_all(header.value.as_deref().unwrap_or_default())?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Writes a record as a line of JSON.
pub(super) fn json(record: &ConsumerRecord, out: &mut impl Write) -> io::Result<()> {
    let line = Line {
        topic: record.topic.as_str(),
        partition: Some(record.partition),
        offset: Some(record.offset),
        timestamp: record.timestamp,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: record.headers.iter().map(|header| (header.key.as_ref(), header.value.as_deref())),
    };
    line.write(out)
}

#[cfg(test)]
mod tests {
    use bus_client::Header;
    use bus_protocol::TopicName;
    use bytes::Bytes;

    use super::*;

    fn record() -> ConsumerRecord {
        let header = |key, value| Header { key: Bytes::from_static(key), value };
        ConsumerRecord {
            topic: TopicName::new("t").unwrap(),
            partition: 1,
            offset: 2,
            timestamp: 3,
            key: None,
            value: Some(Bytes::from_static(b"\xffv")),
            headers: vec![header(b"a", Some(Bytes::from_static(b"\"1\""))), header(b"b", None)],
        }
    }

    fn shown(template: &str, record: &ConsumerRecord) -> Vec<u8> {
        let mut out = Vec::new();
        Template::parse(template).unwrap().write(record, &mut out).unwrap();
        out
    }

    #[test]
    fn templates() {
        assert_eq!(
            shown("%t %p %o %T [%k] %v %h %%\\n\\t\\\\ä", &record()),
            b"t 1 2 3 [] \xffv a=\"1\",b= %\n\t\\\xc3\xa4"
        );
        for wrong in ["%x", "%", "\\x", "abc\\"] {
            assert!(Template::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn json_lines() {
        let mut record = record();
        let mut out = Vec::new();
        json(&record, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            concat!(
                r#"{"topic":"t","partition":1,"offset":2,"timestamp":3,"key":null,"value":{"base64":"/3Y="},"#,
                r#""headers":{"a":"\"1\"","b":null}}"#,
                "\n"
            )
        );
        record.headers[1].key = Bytes::from_static(b"a");
        let mut out = Vec::new();
        json(&record, &mut out).unwrap();
        let parsed: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(parsed["headers"], serde_json::json!([["a", "\"1\""], ["a", null]]));
    }
}
