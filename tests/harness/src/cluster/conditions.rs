//! What a test waits for, each with a deadline.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bus_protocol::request::{ClusterInfo, CreateTopic, PartitionState, Request, Response, TopicInfo};
use bus_protocol::{NodeId, PartitionId, TopicName};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::Cluster;

/// How long the cluster may take for what it does by itself.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until `condition` answers true, and looks often. An error counts as "not yet"; past the deadline the error is
/// that of the last look, under what was waited for.
pub async fn wait_until(
    what: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = anyhow::anyhow!("it was never so");
    loop {
        looks.tick().await;
        match tokio::time::timeout_at(deadline, condition()).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => last = error,
            Err(_) => return Err(last.context(format!("not within {within:?}: {what}"))),
        }
        if Instant::now() >= deadline {
            return Err(last.context(format!("not within {within:?}: {what}")));
        }
    }
}

/// What one node holds to be true.
type Told = (NodeId, anyhow::Result<Response>);

impl Cluster {
    /// As the function [`wait_until`].
    pub async fn wait_until(
        &self,
        what: &str,
        within: Duration,
        condition: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        wait_until(what, within, condition).await
    }

    /// Asks each node that runs and is not paused; each has a second.
    async fn ask_all(&self, request: &Request) -> Vec<Told> {
        let mut asked = JoinSet::new();
        for node in self.all().into_iter().filter(|node| node.is_running() && !node.is_paused()) {
            let (inquiry, request) = (Arc::clone(&self.inquiry), request.clone());
            asked.spawn(async move { (node.id(), inquiry.ask(&node.address(), &request).await) });
        }
        let mut told = asked.join_all().await;
        told.sort_by_key(|(node, _)| *node);
        told
    }

    /// What one node, and no other, holds to be true of its cluster.
    pub async fn cluster_info(&self, node: NodeId) -> anyhow::Result<ClusterInfo> {
        match self.inquiry.ask(&self.node(node)?.address(), &Request::Cluster).await? {
            Response::Cluster(info) => Ok(info),
            other => bail!("node {node} answers another question: {other:?}"),
        }
    }

    /// What one node, and no other, holds to be true of all topics.
    pub async fn topic_infos(&self, node: NodeId) -> anyhow::Result<Vec<TopicInfo>> {
        let request = Request::Topics { topics: None };
        match self.inquiry.ask(&self.node(node)?.address(), &request).await? {
            Response::Topics(topics) => Ok(topics),
            other => bail!("node {node} answers another question: {other:?}"),
        }
    }

    /// A topic's partitions by number, each as the newest epoch known to a node that answers has it, by its leader's
    /// word where that answers. A leader that was cut off may thus have been followed by another already.
    pub async fn topic_state(&self, topic: &str) -> anyhow::Result<Vec<PartitionState>> {
        let request = Request::Topics { topics: Some(vec![TopicName::new(topic)?]) };
        let newness = |(node, state): &(NodeId, PartitionState)| (state.epoch, state.leader == Some(*node));
        let mut last = anyhow::anyhow!("no node runs");
        let mut newest: Vec<(NodeId, PartitionState)> = Vec::new();
        for (node, told) in self.ask_all(&request).await {
            match told {
                Ok(Response::Topics(topics)) => {
                    let partitions = topics.into_iter().flat_map(|topic| topic.partitions);
                    for (number, told) in partitions.map(|state| (node, state)).enumerate() {
                        match newest.get_mut(number) {
                            Some(known) if newness(known) > newness(&told) => {}
                            Some(known) => *known = told,
                            None => newest.push(told),
                        }
                    }
                }
                Ok(other) => last = anyhow::anyhow!("node {node} answers another question: {other:?}"),
                Err(error) => last = error,
            }
        }
        match newest.is_empty() {
            true => Err(last.context(topic.to_owned())),
            false => Ok(newest.into_iter().map(|(_, state)| state).collect()),
        }
    }

    /// One of the partitions of [`Self::topic_state`].
    pub async fn partition_state(
        &self,
        topic: &str,
        partition: PartitionId,
    ) -> anyhow::Result<PartitionState> {
        let states = self.topic_state(topic).await?;
        states.into_iter().nth(partition as usize).with_context(|| format!("there is no {topic}-{partition}"))
    }

    /// Who leads a partition. Waits while nobody does that runs.
    pub async fn leader_of(&self, topic: &str, partition: PartitionId) -> anyhow::Result<NodeId> {
        self.leader_but(topic, partition, None).await
    }

    /// Waits until another than `old` leads the partition; answers who.
    pub async fn new_leader_of(
        &self,
        topic: &str,
        partition: PartitionId,
        old: NodeId,
    ) -> anyhow::Result<NodeId> {
        self.leader_but(topic, partition, Some(old)).await
    }

    async fn leader_but(
        &self,
        topic: &str,
        partition: PartitionId,
        old: Option<NodeId>,
    ) -> anyhow::Result<NodeId> {
        let mut found = None;
        let what = format!("{topic}-{partition} has a leader that runs, other than {old:?}");
        wait_until(&what, DEADLINE, async || {
            let state = self.partition_state(topic, partition).await?;
            let leader = state.leader.with_context(|| format!("nobody leads: {state:?}"))?;
            let node = self.node(leader)?;
            ensure!(node.is_running() && !node.is_paused() && Some(leader) != old, "it is {leader}");
            found = Some(leader);
            Ok(true)
        })
        .await?;
        found.context("it was found")
    }

