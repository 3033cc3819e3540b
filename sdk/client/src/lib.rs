//! The client of `bus`: a producer, a reader, administration.
//!
//! ```text
//!   Client (cheap clone) -- Admin      topics, brokers, functions, offsets: a stream a request
//!     |                  -- Producer   a batch in the making and a produce stream a partition
//!     |                  -- Reader     a fetch stream a partition, under credit
//!   Pool: one connection a broker      Metadata: who leads what, asked again when it proves wrong, or when
//!                                      a leader that owes something is silent for 300 ms
//! ```
//!
//! A client holds on to no broker. It asks whichever answers, and follows a partition to its next leader: what a
//! producer had under way is sent again there, under the same sequence numbers, so that it is stored once and in order;
//! a reader goes on at the offset where it was. Both give up only after the producer's delivery timeout, or when a
//! partition was out of a reader's reach for two minutes.
//!
//! ```no_run
//! # async fn example() -> Result<(), bus_client::Error> {
//! use bus_client::{Acks, Client, From, Record};
//!
//! let client = Client::connect("127.0.0.1:9440").await?;
//! let producer = client.producer().acks(Acks::All).build().await?;
//! let delivery = producer.send(Record::to("orders").key("42").value("{}")).await?; // queued, in order
//! let ack = delivery.await?; // partition, offset
//!
//! let mut reader = client.reader(["orders"]).from(From::Start).until_end(true).build().await?;
//! while let Some(record) = reader.next().await {
//!     let record = record?;
//!     assert!(record.partition != ack.partition || record.offset <= ack.offset);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! It has no consumer groups and no transactions yet. A producer is idempotent as long as it lives: what a program sends
//! again after a restart, or after an error, is another record.

mod admin;
mod backoff;
mod client;
mod error;
mod leader;
mod leaderless;
mod majority;
mod metadata;
mod pool;
mod producer;
mod reader;
mod record;
mod request;

pub use admin::{Admin, FunctionLog};
pub use bus_protocol::batch::{Compression, Header, RecordBatch};
pub use bus_protocol::fetch::Isolation;
pub use bus_protocol::produce::Acks;
pub use bus_protocol::request::{CreateTopic, Moves, Position};
pub use bus_transport::{Options as TransportOptions, Trust, TrustStore};
pub use client::{Client, ClientBuilder, LinkSpeed};
pub use error::Error;
pub use leaderless::NoLeader;
pub use majority::NoMajority;
pub use producer::{Ack, Counts, Delivery, Producer, ProducerBuilder, TopicProducer};
pub use reader::{FetchedBatch, From, Reader, ReaderBuilder};
pub use record::{ConsumerRecord, Field, Record};
