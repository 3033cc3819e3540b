//! What a leader knows and decides, with no I/O: log ends come in, the high watermark, answers and ISR changes come
//! out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bus_protocol::produce::Acks;
use bus_protocol::{Epoch, NodeId, Offset};

/// How long a member of the ISR may be without a stream before it does not count as one that will store what is
/// appended now.
pub const ABSENT_FOR: Duration = Duration::from_secs(3);
/// How long a leader waits before it asks again for what the controller has refused.
pub const REFUSED_FOR: Duration = Duration::from_millis(300);

/// A leader's state for one partition in one leader epoch. `now` is monotonic time, on any scale.
///
/// Invariants, asserted at every step:
/// - `high_watermark` never falls;
/// - `high_watermark <= stored <= end`, where `stored` is what counts as stored here by the topic's `durability`;
/// - `high_watermark` is at most the smallest stored log end of the ISR, and of the ISR that is proposed, while a
///   change is under way (KIP-497); it does not move while the ISR has fewer than `min_isr` members;
/// - `pending` and `lone` are each in the order of appends, and their heads cannot be answered yet. A producer's
///   batches of one stream are all in one of them, so its answers leave in order.
#[derive(Debug)]
pub struct Leader<T> {
    node: NodeId,
    epoch: Epoch,
    /// Where the log ended when the epoch began: all before it comes from earlier leaders.
    began_at: Offset,
    isr: BTreeSet<NodeId>,
    partition_epoch: u32,
    /// The change of the ISR that was asked for and is not decided: its partition epoch, its members.
    proposed: Option<(u32, BTreeSet<NodeId>)>,
    /// A change was refused: none is asked for before.
    not_before: Duration,
    min_isr: usize,
    live: usize,
    stored: Offset,
    end: Offset,
    high_watermark: Offset,
    followers: BTreeMap<NodeId, Progress>,
    /// Those that wait for the ISR.
    pending: VecDeque<Pending<T>>,
    /// Those that wait for this replica alone: they do not wait behind the others.
    lone: VecDeque<Pending<T>>,
}

/// How far a follower is.
#[derive(Debug)]
struct Progress {
    /// The partition epoch since which it holds its replica: what an earlier stay had stored says nothing of this one.
    since: u32,
    /// The epoch of the registration in which it replicates now, and its stream; `None` while it does not.
    replicates: Option<(u64, u64)>,
    /// Since when it does not replicate.
    absent: Duration,
    /// The newest registration and stream that ever began: what arrives late from an older one begins nothing.
    latest: (u64, u64),
    stored: Offset,
    /// When it last had all that the leader had.
    caught_up: Duration,
    /// When it was last heard, and where the leader's log ended then.
    heard: (Duration, Offset),
}

#[derive(Debug)]
struct Pending<T> {
    /// The batch's last offset, and one: where the answer's condition must reach.
    until: Offset,
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

/// The ISR as metadata has it, and what it must hold.
#[derive(Debug, Clone)]
pub struct Isr<'a> {
    /// Who is in sync.
    pub members: &'a [NodeId],
    /// Who holds the partition, each since which partition epoch.
    pub replicas: &'a BTreeMap<NodeId, u32>,
    /// Raised at each change of the partition.
    pub partition_epoch: u32,
    /// `min.insync.replicas`.
    pub min: u32,
    /// How many of the members are up, as far as metadata knows.
    pub live: usize,
}

/// A leader's wish for another ISR, for the controller to decide: a compare-and-set on the partition epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsrProposal {
    /// The leader epoch in which it was made.
    pub leader_epoch: Epoch,
    /// The partition epoch that it was made on.
    pub partition_epoch: u32,
    /// The members wanted; a newcomer with the epoch of the registration in which it has caught up (KIP-903), the
    /// others with 0.
    pub isr: Vec<(NodeId, u64)>,
}

