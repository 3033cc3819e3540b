//! Brokers: who is in the cluster, and who can be counted on.

use std::sync::Arc;

use bus_protocol::{Durability, NodeId};
use serde::{Deserialize, Serialize};

use super::{MetadataImage, check_text};
use crate::{Applied, DirectoryId, Registration, Rejected, limits};

/// A broker, as it last registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broker {
    /// Its id.
    pub node: NodeId,
    /// Raised at every start: the log index of the registration.
    pub epoch: u64,
    /// Where it is reached: `HOST:PORT`.
    pub address: String,
    /// Where it stands.
    pub rack: Option<String>,
    /// Its data directory.
    pub directory: DirectoryId,
    /// Whether it is silent, stopping, or not yet up: it takes no new replicas and is not elected.
    pub fenced: bool,
    /// Whether its operator wants it to lead nothing where another can, and to get no new replicas. Outlives a restart.
    pub drained: bool,
}

impl MetadataImage {
    pub(super) fn register_broker(
        &mut self,
        index: u64,
        new: Registration,
        follows: Option<u64>,
    ) -> Result<Applied, Rejected> {
        check_text("broker address", &new.address, limits::ADDRESS_BYTES)?;
        if let Some(rack) = &new.rack {
            check_text("rack", rack, limits::RACK_BYTES)?;
        }
        if new.node == 0 {
            return Err(Rejected::Invalid { what: "node id 0".into(), why: "node ids start at 1".into() });
        }
        let before = self.brokers.get(&new.node).cloned();
        match (follows, before.as_ref().map(|before| before.epoch)) {
            (follows, current) if follows == current => {}
            (follows, Some(current)) => {
                let epoch = follows.unwrap_or_default();
                return Err(Rejected::StaleBrokerEpoch { node: new.node, epoch, current });
            }
            (_, None) => return Err(Rejected::UnknownBroker { node: new.node }),
        }
        if before.is_none() && self.brokers.len() >= limits::BROKERS {
            return Err(Rejected::Full { what: "brokers".into(), limit: limits::BROKERS as u64 });
        }
        // Out of every ISR, also those that it is alone in, would be too much for a disk that is mounted a moment later.
        let is_other = before.as_ref().is_some_and(|before| before.directory != new.directory);
        if is_other && !new.renewed && self.has_replicas(new.node) {
            return Err(Rejected::TopicsGone { node: new.node });
        }
        let drained = before.as_ref().is_some_and(|before| before.drained);
        if let Some(before) = before {
            self.restart(new.node, before.directory != new.directory, !new.clean);
        }
        let broker = Broker {
            node: new.node,
            epoch: index,
            address: new.address,
            rack: new.rack,
            directory: new.directory,
            fenced: true,
            drained,
        };
        Arc::make_mut(&mut self.brokers).insert(new.node, Arc::new(broker));
        Ok(Applied::Broker { epoch: index })
    }

    fn has_replicas(&self, node: NodeId) -> bool {
        let mut partitions = self.topics.values().flat_map(|topic| &topic.partitions);
        partitions.any(|partition| partition.replicas.contains(&node))
    }

    /// Takes back from a broker that has started again what it cannot vouch for any more.
    fn restart(&mut self, node: NodeId, emptied: bool, unclean: bool) {
        let concerned: Vec<_> = self
            .topics
            .values()
            .filter(|topic| topic.partitions.iter().any(|partition| partition.replicas.contains(&node)))
            .map(|topic| topic.name.clone())
            .collect();
        if concerned.is_empty() {
            return;
        }
        let topics = Arc::make_mut(&mut self.topics);
        for name in &concerned {
            let Some(topic) = topics.get_mut(name).map(Arc::make_mut) else { continue };
            let maybe_lost = unclean && topic.config.durability == Durability::Replicated;
            for partition in &mut topic.partitions {
                let in_isr = partition.isr.contains(&node);
                // A replica that is the only one left in the ISR stays there after an unclean stop: what it has is
                // the most that there is. One whose disk is gone does not: it would be elected with nothing.
                let leaves_isr = in_isr && (emptied || (maybe_lost && partition.isr.len() > 1));
                let leads = partition.leader == Some(node);
                let lost = emptied && partition.replicas.contains(&node);
                if leaves_isr || leads || lost {
                    Arc::make_mut(partition).change(|partition| {
                        if leaves_isr {
                            partition.isr.retain(|member| *member != node);
                        }
                        if leads {
                            partition.leader = None;
                        }
                        if lost {
                            partition.since.remove(&node);
                        }
                    });
                }
            }
        }
    }

    pub(super) fn set_fenced(&mut self, node: NodeId, epoch: u64, fenced: bool) -> Result<Applied, Rejected> {
        self.check_broker_epoch(node, epoch)?;
        if let Some(broker) = Arc::make_mut(&mut self.brokers).get_mut(&node)
            && broker.fenced != fenced
        {
            Arc::make_mut(broker).fenced = fenced;
        }
        Ok(Applied::Done)
    }

    pub(super) fn set_drained(&mut self, node: NodeId, drained: bool) -> Result<Applied, Rejected> {
        self.check_exists(node)?;
        if let Some(broker) = Arc::make_mut(&mut self.brokers).get_mut(&node)
            && broker.drained != drained
        {
            Arc::make_mut(broker).drained = drained;
        }
        Ok(Applied::Done)
    }

    /// Refuses a broker that never registered, and says who did.
    pub(super) fn check_exists(&self, node: NodeId) -> Result<(), Rejected> {
        const SHOWN: usize = 20;
        if self.brokers.contains_key(&node) {
            return Ok(());
        }
        Err(Rejected::NoSuchBroker { node, brokers: self.brokers.keys().copied().take(SHOWN).collect() })
    }

    pub(super) fn check_broker_epoch(&self, node: NodeId, epoch: u64) -> Result<(), Rejected> {
        let broker = self.brokers.get(&node).ok_or(Rejected::UnknownBroker { node })?;
        if broker.epoch != epoch {
            return Err(Rejected::StaleBrokerEpoch { node, epoch, current: broker.epoch });
        }
        Ok(())
    }

    /// Whether a broker is registered and up.
    pub fn is_available(&self, node: NodeId) -> bool {
        self.brokers.get(&node).is_some_and(|broker| !broker.fenced)
    }

    /// Whether a broker is drained: leads nothing where another can.
    pub fn is_drained(&self, node: NodeId) -> bool {
        self.brokers.get(&node).is_some_and(|broker| broker.drained)
    }
}
