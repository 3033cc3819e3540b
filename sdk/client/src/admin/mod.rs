//! Administration: topics, brokers, functions, offsets.

mod functions;

use std::collections::BTreeMap;
use std::time::Duration;

use bus_protocol::request::{
    ClusterInfo, CreateTopic, Moves, PartitionInfo, Position, Request, Response, TopicInfo,
};
use bus_protocol::{FunctionSpec, NodeId, Offset, PartitionId, TopicName};
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use functions::FunctionLog;

use crate::{Client, Error};

/// How long a leader may take to say what it holds. A new one is there sooner.
const LEADERS: Duration = Duration::from_secs(3);

/// The cluster's administration. Each method is one request (or one to each leader, or each broker) under the client's
/// request timeout, to any broker that answers. What a broker refuses for the moment (it is stopping, it is busy, it has
/// just lost the leadership) is asked of another. Reads are also asked again when a broker is lost; changes are not,
/// since whether a lost one was carried out is not known ([`Error::Unconfirmed`]), unless twice is as good as once. A change
/// that needs a majority is not asked for while there is none: where none comes, it was not made ([`Error::NoMajority`]).
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
}

/// The error of an answer of another kind than the request's.
fn unexpected(response: &Response) -> Error {
    let name = format!("{response:?}");
    let name: String = name.chars().take_while(char::is_ascii_alphanumeric).collect();
    Error::Protocol(format!("it answers another question ({name})"))
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Which cluster this is, and who is in it.
    pub async fn cluster(&self) -> Result<ClusterInfo, Error> {
        match self.client.read(Request::Cluster).await? {
            Response::Cluster(cluster) => Ok(cluster),
            other => Err(unexpected(&other)),
        }
    }

    /// What stands where; all topics where `topics` is `None`. A topic that does not exist is refused with
    /// `UnknownTopic`.
    pub async fn topics(&self, topics: Option<Vec<TopicName>>) -> Result<Vec<TopicInfo>, Error> {
        match self.client.read(Request::Topics { topics }).await? {
            Response::Topics(topics) => Ok(topics),
            other => Err(unexpected(&other)),
        }
    }

    async fn change(&self, request: Request, payload: Bytes) -> Result<(), Error> {
        match self.client.change(request, payload).await? {
            Response::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Creates a topic; it is ready for producers when this returns.
    pub async fn create_topic(&self, topic: CreateTopic) -> Result<(), Error> {
        self.change(Request::CreateTopic(topic), Bytes::new()).await
    }

    /// Changes settings (an empty value takes one back to its default), raises the number of partitions, or both.
    pub async fn alter_topic(
        &self,
        topic: &TopicName,
        partitions: Option<u32>,
        config: BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let request = Request::AlterTopic { topic: topic.clone(), partitions, config };
        self.change(request, Bytes::new()).await?;
        self.client.forget_topic(topic);
        Ok(())
    }

    /// Deletes a topic and its records.
    pub async fn delete_topic(&self, topic: &TopicName) -> Result<(), Error> {
        self.change(Request::DeleteTopic { topic: topic.clone() }, Bytes::new()).await?;
        self.client.forget_topic(topic);
        Ok(())
    }

    /// What each partition of a topic holds, by number, asked of every leader. Partitions that nobody leads, or whose
    /// leader does not answer within 3 s and is not replaced, are not in the answer.
    pub async fn describe_partitions(&self, topic: &TopicName) -> Result<Vec<PartitionInfo>, Error> {
        let info = self.client.refresh(topic).await?;
        let mut led: BTreeMap<NodeId, Vec<PartitionId>> = BTreeMap::new();
        for (partition, state) in (0..).zip(&info.partitions) {
            state.leader.into_iter().for_each(|leader| led.entry(leader).or_default().push(partition));
        }
        let mut asked = JoinSet::new();
        for part in led.into_values() {
            let (client, topic) = (self.client.clone(), topic.clone());
            asked.spawn(async move {
                let request = |_| Request::DescribePartitions { topic: topic.clone() };
                timeout(LEADERS, client.read_from_leaders(&topic, &part, true, request)).await
            });
        }
        let mut partitions = Vec::new();
        while let Some(answers) = asked.join_next().await {
            let answers = match answers.map_err(|error| Error::Protocol(error.to_string()))? {
                Ok(Err(error)) if !error.is_retriable() => return Err(error),
                Ok(Ok(answers)) => answers,
                // The others' logs are worth showing all the same.
                Ok(Err(_)) | Err(_) => continue,
            };
            for answer in answers {
                match answer {
                    Response::Partitions(theirs) => partitions.extend(theirs),
                    other => return Err(unexpected(&other)),
                }
            }
        }
        // Where leadership moved in between, two may have answered: the newer leader's log goes further.
        partitions.sort_by_key(|partition| (partition.partition, std::cmp::Reverse(partition.log_end)));
        partitions.dedup_by_key(|partition| partition.partition);
        Ok(partitions)
    }

    /// Moves leadership away from a broker and gives it no new replicas, or takes that back. Returns once the cluster
    /// knows; leaders move after that. See [`Admin::topics`] for how far it is.
    pub async fn drain_broker(&self, node: NodeId, drained: bool) -> Result<(), Error> {
        self.change(Request::DrainBroker { node, drained }, Bytes::new()).await
    }

    /// Gives partitions of a topic other replicas, the preferred leader first. Returns once the cluster knows, with
    /// how many partitions move: one is done when its `target` is `None` again. `throttle`: bytes a second that each
    /// broker may send to new replicas at most; `None` leaves it as it is, 0 is no limit.
    pub async fn reassign(
        &self,
        topic: &TopicName,
        assignments: Vec<(PartitionId, Vec<NodeId>)>,
        throttle: Option<u64>,
    ) -> Result<Moves, Error> {
        self.move_replicas(Request::Reassign { topic: topic.clone(), assignments, throttle }).await
    }

    /// Spreads the replicas of all topics evenly over the brokers that are up and not drained. Otherwise as
    /// [`Admin::reassign`].
    pub async fn rebalance(&self, throttle: Option<u64>) -> Result<Moves, Error> {
        self.move_replicas(Request::Rebalance { throttle }).await
    }

    async fn move_replicas(&self, request: Request) -> Result<Moves, Error> {
        match self.client.change(request, Bytes::new()).await? {
            Response::Reassigning(moves) => Ok(moves),
            other => Err(unexpected(&other)),
        }
    }

    /// The offset at a position, for each of the partitions, by number.
    pub async fn list_offsets(
        &self,
        topic: &TopicName,
        partitions: &[PartitionId],
        position: Position,
    ) -> Result<Vec<(PartitionId, Offset)>, Error> {
        self.client.list_offsets(topic, partitions, position).await
    }

    /// Deploys a function, or its next version, from the component's bytes; answers the version. Every broker that
    /// must run it can, when this returns.
    pub async fn deploy_function(&self, spec: FunctionSpec, component: Bytes) -> Result<u32, Error> {
        match self.client.change(Request::DeployFunction(spec), component).await? {
            Response::Deployed { version } => Ok(version),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes a function, all its versions.
    pub async fn delete_function(&self, name: &str) -> Result<(), Error> {
        self.change(Request::DeleteFunction { name: name.to_owned() }, Bytes::new()).await
    }

    /// The next offset to read, for each partition that the group ever committed.
    pub async fn committed_offsets(
        &self,
        group: &str,
    ) -> Result<Vec<(TopicName, PartitionId, Offset)>, Error> {
        match self.client.read(Request::CommittedOffsets { group: group.to_owned() }).await? {
            Response::CommittedOffsets(offsets) => Ok(offsets),
            other => Err(unexpected(&other)),
        }
    }

    /// Commits the next offset to read, for each partition named.
    pub async fn commit_offsets(
        &self,
        group: &str,
        offsets: Vec<(TopicName, PartitionId, Offset)>,
    ) -> Result<(), Error> {
        self.change(Request::CommitOffsets { group: group.to_owned(), offsets }, Bytes::new()).await
    }
}
