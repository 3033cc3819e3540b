//! The log as its users see it, on a disk in memory that can crash, and on a real one.

#![allow(clippy::unwrap_used, reason = "these are tests, helpers and all")]

mod append;
mod crash;
mod producer_model;
mod producers;
mod reading;
mod recovery;
mod retention;
mod support;
mod truncation;
