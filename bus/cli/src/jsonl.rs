//! Records as JSON, an object a line: what `produce --json` and `function test` read, and `consume -o json` writes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bus_protocol::{Offset, PartitionId, Timestamp};
use serde::{Deserialize, Deserializer};

/// A record that was read.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct JsonRecord {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Option<Vec<u8>>)>,
    pub(crate) timestamp: Option<Timestamp>,
    pub(crate) partition: Option<PartitionId>,
}

/// A record as it is written. What `bus consume -o json` prints can be produced again: `topic` and `offset` are
/// read over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    key: Option<Field>,
    #[serde(default)]
    value: Option<Field>,
    #[serde(default)]
    headers: Headers,
    #[serde(default)]
    timestamp: Option<Timestamp>,
    #[serde(default)]
    partition: Option<PartitionId>,
    #[serde(default, rename = "topic")]
    _topic: serde::de::IgnoredAny,
    #[serde(default, rename = "offset")]
    _offset: serde::de::IgnoredAny,
}

/// Bytes: a string, or `{"base64":..}`.
#[derive(Debug, PartialEq)]
struct Field(Vec<u8>);

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a string, or {\"base64\":\"..\"}")]
enum RawField {
    Text(String),
    Base64(Base64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Base64 {
    base64: String,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match RawField::deserialize(deserializer)? {
            RawField::Text(text) => Ok(Self(text.into_bytes())),
            RawField::Base64(raw) => STANDARD
                .decode(raw.base64)
                .map(Self)
                .map_err(|error| serde::de::Error::custom(format!("not base64: {error}"))),
        }
    }
}

/// Headers: an object, or, where names repeat, a list of `[name, value]`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected headers as {\"name\":\"value\"} or [[\"name\",\"value\"]]")]
enum Headers {
    Object(BTreeMap<String, Option<Field>>),
    List(Vec<(String, Option<Field>)>),
}

impl Default for Headers {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

/// Parses a line strictly: an unknown key, or a value of another kind, is an error that says what and where.
pub(crate) fn parse(line: &[u8]) -> Result<JsonRecord, String> {
    let raw: Raw = serde_json::from_slice(line).map_err(|error| {
        // The line of the error is always 1 here, and ours is another.
        let text = error.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        format!("not a record in JSON: {text}, column {}", error.column())
    })?;
    let bytes = |Field(bytes)| bytes;
    let headers = match raw.headers {
        Headers::Object(headers) => headers.into_iter().collect(),
        Headers::List(headers) => headers,
    };
    Ok(JsonRecord {
        key: raw.key.map(bytes),
        value: raw.value.map(bytes),
        headers: headers.into_iter().map(|(name, value)| (name, value.map(bytes))).collect(),
        timestamp: raw.timestamp,
        partition: raw.partition,
    })
}

/// A record to be written.
#[derive(Debug)]
pub(crate) struct Line<'a, H> {
    pub(crate) topic: &'a str,
    /// Where that is known.
    pub(crate) partition: Option<PartitionId>,
    /// Where that is known.
    pub(crate) offset: Option<Offset>,
    pub(crate) timestamp: Timestamp,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: H,
}

impl<'a, H> Line<'a, H>
where
    H: Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
{
    /// Writes a line. Bytes that are not UTF-8 become `{"base64":".."}`; headers are an object, or where names repeat a
    /// list of `[name, value]`.
    pub(crate) fn write(self, out: &mut impl Write) -> io::Result<()> {
        // A topic's name holds nothing that JSON escapes.
        write!(out, "{{\"topic\":\"{}\"", self.topic)?;
        if let Some(partition) = self.partition {
            write!(out, ",\"partition\":{partition}")?;
        }
        if let Some(offset) = self.offset {
            write!(out, ",\"offset\":{offset}")?;
        }
        write!(out, ",\"timestamp\":{},\"key\":", self.timestamp)?;
        field(self.key, out)?;
        out.write_all(b",\"value\":")?;
        field(self.value, out)?;
        out.write_all(b",\"headers\":")?;
        headers(self.headers, out)?;
        out.write_all(b"}\n")
    }
}

fn field(bytes: Option<&[u8]>, out: &mut impl Write) -> io::Result<()> {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => out.write_all(b"null"),
        Some((Ok(text), _)) => serde_json::to_writer(out, text).map_err(io::Error::from),
        Some((Err(_), bytes)) => write!(out, "{{\"base64\":\"{}\"}}", STANDARD.encode(bytes)),
    }
}

fn headers<'a>(
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    out: &mut impl Write,
) -> io::Result<()> {
    let repeat = headers
        .clone()
        .enumerate()
        .any(|(place, (name, _))| headers.clone().take(place).any(|h| h.0 == name));
    let [open, pair, between, close, end] =
        if repeat { ["[", "[", ",", "]", "]"] } else { ["{", "", ":", "", "}"] };
    out.write_all(open.as_bytes())?;
    for (place, (name, value)) in headers.enumerate() {
        if place > 0 {
            out.write_all(b",")?;
        }
        out.write_all(pair.as_bytes())?;
        serde_json::to_writer(&mut *out, &String::from_utf8_lossy(name)).map_err(io::Error::from)?;
        out.write_all(between.as_bytes())?;
        field(value, out)?;
        out.write_all(close.as_bytes())?;
    }
    out.write_all(end.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_strict_and_says_where() {
        for good in [
            r#"{}"#,
            r#"{"key":"a","value":{"base64":"/w=="},"headers":{"h":"v","n":null},"timestamp":5,"partition":0}"#,
            r#"{"topic":"t","partition":1,"offset":7,"timestamp":5,"key":null,"value":"v","headers":[["h","1"],["h","2"]]}"#,
        ] {
            parse(good.as_bytes()).unwrap();
        }
        for (bad, why) in [
            ("", "EOF"),
            ("[1]", "not a record"),
            (r#"{"value":1}"#, "expected a string"),
            (r#"{"value":{"base64":"%"}}"#, "not base64"),
            (r#"{"valeu":"v"}"#, "unknown field `valeu`"),
            (r#"{"value":"v"} x"#, "trailing"),
            (r#"{"timestamp":"now"}"#, "invalid type"),
            (r#"{"partition":-1}"#, "invalid value"),
            ("{\"value\":\"\u{fffd}", "EOF"),
        ] {
            let error = parse(bad.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(parse(b"{\"value\":\"\xff\"}").is_err());
    }
}
