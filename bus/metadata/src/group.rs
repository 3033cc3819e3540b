//! Who takes part in the group: joining, and who votes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bus_protocol::NodeId;
use openraft::error::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use tokio::time::{Instant, timeout};

use crate::messages::Reply;
use crate::node::{Core, Members};
use crate::propose::millis;
use crate::{DirectoryId, MetadataImage, ProposeError};

/// The most nodes that vote: two of them may be gone.
const VOTERS: usize = 5;
/// Entries that a node may lack and still pass for one that keeps up.
const KEEPS_UP: u64 = 100;

impl Core {
    /// Takes a node whose store is empty into the group, to learn.
    ///
    /// One that is in it already has lost what it had, votes included. It leaves the group first, so that neither its
    /// vote nor what the leader thinks it has stored counts for anything.
    pub(crate) async fn take_in(&self, node: NodeId, address: &str, directory: DirectoryId) -> Reply {
        let stay = |leader| ProposeError::NotLeader { node: self.node(), leader };
        if !self.leads() {
            return self.not_applied(stay(self.current_leader()));
        }
        // Without a majority it leads by name only: who asks shall hear that at once, not after a timeout.
        if self.quorum_ago().is_none_or(|ago| ago >= self.options.session_timeout()) {
            return self.not_applied(stay(None));
        }
        let image = self.image();
        let Some(cluster_id) = image.cluster_id().map(str::to_owned) else {
            return self.not_applied(ProposeError::Busy);
        };
        if let Some(address) = self.taken_by(&image, node, directory) {
            return Reply::IdTaken { address };
        }
        let _one_at_a_time = self.membership.lock().await;
        match self.admit(node, address).await {
            Ok(()) => Reply::Joined { cluster_id },
            Err(error) => self.not_applied(error),
        }
    }

    /// Where another broker runs that has this id.
    fn taken_by(&self, image: &MetadataImage, node: NodeId, directory: DirectoryId) -> Option<String> {
        if node == self.node() {
            return Some(self.address.clone());
        }
        let broker = image.broker(node)?;
        let alive = self.liveness().is_alive(node, broker.epoch, Instant::now());
        (alive && broker.directory != directory).then(|| broker.address.clone())
    }

    async fn admit(&self, node: NodeId, address: &str) -> Result<(), ProposeError> {
        let Members { mut voters, learners } = self.members();
        let was_in = voters.contains_key(&node) || learners.contains_key(&node);
        if voters.remove(&node).is_some() {
            tracing::info!(
                node,
                "a voter has come back without its metadata: it votes no more until it has caught up"
            );
            self.change(ChangeMembers::ReplaceAllVoters(voters.into_keys().collect())).await?;
        }
        if was_in {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([node]))).await?;
        }
        let learner = BTreeMap::from([(node, BasicNode::new(address))]);
        self.change(ChangeMembers::AddNodes(learner)).await?;
        tracing::info!(node, address, "a node has joined the cluster");
        Ok(())
    }

    async fn change(&self, change: ChangeMembers<NodeId, BasicNode>) -> Result<(), ProposeError> {
        let limit = self.options.propose_timeout();
        match timeout(limit, self.raft.change_membership(change, true)).await {
            Err(_) => Err(ProposeError::TimedOut(millis(limit))),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader { node: self.node(), leader: forward.leader_id })
            }
            // Another change is under way, or a node has gone meanwhile: it is tried again.
            Ok(Err(RaftError::APIError(error))) => {
                tracing::debug!(%error, "the group was not changed");
                Err(ProposeError::Busy)
            }
            Ok(Err(RaftError::Fatal(error))) => Err(ProposeError::Stopped(error.to_string())),
        }
    }

    /// Whether more nodes should vote.
    pub(crate) fn wants_voters(&self, image: &MetadataImage) -> bool {
        self.more_voters(image).is_some()
    }

    /// Has more nodes vote, if they should.
    pub(crate) async fn promote(self: Arc<Self>) {
        let _one_at_a_time = self.membership.lock().await;
        let image = self.image();
        let Some(voters) = self.more_voters(&image).filter(|_| self.leads()) else { return };
        match self.change(ChangeMembers::ReplaceAllVoters(voters.clone())).await {
            Ok(()) => tracing::info!(?voters, "more nodes vote on the metadata"),
            Err(error) => tracing::debug!(%error, ?voters, "the voters were not changed"),
        }
    }

    fn more_voters(&self, image: &MetadataImage) -> Option<BTreeSet<NodeId>> {
        // Whoever led before may have gone half-way.
        if let Some(voters) = self.voters_to_be() {
            return Some(voters);
        }
        let Members { voters, learners } = self.members();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let replication = metrics.replication.as_ref()?;
        let last = metrics.last_log_index.unwrap_or_default();
        let now = Instant::now();
        let keeps_up = |node: &NodeId| {
            let has = replication.get(node).and_then(|log| log.as_ref()).map_or(0, |log| log.index);
            let alive = |epoch| *node == self.node() || self.liveness().is_alive(*node, epoch, now);
            has + KEEPS_UP >= last && image.broker(*node).is_some_and(|broker| alive(broker.epoch))
        };
        let takes_part = |node| voters.contains_key(node) || learners.contains_key(node);
        let brokers = image.brokers().filter(|broker| takes_part(&broker.node)).count();
        let able = learners.into_keys().filter(keeps_up).collect();
        plan_voters(voters.into_keys().collect(), able, brokers)
    }
}

/// Who should vote, if others should than do: an odd number of at most [`VOTERS`], and as many as there are brokers
/// for. Nobody stops voting because it is down: a cluster whose voters shrink with its failures ends with one.
fn plan_voters(
    mut voters: BTreeSet<NodeId>,
    able: BTreeSet<NodeId>,
    brokers: usize,
) -> Option<BTreeSet<NodeId>> {
    let odd = |number: usize| if number.is_multiple_of(2) { number.saturating_sub(1) } else { number };
    let wanted = odd(brokers.min(VOTERS)).min(odd(voters.len() + able.len()));
    if wanted <= voters.len() {
        return None;
    }
    let missing = wanted - voters.len();
    voters.extend(able.into_iter().take(missing));
    Some(voters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_come_in_odd_numbers() {
        let plan = |voters: &[u64], able: &[u64], brokers| {
            plan_voters(voters.iter().copied().collect(), able.iter().copied().collect(), brokers)
                .map(|voters| voters.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(plan(&[1], &[], 1), None);
        assert_eq!(plan(&[1], &[2], 2), None, "two voters outlive no more than one");
        assert_eq!(plan(&[1], &[2, 3], 3), Some(vec![1, 2, 3]));
        assert_eq!(plan(&[1], &[2, 3], 2), None, "a node that is no broker yet does not count");
        assert_eq!(plan(&[1], &[3], 3), None, "one of the three does not keep up");
        assert_eq!(plan(&[1, 2, 3], &[4], 4), None);
        assert_eq!(plan(&[1, 2, 3], &[4, 5], 5), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(plan(&[1, 2], &[3], 3), Some(vec![1, 2, 3]), "the emptied one is back");
        assert_eq!(plan(&[1, 2, 3, 4], &[5, 6], 6), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(plan(&[1, 2, 3, 4, 5], &[6, 7], 7), None);
    }
}
