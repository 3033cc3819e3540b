//! What is on the wire and on the disk: names, record batches, requests, frames, error codes and limits.
//!
//! ```text
//!   stream = preamble | frame | frame | ...          preamble: "BUS" version kind      (preamble.rs)
//!   frame  = control_len u32 | payload_len u32 | control (postcard) | payload (raw)    (frame.rs)
//!
//!   kind     client sends                        broker answers
//!   request  one Request                         one Response or WireError             (request.rs)
//!   produce  ProduceOpen, then a batch a frame   ProduceOpened, then a ProduceAck each (produce.rs)
//!   fetch    FetchOpen, then FetchCredit ...     FetchPush ... with batches            (fetch.rs)
//! ```
//!
//! Everything here is a value or a pure function. There is no I/O, no clock of its own, no tokio; input is
//! untrusted everywhere, and every decoder answers with an error, never with a panic.

pub mod batch;
mod clock;
mod error;
pub mod fetch;
mod frame;
mod function;
mod ids;
pub mod limits;
mod partitioner;
mod preamble;
pub mod produce;
pub mod replicate;
pub mod request;
mod topic_config;

pub use clock::{Clock, SystemClock};
pub use error::{ErrorCode, LeaderHint, RecordError, WireError};
pub use frame::{FrameError, FrameHeader, decode_control, encode_control};
pub use function::{Attachment, FunctionSpec};
pub use ids::{
    BlobId, Epoch, InvalidTopicName, NodeId, Offset, PartitionId, Timestamp, TopicId, TopicName,
    TopicPartition,
};
pub use partitioner::{murmur2, partition_for_key};
pub use preamble::{PROTOCOL_VERSION, Preamble, PreambleError, StreamKind};
pub use topic_config::{CleanupPolicy, Durability, TimestampType, TopicConfig, TopicConfigError};
