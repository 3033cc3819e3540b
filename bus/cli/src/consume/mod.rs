//! `bus consume`.

mod format;
mod position;

use std::io::Write;

use bus_client::{ConsumerRecord, Isolation, Reader};
use bus_protocol::{PartitionId, TopicName};
use clap::{Args, ValueEnum};
use futures::FutureExt as _;

use crate::args::Global;
use crate::failure::{Interrupted, line, message, usage};
use crate::interrupt::Interrupt;
use crate::{connection, output};

use self::format::Template;

/// Read records: values, a line each
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus consume orders             # all there is, then what comes
  bus consume orders --from end  # what comes
  bus consume orders --from start --until end > orders.txt  # all, and stop
  bus consume orders --from 2013-01-01T10:00:00Z -n 10
  bus consume orders --partition 0 --from 1500 -o json
  bus consume orders payments --format '%t %p %o %T %k=%v\\n'

--from takes start, end, an OFFSET (a plain number), or a time: RFC 3339, or @ and milliseconds since 1970.
--format knows %t topic, %p partition, %o offset, %T time in ms, %k key, %v value, %h headers, %%, \\n, \\t, \\r, \\0, \\\\.")]
pub(crate) struct Consume {
    /// The topics
    #[arg(required = true, value_name = "TOPIC")]
    topics: Vec<TopicName>,
    /// Where to start in each partition
    #[arg(long, value_name = "start|end|OFFSET|TIME", default_value = "start", value_parser = position::parse,
          allow_hyphen_values = true)]
    from: bus_client::From,
    /// Only this partition; may be repeated
    #[arg(long, value_name = "P", value_delimiter = ',')]
    partition: Vec<PartitionId>,
    /// Stop after this many records
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    /// Stop at the end as it was at the start
    #[arg(long, value_enum)]
    until: Option<Until>,
    /// Which records to see
    #[arg(long, value_enum, default_value_t = IsolationFlag::Committed)]
    isolation: IsolationFlag,
    /// How to print a record
    #[arg(id = "template", long = "format", value_name = "TEMPLATE", value_parser = Template::parse)]
    format: Option<Template>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Until {
    /// The end as it was at the start
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IsolationFlag {
    /// Records below the last stable offset
    Committed,
    /// Records below the high watermark
    Uncommitted,
}

enum Style {
    Values,
    Json,
    Template(Template),
}

impl Style {
    fn write(&self, record: &ConsumerRecord, out: &mut impl Write) -> std::io::Result<()> {
        match self {
            Self::Values => {
                out.write_all(record.value.as_deref().unwrap_or_default())?;
                out.write_all(b"\n")
            }
            Self::Json => format::json(record, out),
            Self::Template(template) => template.write(record, out),
        }
    }
}

pub(crate) async fn run(global: &Global, args: Consume, interrupt: Interrupt) -> anyhow::Result<()> {
    let style = match args.format {
        Some(_) if global.format.is_json() => return Err(usage("--format and -o json exclude each other")),
        Some(template) => Style::Template(template),
        None if global.format.is_json() => Style::Json,
        None => Style::Values,
    };
    let client = interrupt.or(connection::connect(global)).await?;
    let mut builder = client
        .reader(args.topics.iter().map(TopicName::as_str))
        .from(args.from)
        .until_end(args.until.is_some())
        .isolation(match args.isolation {
            IsolationFlag::Committed => Isolation::Committed,
            IsolationFlag::Uncommitted => Isolation::Uncommitted,
        });
    if !args.partition.is_empty() {
        builder = builder.partitions(args.partition);
    }
    let mut reader = interrupt.or(async { Ok(builder.build().await?) }).await?;
    print(&mut reader, &style, args.count.unwrap_or(u64::MAX), &interrupt).await
}

/// Prints up to `count` records; what is printed is flushed whenever there is nothing more for now.
async fn print(reader: &mut Reader, style: &Style, count: u64, interrupt: &Interrupt) -> anyhow::Result<()> {
    let mut out = output::stdout();
    let mut left = count;
    let mut failed = None;
    while left > 0 {
        let next = match reader.next().now_or_never() {
            Some(next) => next,
            None => {
                out.flush()?;
                tokio::select! {
                    next = reader.next() => next,
                    () = interrupt.wait() => return Err(Interrupted.into()),
                }
            }
        };
        match next {
            None => break,
            Some(Ok(record)) => {
                style.write(&record, &mut out)?;
                left -= 1;
            }
            Some(Err(error)) => {
                // One partition is over; the others go on.
                if let Some(before) = failed.replace(anyhow::Error::from(error)) {
                    message(&format!("error: {}", line(&before)));
                }
            }
        }
        if interrupt.is_raised() {
            out.flush()?;
            return Err(Interrupted.into());
        }
    }
    out.flush()?;
    failed.map_or(Ok(()), Err)
}
