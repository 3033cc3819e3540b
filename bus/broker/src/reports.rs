//! What replicas have to say to metadata: changes of their ISR, storage that is lost, and disks that are full.
//!
//! Gathered, and sent as one command for many partitions: when a broker goes, all that it followed says so at once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bus_metadata::{Applied, Command, IsrChange, ProposeError, limits};
use bus_protocol::{PartitionId, TopicId};
use bus_replica::{IsrProposal, Matter, Report};
use tokio::sync::mpsc;

use crate::node::Node;
use crate::replicas::remedy;

/// Reports that wait; a replica that finds no room says it again later.
pub(crate) const QUEUE: usize = 4_096;
/// How long it takes until what failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

type Proposal = (TopicId, PartitionId, IsrProposal);

/// Runs until the broker stops.
pub(crate) async fn run(node: Arc<Node>, mut reports: mpsc::Receiver<Report>) {
    let stopping = node.stopping();
    tokio::pin!(stopping);
    let mut gathered = Vec::new();
    loop {
        tokio::select! {
            count = reports.recv_many(&mut gathered, limits::PARTITIONS_PER_COMMAND) => if count == 0 { return },
            () = &mut stopping => return,
        }
        let (mut proposals, mut lost, mut full) = (Vec::new(), Vec::new(), BTreeSet::new());
        for Report { topic, partition, matter } in gathered.drain(..) {
            match matter {
                Matter::Isr(proposal) => proposals.push((topic, partition, proposal)),
                Matter::Lost(why) => {
                    tell_lost(&node, (topic, partition), &why);
                    lost.push((topic, partition));
                }
                Matter::Full => drop(full.insert((topic, partition))),
            }
        }
        if !lost.is_empty() {
            say_lost(&node, lost).await;
        }
        if !full.is_empty() {
            say_full(&node, full).await;
        }
        if !proposals.is_empty() {
            propose(&node, proposals).await;
        }
    }
}

/// Says what becomes of a replica that has lost what it stored.
fn tell_lost(node: &Node, (topic, partition): (TopicId, PartitionId), why: &str) {
    let image = node.metadata.image();
    let state = image.topic_by_id(topic).and_then(|topic| topic.partition(partition));
    let remedy = state.map_or("it is deleted", |state| remedy(&state.isr, node.id));
    node.metrics.lost_replicas.increment(1);
    let topic = node.called(topic);
    tracing::error!(topic, partition, why, "a replica has lost what it stored: {remedy}");
}

/// Tells metadata that replicas of this node have lost what they stored; again until it is heard, or not true any more.
/// By what metadata says then they are emptied, and fetched anew.
async fn say_lost(node: &Node, lost: Vec<(TopicId, PartitionId)>) {
    let command = Command::ReportLost { node: node.id, epoch: node.epoch(), partitions: lost };
    loop {
        match node.metadata.propose(command.clone()).await {
            Ok(_) | Err(ProposeError::Rejected(_) | ProposeError::Stopped(_)) => return,
            Err(error) => tracing::debug!(%error, "lost replicas are reported again"),
        }
        if node.pause(AGAIN).await.is_err() {
            return;
        }
    }
}

/// Has others go on without replicas of this node that have no room, where they can. It is not said again where that
/// fails: the next batch that finds no room does.
async fn say_full(node: &Node, mut full: BTreeSet<(TopicId, PartitionId)>) {
    let image = node.metadata.image();
    full.retain(|(topic, partition)| image.can_spare(node.id, *topic, *partition));
    if full.is_empty() {
        return;
    }
    let partitions = full.into_iter().collect();
    let command = Command::ReportFull { node: node.id, epoch: node.epoch(), partitions };
    if let Err(error) = node.metadata.propose(command).await {
        tracing::debug!(%error, "replicas without room stay in the ISR for now");
    }
}

/// Asks for changes of the ISR until each is decided: one of which that is not known stays in force on the leader's
/// side. That the same change comes twice does no harm: it names the partition epoch.
async fn propose(node: &Arc<Node>, proposals: Vec<Proposal>) {
    let change = |(topic, partition, proposal): &Proposal| IsrChange {
        topic: *topic,
        partition: *partition,
        leader_epoch: proposal.leader_epoch,
        partition_epoch: proposal.partition_epoch,
        isr: proposal.isr.clone(),
    };
    let changes = proposals.iter().map(change).collect();
    let command = Command::AlterPartitions { node: node.id, epoch: node.epoch(), changes };
    loop {
        match node.metadata.propose(command.clone()).await {
            Ok(Applied::Partitions(results)) => {
                let refused = proposals.into_iter().zip(results).filter_map(|(proposal, result)| {
                    let error = result.err()?;
                    tracing::debug!(topic = node.called(proposal.0), partition = proposal.1, %error, "ISR change refused");
                    Some(proposal)
                });
                return refuse(node, refused.collect()).await;
            }
            Ok(_) | Err(ProposeError::Stopped(_)) => return,
            Err(ProposeError::Rejected(error)) => {
                tracing::debug!(%error, "ISR changes refused");
                return refuse(node, proposals).await;
            }
            Err(error) => tracing::debug!(%error, "ISR changes are asked for again"),
        }
        if node.pause(AGAIN).await.is_err() {
            return;
        }
    }
}

async fn refuse(node: &Node, refused: Vec<Proposal>) {
    let image = node.metadata.image();
    // What it was refused for may be that very change, applied before with its answer lost: the replicas must know what
    // metadata says now before they are told that it was not to be.
    if node.await_metadata(image.index()).await.is_err() {
        return;
    }
    for (topic, partition, proposal) in refused {
        let Some(topic) = image.topic_by_id(topic) else { continue };
        if let Ok((_, partition)) = node.topics.partition(&topic.name, partition) {
            // One that is closed has nothing under way.
            partition.proposal_refused(proposal).await.ok();
        }
    }
}
