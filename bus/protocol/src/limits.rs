//! Every bound on what one peer can make another hold, in one place. Units stand last in the names.

/// The longest topic name.
pub const TOPIC_NAME_BYTES: usize = 249;
/// The longest control part of a frame: requests and answers in postcard.
pub const CONTROL_BYTES: usize = 1 << 20;
/// The longest payload of a frame: a module on its way to a broker, or a batch.
pub const PAYLOAD_BYTES: usize = 64 << 20;
/// A topic's `max.message.bytes` when it does not say (a whole batch, as it is stored).
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The largest `max.message.bytes` a topic may ask for.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// The most that a batch may hold once decompressed: a small compressed batch must not become a large one.
pub const DECOMPRESSED_BATCH_BYTES: usize = 64 << 20;
/// The most records in one batch.
pub const RECORDS_PER_BATCH: usize = 1 << 20;
/// The most headers on one record.
pub const HEADERS_PER_RECORD: usize = 1 << 12;
/// The most partitions of one topic.
pub const PARTITIONS_PER_TOPIC: u32 = 10_000;
/// Batches of one produce stream that may be on their way to the disk before the broker stops reading it.
pub const PRODUCE_BATCHES_IN_FLIGHT: usize = 64;
/// The most batches that an idempotent producer may have under way to one partition: a leader remembers as many of
/// each producer, so that it knows a retry of any of them.
pub const PRODUCER_BATCHES_REMEMBERED: usize = PRODUCE_BATCHES_IN_FLIGHT;
/// Bytes that a leader has pushed to a follower of one partition before that has stored them, and one push more.
pub const REPLICA_BYTES_IN_FLIGHT: usize = 32 << 20;
/// Producer ids that a broker takes from the cluster at once.
pub const PRODUCER_ID_BLOCK: u64 = 1_000;
/// The most that one push on a fetch stream carries, unless a single batch is larger.
pub const FETCH_PUSH_BYTES: usize = 1 << 20;
/// Pushes that a broker has read from its disk before they are asked for, at once.
pub const PUSHES_READ_AHEAD: usize = 64;
/// Streams that a peer may hold open at once on a new connection. They take memory before they are used, and before
/// it is known who the peer is: a broker allows more as they are used, up to the next two.
pub const STREAMS_AT_FIRST: u32 = 64;
/// Streams that one client's connection may come to hold open at once.
pub const STREAMS_PER_CLIENT: u32 = 4_096;
/// Streams that another broker's connection may come to hold open at once: one for each partition that it follows.
pub const STREAMS_PER_BROKER: u32 = 65_536;
/// Streams of all clients together that one broker serves at once.
pub const CLIENT_STREAMS: usize = 131_072;
/// Connections of clients that one broker serves at once, where its settings do not say.
pub const CLIENT_CONNECTIONS: usize = 4_096;
/// Connections of other brokers that one broker serves at once: two of each, and those that replace lost ones.
pub const BROKER_CONNECTIONS: usize = 1_024;
/// Handshakes that one broker has under way at once. Who knocks is known only at their end, so these places are
/// everybody's, and the oldest handshake gives way to the newest.
pub const HANDSHAKES: usize = 1_024;
/// Bytes of frames that one connection may have half sent, over all its streams. At least the largest frame.
pub const CONNECTION_FRAME_BYTES: usize = PAYLOAD_BYTES + CONTROL_BYTES;
/// The largest request whose payload needs no place among the uploads.
pub const SMALL_REQUEST_BYTES: usize = 2 * CONTROL_BYTES;
/// Modules that a broker takes in and compiles at once.
pub const UPLOADS: usize = 2;
/// How long a request, or a batch, may take to arrive, in seconds.
pub const REQUEST_SECONDS: u64 = 60;
/// The longest name of a function.
pub const FUNCTION_NAME_BYTES: usize = 128;
/// Configuration entries of one function, and of one topic.
pub const CONFIG_ENTRIES: usize = 256;
/// The reasons that one refused batch carries back; the rest are counted.
pub const REPORTED_RECORD_ERRORS: usize = 100;
