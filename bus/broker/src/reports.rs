//! What replicas have to say to metadata: changes of their ISR, storage that is lost, disks that are full, and tasks that
//! have panicked.
//!
//! Gathered, and sent as one command for many partitions: when a broker goes, all that it followed says so at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bus_metadata::{Applied, Command, IsrChange, PartitionChange, ProposeError, limits};
use bus_protocol::{Epoch, PartitionId, TopicId};
use bus_replica::{Fault, IsrProposal, Matter, Report};
use tokio::sync::mpsc;

use crate::node::Node;
use crate::replicas::remedy;

/// Reports that wait; a replica that finds no room says it again later.
pub(crate) const QUEUE: usize = 4_096;
/// How long it takes until what failed is tried again.
const AGAIN: Duration = Duration::from_millis(100);

type At = (TopicId, PartitionId);
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
        let (mut proposals, mut lost, mut spared) = (Vec::new(), Vec::new(), BTreeSet::new());
        let mut anew = BTreeMap::new();
        for Report { topic, partition, matter } in gathered.drain(..) {
            match matter {
                Matter::Isr(proposal) => proposals.push((topic, partition, proposal)),
                Matter::Offline(Fault::Panicked) => {
                    let leads_anew = tell_panicked(&node, (topic, partition));
                    anew.extend(leads_anew.map(|epoch| ((topic, partition), epoch)));
                    spared.insert((topic, partition));
                }
                Matter::Offline(fault) => {
                    tell_lost(&node, (topic, partition), &fault);
                    lost.push((topic, partition));
                }
                Matter::Full => drop(spared.insert((topic, partition))),
            }
        }
        if !lost.is_empty() {
            say_lost(&node, lost).await;
        }
        if !spared.is_empty() {
            say_spared(&node, spared).await;
        }
        if !anew.is_empty() {
            say_anew(&node, anew).await;
        }
        if !proposals.is_empty() {
            propose(&node, proposals).await;
        }
    }
}

/// Says what becomes of a replica that has lost what it stored.
fn tell_lost(node: &Node, (topic, partition): (TopicId, PartitionId), fault: &Fault) {
    let image = node.metadata.image();
    let state = image.topic_by_id(topic).and_then(|topic| topic.partition(partition));
    let up = |member| image.is_available(member);
    let remedy = state.map_or("it is deleted", |state| remedy(fault, &state.isr, node.id, up));
    let topic = node.called(topic);
    tracing::error!(topic, partition, why = %fault, "a replica has lost what it stored: {remedy}");
}

/// Says what becomes of a replica whose task has panicked; gives the leader epoch that is to end so that it can be led
/// anew, if so.
fn tell_panicked(node: &Node, (topic, partition): At) -> Option<Epoch> {
    let image = node.metadata.image();
    let state = image.topic_by_id(topic).and_then(|topic| topic.partition(partition));
    let spared = image.can_spare(node.id, topic, partition);
    let led = state.filter(|state| !spared && state.leader == Some(node.id));
    if led.is_none() && !spared {
        // Metadata has nothing to change, and yet it may be opened anew.
        node.nudge.notify_one();
    }
    let again = !node.reopened.may((topic, partition), node.clock.monotonic());
    let remedy = match (led, again) {
        (None, false) => "others go on without it, and it is opened anew",
        (None, true) => {
            "others go on without it; that was not the first time, so that it stays offline: start the broker again"
        }
        (Some(_), false) => "the others cannot go on without it, so that it is opened and led anew",
        (Some(_), true) => {
            "the others cannot go on without it; that was not the first time, so that it stays offline: start the broker again"
        }
    };
    let led = led.filter(|_| !again).map(|state| state.leader_epoch);
    let topic = node.called(topic);
    tracing::error!(
        topic,
        partition,
        "the task of a replica has panicked, and what it has stored is as it was: {remedy}"
    );
    led
}

/// Tells metadata that replicas of this node have lost what they stored. By what metadata says then they are emptied, and
/// fetched anew.
async fn say_lost(node: &Node, lost: Vec<(TopicId, PartitionId)>) {
    say(node, Command::ReportLost { node: node.id, epoch: node.epoch(), partitions: lost }).await;
}

/// Has others go on without replicas of this node that take nothing and have lost nothing, where they can.
async fn say_spared(node: &Node, mut spared: BTreeSet<(TopicId, PartitionId)>) {
    let image = node.metadata.image();
    spared.retain(|(topic, partition)| image.can_spare(node.id, *topic, *partition));
    if spared.is_empty() {
        return;
    }
    let partitions = spared.into_iter().collect();
    say(node, Command::ReportFull { node: node.id, epoch: node.epoch(), partitions }).await;
}

/// Ends leader epochs of this node in which nobody leads any more: whom the controller elects then, be it this node,
/// begins another.
async fn say_anew(node: &Node, led: BTreeMap<At, Epoch>) {
    loop {
        let image = node.metadata.image();
        let change = |(&(topic, number), &epoch): (&At, &Epoch)| {
            let now = image.topic_by_id(topic)?.partition(number)?;
            let (isr, replicas, target) = (now.isr.clone(), now.replicas.clone(), now.target.clone());
            (now.leader == Some(node.id) && now.leader_epoch == epoch).then_some(PartitionChange {
                topic,
                partition: number,
                partition_epoch: now.partition_epoch,
                leader: None,
                isr,
                replicas,
                target,
            })
        };
        let changes: Vec<_> = led.iter().filter_map(change).collect();
        if changes.is_empty() {
            return;
        }
        match node.metadata.propose(Command::ChangePartitions { changes }).await {
            Ok(Applied::Partitions(results)) if results.iter().all(Result::is_ok) => return,
            // What has changed meanwhile is looked at again.
            Ok(_) => {}
            Err(ProposeError::Rejected(_) | ProposeError::Stopped(_)) => return,
            Err(error) => tracing::debug!(%error, "leader epochs that ended by a panic are reported again"),
        }
        if node.pause(AGAIN).await.is_err() {
            return;
        }
    }
}

/// Tells metadata; again until it is heard, or not true any more.
async fn say(node: &Node, command: Command) {
    loop {
        match node.metadata.propose(command.clone()).await {
            Ok(_) | Err(ProposeError::Rejected(_) | ProposeError::Stopped(_)) => return,
            Err(error) => tracing::debug!(%error, "replicas that are offline or full are reported again"),
        }
        if node.pause(AGAIN).await.is_err() {
            return;
        }
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
