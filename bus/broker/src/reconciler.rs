//! Makes this node run what the metadata says: compare, start and stop, until they agree.
//!
//! Level-triggered: each round looks at the whole image, so that nothing hangs on having seen every change. What
//! cannot be started is kept as offline, with the reason, and tried again at the next change.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bus_log::{Log, LogConfig};
use bus_metadata::MetadataImage;
use bus_protocol::{ErrorCode, PartitionId, TopicId, TopicName, TopicPartition, WireError};
use bus_replica::{Partition, Role};
use futures::StreamExt as _;

use crate::data_dir::topic_folder;
use crate::node::Node;
use crate::refusal::Refusal as _;
use crate::topics::{Served, Topic};

/// Logs opened at once: opening waits for the disk more than for a core.
const OPEN_AT_ONCE: usize = 16;

/// The task that keeps the node to the image. Only it writes [`crate::topics::Topics`] and starts and stops
/// partitions and functions.
pub(crate) struct Reconciler {
    node: Arc<Node>,
    /// The roles that the running partitions were last told.
    roles: HashMap<(TopicId, PartitionId), Role>,
}

impl Reconciler {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node, roles: HashMap::new() }
    }

    /// Runs until the broker stops.
    pub(crate) async fn run(mut self) {
        let mut images = self.node.metadata.watch();
        let stopping = self.node.stopping();
        tokio::pin!(stopping);
        let first = Arc::clone(&images.borrow());
        self.finish_deletions(first).await;
        loop {
            let image = Arc::clone(&images.borrow_and_update());
            self.reconcile(&image).await;
            self.node.reconciled.send_replace(image.index());
            tokio::select! {
                changed = images.changed() => if changed.is_err() { return },
                () = &mut stopping => return,
            }
        }
    }

    /// Removes the folders of topics whose deletion a crash cut short. A topic's id is its place in the metadata log:
    /// one that lies ahead of the image was not deleted, the metadata was lost, and nothing is touched.
    async fn finish_deletions(&self, image: Arc<MetadataImage>) {
        let topics = self.node.data.topics();
        let swept = self.node.blocking(move || {
            for entry in std::fs::read_dir(&topics)? {
                let entry = entry?;
                let name = entry.file_name();
                let id = name.to_str().and_then(|name| name.rsplit_once('@')?.1.parse().ok()).map(TopicId);
                match id {
                    Some(id) if image.topic_by_id(id).is_some() => {}
                    Some(id) if id.0 <= image.index() => std::fs::remove_dir_all(entry.path())?,
                    _ => tracing::error!(folder = %entry.path().display(), "the metadata does not know this folder"),
                }
            }
            Ok::<_, std::io::Error>(())
        });
        if let Err(error) = swept.await {
            tracing::warn!(%error, "folders of deleted topics were not removed");
        }
    }

    async fn reconcile(&mut self, image: &MetadataImage) {
        // Functions first: a topic takes no batch before its transforms stand.
        self.node.functions.load(image);
        self.remove_deleted(image).await;
        let mut running = (*self.node.topics.all()).clone();
        for wanted in image.topics() {
            let topic = running.entry(wanted.name.clone()).or_insert_with(|| {
                Arc::new(Topic {
                    name: wanted.name.clone(),
                    id: wanted.id,
                    config: ArcSwap::from_pointee(wanted.config.clone()),
                    partitions: ArcSwap::default(),
                    chain: ArcSwap::from_pointee(Err("the topic's functions are being loaded".to_owned())),
                    passing: tokio::sync::RwLock::default(),
                })
            });
            topic.set_chain(self.node.functions.chain(image, &topic.name)).await;
            if **topic.config.load() != wanted.config {
                topic.config.store(Arc::new(wanted.config.clone()));
            }
            self.serve(topic, wanted).await;
        }
        self.node.topics.publish(running);
        // Consumers last: they read partitions and emit to topics.
        self.node.functions.attend(&self.node, image).await;
    }

    async fn remove_deleted(&mut self, image: &MetadataImage) {
        let running = self.node.topics.all();
        let deleted: Vec<_> =
            running.values().filter(|topic| image.topic_by_id(topic.id).is_none()).cloned().collect();
        if deleted.is_empty() {
            return;
        }
        let mut kept = (*running).clone();
        kept.retain(|_, topic| image.topic_by_id(topic.id).is_some());
        // Unpublished first: nobody new finds the topic while it goes.
        self.node.topics.publish(kept);
        for topic in deleted {
            self.node.functions.leave(&topic.name).await;
            for served in topic.partitions.swap(Arc::default()).iter() {
                if let Served::Here(partition) = served
                    && let Err(error) = partition.delete().await
                {
                    tracing::warn!(topic = %topic.name, %error, "a deleted partition's log was not removed");
                }
            }
            self.roles.retain(|(id, _), _| *id != topic.id);
            let folder = self.node.data.topics().join(topic_folder(&topic.name, topic.id));
            if let Err(error) = self.node.blocking(move || std::fs::remove_dir_all(folder)).await {
                tracing::warn!(topic = %topic.name, %error, "a deleted topic's folder was not removed");
            }
            tracing::info!(topic = %topic.name, "topic deleted");
        }
    }

    /// Starts, tells and stops the partitions of one topic.
    async fn serve(&mut self, topic: &Topic, wanted: &bus_metadata::Topic) {
        let before = topic.partitions.load_full();
        let mut after: Vec<Served> = Vec::with_capacity(wanted.partitions.len());
        let mut open = Vec::new();
        for (number, partition) in wanted.partitions.iter().enumerate() {
            let key = (topic.id, number as PartitionId);
            let role = (partition.leader == Some(self.node.id)).then(|| Role {
                node: self.node.id,
                epoch: partition.leader_epoch,
                isr: partition.isr.clone(),
                config: wanted.config.clone(),
            });
            let served = before.get(number).cloned().unwrap_or(Served::Elsewhere);
            after.push(match (served, role) {
                (Served::Here(running), Some(role)) if self.roles.get(&key).is_some_and(|r| r.epoch == role.epoch) => {
                    self.tell(key, &running, role).await;
                    Served::Here(running)
                }
                (served, role) => {
                    if let Served::Here(running) = served {
                        self.roles.remove(&key);
                        if let Err(error) = running.close().await {
                            tracing::warn!(topic = %topic.name, partition = number, %error, "not closed cleanly");
                        }
                    }
                    if let Some(role) = role {
                        open.push((key.1, role));
                    }
                    Served::Elsewhere
                }
            });
        }
        for (number, role, served) in self.open_all(topic, open).await {
            if matches!(served, Served::Here(_)) {
                self.roles.insert((topic.id, number), role);
            }
            if let Some(place) = after.get_mut(number as usize) {
                *place = served;
            }
        }
        topic.partitions.store(Arc::new(after));
    }

    async fn tell(&mut self, key: (TopicId, PartitionId), running: &Partition, role: Role) {
        if self.roles.get(&key) != Some(&role) && running.configure(role.clone()).await.is_ok() {
            self.roles.insert(key, role);
        }
    }

    async fn open_all(
        &self,
        topic: &Topic,
        open: Vec<(PartitionId, Role)>,
    ) -> Vec<(PartitionId, Role, Served)> {
        if open.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.make_folder(topic).await {
            let offline = Served::Offline(format!("its folder cannot be made: {}", error.message));
            return open.into_iter().map(|(number, role)| (number, role, offline.clone())).collect();
        }
        futures::stream::iter(open)
            .map(|(number, role)| async move {
                let served = self.open(&topic.name, topic.id, number, role.clone()).await;
                (number, role, served)
            })
            .buffer_unordered(OPEN_AT_ONCE)
            .collect()
            .await
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

    async fn open(&self, topic: &TopicName, id: TopicId, number: PartitionId, role: Role) -> Served {
        let folder = self.node.data.partition(topic, id, number);
        let log_config = LogConfig::from(&role.config);
        let env = self.node.logs.clone();
        let name = TopicPartition::new(topic.clone(), number);
        let opened = self.node.runtime.disk.spawn_blocking(move || Log::open(&env, &folder, log_config));
        match opened.await {
            Ok(Ok(log)) => {
                tracing::debug!(partition = %name, start = log.log_start(), end = log.log_end(), "partition opened");
                Served::Here(Partition::lead(number, log, role, &self.node.runtime))
            }
            Ok(Err(error)) => {
                tracing::error!(partition = %name, %error, "partition is offline");
                Served::Offline(error.to_string())
            }
            Err(ended) => Served::Offline(format!("the thread that opened it ended: {ended}")),
        }
    }
}
