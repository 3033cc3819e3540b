//! What a leader knows and decides, with no I/O: log ends come in, the high watermark and answers come out.

use std::collections::{BTreeMap, VecDeque};

use bus_protocol::produce::Acks;
use bus_protocol::{Epoch, NodeId, Offset};

/// A leader's state for one partition in one leader epoch.
///
/// Invariants, asserted at every step:
/// - `high_watermark` never falls;
/// - `high_watermark <= stored <= end`, where `stored` is what counts as stored here by the topic's `durability`;
/// - `high_watermark` is at most the smallest stored log end of the ISR, and does not move while the ISR has
///   fewer than `min_isr` members;
/// - `pending` is in the order of offsets, and holds nothing that could be answered.
#[derive(Debug)]
pub struct Leader<T> {
    node: NodeId,
    epoch: Epoch,
    /// The in-sync replicas, this one among them, each with its stored log end.
    isr: BTreeMap<NodeId, Offset>,
    min_isr: usize,
    end: Offset,
    high_watermark: Offset,
    pending: VecDeque<Pending<T>>,
}

#[derive(Debug)]
struct Pending<T> {
    /// The batch's last offset, and one: where the answer's condition must reach.
    until: Offset,
    acks: Acks,
    ticket: T,
}

/// Why an append is refused before it is ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotEnoughReplicas {
    /// In sync now.
    pub in_sync: usize,
    /// `min.insync.replicas`.
    pub wanted: usize,
}

impl<T> Leader<T> {
    /// The leader in `epoch` on `node`, whose log ends at `stored` on disk. Nothing above `high_watermark` is
    /// taken as committed until the ISR has it.
    pub fn new(
        node: NodeId,
        epoch: Epoch,
        isr: &[NodeId],
        min_isr: u32,
        stored: Offset,
        high_watermark: Offset,
    ) -> Self {
        assert!(high_watermark <= stored, "high watermark {high_watermark} is above the log end {stored}");
        assert!(isr.contains(&node), "node {node} leads without being in sync");
        // A follower's log end is unknown, hence lowest, until it fetches.
        let isr = isr
            .iter()
            .map(|&member| (member, if member == node { stored } else { high_watermark }))
            .collect();
        let mut leader = Self {
            node,
            epoch,
            isr,
            min_isr: min_isr as usize,
            end: stored,
            high_watermark,
            pending: VecDeque::new(),
        };
        leader.advance();
        leader
    }

    /// The leader epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Below it, all is committed.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// Whether an append with `acks` may be ordered now.
    pub fn admit(&self, acks: Acks) -> Result<(), NotEnoughReplicas> {
        let (in_sync, wanted) = (self.isr.len(), self.min_isr);
        if acks == Acks::All && in_sync < wanted {
            Err(NotEnoughReplicas { in_sync, wanted })
        } else {
            Ok(())
        }
    }

    /// A batch was ordered and written; its log end is `until`. `ticket` comes back from [`Leader::stored`] or
    /// [`Leader::follower_stored`] once the condition of `acks` holds.
    pub fn appended(&mut self, until: Offset, acks: Acks, ticket: T) {
        assert!(until >= self.end, "append ends at {until}, below the log end {}", self.end);
        self.end = until;
        self.pending.push_back(Pending { until, acks, ticket });
    }

    /// This replica has stored everything below `until`. Returns the tickets whose condition now holds.
    pub fn stored(&mut self, until: Offset) -> Vec<T> {
        assert!(until <= self.end, "stored {until} is above the log end {}", self.end);
        self.member_stored(self.node, until)
    }

    /// The follower `node` has stored everything below `until`. One that is not in sync changes nothing.
    pub fn follower_stored(&mut self, node: NodeId, until: Offset) -> Vec<T> {
        self.member_stored(node, until)
    }

