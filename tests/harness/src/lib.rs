//! A real broker in a process of its own, to be produced to, consumed from, stopped, and killed.
//!
//! ```text
//!   BrokerProcess ── `bus start` on free ports, data and trust in a temporary folder
//!       │ .bus(["topic", "list"])   the CLI against it        .kill()       SIGKILL: as if its power went
//!       │                                                     .terminate()  SIGTERM: it stops cleanly
//!       └ .restart()                again on the same data    drop          killed, folder deleted
//! ```
//!
//! Nothing here sleeps: each wait is for a line, an exit or an answer, with a deadline.
//!
//! ```no_run
//! let broker = bus_testkit::BrokerProcess::start()?;
//! broker.bus(["topic", "create", "orders"]).run()?.success()?;
//! broker.bus(["produce", "orders"]).stdin("hello\n").run()?.success()?;
//! let read = broker.bus(["consume", "orders", "--until", "end"]).run()?.success()?;
//! assert_eq!(read.stdout, b"hello\n");
//! # anyhow::Ok(())
//! ```
//!
//! Not here: clusters of several brokers, and faults between them.

mod binary;
mod broker;
mod command;

pub use binary::{binary, build_function, components};
pub use broker::{BrokerProcess, Builder};
pub use command::{BusCommand, Finished, Running};
