//! Tests of the whole: real processes, real sockets, real files, through the `bus` binary.
//!
//! ```text
//!   tests/*.rs ── bus-testkit (harness/) ── `bus start` in a process of its own
//!                                        └─ `bus VERB ...` against it
//! ```
//!
//! There is no library here, and no test of one crate alone: those stand beside what they test.
