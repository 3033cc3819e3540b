//! The replicas of this node: opened, told their roles, repaired and removed, until they are what metadata says.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use bus_log::{Log, LogConfig};
use bus_metadata::MetadataImage;
use bus_protocol::{ErrorCode, LeaderHint, NodeId, PartitionId, TopicId, TopicPartition, WireError};
use bus_replica::{Fault, Matter, Partition, Report, Role};
use futures::{FutureExt as _, StreamExt as _};

use crate::data_dir::topic_folder;
use crate::node::Node;
use crate::refusal::Refusal as _;
use crate::replication::{Replication, Stay};
use crate::topics::{Served, Topic};
use crate::traces::is_missing;

/// Logs opened, and replicas told their roles, at once: both wait for the disk more than for a core.
const AT_ONCE: usize = 16;

type At = (TopicId, PartitionId);

/// The reconciler's hands on the replicas: only it starts and stops them.
pub(crate) struct Replicas {
    node: Arc<Node>,
    /// The roles that the running replicas were last told.
    roles: HashMap<At, Role>,
    replication: Replication,
    /// Those that have lost what they stored, or cannot be opened, until they run again.
    lost: HashSet<At>,
}

impl Replicas {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, roles: HashMap::new(), replication: Replication::default(), lost: HashSet::new() }
    }

    /// Starts, tells, repairs and stops the replicas of one topic.
    pub(crate) async fn serve(&mut self, topic: &Topic, wanted: &bus_metadata::Topic, image: &MetadataImage) {
        let before = topic.partitions.load_full();
        // Nothing of it has run since this broker registered, and it was there then: so are the folders of its replicas,
        // but for some that came to it as it went down, which are as good as lost.
        let held = before.is_empty() && topic.id.0 < self.node.epoch();
        let mut served = Vec::with_capacity(wanted.partitions.len());
        let (mut tell, mut open, mut reopened) = (Vec::new(), Vec::new(), Vec::new());
        for (number, partition) in wanted.partitions.iter().enumerate() {
            let at = (topic.id, number as PartitionId);
            let now = before.get(number).cloned().unwrap_or(Served::Elsewhere(None));
            let Some(role) = self.role(image, wanted, partition) else {
                self.remove(topic, at, &now).await;
                let epoch = partition.leader_epoch;
                let leader = partition.leader.map(|node| LeaderHint { node, epoch });
                served.push(Served::Elsewhere(leader));
                continue;
            };
            match now.replica().cloned() {
                Some(running) if running.offline().is_none() => {
                    served.push(serve_as(running.clone(), &role));
                    let followed = Stay::of(&role).is_none_or(|stay| self.replication.follows(at, stay));
                    if self.roles.get(&at) != Some(&role) || !followed {
                        self.leave_other(at, &role).await;
                        tell.push((at, running, role));
                    }
                }
                Some(running) if !self.may_replace(at, &role, &running) => {
                    self.note_offline(at, &running, &role, image);
                    served.push(serve_as(running, &role));
                }
                broken => {
                    let fault = broken.as_ref().and_then(Partition::offline);
                    reopened.extend((fault == Some(&Fault::Panicked)).then_some(at));
                    let why = self.drop_broken(topic, at, broken).await;
                    served.push(Served::Offline(why));
                    open.push((at, role, held || self.lost.contains(&at)));
                }
            }
        }
        self.tell(tell).await;
        for (at, role, (opened, lost)) in self.open_all(topic, open).await {
            if lost {
                self.count_lost(at);
            }
            if let Some(replica) = opened.replica() {
                self.follow(at, replica, &role);
                self.roles.insert(at, role);
                self.lost.remove(&at);
            }
            if let Some(place) = served.get_mut(at.1 as usize) {
                *place = opened;
            }
        }
        topic.partitions.store(Arc::new(served));
        // From here on whoever asks meets the new one.
        for at in reopened {
            self.node.reopened.note(at, self.node.clock.monotonic());
        }
    }

    /// What metadata says of this node's replica, if it has one.
    fn role(
        &self,
        image: &MetadataImage,
        topic: &bus_metadata::Topic,
        partition: &bus_metadata::Partition,
    ) -> Option<Role> {
        partition.replicas.contains(&self.node.id).then(|| Role {
            node: self.node.id,
            leader: partition.leader,
            epoch: partition.leader_epoch,
            partition_epoch: partition.partition_epoch,
            replicas: partition.since.clone(),
            isr: partition.isr.clone(),
            live: partition.isr.iter().filter(|node| image.is_available(**node)).count(),
            config: topic.config.clone(),
        })
    }

    /// Whether nobody counts on what this replica holds, or will by what it was told before, and somebody else leads: it
    /// can be emptied, and fetched anew. A leader that was told in this very stay what the replica has stored might have
    /// it join the ISR by that; so metadata begins another when a loss is reported.
    fn may_repair(&self, at: At, role: &Role) -> bool {
        !role.isr.contains(&self.node.id) && Stay::of(role).is_some() && !self.was_told(at, role)
    }

    /// Whether its leader was told what this replica has stored, and may count on it still.
    fn was_told(&self, at: At, role: &Role) -> bool {
        Stay::of(role).is_some_and(|stay| self.roles.get(&at).and_then(Stay::of) == Some(stay))
    }

    /// Whether another may take the place of this replica, which is offline. What a panic has left alone is not fetched
    /// anew but opened anew: to follow, as its leader says then where it goes on; or to lead in a later leader epoch, as
    /// one does that has started again. Nobody who dealt with the one that panicked takes it for that.
    fn may_replace(&self, at: At, role: &Role, running: &Partition) -> bool {
        match running.offline() {
            Some(Fault::Panicked) => {
                let is_later = self.roles.get(&at).is_none_or(|told| told.epoch < role.epoch);
                (Stay::of(role).is_some() || (role.leads() && is_later)) && self.may_reopen(at)
            }
            _ => self.may_repair(at, role),
        }
    }

    fn may_reopen(&self, at: At) -> bool {
        self.node.reopened.may(at, self.node.clock.monotonic())
    }

    /// A replica is offline, and stays so for now.
    fn note_offline(&mut self, at: At, running: &Partition, role: &Role, image: &MetadataImage) {
        match running.offline() {
            Some(Fault::Panicked) => {
                // The others may be able to do without it by now, or it was so long ago that it may lead anew.
                if image.can_spare(self.node.id, at.0, at.1) || (role.leads() && self.may_reopen(at)) {
                    self.report(at, Fault::Panicked);
                }
            }
            _ => self.count_lost(at),
        }
    }

    /// Counts each loss once, however often it is met.
    fn count_lost(&mut self, at: At) {
        if self.lost.insert(at) {
            self.node.metrics.lost_replicas.increment(1);
        }
    }

    /// Ends the stream to a leader that is not the leader of `role`, and one of an earlier stay.
    async fn leave_other(&mut self, at: At, role: &Role) {
        if !Stay::of(role).is_some_and(|stay| self.replication.follows(at, stay)) {
            self.replication.leave(at).await;
        }
    }

    async fn tell(&mut self, tell: Vec<(At, Partition, Role)>) {
        let told = futures::stream::iter(tell).map(|(at, running, role)| async move {
            let told = running.configure(role.clone()).await;
            (at, running, role, told.is_ok())
        });
        let told: Vec<_> = told.buffer_unordered(AT_ONCE).collect().await;
        for (at, running, role, told) in told {
            if told {
                self.follow(at, &running, &role);
                self.roles.insert(at, role);
            }
        }
    }

    fn follow(&mut self, at: At, replica: &Partition, role: &Role) {
        if let Some(stay) = Stay::of(role)
            && !self.replication.follows(at, stay)
        {
            self.replication.follow(&self.node, at, replica.clone(), stay);
        }
    }

    /// Stops a replica that this node does not hold any more, and removes its log.
    async fn remove(&mut self, topic: &Topic, at: At, now: &Served) {
        self.replication.leave(at).await;
        self.forget(at);
        let removed = match now {
            Served::Here(replica) | Served::Follows(replica, _) => {
                replica.delete().await.map_err(|error| error.refusal())
            }
            Served::Offline(_) => self.discard(topic, at.1).await,
            Served::Elsewhere(_) => return,
        };
        match removed {
            Ok(()) => tracing::info!(topic = %topic.name, partition = at.1, "replica removed"),
            Err(error) => {
                tracing::warn!(topic = %topic.name, partition = at.1, %error, "a replica was not removed");
            }
        }
    }

    fn forget(&mut self, at: At) {
        self.roles.remove(&at);
        self.lost.remove(&at);
        self.node.reopened.forget(|gone| *gone == at);
    }

    /// Stops a replica whose storage has failed, and removes what it holds: all of it comes anew from the leader. What
    /// one holds whose task has panicked stays.
    async fn drop_broken(&mut self, topic: &Topic, at: At, broken: Option<Partition>) -> String {
        let Some(broken) = broken else { return "its log is being opened".into() };
        self.replication.leave(at).await;
        // That it does not close cleanly is no news.
        broken.close().await.ok();
        let why = broken.offline().map_or("its storage has failed".to_owned(), Fault::to_string);
        if broken.offline() == Some(&Fault::Panicked) {
            // Its readers were told so far.
            self.node.watermarks.note(at, broken.high_watermark());
            tracing::warn!(topic = %topic.name, partition = at.1, "a replica whose task has panicked is opened anew");
            return why;
        }
        self.count_lost(at);
        self.roles.remove(&at);
        match self.discard(topic, at.1).await {
            Ok(()) => {
                tracing::warn!(topic = %topic.name, partition = at.1, "a failed replica is fetched anew");
                self.node.metrics.refetched_replicas.increment(1);
            }
            Err(error) => {
                tracing::error!(topic = %topic.name, partition = at.1, %error, "a failed replica stays")
            }
        }
        why
    }

    async fn discard(&self, topic: &Topic, number: PartitionId) -> Result<(), WireError> {
        let folder = self.node.data.partition(&topic.name, topic.id, number);
        let storage = Arc::clone(&self.node.logs.storage);
        self.node.blocking(move || bus_log::discard(storage.as_ref(), &folder)).await
    }

    /// Stops the replicas of a topic that is deleted, and removes their logs.
    pub(crate) async fn delete(&mut self, topic: &Topic) {
        self.replication.leave_topic(topic.id).await;
        for served in topic.partitions.swap(Arc::default()).iter() {
            if let Some(replica) = served.replica()
                && let Err(error) = replica.delete().await
            {
                tracing::warn!(topic = %topic.name, %error, "a deleted partition's log was not removed");
            }
        }
        self.roles.retain(|(id, _), _| *id != topic.id);
        self.lost.retain(|(id, _)| *id != topic.id);
        self.node.reopened.forget(|(id, _)| *id == topic.id);
    }

    /// Opens replicas; each with whether its folder was there before.
    async fn open_all(&self, topic: &Topic, open: Vec<(At, Role, bool)>) -> Vec<(At, Role, (Served, bool))> {
        if open.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.make_folder(topic).await {
            let offline = Served::Offline(format!("its folder cannot be made: {}", error.message));
            return open.into_iter().map(|(at, role, _)| (at, role, (offline.clone(), true))).collect();
        }
        let folder = |at: &At| self.node.data.partition(&topic.name, topic.id, at.1);
        let begins = open.iter().any(|(at, ..)| is_missing(&folder(at)));
        let opened = futures::stream::iter(open)
            .map(|(at, role, held)| async move {
                // One that cannot be opened must not keep the node from the others.
                let opened = AssertUnwindSafe(self.open(topic, at, role.clone(), held)).catch_unwind().await;
                (at, role, opened.unwrap_or_else(|_| self.panicked(topic, at)))
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        if begins {
            self.keep_folders(topic).await;
        }
        opened
    }

    /// Makes the folders of a topic's partitions durable before anybody counts on one: a log that nothing was appended to
    /// yet has synced none, and one that is gone after a power cut would be taken for one that has lost something.
    async fn keep_folders(&self, topic: &Topic) {
        let folder = self.node.data.topics().join(topic_folder(&topic.name, topic.id));
        let sync = move || std::fs::File::open(&folder).and_then(|folder| folder.sync_all());
        let synced = self.node.blocking(move || Ok::<_, WireError>(sync())).await;
        if let Ok(Err(error)) = synced {
            tracing::warn!(topic = %topic.name, %error, "the folders of new replicas may not outlive a power cut yet");
        }
    }

    /// What becomes of a replica whose opening has panicked: it is tried again at the next change.
    fn panicked(&self, topic: &Topic, at: At) -> (Served, bool) {
        tracing::error!(topic = %topic.name, partition = at.1, "the opening of a replica has panicked: it is offline");
        if self.node.metadata.image().can_spare(self.node.id, at.0, at.1) {
            self.report(at, Fault::Panicked);
        }
        (Served::Offline("its opening has panicked".into()), false)
    }

    /// Makes the folder that a topic's partitions lie in, for good, and ends deletions that a crash cut short.
    async fn make_folder(&self, topic: &Topic) -> Result<(), WireError> {
        let (topics, storage) = (self.node.data.topics(), Arc::clone(&self.node.logs.storage));
        let folder = topics.join(topic_folder(&topic.name, topic.id));
        self.node
            .blocking(move || {
                if !folder.exists() {
                    let io = |error| {
                        WireError::new(ErrorCode::StorageFailed, format!("{}: {error}", folder.display()))
                    };
                    std::fs::create_dir_all(&folder).map_err(io)?;
                    return std::fs::File::open(&topics).and_then(|folder| folder.sync_all()).map_err(io);
                }
                bus_log::finish_deletions(storage.as_ref(), &folder).map_err(|error| error.refusal())
            })
            .await
    }

    /// Opens a replica, which was `held` before or is new; with whether it has lost what it had stored, or cannot be
    /// opened.
    async fn open(&self, topic: &Topic, at: At, role: Role, held: bool) -> (Served, bool) {
        let name = TopicPartition::new(topic.name.clone(), at.1);
        let folder = self.node.data.partition(&topic.name, topic.id, at.1);
        // Out of the ISR it is repaired as soon as somebody leads who counts on nothing of it; alone in it, it is for an
        // operator to give it up.
        let counted = (role.isr.contains(&self.node.id) && role.isr.len() > 1) || self.was_told(at, &role);
        let mut opened = self.open_log(&folder, &role, held && counted).await;
        let mut lost = opened.is_err();
        if let Err(fault) = &opened
            && self.may_repair(at, &role)
        {
            tracing::warn!(partition = %name, %fault, "a damaged replica is fetched anew");
            if self.discard(topic, at.1).await.is_ok() {
                self.node.metrics.refetched_replicas.increment(1);
                opened = self.open_log(&folder, &role, false).await;
            }
        }
        let log = match opened {
            Ok(log) => log,
            Err(fault) => {
                let image = self.node.metadata.image();
                let remedy = remedy(&fault, &role.isr, self.node.id, |node| image.is_available(node));
                tracing::error!(partition = %name, error = %fault, "partition is offline: {remedy}");
                let why = fault.to_string();
                if counted {
                    self.report(at, fault);
                }
                return (Served::Offline(why), true);
            }
        };
        if let Some(end) = log.recovery().lost_stored {
            tracing::error!(partition = %name, lost = end, end = log.log_end(), "the disk has lost records that it had stored");
            lost = true;
            if counted {
                let why = format!("its disk has lost records up to offset {end}, which it had stored");
                self.report(at, Fault::Damaged(why.clone()));
                return (Served::Offline(why), true);
            }
        }
        tracing::debug!(partition = %name, start = log.log_start(), end = log.log_end(), "partition opened");
        let committed = self.node.watermarks.known(at);
        let replica = Partition::open(at, log, role.clone(), committed, &self.node.runtime);
        (serve_as(replica, &role), lost)
    }

    /// Opens a log; one that `is_there` is not begun.
    async fn open_log(&self, folder: &Path, role: &Role, is_there: bool) -> Result<Log, Fault> {
        let (env, folder, config) =
            (self.node.logs.clone(), folder.to_owned(), LogConfig::from(&role.config));
        let open = move || {
            if is_there && is_missing(&folder) {
                return Err(Fault::Damaged(format!("its folder {} is gone", folder.display())));
            }
            Log::open(&env, &folder, config).map_err(|error| Fault::from(&error))
        };
        match self.node.blocking(move || Ok::<_, WireError>(open())).await {
            Ok(opened) => opened,
            Err(stopping) => Err(Fault::Failed(stopping.message)),
        }
    }

    /// A replica that cannot be counted on leaves the ISR; after that it is repaired.
    fn report(&self, (topic, partition): At, fault: Fault) {
        let report = Report { topic, partition, matter: Matter::Offline(fault) };
        if self.node.runtime.reports.try_send(report).is_err() {
            let topic = self.node.called(topic);
            tracing::warn!(
                topic,
                partition,
                "no room for the report of a replica that is offline: it waits for the next change"
            );
        }
    }
}

/// What becomes of a replica on node `own` whose storage has failed, for the operator, by the ISR of its partition, and
/// by who of it is up.
pub(crate) fn remedy(
    fault: &Fault,
    isr: &[NodeId],
    own: NodeId,
    is_up: impl Fn(NodeId) -> bool,
) -> &'static str {
    let mut others = isr.iter().filter(|member| **member != own).peekable();
    if others.peek().is_some() {
        return if others.any(|member| is_up(*member)) {
            "another replica goes on, and this one is fetched anew from it"
        } else {
            "another replica is in sync, and down: start its broker, and this one is fetched anew from it"
        };
    }
    match fault {
        Fault::Damaged(_) => {
            "no other replica is in sync: restore its folder from a backup, and start the broker again"
        }
        Fault::Failed(_) | Fault::Panicked => {
            "no other replica is in sync: see to what ails it, and start the broker again"
        }
    }
}

fn serve_as(replica: Partition, role: &Role) -> Served {
    let leader = role.leader.map(|node| LeaderHint { node, epoch: role.epoch });
    if role.leads() { Served::Here(replica) } else { Served::Follows(replica, leader) }
}

#[cfg(test)]
mod tests;
