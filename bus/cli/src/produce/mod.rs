//! `bus produce`.
//!
//! ```text
//!   files, stdin -> input (a thread: blocks of whole lines) -> record (a line) -> Producer -> tally (acks, in input order)
//!                   at most 4 blocks ahead                                     buffer_memory   -> stdout, counts, reasons
//! ```

mod input;
mod record;
mod tally;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bus_client::{Acks, Compression};
use bus_protocol::{PartitionId, TopicName};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::{mpsc, oneshot};

use crate::args::Global;
use crate::failure::{Interrupted, line, message};
use crate::interrupt::Interrupt;
use crate::{connection, pairs, units};

use self::input::{Block, Input};
use self::record::Shape;
use self::tally::{Chunk, Tally};

/// Send records: a line of the input each
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus produce orders < orders.txt
  bus produce orders jan.txt feb.txt --compression zstd
  echo '42:paid' | bus produce orders --key-separator :
  echo '{\"key\":\"42\",\"value\":\"paid\"}' | bus produce orders --json
  bus produce orders jan.txt -o json  # {\"partition\":0,\"offset\":17} a record

A broker that is lost on the way is waited for, or another takes over: with --acks all each line is stored once, and \
in its partition's order.
Ends when all is acknowledged. Exit code 1 where a record is not, with how many and why.")]
pub(crate) struct Produce {
    /// The topic
    topic: TopicName,
    /// Files to read, `-` for stdin; stdin where there is none
    files: Vec<PathBuf>,
    /// One key for all records
    #[arg(long, conflicts_with = "key_separator")]
    key: Option<String>,
    /// A line is KEY, this, VALUE
    #[arg(long, value_name = "S", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// A header for all records; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pairs::pair)]
    header: Vec<(String, String)>,
    /// The partition, whatever the key
    #[arg(long, value_name = "P")]
    partition: Option<PartitionId>,
    /// When a record counts as produced: stored by all in-sync replicas, by the leader, or sent
    #[arg(long, value_enum, default_value_t = AcksFlag::All)]
    acks: AcksFlag,
    /// How batches are compressed
    #[arg(long, default_value = "none", value_name = "none|gzip|snappy|lz4|zstd")]
    compression: Compression,
    /// A line is {"key":..,"value":..,"headers":{..},"timestamp":..,"partition":..}; bytes as {"base64":..}
    #[arg(long, conflicts_with_all = ["key", "key_separator", "header", "partition"])]
    json: bool,
    /// Send without sequence numbers: what is sent again after a failure may then be stored twice, or out of order
    #[arg(long)]
    no_idempotence: bool,
    /// How long a record may wait for its acknowledgement, retries and changes of leader included, before it counts as failed
    #[arg(long = "delivery-timeout", alias = "timeout", value_name = "DURATION", default_value = "30s", value_parser = units::duration)]
    timeout: Duration,
}

/// `--acks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcksFlag {
    /// Stored by all in-sync replicas
    All,
    /// Stored by the leader
    Leader,
    /// Sent
    None,
}

impl From<AcksFlag> for Acks {
    fn from(flag: AcksFlag) -> Self {
        match flag {
            AcksFlag::All => Self::All,
            AcksFlag::Leader => Self::Leader,
            AcksFlag::None => Self::None,
        }
    }
}

/// Deliveries that go to the tally at once.
const CHUNK_RECORDS: usize = 1_024;
/// Chunks of deliveries that may wait for the tally.
const CHUNKS: usize = 64;

/// How long records that are under way may still be acknowledged after Ctrl-C.
const INTERRUPTED_WITHIN: Duration = Duration::from_secs(2);

pub(crate) async fn run(global: &Global, args: Produce, interrupt: Interrupt) -> anyhow::Result<()> {
    let input = Input::open(&args.files)?;
    let client = interrupt.or(connection::connect(global)).await?;
    let producer =
        client.producer().acks(args.acks.into()).compression(args.compression).delivery_timeout(args.timeout);
    let producer = if args.no_idempotence { producer.idempotent(false) } else { producer };
    let producer = producer.build().await?;
    let topic = interrupt.or(async { Ok(producer.topic(args.topic.as_str()).await?) }).await?;
    let shape = Shape::new(args.json, args.key, args.key_separator, args.header, args.partition);
    let prints_acks = global.format.is_json();
    let progress = progress(input.bytes(), prints_acks);
    let started = tokio::time::Instant::now();

    let (chunks, tally) = mpsc::channel(CHUNKS);
    let (last, unsent) = oneshot::channel();
    let tally = tokio::spawn(tally::tally(tally, unsent, prints_acks));
    let mut sender = Sender { topic, shape, chunks, last: Some(last), line: 0 };
    let read = sender.send_all(input.start()?, &interrupt, &progress).await;
    let lines = sender.line;
    drop(sender);

    let tally = tokio::select! {
        tally = tally => tally.context("internal fault: the tally panicked: please report it")?,
        () = interrupted(&interrupt) => {
            message(&format!("of {lines} records some were under way: what was acknowledged is stored, the rest may be"));
            return Err(Interrupted.into());
        }
    };
    // What failed is in the tally, record by record.
    let _ = tokio::time::timeout(args.timeout, producer.close()).await;
    progress.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    message(&format!("{} records, {} bytes, {seconds:.3} s", tally.acknowledged, tally.bytes));
    end(read, tally, lines)
}

