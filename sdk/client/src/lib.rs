//! The client of `bus`: a producer, a reader, administration.
//!
//! ```text
//!   Client (cheap clone) -- Admin      topics, functions, offsets: a stream a request
//!     |                  -- Producer   a batch in the making and a produce stream a partition
//!     |                  -- Reader     a fetch stream a partition, under credit
//!   Pool: one connection a broker      Metadata: who leads what, asked again when it proves wrong
//! ```
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
//! It has no consumer groups and no transactions yet, and its producer is not idempotent: a batch whose
//! acknowledgement was lost is sent again and may be stored twice.

mod admin;
mod backoff;
mod client;
mod error;
mod metadata;
mod pool;
mod producer;
mod reader;
mod record;
mod request;

pub use admin::Admin;
pub use bus_protocol::batch::{Compression, Header, RecordBatch};
pub use bus_protocol::fetch::Isolation;
pub use bus_protocol::produce::Acks;
pub use bus_protocol::request::{CreateTopic, Position};
pub use bus_transport::{Options as TransportOptions, Trust, TrustStore};
pub use client::{Client, ClientBuilder, LinkSpeed};
pub use error::Error;
pub use producer::{Ack, Counts, Delivery, Producer, ProducerBuilder, TopicProducer};
pub use reader::{FetchedBatch, From, Reader, ReaderBuilder};
pub use record::{ConsumerRecord, Field, Record};
