//! One broker: a disk, a registration, and the replicas it runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bus_log::storage::{MemoryStorage, Storage};
use bus_log::{Env, Options, SyncJob};
use bus_metadata::{DirectoryId, MetadataImage};
use bus_protocol::{Durability, Epoch, NodeId, Offset};
use bus_replica::{IsrProposal, Replica, Role};

use crate::client::Ticket;
use crate::clock::{Time, VirtualClock};
use crate::control::Purpose;
use crate::invariants::Place;
use crate::mutation::Mutation;

/// A replica and what its owner keeps beside it.
pub(crate) struct Hosted {
    pub(crate) replica: Replica<Ticket>,
    pub(crate) syncing: Option<SyncJob>,
    /// Its storage failed: it takes nothing any more.
    pub(crate) offline: bool,
    pub(crate) reported: bool,
    /// As a follower: its stream, and what it said last that it has stored.
    pub(crate) stream: Option<u64>,
    pub(crate) told: Offset,
    /// As a leader: the change of the ISR that is not decided.
    pub(crate) proposed: Option<IsrProposal>,
}

impl Hosted {
    pub(crate) fn new(replica: Replica<Ticket>) -> Self {
        let (syncing, stream, proposed) = (None, None, None);
        Self { replica, syncing, offline: false, reported: false, stream, told: -1, proposed }
    }
}

/// A machine with one broker.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// Raised when the process ends: what was meant for an earlier one does not reach the next.
    pub(crate) life: u64,
    pub(crate) up: bool,
    /// Frozen until then.
    pub(crate) paused: Time,
    pub(crate) disk: MemoryStorage,
    pub(crate) env: Env,
    options: Options,
    clock: VirtualClock,
    pub(crate) directory: u64,
    /// Whether it stopped cleanly.
    pub(crate) clean: bool,
    /// A sync failed: only a machine that has started anew knows what its disk holds.
    pub(crate) suspect: bool,
    /// It dies in the middle of what it writes soon.
    pub(crate) dying: bool,
    pub(crate) stopping: bool,
    /// Its registration's epoch, and up to where it knows the metadata.
    pub(crate) registered: Option<u64>,
    pub(crate) learned: u64,
    /// Until then it learns nothing by itself; after that the newest at once.
    pub(crate) deaf: Time,
    pub(crate) replicas: BTreeMap<Place, Hosted>,
    /// The high watermarks that it has left on its disk.
    pub(crate) hints: BTreeMap<Place, Offset>,
    pub(crate) pending: BTreeMap<u64, Purpose>,
}

impl Node {
    pub(crate) fn new(id: NodeId, clock: &VirtualClock, tail_bytes: usize) -> Self {
        let options = Options { tail_bytes, checkpoint_bytes: 1 << 16, ..Options::default() };
        let disk = new_disk();
        let env = Env::new(Arc::new(disk.clone()), Arc::new(clock.clone()), options.clone());
        Self {
            id,
            life: 0,
            up: false,
            paused: 0,
            disk,
            env,
            options,
            clock: clock.clone(),
            directory: id << 32,
            clean: true,
            suspect: false,
            dying: false,
            stopping: false,
            registered: None,
            learned: 0,
            deaf: 0,
            replicas: BTreeMap::new(),
            hints: BTreeMap::new(),
            pending: BTreeMap::new(),
        }
    }

    /// It goes on with the disk that it has.
    pub(crate) fn spare(&mut self) {
        self.disk.fail_syncs(0);
        self.disk.die_after(None);
        self.dying = false;
    }

    /// Whether it died in the middle of what it wrote: it says nothing any more.
    pub(crate) fn is_dead(&self) -> bool {
        self.dying && self.disk.is_dead()
    }

    pub(crate) fn directory_id(&self) -> DirectoryId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.directory.to_be_bytes());
        DirectoryId(id)
    }

    /// The process is gone, with all that it knew.
    pub(crate) fn die(&mut self) {
        self.life += 1;
        self.up = false;
        self.paused = 0;
        self.clean = false;
        self.stopping = false;
        self.dying = false;
        self.registered = None;
        self.replicas.clear();
        self.pending.clear();
    }

    /// A process begins: files that an earlier one had open are closed.
    pub(crate) fn begin(&mut self) {
        self.up = true;
        self.env = Env::new(Arc::new(self.disk.clone()), Arc::new(self.clock.clone()), self.options.clone());
    }

    /// Another disk, with nothing on it.
    pub(crate) fn wipe(&mut self) {
        self.disk = new_disk();
        self.directory += 1;
        self.clean = true;
        self.suspect = false;
        self.hints.clear();
        self.learned = 0;
    }

    pub(crate) fn dir(place: Place) -> PathBuf {
        PathBuf::from(format!("/data/{}-{}", place.0, place.1))
    }

    /// What the metadata says of its replica.
    pub(crate) fn role(
        &self,
        image: &MetadataImage,
        place: Place,
        mutation: Option<Mutation>,
    ) -> Option<Role> {
        let topic = image.topic_by_id(place.0)?;
        let partition = topic.partition(place.1)?;
        if !partition.replicas.contains(&self.id) {
            return None;
        }
        let mut role = Role {
            node: self.id,
            leader: partition.leader,
            epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            replicas: partition.since.clone(),
            isr: partition.isr.clone(),
            live: partition.isr.iter().filter(|member| image.is_available(**member)).count(),
            config: topic.config.clone(),
        };
        match mutation {
            Some(Mutation::LeaderCountsUnsynced) if role.leads() => {
                role.config.durability = Durability::Replicated;
            }
            Some(Mutation::SinceIgnored) => role.replicas.values_mut().for_each(|since| *since = 0),
            Some(Mutation::MinIsrIgnored) => role.config.min_insync_replicas = 1,
            Some(Mutation::LeadsInOldEpoch) if role.leader.is_none() => {
                role.leader = role.isr.first().copied();
            }
            _ => {}
        }
        Some(role)
    }
}

/// As what a replica follows in a role: whom, in which leader epoch, and since when it is held. `None` where it does not.
pub(crate) fn stay(role: &Role) -> Option<(NodeId, Epoch, u32)> {
    let leader = role.leader.filter(|leader| *leader != role.node)?;
    Some((leader, role.epoch, *role.replicas.get(&role.node)?))
}

fn new_disk() -> MemoryStorage {
    let disk = MemoryStorage::new();
    let made = disk.create_dir(Path::new("/data")).and_then(|()| disk.sync_dir(Path::new("/")));
    made.unwrap_or_else(|error| unreachable!("a disk in memory: {error}"));
    disk
}