impl<T> Leader<T> {
    /// The leader in `epoch` on `node`, whose log ends at `end` and is stored up to `stored`. Nothing above
    /// `high_watermark` is taken as committed until the ISR has it.
    pub fn new(
        node: NodeId,
        epoch: Epoch,
        isr: Isr<'_>,
        (stored, end): (Offset, Offset),
        high_watermark: Offset,
        now: Duration,
    ) -> Self {
        let mut leader = Self {
            node,
            epoch,
            began_at: end,
            isr: BTreeSet::new(),
            partition_epoch: isr.partition_epoch,
            proposed: None,
            not_before: Duration::ZERO,
            min_isr: 0,
            live: 0,
            stored,
            end,
            high_watermark,
            followers: BTreeMap::new(),
            pending: VecDeque::new(),
            lone: VecDeque::new(),
        };
        leader.take(isr, now);
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

    /// Whether all that earlier leaders left is committed: until then the high watermark may be lower than what
    /// readers were told by them (KIP-207).
    pub fn is_settled(&self) -> bool {
        self.high_watermark >= self.began_at
    }

    /// Whether an append with `acks` may be ordered now. A member of the ISR that is down, or has not replicated for
    /// [`ABSENT_FOR`], does not count: nothing would be committed until it is back.
    pub fn admit(&self, acks: Acks, now: Duration) -> Result<(), NotEnoughReplicas> {
        if acks != Acks::All {
            return Ok(());
        }
        let absent = |progress: &Progress| {
            progress.replicates.is_none() && now.saturating_sub(progress.absent) > ABSENT_FOR
        };
        let gone =
            self.followers.iter().filter(|(node, progress)| self.isr.contains(node) && absent(progress));
        let (in_sync, wanted) = (self.live.min(self.isr.len() - gone.count()), self.min_isr);
        if in_sync < wanted { Err(NotEnoughReplicas { in_sync, wanted }) } else { Ok(()) }
    }

    /// A batch was ordered and written; its log end is `until`. `ticket` comes back from [`Leader::stored`] or
    /// [`Leader::follower_stored`] once the condition of `acks` holds.
    pub fn appended(&mut self, until: Offset, acks: Acks, ticket: T, now: Duration) {
        assert!(until >= self.end, "append ends at {until}, below the log end {}", self.end);
        // Who had everything until now lacks something only from now on.
        for progress in self.followers.values_mut().filter(|progress| progress.stored >= self.end) {
            progress.caught_up = now;
        }
        self.end = until;
        self.wait(until, acks, ticket);
    }

    fn wait(&mut self, until: Offset, acks: Acks, ticket: T) {
        let queue = if acks == Acks::All { &mut self.pending } else { &mut self.lone };
        queue.push_back(Pending { until, ticket });
    }

    /// A batch that ends before `until` came again: it is answered once what was stored the first time is
    /// committed, and after those that came before it.
    pub fn repeated(&mut self, until: Offset, acks: Acks, ticket: T) {
        assert!(until <= self.end, "a repeated batch ends at {until}, above the log end {}", self.end);
        self.wait(until, acks, ticket);
    }

    /// This replica has stored everything below `until`. Returns the tickets whose condition now holds.
    pub fn stored(&mut self, until: Offset) -> Vec<T> {
        assert!(until <= self.end, "stored {until} is above the log end {}", self.end);
        self.stored = until.max(self.stored);
        self.advance();
        self.answer()
    }

    /// A follower, in the registration `broker_epoch`, begins to replicate from `from` on, which lies on this
    /// leader's history. What it has stored it says itself. `stream` rises with each stream that it opens: a later one
    /// takes the place of an earlier, and one that arrives after a later one begins nothing, as the later one would
    /// not say again what it has stored. `false` then, and where it holds no replica.
    pub fn follower_started(
        &mut self,
        (node, broker_epoch): (NodeId, u64),
        stream: u64,
        from: Offset,
        now: Duration,
    ) -> bool {
        let (end, in_sync) = (self.end, self.isr.contains(&node));
        let Some(progress) = self.followers.get_mut(&node) else { return false };
        if (broker_epoch, stream) < progress.latest {
            return false;
        }
        progress.latest = (broker_epoch, stream);
        progress.replicates = Some(progress.latest);
        // It may have less than it had, after a failure of its disk; and of what one has that is not in sync nothing
        // is known to be stored.
        progress.stored = if in_sync { progress.stored.min(from) } else { 0 };
        progress.heard = (now, end);
        true
    }

    /// The follower has stored everything below `until`. One that holds no replica, or replicates by another stream,
    /// changes nothing: what an older stream says late need not be true any more, and the newer one says it again.
    pub fn follower_stored(
        &mut self,
        (node, broker_epoch): (NodeId, u64),
        stream: u64,
        until: Offset,
        now: Duration,
    ) -> Vec<T> {
        let end = self.end;
        let Some(progress) = self.followers.get_mut(&node) else { return Vec::new() };
        // A follower is never ahead of its leader: what it claims beyond is not on this history.
        if progress.replicates != Some((broker_epoch, stream)) || until > end {
            return Vec::new();
        }
        progress.stored = until.max(progress.stored);
        if until >= end {
            progress.caught_up = now;
        } else if until >= progress.heard.1 {
            progress.caught_up = progress.heard.0;
        }
        progress.heard = (now, end);
        self.advance();
        self.answer()
    }

    /// The follower's stream has ended; one that another has taken the place of ends nothing.
    pub fn follower_gone(&mut self, (node, broker_epoch): (NodeId, u64), stream: u64, now: Duration) {
        if let Some(progress) = self.followers.get_mut(&node)
            && progress.replicates.take_if(|present| *present == (broker_epoch, stream)).is_some()
        {
            progress.absent = now;
        }
    }

    /// What each follower that replicates now has stored.
    pub fn followers(&self) -> Vec<(NodeId, Offset)> {
        let live = self.followers.iter().filter(|(_, progress)| progress.replicates.is_some());
        live.map(|(node, progress)| (*node, progress.stored)).collect()
    }

    /// Whether a member of the ISR lacks something, so that time matters (see [`Leader::propose`]).
    pub fn is_waiting(&self) -> bool {
        self.followers.iter().any(|(node, progress)| {
            let behind = progress.stored < self.end;
            if self.isr.contains(node) { behind } else { progress.replicates.is_some() }
        })
    }

    /// The next change of the ISR that is called for, unless one is under way: members that have lacked something
    /// for longer than `lag` leave, as long as `min.insync.replicas` remain (below that nothing would be committed in
    /// any case, and those that remain in the ISR can be elected: they have all that is committed); replicas that have all that is committed, and all that earlier leaders left,
    /// join. The high watermark waits for both the old and the new ISR until the controller has decided.
    pub fn propose(&mut self, now: Duration, lag: Duration) -> Option<IsrProposal> {
        if self.proposed.is_some() || now < self.not_before {
            return None;
        }
        let (mut late, mut newcomers) = (BTreeSet::new(), BTreeMap::new());
        for (node, progress) in &self.followers {
            if self.isr.contains(node) {
                let spare = self.isr.len() - late.len() > self.min_isr;
                if spare && progress.stored < self.end && now.saturating_sub(progress.caught_up) > lag {
                    late.insert(*node);
                }
            } else if let Some((broker_epoch, _)) = progress.replicates
                && progress.stored >= self.high_watermark.max(self.began_at)
            {
                newcomers.insert(*node, broker_epoch);
            }
        }
        if late.is_empty() && newcomers.is_empty() {
            return None;
        }
        let mut wanted = &self.isr - &late;
        wanted.extend(newcomers.keys());
        let epoch_of = |node: &NodeId| (*node, newcomers.get(node).copied().unwrap_or(0));
        let isr = wanted.iter().map(epoch_of).collect();
        // Newcomers count as caught up from now on, or they would be late at once.
        for node in newcomers.keys() {
            if let Some(progress) = self.followers.get_mut(node) {
                progress.caught_up = now;
            }
        }
        self.proposed = Some((self.partition_epoch, wanted));
        Some(IsrProposal { leader_epoch: self.epoch, partition_epoch: self.partition_epoch, isr })
    }

    /// The controller has refused the change that was made on `partition_epoch`, for sure. Until metadata says more,
    /// or [`REFUSED_FOR`] have passed, the same would be asked in vain.
    pub fn proposal_refused(&mut self, partition_epoch: u32, now: Duration) -> Vec<T> {
        if self.proposed.take_if(|(made_on, _)| *made_on == partition_epoch).is_some() {
            self.not_before = now + REFUSED_FOR;
        }
        self.advance();
        self.answer()
    }

    /// The controller's word on who is in sync, and the topic's on how many must be, within the same leader epoch.
    pub fn reconfigure(&mut self, isr: Isr<'_>, now: Duration) -> Vec<T> {
        // What was decided before the change that is under way says nothing about it.
        self.proposed.take_if(|(made_on, _)| *made_on < isr.partition_epoch);
        self.not_before = Duration::ZERO;
        self.take(isr, now);
        self.advance();
        self.answer()
    }

    /// All tickets not answered, in order: the leader steps down, or its storage failed.
    pub fn abandon(&mut self) -> Vec<T> {
        let waiting = self.pending.drain(..).chain(self.lone.drain(..));
        waiting.map(|pending| pending.ticket).collect()
    }

    fn take(&mut self, isr: Isr<'_>, now: Duration) {
        assert!(isr.members.contains(&self.node), "node {} leads without being in sync", self.node);
        self.isr = isr.members.iter().copied().collect();
        self.partition_epoch = isr.partition_epoch;
        self.min_isr = isr.min as usize;
        self.live = isr.live;
        // Whoever was given up and came back may have come back with nothing.
        self.followers.retain(|node, progress| isr.replicas.get(node) == Some(&progress.since));
        for (node, since) in isr.replicas.iter().filter(|(node, _)| **node != self.node) {
            // What it has is unknown, hence nothing that counts, until it says so.
            let unknown = Progress {
                since: *since,
                replicates: None,
                absent: now,
                latest: (0, 0),
                stored: self.high_watermark.min(self.began_at),
                caught_up: now,
                heard: (now, self.end),
            };
            self.followers.entry(*node).or_insert(unknown);
        }
    }

    fn advance(&mut self) {
        let proposed = self.proposed.iter().flat_map(|(_, members)| members);
        let others = self.isr.iter().chain(proposed).filter(|node| **node != self.node);
        let smallest = others
            // A member whose replica metadata took away between: nothing is known of it.
            .map(|node| self.followers.get(node).map_or(self.high_watermark, |progress| progress.stored))
            .fold(self.stored, Offset::min);
        if self.isr.len() >= self.min_isr && smallest > self.high_watermark {
            self.high_watermark = smallest;
        }
        assert!(
            self.high_watermark <= self.stored && self.stored <= self.end,
            "high watermark {} <= stored {} <= end {} does not hold",
            self.high_watermark,
            self.stored,
            self.end
        );
    }

    fn answer(&mut self) -> Vec<T> {
        let mut answered = Vec::new();
        for (queue, reached) in [(&mut self.pending, self.high_watermark), (&mut self.lone, self.stored)] {
            // Answers leave in order: a later one never overtakes an earlier one of the same stream.
            let ready = queue.iter().take_while(|pending| pending.until <= reached).count();
            answered.extend(queue.drain(..ready).map(|pending| pending.ticket));
        }
        answered
    }
}

#[cfg(test)]
mod tests;
