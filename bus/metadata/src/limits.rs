//! How much the metadata may hold. These are constants, not options: every node must refuse the same commands.

/// The most brokers of one cluster, gone ones included.
pub const BROKERS: usize = 1_000;
/// The most topics of one cluster.
pub const TOPICS: usize = 100_000;
/// The most replicas of all partitions together.
pub const REPLICAS: usize = 1_000_000;
/// The most replicas of one partition.
pub const REPLICAS_PER_PARTITION: u32 = 16;
/// The most functions of one cluster.
pub const FUNCTIONS: usize = 10_000;
/// The most transforms on one topic: each costs every producer a call.
pub const TRANSFORMS_PER_TOPIC: usize = 16;
/// The most topics that one function reads, and that it emits to.
pub const TOPICS_PER_FUNCTION: usize = 256;
/// Earlier versions of a function that are kept, so that it can be rolled back.
pub const PREVIOUS_VERSIONS: usize = 10;
/// The longest name of a consumer group.
pub const GROUP_NAME_BYTES: usize = 255;
/// The longest address of a broker.
pub const ADDRESS_BYTES: usize = 256;
/// The longest name of a rack.
pub const RACK_BYTES: usize = 128;
/// The longest cluster id.
pub const CLUSTER_ID_BYTES: usize = 64;
/// The longest name of a function's interface (`typed`, `flat`).
pub const INTERFACE_BYTES: usize = 64;
/// Partitions that one [`Command`](crate::Command) may name.
pub const PARTITIONS_PER_COMMAND: usize = 1_000;
/// The longest command, encoded.
pub const COMMAND_BYTES: usize = 1 << 20;
/// What one message between two nodes of the group may hold: log entries, or a piece of a snapshot.
pub const PEER_MESSAGE_BYTES: usize = 8 << 20;
/// Log entries are read up to this many bytes at once, to be sent in one message.
pub const PEER_ENTRIES_BYTES: usize = 4 << 20;
/// A snapshot is sent in pieces of this size.
pub const SNAPSHOT_PIECE_BYTES: u64 = 1 << 20;
/// The largest snapshot that is taken from a peer.
pub const SNAPSHOT_BYTES: u64 = 1 << 30;
