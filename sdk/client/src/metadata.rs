//! Where topics stand, as last heard.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus_protocol::request::{BrokerInfo, ClusterInfo, Request, Response, TopicInfo};
use bus_protocol::{ErrorCode, NodeId, PartitionId, TopicName};
use bytes::Bytes;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::leaderless::Leaderless;
use crate::majority::Majority;
use crate::request::exchange;
use crate::{Client, Error, NoLeader};

/// The metadata that this client has asked for: the topics it uses, and the brokers. Brokers learn of changes one
/// after the other, and one that is cut off from the others of none: so they are asked in turn, and what is older than
/// what is known already changes nothing.
#[derive(Default)]
pub(crate) struct Metadata {
    known: Mutex<Known>,
    /// Counts the questions.
    turn: AtomicUsize,
    pub(crate) majority: Majority,
    pub(crate) leaderless: Leaderless,
}

#[derive(Default)]
struct Known {
    topics: HashMap<TopicName, Arc<Topic>>,
    /// All that were ever heard of.
    brokers: HashMap<NodeId, BrokerInfo>,
}

/// What is known of one topic.
#[derive(Default)]
struct Topic {
    heard: Mutex<Option<Heard>>,
    /// Held while a broker is asked: who waits for it takes the answer, too.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Heard {
    info: Arc<TopicInfo>,
    /// When it was asked for.
    asked: Instant,
}

impl Topic {
    fn heard(&self) -> MutexGuard<'_, Option<Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was asked for at `since` or later.
    fn heard_since(&self, since: Option<Instant>) -> Option<Arc<TopicInfo>> {
        let heard = self.heard().clone()?;
        since.is_none_or(|since| heard.asked >= since).then_some(heard.info)
    }
}

impl Metadata {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of all brokers, those that are fenced last.
    pub(crate) fn brokers(&self) -> Vec<String> {
        let known = self.known();
        let mut brokers: Vec<_> = known.brokers.values().collect();
        brokers.sort_by_key(|broker| broker.fenced);
        brokers.into_iter().map(|broker| broker.address.clone()).collect()
    }

    /// The address of a broker.
    pub(crate) fn broker(&self, node: NodeId) -> Option<String> {
        self.known().brokers.get(&node).map(|broker| broker.address.clone())
    }

    /// Notes that a partition was needed and has no leader; answers what is to be said of it.
    pub(crate) fn no_leader(&self, topic: &TopicName, partition: PartitionId, isr: &[NodeId]) -> NoLeader {
        let known = self.known();
        let place = |node: &NodeId| known.brokers.get(node).map(|broker| (*node, broker.address.clone()));
        let missing = NoLeader {
            topic: topic.clone(),
            partition,
            in_sync: isr.iter().filter_map(place).collect(),
            down: !isr.is_empty()
                && isr.iter().all(|node| known.brokers.get(node).is_some_and(|broker| broker.fenced)),
        };
        drop(known);
        self.leaderless.missed(&missing);
        missing
    }

    fn topic(&self, topic: &TopicName) -> Arc<Topic> {
        self.known().topics.entry(topic.clone()).or_default().clone()
    }
}

/// The newer of both, partition by partition.
fn newer(old: &TopicInfo, mut new: TopicInfo) -> TopicInfo {
    // A topic's id is where it was created in the metadata log: a topic of the same name that was created later has a
    // higher one.
    if old.id > new.id {
        return old.clone();
    }
    if old.id == new.id {
        for (new, old) in new.partitions.iter_mut().zip(&old.partitions) {
            if old.epoch > new.epoch {
                new.clone_from(old);
            }
        }
        let known = new.partitions.len().min(old.partitions.len());
        new.partitions.extend_from_slice(&old.partitions[known..]);
    }
    new
}

impl Client {
    /// All addresses, another first each time; those that did not answer when they were asked last come last, and are
    /// looked after, so that they do not stay so.
    fn in_turn(&self) -> Vec<String> {
        let (mut addresses, suspects): (Vec<_>, Vec<_>) =
            self.all_addresses().into_iter().partition(|address| !self.pool().is_suspect(address));
        suspects.iter().for_each(|address| self.pool().look_after(address));
        let turn = self.metadata().turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(addresses.len()).unwrap_or(0);
        addresses.rotate_left(first);
        addresses.extend(suspects);
        addresses
    }

    /// Takes over what a broker says of the others, and of the majority.
    pub(crate) fn learn(&self, cluster: &ClusterInfo) {
        self.metadata().majority.hear(cluster, Instant::now());
        let mut moved = false;
        {
            let mut known = self.metadata().known();
            for broker in &cluster.brokers {
                let old = known.brokers.get(&broker.node);
                if old.is_some_and(|old| old.epoch > broker.epoch) {
                    continue;
                }
                moved |= old.is_some_and(|old| old.address != broker.address);
                known.brokers.insert(broker.node, broker.clone());
            }
        }
        if moved {
            self.pool().retain(&self.addresses());
        }
    }

    /// A topic, as last heard, or asked for now.
    pub(crate) async fn topic(&self, topic: &TopicName) -> Result<Arc<TopicInfo>, Error> {
        match self.known_topic(topic) {
            Some(info) => Ok(info),
            None => self.refresh(topic).await,
        }
    }