    /// The broker that decides for the cluster, by the word of most nodes. Waits while they do not agree on one that
    /// runs.
    pub async fn controller(&self) -> anyhow::Result<NodeId> {
        let mut found = None;
        wait_until("most nodes name a controller that runs", DEADLINE, async || {
            let mut votes = BTreeMap::<NodeId, usize>::new();
            for (_, told) in self.ask_all(&Request::Cluster).await {
                if let Ok(Response::Cluster(ClusterInfo { controller: Some(controller), .. })) = told {
                    *votes.entry(controller).or_default() += 1;
                }
            }
            let most = self.nodes().len() / 2 + 1;
            let named = votes.iter().find(|(_, count)| **count >= most).map(|(node, _)| *node);
            let named = named.with_context(|| format!("votes: {votes:?}"))?;
            ensure!(self.node(named)?.is_running(), "node {named} does not run");
            found = Some(named);
            Ok(true)
        })
        .await?;
        found.context("it was found")
    }

    /// Waits until exactly `members` replicas of the partition are in sync.
    pub async fn wait_for_isr(
        &self,
        topic: &str,
        partition: PartitionId,
        members: usize,
    ) -> anyhow::Result<()> {
        let what = format!("{members} replicas of {topic}-{partition} are in sync");
        wait_until(&what, DEADLINE, async || {
            let state = self.partition_state(topic, partition).await?;
            ensure!(state.isr.len() == members, "{state:?}");
            Ok(true)
        })
        .await
    }

    /// Waits until the other nodes know that `node` is down.
    pub async fn wait_for_fenced(&self, node: NodeId) -> anyhow::Result<()> {
        wait_until(&format!("node {node} is fenced"), DEADLINE, async || {
            let controller = self.controller().await?;
            let known = self.cluster_info(controller).await?.brokers;
            Ok(known.iter().any(|broker| broker.node == node && broker.fenced))
        })
        .await
    }

    /// Waits until all is as it should be: every node runs and is known to all others as up, and every partition has
    /// a leader, its replicas in sync, and nothing to move. All nodes must run.
    pub async fn wait_all_in_sync(&self) -> anyhow::Result<()> {
        self.wait_all_in_sync_within(DEADLINE).await
    }

    /// As [`Self::wait_all_in_sync`], with a deadline of one's own.
    pub async fn wait_all_in_sync_within(&self, within: Duration) -> anyhow::Result<()> {
        wait_until("all nodes are up, and all replicas in sync", within, async || {
            self.in_sync().await?;
            Ok(true)
        })
        .await
    }

    async fn in_sync(&self) -> anyhow::Result<()> {
        let nodes: BTreeSet<_> = self.nodes().into_iter().collect();
        let mut told = self.ask_all(&Request::Cluster).await;
        ensure!(told.len() == nodes.len(), "some of nodes {nodes:?} do not run");
        for (node, told) in told.drain(..) {
            let Response::Cluster(info) = told? else { bail!("node {node} answers another question") };
            let up = info.brokers.iter().filter(|broker| !broker.fenced).map(|broker| broker.node);
            let up: BTreeSet<_> = up.collect();
            ensure!(up == nodes, "node {node} knows of {up:?} as up, not of {nodes:?}");
        }
        let mut first: Option<Vec<TopicInfo>> = None;
        for (node, told) in self.ask_all(&Request::Topics { topics: None }).await {
            let Response::Topics(mut topics) = told? else { bail!("node {node} answers another question") };
            topics.sort_by(|a, b| a.topic.as_str().cmp(b.topic.as_str()));
            for topic in &topics {
                for (number, state) in topic.partitions.iter().enumerate() {
                    let set = |nodes: &[NodeId]| nodes.iter().copied().collect::<BTreeSet<_>>();
                    let whole = state.leader.is_some() && set(&state.isr) == set(&state.replicas);
                    ensure!(
                        whole && state.target.is_none(),
                        "{}-{number} by node {node}: {state:?}",
                        topic.topic
                    );
                }
            }
            let same = first.as_ref().is_none_or(|first| partitions(first) == partitions(&topics));
            ensure!(same, "node {node} does not know of all changes yet");
            first = Some(topics);
        }
        Ok(())
    }

    /// Creates a topic with these settings, and waits until all of its replicas are in sync.
    pub async fn create_topic(
        &self,
        topic: &str,
        partitions: u32,
        replicas: u32,
        config: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let topic = TopicName::new(topic)?;
        let name = topic.to_string();
        let create = CreateTopic { topic, partitions, replicas, config, if_not_exists: false };
        let client = self.client().await?;
        let created = client.admin().create_topic(create).await;
        client.close();
        created?;
        wait_until(&format!("all replicas of {name} are in sync"), DEADLINE, async || {
            let states = self.topic_state(&name).await?;
            ensure!(states.len() == partitions as usize, "{} of {partitions} partitions", states.len());
            let behind = states.iter().find(|state| state.isr.len() != replicas as usize);
            ensure!(behind.is_none(), "{behind:?}");
            Ok(true)
        })
        .await
    }
}

fn partitions(topics: &[TopicInfo]) -> Vec<(&TopicName, &Vec<PartitionState>)> {
    topics.iter().map(|topic| (&topic.topic, &topic.partitions)).collect()
}
