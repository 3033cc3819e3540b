//! Who has been heard of, and when.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_protocol::NodeId;
use tokio::time::Instant;

/// When each broker's registration was last heard of by this node: by every voter, so that whoever comes to lead
/// knows already who is silent.
///
/// A node that was cut off, or stood still, has heard nobody; that says nothing about the others. So silence counts
/// from when this node could hear again, and one that hears nobody at all must have led for a whole session before
/// it calls anybody silent.
#[derive(Debug)]
pub(crate) struct Liveness {
    session: Duration,
    /// So long without a word from anybody means that this node hears nothing.
    deaf_after: Duration,
    /// Silence counts from here on.
    since: Instant,
    last: Option<Instant>,
    /// The epoch of the newest registration heard of, and when it was.
    heard: BTreeMap<NodeId, (u64, Instant)>,
}

impl Liveness {
    pub(crate) fn new(session: Duration, interval: Duration, now: Instant) -> Self {
        Self { session, deaf_after: interval * 3, since: now, last: None, heard: BTreeMap::new() }
    }

    /// Broker `node` is there, in its registration `epoch`.
    pub(crate) fn heard(&mut self, node: NodeId, epoch: u64, now: Instant) {
        if self.is_deaf(now) {
            self.since = now;
        }
        self.last = Some(now);
        let (known, at) = self.heard.entry(node).or_insert((epoch, now));
        if *known <= epoch {
            (*known, *at) = (epoch, now);
        }
    }

    /// Whether a broker's registration was heard of within a session.
    pub(crate) fn is_alive(&self, node: NodeId, epoch: u64, now: Instant) -> bool {
        self.heard.get(&node).is_some_and(|(known, at)| *known == epoch && now - *at < self.session)
    }

    /// Whether a broker has been silent for a session, by what a node knows that has led since `led_since`.
    pub(crate) fn is_silent(&self, node: NodeId, epoch: u64, led_since: Instant, now: Instant) -> bool {
        let heard = self.heard.get(&node).filter(|(known, _)| *known == epoch).map(|(_, at)| *at);
        let silent_since = heard.map_or(self.since, |at| at.max(self.since));
        now.saturating_duration_since(silent_since) >= self.session
            && (!self.is_deaf(now) || now.saturating_duration_since(led_since) >= self.session)
    }

    fn is_deaf(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) > self.deaf_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn silence_counts_while_this_node_hears_somebody() {
        let start = Instant::now();
        let mut liveness = Liveness::new(millis(1_000), millis(200), start);
        for tick in 1..=10 {
            let now = start + millis(200 * tick);
            liveness.heard(1, 7, now);
            if tick <= 4 {
                liveness.heard(2, 8, now);
            }
        }
        let now = start + millis(2_000);
        assert!(liveness.is_alive(1, 7, now) && !liveness.is_alive(1, 6, now));
        assert!(!liveness.is_silent(1, 7, now, now));
        assert!(liveness.is_silent(2, 8, now, now), "at once, by a leader that has only just come to lead");
        assert!(liveness.is_silent(3, 9, now, now), "never heard of since the start");
        assert!(!liveness.is_silent(3, 9, now, start + millis(900)));
        // An older registration's last word does not pass for the newer one's.
        liveness.heard(2, 9, now);
        liveness.heard(2, 8, now + millis(500));
        assert!(!liveness.is_alive(2, 9, now + millis(1_001)));
    }

    #[test]
    fn who_was_cut_off_calls_nobody_silent_at_once() {
        let start = Instant::now();
        let mut liveness = Liveness::new(millis(1_000), millis(200), start);
        liveness.heard(1, 1, start);
        liveness.heard(2, 2, start);
        let back = start + millis(5_000);
        assert!(!liveness.is_silent(1, 1, back - millis(999), back), "it hears nobody, and leads not long");
        assert!(liveness.is_silent(1, 1, back - millis(1_000), back), "the only voter of two brokers");
        liveness.heard(1, 1, back);
        assert!(!liveness.is_silent(2, 2, start, back));
        for tick in 1..=5 {
            liveness.heard(1, 1, back + millis(200 * tick));
        }
        assert!(liveness.is_silent(2, 2, back, back + millis(1_000)));
    }
}
