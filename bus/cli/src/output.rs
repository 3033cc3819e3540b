//! What goes to stdout.

use std::io::{self, BufWriter, StdoutLock, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Row, Table};
use serde::Serialize;

use crate::failure::message;

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// One JSON object a line
    Json,
}

impl Format {
    pub(crate) fn is_json(self) -> bool {
        self == Self::Json
    }

    /// Says what a command has done: to a person on stderr; as JSON, an object on stdout.
    pub(crate) fn done(self, text: &str, object: impl Serialize) -> anyhow::Result<()> {
        if self.is_json() {
            return json([object]);
        }
        message(text);
        Ok(())
    }
}

/// A buffered stdout of our own until it is dropped. Flush it when there is nothing more to print for now.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(256 << 10, io::stdout().lock())
}

/// Prints a line.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Prints each object on a line of its own.
pub(crate) fn json<T: Serialize>(objects: impl IntoIterator<Item = T>) -> anyhow::Result<()> {
    let mut out = stdout();
    for object in objects {
        serde_json::to_writer(&mut out, &object).map_err(io::Error::from)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Prints columns under a heading, without borders, so that `cut` and `awk` can read it.
pub(crate) fn table<R: Into<Row>>(heading: &[&str], rows: impl IntoIterator<Item = R>) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(heading.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    line(&table.trim_fmt())
}

/// Node ids as people write them: `1,2,3`; `-` where there is none.
pub(crate) fn list(nodes: &[u64]) -> String {
    if nodes.is_empty() {
        return "-".to_owned();
    }
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Prints names and values, a pair a line.
pub(crate) fn fields(pairs: &[(&str, String)]) -> anyhow::Result<()> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut out = stdout();
    for (name, value) in pairs {
        writeln!(out, "{name:width$}  {value}")?;
    }
    Ok(out.flush()?)
}
