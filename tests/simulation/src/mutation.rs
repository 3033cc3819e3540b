//! Deliberate breaks: each takes one rule away, to show that the simulation notices.

/// A rule that is broken on purpose. All of them sit between the simulation and the product (in what a node is told,
/// in what it says, in what the controller is asked), so that the product's code stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A follower tells its leader what it has written, not what it has synced.
    FollowerAcksBeforeSync,
    /// A leader counts as stored what it has written and not synced.
    LeaderCountsUnsynced,
    /// Any replica that is up may be elected when none in sync is.
    ElectionOutsideIsr,
    /// A follower cuts its log at its own high watermark instead of by epoch (Kafka before KIP-101).
    TruncatesToHighWatermark,
    /// A follower goes on where the leader's history ends, and keeps what it has.
    SkipsTruncation,
    /// The high watermark does not wait for the members of an ISR that is proposed and not decided.
    IgnoresProposedIsr,
    /// A newcomer joins the ISR in whichever registration it has by then (Kafka before KIP-903).
    StaleBrokerEpochIntoIsr,
    /// A replica that was given up and came back, or was emptied, is taken for what it was before.
    SinceIgnored,
    /// `acks=all` is answered once the leader has stored the batch.
    AcksBeforeHighWatermark,
    /// `min.insync.replicas` is taken for 1 by leaders.
    MinIsrIgnored,
    /// Leaders do not check the sequences of idempotent producers.
    NoSequenceCheck,
    /// Readers are given all that the leader has.
    ReaderGetsLogEnd,
    /// Readers are served by a leader that does not know yet what earlier ones have committed (KIP-207).
    ServesUnsettled,
    /// A change of a partition is applied whatever it was made on.
    CompareAndSetIgnored,
    /// A leader that has started again goes on in the leader epoch in which it led.
    LeadsInOldEpoch,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::FollowerAcksBeforeSync,
        Self::LeaderCountsUnsynced,
        Self::ElectionOutsideIsr,
        Self::TruncatesToHighWatermark,
        Self::SkipsTruncation,
        Self::IgnoresProposedIsr,
        Self::StaleBrokerEpochIntoIsr,
        Self::SinceIgnored,
        Self::AcksBeforeHighWatermark,
        Self::MinIsrIgnored,
        Self::NoSequenceCheck,
        Self::ReaderGetsLogEnd,
        Self::ServesUnsettled,
        Self::CompareAndSetIgnored,
        Self::LeadsInOldEpoch,
    ];

    /// The rule that it breaks: a file under `invariants/`.
    pub fn breaks(self) -> &'static str {
        match self {
            Self::FollowerAcksBeforeSync
            | Self::LeaderCountsUnsynced
            | Self::IgnoresProposedIsr
            | Self::MinIsrIgnored => "high_watermark",
            Self::ElectionOutsideIsr => "election_from_isr",
            Self::TruncatesToHighWatermark => "truncation",
            Self::SkipsTruncation => "convergence",
            Self::StaleBrokerEpochIntoIsr | Self::SinceIgnored | Self::CompareAndSetIgnored => {
                "isr_by_compare_and_set"
            }
            Self::AcksBeforeHighWatermark => "acknowledged_is_committed",
            Self::NoSequenceCheck => "no_loss_no_duplicate_in_order",
            Self::ReaderGetsLogEnd | Self::ServesUnsettled => "readers_below_high_watermark",
            Self::LeadsInOldEpoch => "one_leader_per_epoch",
        }
    }
}
