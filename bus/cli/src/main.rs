//! The `bus` binary: commands only.
//!
//! ```text
//!   main -> args (clap) -> one file a verb -> bus_client | bus_broker | bus_function
//!             stdout: data (output.rs)      stderr: messages      exit: 0, 1, 2, 130 (failure.rs)
//! ```
//!
//! A verb parses, asks and prints. What is worth testing without a terminal lives in the crates below.

mod args;
mod bench;
mod cluster;
mod completions;
mod connection;
mod consume;
mod demo;
mod dev;
mod failure;
mod function;
mod interrupt;
mod jsonl;
mod output;
mod pairs;
mod ports;
mod produce;
mod rfc3339;
mod scratch;
mod start;
mod topic;
mod units;
mod waiting;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

// Batches are large, and are freed by other threads than have made them. The system's allocator gives their pages back
// each time, and the kernel clears them anew.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use crate::args::{Cli, Verb};
use crate::interrupt::Interrupt;
use crate::scratch::Scratch;
use crate::waiting::Waiting;

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::spread(std::env::args_os()));
    let waiting = log_to_stderr();
    match run(cli, waiting) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

/// What is logged unless `BUS_LOG` says otherwise. A peer that cannot be reached is logged by the crates of ours that it
/// concerns; openraft has several lines for each message to it.
const LOGGED: &str = "warn,openraft=off";

/// What the crates below have to say; and, for `bus start`, what they wait for.
fn log_to_stderr() -> Waiting {
    let filter = EnvFilter::try_from_env("BUS_LOG").unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let color =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(color).with_filter(filter);
    let (listener, waiting) = waiting::listen();
    tracing_subscriber::registry().with(lines).with(listener).init();
    waiting
}

/// Runs the verb on a thread of its own, so that a second Ctrl-C ends the process even where the verb is stuck in
/// a write to a pipe that nobody reads.
fn run(cli: Cli, waiting: Waiting) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (interrupt, insisted) = {
        let _context = runtime.enter();
        Interrupt::listen()?
    };
    let (done, verb) = tokio::sync::oneshot::channel();
    let handle = runtime.handle().clone();
    let scratch = Scratch::default();
    let folders = scratch.clone();
    std::thread::Builder::new().name("verb".into()).spawn(move || {
        // The receiver is gone only where the process is on its way out.
        let _ = done.send(handle.block_on(verb_of(cli, interrupt, waiting, folders)));
    })?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = verb => result.unwrap_or_else(|_| Err(anyhow::anyhow!("internal fault: the command panicked: please report it"))),
            () = insisted.wait() => Err(failure::Interrupted.into()),
        }
    });
    // Not dropped: that would wait for a thread which may sit in a read of a terminal.
    runtime.shutdown_background();
    let cleared = scratch.clear();
    result.and(cleared)
}

async fn verb_of(cli: Cli, interrupt: Interrupt, waiting: Waiting, scratch: Scratch) -> anyhow::Result<()> {
    let global = &cli.global;
    match cli.verb {
        Verb::Start(args) => Box::pin(start::run(args, interrupt, waiting)).await,
        Verb::Dev(args) => Box::pin(dev::run(args, interrupt, waiting, &scratch)).await,
        Verb::Produce(args) => Box::pin(produce::run(global, args, interrupt)).await,
        Verb::Consume(args) => Box::pin(consume::run(global, args, interrupt)).await,
        Verb::Bench(args) => Box::pin(bench::run(global, args, interrupt)).await,
        Verb::Demo(args) => Box::pin(demo::run(args, interrupt, &scratch)).await,
        Verb::Topic(verb) => Box::pin(interrupt.or(topic::run(global, verb))).await,
        Verb::Function(verb) => Box::pin(interrupt.or(function::run(global, verb))).await,
        Verb::Cluster(verb) => Box::pin(cluster::run(global, verb, interrupt)).await,
        Verb::Completions(args) => completions::run(&args),
    }
}
