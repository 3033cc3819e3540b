//! Makes this node run what the metadata says: compare, start and stop, until they agree.
//!
//! Level-triggered: each round looks at the whole image, so that nothing hangs on having seen every change. What
//! cannot be started is kept as offline, with the reason, and tried again at the next change.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bus_metadata::MetadataImage;
use bus_protocol::TopicName;

use crate::data_dir::topic_folder;
use crate::leftovers;
use crate::node::Node;
use crate::replicas::Replicas;
use crate::topics::Topic;

/// The task that keeps the node to the image. Only it writes [`crate::topics::Topics`] and starts and stops
/// partitions and functions.
pub(crate) struct Reconciler {
    node: Arc<Node>,
    replicas: Replicas,
    /// The topics as they were when they were last reconciled, and the image that they are of.
    settled: HashMap<TopicName, Arc<bus_metadata::Topic>>,
    last: MetadataImage,
}

impl Reconciler {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self {
            replicas: Replicas::new(Arc::clone(&node)),
            node,
            settled: HashMap::new(),
            last: MetadataImage::default(),
        }
    }

    /// Runs until the broker stops.
    pub(crate) async fn run(mut self) {
        let mut images = self.node.metadata.watch();
        let stopping = self.node.stopping();
        tokio::pin!(stopping);
        let first = Arc::clone(&images.borrow());
        leftovers::remove(&self.node, first).await;
        loop {
            let image = Arc::clone(&images.borrow_and_update());
            self.reconcile(&image).await;
            self.node.reconciled.send_replace(image.index());
            tokio::select! {
                changed = images.changed() => if changed.is_err() { return },
                () = self.node.nudge.notified() => {}
                () = &mut stopping => return,
            }
        }
    }

    async fn reconcile(&mut self, image: &MetadataImage) {
        // Functions first: a topic takes no batch before its transforms stand.
        self.node.modules.look(&self.node);
        self.node.functions.load(image, &self.node.modules);
        self.remove_deleted(image).await;
        let mut running = (*self.node.topics.all()).clone();
        let same_brokers = self.last.same_brokers(image);
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
            let settled = self.settled.get(&wanted.name).is_some_and(|settled| Arc::ptr_eq(settled, wanted));
            if settled && same_brokers && topic.is_well() {
                continue;
            }
            if **topic.config.load() != wanted.config {
                topic.config.store(Arc::new(wanted.config.clone()));
            }
            self.replicas.serve(topic, wanted, image).await;
            self.settled.insert(wanted.name.clone(), Arc::clone(wanted));
        }
        self.last = image.clone();
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
            self.settled.remove(&topic.name);
            self.node.functions.leave(&topic.name).await;
            self.replicas.delete(&topic).await;
            let folder = self.node.data.topics().join(topic_folder(&topic.name, topic.id));
            let removed = move || match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
            if let Err(error) = self.node.blocking(removed).await {
                tracing::warn!(topic = %topic.name, %error, "a deleted topic's folder was not removed");
            }
            tracing::info!(topic = %topic.name, "topic deleted");
        }
    }
}
