//! What can be done to the metadata, and what comes of it.

use std::collections::BTreeMap;
use std::fmt;

use bus_protocol::request::CreateTopic;
use bus_protocol::{BlobId, Epoch, FunctionSpec, NodeId, PartitionId, Timestamp, TopicId, TopicName};
use serde::{Deserialize, Serialize};

use crate::Rejected;

/// One change of the cluster's metadata: an entry of the Raft log.
///
/// Stored as postcard. Variants are added at the end and never changed: an old log must read the same way, and
/// must do the same thing, on a newer node. That holds for the rules of
/// [`MetadataImage::apply`](crate::MetadataImage::apply) too, placement among them: a new rule comes with a new
/// variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Names the cluster, once. The same name again changes nothing. -> [`Applied::Done`]
    NameCluster {
        /// The cluster's id.
        cluster_id: String,
    },
    /// A broker has started. It gets a new epoch, is fenced until [`Command::UnfenceBroker`], and leads nothing
    /// until it is elected again: a leader that came back may have lost what only it had, so it must not go on
    /// in its old leader epoch. -> [`Applied::Broker`]
    RegisterBroker {
        /// The broker.
        broker: Registration,
        /// The epoch of the registration before this one; refused where that is not the broker's last. What a process
        /// asked for and did not live to see may come late: it must not take the place of a later one's.
        follows: Option<u64>,
    },
    /// A broker has gone silent, or is stopping: it gets no new replicas and is not elected, and the controller takes it out of the
    /// ISR where anybody else is left in it. -> [`Applied::Done`]
    FenceBroker {
        /// The broker.
        node: NodeId,
        /// The epoch of its registration; an older one is refused.
        epoch: u64,
    },
    /// A broker is up. -> [`Applied::Done`]
    UnfenceBroker {
        /// The broker.
        node: NodeId,
        /// The epoch of its registration; an older one is refused.
        epoch: u64,
    },
    /// A new topic, its replicas placed on brokers that are unfenced and not drained, each partition with its first replica as leader in
    /// leader epoch 0. -> [`Applied::Topic`]
    CreateTopic(CreateTopic),
    /// Changes settings, adds partitions, or both, or nothing at all. -> [`Applied::Done`]
    AlterTopic {
        /// The topic.
        topic: TopicName,
        /// The new number of partitions; not fewer than now.
        partitions: Option<u32>,
        /// Settings to set; an empty value takes a setting back to its default.
        config: BTreeMap<String, String>,
    },
    /// Deletes a topic; refused while functions name it. -> [`Applied::Done`]
    DeleteTopic {
        /// The topic.
        topic: TopicName,
    },
    /// A leader changes the ISR of partitions that it leads; each change stands or falls by itself.
    /// -> [`Applied::Partitions`]
    AlterPartitions {
        /// The leader.
        node: NodeId,
        /// The epoch of its registration; an older one is refused.
        epoch: u64,
        /// At most [`limits::PARTITIONS_PER_COMMAND`](crate::limits::PARTITIONS_PER_COMMAND).
        changes: Vec<IsrChange>,
    },
    /// The controller elects leaders, takes silent replicas out of the ISR, and ends reassignments; a leader that can only
    /// go on in another leader epoch ends its own. Each change stands or falls by itself. -> [`Applied::Partitions`]
    ChangePartitions {
        /// At most [`limits::PARTITIONS_PER_COMMAND`](crate::limits::PARTITIONS_PER_COMMAND).
        changes: Vec<PartitionChange>,
    },
    /// Deploys a function, or its next version. A paused function stays paused. -> [`Applied::Function`]
    DeployFunction(Deployment),
    /// Stops a function where it is; a paused transform is passed by. -> [`Applied::Done`]
    PauseFunction {
        /// The function.
        name: String,
    },
    /// Lets a paused function go on. -> [`Applied::Done`]
    ResumeFunction {
        /// The function.
        name: String,
    },
    /// Deletes a function and its earlier versions. -> [`Applied::Done`]
    DeleteFunction {
        /// The function.
        name: String,
    },
    /// A drained broker leads nothing that another in-sync replica can lead, and gets no new replicas, until it is
    /// added back; what it holds it keeps. -> [`Applied::Done`]
    DrainBroker {
        /// The broker.
        node: NodeId,
        /// Whether to drain it, or to add it back.
        drained: bool,
    },
    /// Gives partitions other replicas: all of the command, or nothing. A partition holds the old replicas and the
    /// new ones until all the new ones are in the ISR; then the controller takes the old ones away. Another
    /// reassignment takes the place of one that is under way; naming the replicas that it had cancels it. Refused where
    /// a partition has to move and one of the brokers wanted is fenced. -> [`Applied::Reassigned`]
    Reassign {
        /// The replicas wanted, the preferred leader first. At most
        /// [`limits::PARTITIONS_PER_COMMAND`](crate::limits::PARTITIONS_PER_COMMAND).
        changes: Vec<(TopicId, PartitionId, Vec<NodeId>)>,
        /// Bytes a second that a broker may send to new replicas at most; `None` leaves it as it is, 0 is no limit.
        throttle: Option<u64>,
    },
    /// A broker's replicas have lost what they stored (a damaged log, a failed disk): they leave the ISR, and the
    /// leadership, where anybody else is in the ISR, and are held since then: they can be emptied, and what they stored
    /// before counts no more. Each stands or falls by itself. -> [`Applied::Partitions`]
    ReportLost {
        /// The broker.
        node: NodeId,
        /// The epoch of its registration; an older one is refused.
        epoch: u64,
        /// At most [`limits::PARTITIONS_PER_COMMAND`](crate::limits::PARTITIONS_PER_COMMAND).
        partitions: Vec<(TopicId, PartitionId)>,
    },
    /// A broker's disk has no room for what its replicas are to store, or their task has panicked. What they have stored
    /// stays valid: they leave the ISR, and the leadership, where the others can do without them (see
    /// [`MetadataImage::can_spare`](crate::MetadataImage::can_spare)). Each stands or falls by itself.
    /// -> [`Applied::Partitions`]
    ReportFull {
        /// The broker.
        node: NodeId,
        /// The epoch of its registration; an older one is refused.
        epoch: u64,
        /// At most [`limits::PARTITIONS_PER_COMMAND`](crate::limits::PARTITIONS_PER_COMMAND).
        partitions: Vec<(TopicId, PartitionId)>,
    },
    /// A broker takes a block of producer ids that nobody else has had. -> [`Applied::ProducerIds`]
    AllocateProducerIds {
        /// The broker.
        node: NodeId,
        /// The epoch of its registration; an older one is refused.
        epoch: u64,
    },
}

