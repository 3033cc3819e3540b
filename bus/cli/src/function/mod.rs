//! `bus function`.

mod deploy;
mod inspect;
mod project;
mod sdk;
mod trial;

use anyhow::Context as _;
use clap::Subcommand;
use serde_json::json;

use crate::args::Global;
use crate::connection;

/// Write, deploy and watch functions: WebAssembly components inside the brokers
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  bus function new redact                        # a project that builds at once
  bus function test redact.wasm < records.jsonl  # runs it here, no broker
  bus function deploy redact redact.wasm --transform orders
  bus function deploy route route.wasm --consume orders --output big small
  bus function list
  bus function logs route -f")]
pub(crate) enum Function {
    New(project::New),
    Deploy(deploy::Deploy),
    /// List the functions, and how they do
    #[command(after_help = "Examples:
  bus function list
  bus function list -o json | jq 'select(.state == \"failing\") | .name'")]
    List,
    /// Show a function's settings, figures, and what it last failed with
    #[command(after_help = "Examples:
  bus function describe redact
  bus function describe redact -o json")]
    Describe {
        /// The function
        name: String,
    },
    Logs(inspect::Logs),
    /// Delete a function, all its versions
    #[command(after_help = "Examples:
  bus function delete redact")]
    Delete {
        /// The function
        name: String,
    },
    Test(trial::Test),
}

pub(crate) async fn run(global: &Global, verb: Function) -> anyhow::Result<()> {
    match verb {
        Function::New(args) => project::run(&args),
        Function::Test(args) => Box::pin(trial::run(args)).await,
        Function::Deploy(args) => deploy::run(global, args).await,
        Function::List => inspect::list(global).await,
        Function::Describe { name } => inspect::describe(global, name).await,
        Function::Logs(args) => inspect::logs(global, args).await,
        Function::Delete { name } => {
            let deleted = connection::connect(global).await?.admin().delete_function(&name).await;
            deleted.with_context(|| format!("cannot delete function {name}"))?;
            let object = json!({"name": name, "done": "deleted"});
            global.format.done(&format!("function {name} is deleted"), object)
        }
    }
}
