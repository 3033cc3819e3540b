//! Runs functions: WebAssembly components, beside the data. The only crate that names wasmtime.
//!
//! ```text
//!   FunctionHost ── Engine: linker, compile cache, pooling allocator, epoch ticker   (engine, wasi, bindings)
//!     │         └── workers: a few threads that run guests, behind one bounded queue  (host)
//!     │  inspect(bytes): what is this component, and may it be deployed?              (inspect)
//!     │
//!     ├── Function   a deployed version: settings, back-off, log, figures             (function)
//!     │     ├── Module     the component; compiled when needed, shared by its content (module)
//!     │     └── Instance   one warm instance a worker at most, dropped when idle      (instance)
//!     │
//!     ├── Function::transform   batch in, batch out, on a topic's way in              (transform)
//!     └── Processor             one consumer function on one partition                (processor)
//!            Source ─> read ─> Function::consume ─> Sink: emit, await ─> OffsetStore: commit
//! ```
//!
//! A call is deterministic: its result follows from the component, its settings and the batch. Fuel is the limit
//! that decides; wall-clock time is only the net below it. What an instance keeps in memory between calls is the
//! exception: it lasts as long as the instance, and functions must not rely on it.
//!
//! A function that misbehaves (trap, endless loop, memory hog, broken output) loses its instance and is left
//! alone for a while ([`Options::backoff_share`]), so that its neighbours keep the machine.
//!
//! Not here: where records come from and go to (the broker implements [`Source`], [`Sink`] and [`OffsetStore`]),
//! module storage ([`ModuleSource`]), state, timers and outbound HTTP.

mod backoff;
mod bindings;
mod consume;
mod engine;
mod error;
mod failure;
mod function;
mod host;
mod inspect;
mod instance;
mod ledger;
mod limiter;
mod log;
mod module;
mod options;
mod ports;
mod processor;
mod quarantine;
mod stats;
mod test_run;
mod transform;
mod typed;
mod wasi;

pub use consume::{ConsumeError, Emission, EmittedRecord};
pub use error::Error;
pub use failure::{Failure, FailureKind};
pub use function::Function;
pub use host::FunctionHost;
pub use inspect::{Interface, InvalidModule, Kind, ModuleInfo};
pub use log::FunctionLog;
pub use module::{FileModule, MemoryModule, ModuleSource, blob_id};
pub use options::Options;
pub use ports::{OffsetStore, PortError, Progress, Sink, SinkError, Source};
pub use processor::{Processor, ProcessorError};
pub use stats::{State, Stats};
pub use test_run::{TestError, TestRecord, TestResult, TestRun};
pub use transform::{Chain, ChainError, TransformError, Transformed};
