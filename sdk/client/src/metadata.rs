//! Where topics stand, as last heard.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus_protocol::request::{ClusterInfo, Position, Request, Response, TopicInfo};
use bus_protocol::{ErrorCode, NodeId, Offset, PartitionId, TopicName};
use bytes::Bytes;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::{Client, Error};

/// The metadata that this client has asked for: the topics it uses, and the brokers.
#[derive(Default)]
pub(crate) struct Metadata(Mutex<Known>);

#[derive(Default)]
struct Known {
    topics: HashMap<TopicName, Arc<TopicInfo>>,
    brokers: HashMap<NodeId, String>,
}

impl Metadata {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses of all brokers.
    pub(crate) fn brokers(&self) -> Vec<String> {
        self.known().brokers.values().cloned().collect()
    }

    /// The address of a broker.
    pub(crate) fn broker(&self, node: NodeId) -> Option<String> {
        self.known().brokers.get(&node).cloned()
    }

    fn learn_brokers(&self, cluster: ClusterInfo) {
        let brokers = cluster.brokers.into_iter();
        self.known().brokers =
            brokers.filter(|broker| !broker.fenced).map(|broker| (broker.node, broker.address)).collect();
    }
}

impl Client {
    /// A topic, as last heard, or asked for now.
    pub(crate) async fn topic(&self, topic: &TopicName) -> Result<Arc<TopicInfo>, Error> {
        let known = self.metadata().known().topics.get(topic).cloned();
        match known {
            Some(info) => Ok(info),
            None => self.refresh(topic).await,
        }
    }

    /// A topic, asked for now, and who the brokers are.
    pub(crate) async fn refresh(&self, topic: &TopicName) -> Result<Arc<TopicInfo>, Error> {
        match self.read(Request::Cluster).await? {
            Response::Cluster(cluster) => self.metadata().learn_brokers(cluster),
            _ => return Err(Error::Protocol("no cluster where one was asked for".to_owned())),
        }
        let answer = self.read(Request::Topics { topics: Some(vec![topic.clone()]) }).await;
        let info = match answer {
            Ok(Response::Topics(topics)) => topics.into_iter().find(|info| info.topic == *topic),
            Ok(_) => None,
            Err(error) => {
                self.forget_topic(topic);
                return Err(error);
            }
        };
        let info = Arc::new(info.ok_or_else(|| Error::Protocol(format!("topic {topic} is not in it")))?);
        self.metadata().known().topics.insert(topic.clone(), info.clone());
        Ok(info)
    }

    /// Asks again when the topic is needed next.
    pub(crate) fn forget_topic(&self, topic: &TopicName) {
        self.metadata().known().topics.remove(topic);
    }

    /// The address of a partition's leader.
    pub(crate) async fn leader(&self, topic: &TopicName, partition: PartitionId) -> Result<String, Error> {
        let info = self.topic(topic).await?;
        let state = info.partitions.get(partition as usize).ok_or_else(|| Error::UnknownPartition {
            topic: topic.clone(),
            partition,
            partitions: u32::try_from(info.partitions.len()).unwrap_or(u32::MAX),
        })?;
        match state.leader.and_then(|leader| self.metadata().broker(leader)) {
            Some(address) => Ok(address),
            None => {
                self.forget_topic(topic);
                Err(Error::NoLeader { topic: topic.clone(), partition })
            }
        }
    }

    /// The leaders of a topic's partitions, as far as there are any: their addresses, and what each leads.
    pub(crate) async fn leaders(
        &self,
        topic: &TopicName,
    ) -> Result<BTreeMap<String, Vec<PartitionId>>, Error> {
        let info = self.refresh(topic).await?;
        let mut leaders: BTreeMap<String, Vec<PartitionId>> = BTreeMap::new();
        for (partition, state) in (0..).zip(&info.partitions) {
            if let Some(address) = state.leader.and_then(|leader| self.metadata().broker(leader)) {
                leaders.entry(address).or_default().push(partition);
            }
        }
        Ok(leaders)
    }

    /// The offset at a position for each partition, in the order given; asks the leaders, and again where one has
    /// moved, until the request timeout.
    pub(crate) async fn list_offsets(
        &self,
        topic: &TopicName,
        partitions: &[PartitionId],
        position: Position,
    ) -> Result<Vec<(PartitionId, Offset)>, Error> {
        let deadline = Instant::now() + self.request_timeout();
        let mut backoff = Backoff::default();
        loop {
            match self.list_offsets_once(topic, partitions, position).await {
                Err(error) if error.is_retriable() && Instant::now() < deadline => {
                    tracing::debug!(%topic, %error, "offsets are asked for again");
                    self.forget_topic(topic);
                    tokio::time::sleep(backoff.next()).await;
                }
                result => return result,
            }
        }
    }

    async fn list_offsets_once(
        &self,
        topic: &TopicName,
        partitions: &[PartitionId],
        position: Position,
    ) -> Result<Vec<(PartitionId, Offset)>, Error> {
        let mut by_leader: BTreeMap<String, Vec<PartitionId>> = BTreeMap::new();
        for &partition in partitions {
            by_leader.entry(self.leader(topic, partition).await?).or_default().push(partition);
        }
        let mut offsets = HashMap::new();
        for (address, partitions) in by_leader {
            let request = Request::ListOffsets { topic: topic.clone(), partitions, position };
            match self.ask(&address, &request, Bytes::new()).await? {
                Response::Offsets(theirs) => offsets.extend(theirs),
                _ => return Err(Error::Protocol("no offsets where some were asked for".to_owned())),
            }
        }
        let offset = |&partition| offsets.get(&partition).map(|&offset| (partition, offset));
        partitions
            .iter()
            .map(|partition| {
                offset(partition)
                    .ok_or_else(|| Error::Protocol(format!("partition {topic}-{partition} is not in it")))
            })
            .collect()
    }
}

/// Whether an error says that what is known of the topic is out of date.
pub(crate) fn is_stale(error: &Error) -> bool {
    match error.code() {
        Some(code) => matches!(code, ErrorCode::NotLeader | ErrorCode::FencedEpoch | ErrorCode::ShuttingDown),
        None => matches!(error, Error::Transport(_) | Error::NoLeader { .. } | Error::NoAnswer { .. }),
    }
}
