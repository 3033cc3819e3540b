//! Administration: topics, functions, offsets.

use std::collections::BTreeMap;

use bus_protocol::request::{
    ClusterInfo, CreateTopic, FunctionInfo, LogLine, PartitionInfo, Position, Request, Response, TopicInfo,
};
use bus_protocol::{FunctionSpec, Offset, PartitionId, TopicName};
use bytes::Bytes;

use crate::{Client, Error};

/// The cluster's administration. Each method is one request (or one to each leader) under the client's request
/// timeout. Reads are tried again on another broker when one cannot answer; changes are not, since whether a lost
/// one was carried out is not known.
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

    /// What each partition of a topic holds, by number, asked of every leader. Partitions without a leader are
    /// not in the answer.
    pub async fn describe_partitions(&self, topic: &TopicName) -> Result<Vec<PartitionInfo>, Error> {
        let leaders = self.client.leaders(topic).await?;
        let mut partitions = Vec::new();
        for address in leaders.keys() {
            let request = Request::DescribePartitions { topic: topic.clone() };
            match self.client.ask(address, &request, Bytes::new()).await? {
                Response::Partitions(theirs) => partitions.extend(theirs),
                other => return Err(unexpected(&other)),
            }
        }
        partitions.sort_by_key(|partition| partition.partition);
        partitions.dedup_by_key(|partition| partition.partition);
        Ok(partitions)
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

    /// What is deployed, and how it does; only the one named, if one is.
    pub async fn list_functions(&self, name: Option<String>) -> Result<Vec<FunctionInfo>, Error> {
        match self.client.read(Request::ListFunctions { name }).await? {
            Response::Functions(functions) => Ok(functions),
            other => Err(unexpected(&other)),
        }
    }

    /// Lines of a function's log after a sequence number; 0 for all that are kept.
    pub async fn function_logs(&self, name: &str, after: u64) -> Result<Vec<LogLine>, Error> {
        match self.client.read(Request::FunctionLogs { name: name.to_owned(), after }).await? {
            Response::FunctionLogs(lines) => Ok(lines),
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