    /// A topic, as last heard.
    pub(crate) fn known_topic(&self, topic: &TopicName) -> Option<Arc<TopicInfo>> {
        self.metadata().known().topics.get(topic)?.heard_since(None)
    }

    /// A topic, asked for now, again until the request timeout where no broker can answer.
    pub(crate) async fn refresh(&self, topic: &TopicName) -> Result<Arc<TopicInfo>, Error> {
        let after = self.request_timeout();
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let mut last = Error::NoAnswer { request: "the request for topics", after };
        let mut asked = false;
        loop {
            let addresses = || if asked { self.in_turn() } else { self.addresses() };
            match tokio::time::timeout_at(start + after, self.refresh_since(topic, start, addresses)).await {
                Ok(Err(error)) if error.is_retriable() => last = error,
                Ok(result) => return result,
                Err(_) => return Err(last),
            }
            asked = true;
            let wait = backoff.next();
            if start.elapsed() + wait >= after {
                return Err(last);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// A topic as it was no longer than `age` ago, asked for once; by one of those who want to know, for all of them.
    pub(crate) async fn refresh_within(
        &self,
        topic: &TopicName,
        age: Duration,
    ) -> Result<Arc<TopicInfo>, Error> {
        let now = Instant::now();
        self.refresh_since(topic, now.checked_sub(age).unwrap_or(now), || self.in_turn()).await
    }

    async fn refresh_since(
        &self,
        name: &TopicName,
        since: Instant,
        addresses: impl FnOnce() -> Vec<String>,
    ) -> Result<Arc<TopicInfo>, Error> {
        let topic = self.metadata().topic(name);
        if let Some(info) = topic.heard_since(Some(since)) {
            return Ok(info);
        }
        let _asking = topic.asking.lock().await;
        if let Some(info) = topic.heard_since(Some(since)) {
            return Ok(info);
        }
        let asked = Instant::now();
        let answer = self.first(addresses(), |client, address| ask(client, address, name.clone())).await;
        let (cluster, info) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if error.code() == Some(ErrorCode::UnknownTopic) {
                    self.metadata().known().topics.remove(name);
                    self.metadata().leaderless.hear(name, &[]);
                }
                return Err(error);
            }
        };
        self.learn(&cluster);
        let mut heard = topic.heard();
        let info = Arc::new(match &*heard {
            Some(old) => newer(&old.info, info),
            None => info,
        });
        self.metadata().leaderless.hear(name, &info.partitions);
        *heard = Some(Heard { info: info.clone(), asked });
        Ok(info)
    }

    /// Asks again when the topic is needed next.
    pub(crate) fn forget_topic(&self, topic: &TopicName) {
        if let Some(topic) = self.metadata().known().topics.get(topic) {
            *topic.heard() = None;
        }
    }
}

/// Asks one broker for a topic, and for the brokers, at once.
async fn ask(client: Client, address: String, topic: TopicName) -> Result<(ClusterInfo, TopicInfo), Error> {
    let connection = client.pool().get(&address).await?;
    let request = Request::Topics { topics: Some(vec![topic.clone()]) };
    let (cluster, topics) = tokio::try_join!(
        exchange(&connection, &Request::Cluster, Bytes::new()),
        exchange(&connection, &request, Bytes::new()),
    )?;
    let (Response::Cluster(cluster), Response::Topics(topics)) = (cluster, topics) else {
        return Err(Error::Protocol("no cluster and no topics where both were asked for".to_owned()));
    };
    let info = topics.into_iter().find(|info| info.topic == topic);
    Ok((cluster, info.ok_or_else(|| Error::Protocol(format!("topic {topic} is not in it")))?))
}

#[cfg(test)]
mod tests {
    use bus_protocol::TopicId;
    use bus_protocol::request::PartitionState;

    use super::*;

    fn topic(id: u64, partitions: &[(Option<NodeId>, i32)]) -> TopicInfo {
        let partition = |&(leader, epoch)| PartitionState {
            leader,
            epoch,
            replicas: vec![1, 2],
            isr: vec![1, 2],
            target: None,
        };
        TopicInfo {
            topic: TopicName::new("t").unwrap(),
            id: TopicId(id),
            config: [].into(),
            functions: vec![],
            partitions: partitions.iter().map(partition).collect(),
        }
    }

    #[test]
    fn a_broker_that_lags_takes_nothing_back() {
        let known = topic(7, &[(Some(1), 3), (Some(2), 5)]);
        let heard = newer(&known, topic(7, &[(Some(2), 4)]));
        assert_eq!(heard, topic(7, &[(Some(2), 4), (Some(2), 5)]));
        let heard = newer(&known, topic(7, &[(None, 2), (None, 6), (Some(1), 0)]));
        assert_eq!(heard, topic(7, &[(Some(1), 3), (None, 6), (Some(1), 0)]));
    }

    #[test]
    fn a_topic_that_was_created_anew_has_nothing_of_the_old_one() {
        let known = topic(7, &[(Some(1), 3), (Some(2), 5)]);
        assert_eq!(newer(&known, topic(9, &[(Some(2), 0)])), topic(9, &[(Some(2), 0)]));
        assert_eq!(newer(&known, topic(5, &[(Some(2), 9)])), known);
    }
}