    /// The controller's word on who is in sync, and the topic's on how many must be.
    pub fn reconfigure(&mut self, isr: &[NodeId], min_isr: u32) -> Vec<T> {
        assert!(isr.contains(&self.node), "node {} leads without being in sync", self.node);
        let known = std::mem::take(&mut self.isr);
        self.isr = isr.iter().map(|n| (*n, known.get(n).copied().unwrap_or(self.high_watermark))).collect();
        self.min_isr = min_isr as usize;
        self.advance();
        self.answer()
    }

    /// All tickets not answered, in order: the leader steps down, or its storage failed.
    pub fn abandon(&mut self) -> Vec<T> {
        self.end = self.isr[&self.node];
        self.pending.drain(..).map(|pending| pending.ticket).collect()
    }

    fn member_stored(&mut self, node: NodeId, until: Offset) -> Vec<T> {
        match self.isr.get_mut(&node) {
            Some(stored) => *stored = until.max(*stored),
            None => return Vec::new(),
        }
        self.advance();
        self.answer()
    }

    fn advance(&mut self) {
        let smallest = self.isr.values().copied().min().unwrap_or(self.high_watermark);
        if self.isr.len() >= self.min_isr && smallest > self.high_watermark {
            self.high_watermark = smallest;
        }
        assert!(self.high_watermark <= self.isr[&self.node] && self.isr[&self.node] <= self.end);
    }

    fn answer(&mut self) -> Vec<T> {
        let here = self.isr[&self.node];
        let holds = |pending: &Pending<T>| match pending.acks {
            Acks::All => pending.until <= self.high_watermark,
            Acks::Leader | Acks::None => pending.until <= here,
        };
        // Answers leave in order: a later one never overtakes an earlier one of the same partition.
        let ready = self.pending.iter().take_while(|pending| holds(pending)).count();
        self.pending.drain(..ready).map(|pending| pending.ticket).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_all_waits_for_the_slowest_in_sync_replica() {
        let mut leader = Leader::new(1, 0, &[1, 2, 3], 2, 0, 0);
        leader.appended(10, Acks::All, "a");
        assert!(leader.stored(10).is_empty());
        assert!(leader.follower_stored(2, 10).is_empty());
        assert_eq!(leader.follower_stored(3, 10), ["a"]);
        assert_eq!(leader.high_watermark(), 10);
    }

    #[test]
    fn below_the_minimum_nothing_is_admitted_or_committed() {
        let mut leader = Leader::new(1, 0, &[1, 2], 2, 5, 5);
        leader.appended(6, Acks::All, ());
        assert!(leader.stored(6).is_empty());
        assert!(leader.reconfigure(&[1], 2).is_empty());
        assert_eq!(leader.high_watermark(), 5);
        assert_eq!(leader.admit(Acks::All), Err(NotEnoughReplicas { in_sync: 1, wanted: 2 }));
        assert_eq!(leader.admit(Acks::Leader), Ok(()));
        assert_eq!(leader.reconfigure(&[1], 1).len(), 1);
    }

    #[test]
    fn a_replica_that_joins_the_isr_holds_the_high_watermark_until_it_has_it() {
        let mut leader = Leader::new(1, 3, &[1], 1, 8, 8);
        leader.reconfigure(&[1, 2], 1);
        leader.appended(9, Acks::All, 'x');
        assert!(leader.stored(9).is_empty());
        assert!(leader.follower_stored(4, 9).is_empty(), "a stranger's log end counts nothing");
        assert_eq!(leader.follower_stored(2, 9), ['x']);
    }

    #[test]
    fn one_replica_commits_what_it_stored_and_abandons_the_rest() {
        let mut leader = Leader::new(7, 0, &[7], 1, 0, 0);
        leader.appended(1, Acks::All, 1);
        leader.appended(2, Acks::Leader, 2);
        assert_eq!(leader.stored(1), [1]);
        assert_eq!(leader.abandon(), [2]);
        assert_eq!(leader.high_watermark(), 1);
    }
}