/// Returns when the user has wanted to end for long enough for what is under way to be acknowledged.
async fn interrupted(interrupt: &Interrupt) {
    interrupt.wait().await;
    tokio::time::sleep(INTERRUPTED_WITHIN).await;
}

/// What the command ends with: what kept records from being acknowledged first, then what stopped the reading.
fn end(read: anyhow::Result<()>, tally: Tally, lines: u64) -> anyhow::Result<()> {
    if let Some(error) = tally.output {
        return Err(error.into());
    }
    if tally.failed > 0 {
        let why = tally.why();
        if let Err(stopped) = &read
            && !stopped.is::<Interrupted>()
        {
            message(&format!("the input was not read to its end: {}", line(stopped)));
        }
        anyhow::bail!("{} of {lines} records were not acknowledged: {why}", tally.failed);
    }
    read
}

fn progress(bytes: Option<u64>, prints_acks: bool) -> ProgressBar {
    if !std::io::stderr().is_terminal() || (prints_acks && std::io::stdout().is_terminal()) {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

struct Sender {
    topic: bus_client::TopicProducer,
    shape: Shape,
    chunks: mpsc::Sender<Chunk>,
    /// For the chunk that the tally takes no more by `chunks`: its records are sent, too.
    last: Option<oneshot::Sender<Chunk>>,
    /// Lines sent so far.
    line: u64,
}

impl Sender {
    /// Sends line after line until the input ends, the user interrupts, a line makes no sense, or the tally gave up.
    async fn send_all(
        &mut self,
        mut blocks: mpsc::Receiver<anyhow::Result<Block>>,
        interrupt: &Interrupt,
        progress: &ProgressBar,
    ) -> anyhow::Result<()> {
        loop {
            let block = tokio::select! {
                block = blocks.recv() => block,
                () = interrupt.wait() => return Err(Interrupted.into()),
                () = self.chunks.closed() => return Ok(()),
            };
            let Some(block) = block else { return Ok(()) };
            let bytes = block.as_ref().map_or(0, |block| block.lines.len());
            if !self.send_block(block?, interrupt).await? {
                return Ok(());
            }
            progress.inc(bytes as u64);
        }
    }

    /// Sends a block's lines; `false` where nobody counts any more.
    async fn send_block(&mut self, block: Block, interrupt: &Interrupt) -> anyhow::Result<bool> {
        let mut first_line_of_file = block.first_line;
        let mut chunk = Chunk::starting_at(self.line + 1);
        let mut rest: Bytes = block.lines;
        let mut result = Ok(true);
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            let record = match self.shape.record(&rest[..end]) {
                Ok(record) => record,
                Err(why) => {
                    result = Err(anyhow::anyhow!("{}, line {first_line_of_file}: {why}", block.file));
                    break;
                }
            };
            let delivery = tokio::select! {
                biased;
                delivery = self.topic.send(record) => delivery,
                () = interrupt.wait() => {
                    result = Err(Interrupted.into());
                    break;
                }
            };
            self.line += 1;
            first_line_of_file += 1;
            chunk.push(delivery, end);
            let _ = rest.split_to((end + 1).min(rest.len()));
            if chunk.len() == CHUNK_RECORDS {
                let full = std::mem::replace(&mut chunk, Chunk::starting_at(self.line + 1));
                if !self.count(full).await {
                    return Ok(false);
                }
            }
        }
        if chunk.len() > 0 && !self.count(chunk).await {
            return Ok(false);
        }
        result
    }

    /// Gives the deliveries to the tally; `false` where it is to be the last chunk.
    async fn count(&mut self, chunk: Chunk) -> bool {
        let Err(mpsc::error::SendError(chunk)) = self.chunks.send(chunk).await else { return true };
        if let Some(last) = self.last.take() {
            // A tally that is gone has panicked, and that is said.
            let _ = last.send(chunk);
        }
        false
    }
}
