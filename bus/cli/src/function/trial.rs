//! `bus function test`: a component on records from stdin, here, in the host that the broker has.

use std::io::{self, BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use bus_function::{FunctionHost, Options, TestRecord, TestResult, TestRun};
use bus_protocol::batch::Header;
use bus_protocol::{SystemClock, TopicName};
use clap::Args;

use super::deploy::read;
use crate::failure::message;
use crate::jsonl::{self, JsonRecord, Line};
use crate::{output, pairs};

/// Run a component on records from stdin, here, without a broker
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  echo '{\"key\":\"42\",\"value\":\"hello\"}' | bus function test redact.wasm
  bus consume orders --until end -o json | bus function test redact.wasm

Reads records as `bus produce --json` does, and writes what a transform lets through, or a consumer emits. The function's log goes to \
stderr. Exit code 1 where a record is refused, or the function fails.")]
pub(crate) struct Test {
    /// The component
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// A setting that the function can read; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pairs::pair)]
    config: Vec<(String, String)>,
    /// A topic that a consumer may emit to; may be repeated
    #[arg(long, value_name = "TOPIC", value_delimiter = ',')]
    output: Vec<TopicName>,
    /// The topic that the function is told it stands on
    #[arg(long, default_value = "test")]
    topic: TopicName,
    /// Records that one call gets
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    batch: u64,
}

pub(crate) async fn run(args: Test) -> anyhow::Result<()> {
    let component = read(&args.file)?;
    let config = pairs::map("--config", args.config)?;
    let host = FunctionHost::new(Options::default(), Arc::new(SystemClock::new()))?;
    let run = TestRun::new(&host, component, config, args.output, args.topic.clone())
        .with_context(|| format!("cannot run {}", args.file.display()))?;
    let mut trial = Trial { run, topic: args.topic, logged: 0, refused: Vec::new(), records: 0 };
    let mut lines = io::stdin().lock().split(b'\n');
    loop {
        let mut batch = Vec::new();
        for line in lines.by_ref().take(usize::try_from(args.batch)?) {
            trial.records += 1;
            let record = jsonl::parse(&line.context("cannot read stdin")?);
            let record = record.map_err(|why| anyhow::anyhow!("line {}: {why}", trial.records))?;
            batch.push((trial.records, test_record(record)));
        }
        if batch.is_empty() {
            break;
        }
        let result = trial.batch(batch).await;
        trial.show_log();
        result?;
    }
    match trial.refused.as_slice() {
        [] => Ok(()),
        [first, ..] => {
            anyhow::bail!("{} of {} records were refused: {first}", trial.refused.len(), trial.records)
        }
    }
}

struct Trial {
    run: TestRun,
    topic: TopicName,
    /// The last line of the function's log that was shown.
    logged: u64,
    refused: Vec<String>,
    records: u64,
}

fn test_record(record: JsonRecord) -> TestRecord {
    let header =
        |(name, value): (String, Option<Vec<u8>>)| Header { key: name.into(), value: value.map(Into::into) };
    TestRecord {
        timestamp: record.timestamp.unwrap_or_default(),
        key: record.key.map(Into::into),
        value: record.value.map(Into::into),
        headers: record.headers.into_iter().map(header).collect(),
    }
}

impl Trial {
    /// Runs a batch. A broker refuses a batch whole; here the refused records are named and the others run again, so
    /// that each record's fate shows.
    async fn batch(&mut self, mut batch: Vec<(u64, TestRecord)>) -> anyhow::Result<()> {
        loop {
            let records: Vec<_> = batch.iter().map(|(_, record)| record.clone()).collect();
            let first = batch.first().map_or(0, |(line, _)| *line);
            let result =
                self.run.run(&records).await.with_context(|| format!("in the batch from line {first} on"))?;
            let TestResult::Refused(refusals) = result else { return self.print(&result) };
            let before = batch.len();
            let mut place = 0;
            batch.retain(|(line, _)| {
                let refusal = refusals.iter().find(|refusal| refusal.index == place);
                place += 1;
                self.refused.extend(refusal.map(|refusal| format!("line {line}: {}", refusal.reason)));
                refusal.is_none()
            });
            for refused in &self.refused[self.refused.len() - (before - batch.len())..] {
                message(&format!("refused: {refused}"));
            }
            anyhow::ensure!(batch.len() < before, "the function refused a record that was not in its batch");
            if batch.is_empty() {
                return Ok(());
            }
        }
    }

    fn print(&self, result: &TestResult) -> anyhow::Result<()> {
        let mut out = output::stdout();
        match result {
            TestResult::Transformed { records, .. } => {
                for record in records {
                    let line = Line {
                        topic: self.topic.as_str(),
                        partition: None,
                        offset: Some(record.offset),
                        timestamp: record.timestamp,
                        key: record.key.as_deref(),
                        value: record.value.as_deref(),
                        headers: record.headers.iter().map(|h| (h.key.as_ref(), h.value.as_deref())),
                    };
                    line.write(&mut out)?;
                }
            }
            TestResult::Emitted(emissions) => emitted(emissions, &mut out)?,
            TestResult::Refused(_) => {}
        }
        Ok(out.flush()?)
    }

    fn show_log(&mut self) {
        for line in self.run.function().logs(self.logged) {
            self.logged = line.sequence;
            message(&format!("[{}] {}", line.level, line.message));
        }
    }
}

fn emitted(emissions: &[bus_function::Emission], out: &mut impl io::Write) -> io::Result<()> {
    for emission in emissions {
        for record in &emission.records {
            let line = Line {
                topic: emission.topic.as_str(),
                partition: None,
                offset: None,
                timestamp: record.timestamp,
                key: record.key.as_deref(),
                value: record.value.as_deref(),
                headers: record.headers.iter().map(|h| (h.key.as_ref(), h.value.as_deref())),
            };
            line.write(out)?;
        }
    }
    Ok(())
}