/// A broker that has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Its id.
    pub node: NodeId,
    /// Where clients and brokers reach it: `HOST:PORT`.
    pub address: String,
    /// Where it stands; replicas are spread over racks.
    pub rack: Option<String>,
    /// Its data directory. Another one than before means that its records are gone: it leaves every ISR.
    pub directory: DirectoryId,
    /// Whether it stopped cleanly the last time. If not, it leaves the ISR of partitions whose topic has
    /// `durability=replicated`, where somebody else is left in it. A first start is clean.
    pub clean: bool,
    /// Whether another directory than before is meant to be: the node began with an empty one, or its operator has given up
    /// what lay in the last. If not, one that has replicas is refused: its disk may not be mounted.
    pub renewed: bool,
}

/// A data directory's identity, random, made when the directory is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DirectoryId(pub [u8; 16]);

impl fmt::Display for DirectoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DirectoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A leader's wish for another ISR: a compare-and-set on the partition epoch (Kafka's KIP-497).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsrChange {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The leader epoch in which the sender leads; an older one is refused.
    pub leader_epoch: Epoch,
    /// The partition epoch that the wish was made on; another one is refused.
    pub partition_epoch: u32,
    /// The new ISR: replicas, the leader among them, each with the epoch of the registration in which the leader has
    /// seen it in sync. A newcomer must be unfenced, and registered with that very epoch: one that has started
    /// again since may have less than the leader thinks (KIP-903).
    pub isr: Vec<(NodeId, u64)>,
}

/// The controller's choice for one partition: a compare-and-set on the partition epoch. The leader epoch rises when
/// the leader changes, and only then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionChange {
    /// The topic.
    pub topic: TopicId,
    /// The partition.
    pub partition: PartitionId,
    /// The partition epoch that the choice was made on; another one is refused.
    pub partition_epoch: u32,
    /// The leader: an unfenced member of `isr`. `None` where there is none: the partition is offline.
    pub leader: Option<NodeId>,
    /// The ISR: some of what it was, never nobody where there was somebody. Only an unclean election makes it
    /// another: the new leader alone.
    pub isr: Vec<NodeId>,
    /// The replicas: what they are, or those wanted once all of them are in `isr`.
    pub replicas: Vec<NodeId>,
    /// The replicas wanted: what they are; `None` once `replicas` are those.
    pub target: Option<Vec<NodeId>>,
}

/// One version of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Its settings.
    pub spec: FunctionSpec,
    /// Its bytes, which are stored already.
    pub module: BlobId,
    /// How it is called: `typed` or `flat`.
    pub interface: String,
    /// When it was deployed, by the clock of the broker that was asked.
    pub timestamp: Timestamp,
}

/// What a command has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    /// What it says.
    Done,
    /// A broker is registered.
    Broker {
        /// Its epoch, larger than any before.
        epoch: u64,
    },
    /// The topic is there.
    Topic {
        /// Its identity.
        id: TopicId,
        /// Whether this command made it; `false` with `if_not_exists`.
        created: bool,
    },
    /// The new partition epoch of each partition named, in the command's order, or why it stays as it is.
    Partitions(Vec<Result<u32, Rejected>>),
    /// A function is deployed.
    Function {
        /// From 1.
        version: u32,
    },
    /// Replicas will move.
    Reassigned {
        /// Of how many partitions; the others have the replicas wanted, at once.
        partitions: u32,
    },
    /// Producer ids that are the asker's alone.
    ProducerIds {
        /// The first.
        first: i64,
        /// How many.
        count: u64,
    },
}
