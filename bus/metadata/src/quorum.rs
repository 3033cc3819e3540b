//! Whether the group has a majority, as far as this node has heard: to know that takes no majority.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_protocol::NodeId;
use tokio::time::Instant;

/// What a node has heard of the group's majority. Where there is none, what the node knows of the cluster may be old,
/// and nothing can be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    /// Whether a leader had most of the voters behind it within [`Options::session_timeout_ms`](crate::Options).
    pub held: bool,
    /// How long ago one had; `None` where that is not known to have been since this node started.
    pub ago: Option<Duration>,
    /// The other voters that have not answered this node for as long, by id.
    pub silent: Vec<NodeId>,
}

/// What the voters have answered to this node's heartbeats.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    led: Option<Instant>,
    voters: BTreeMap<NodeId, Instant>,
}

impl Answered {
    /// A voter has answered, and said, if it leads, how long ago it had a majority behind it.
    pub(crate) fn hear(&mut self, voter: NodeId, led_ago: Option<Duration>, now: Instant) {
        self.voters.insert(voter, now);
        self.led = self.led.max(led_ago.and_then(|ago| now.checked_sub(ago)));
    }

    /// What that comes to; `own` is how long ago this node itself led with a majority behind it, if it leads.
    pub(crate) fn quorum(
        &self,
        others: impl IntoIterator<Item = NodeId>,
        own: Option<Duration>,
        session: Duration,
        now: Instant,
    ) -> Quorum {
        let told = self.led.map(|led| now.saturating_duration_since(led));
        let ago = told.into_iter().chain(own).min();
        let answers = |voter: &NodeId| {
            self.voters.get(voter).is_some_and(|at| now.saturating_duration_since(*at) < session)
        };
        let silent = others.into_iter().filter(|voter| !answers(voter)).collect();
        Quorum { held: ago.is_some_and(|ago| ago < session), ago, silent }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_held_by_the_latest_word_of_it() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let at = |millis| start + Duration::from_millis(millis);
        let mut answered = Answered::default();
        let quorum = answered.quorum([2, 3], None, second, start);
        assert_eq!(quorum, Quorum { held: false, ago: None, silent: vec![2, 3] });

        answered.hear(2, Some(Duration::from_millis(100)), at(200));
        // A follower says nothing of it, and one that was cut off while it led what was long ago.
        answered.hear(3, None, at(300));
        answered.hear(3, Some(Duration::from_millis(390)), at(400));
        let quorum = answered.quorum([2, 3], None, second, at(1_000));
        assert_eq!(quorum, Quorum { held: true, ago: Some(Duration::from_millis(900)), silent: vec![] });
        let quorum = answered.quorum([2, 3], None, second, at(1_200));
        assert_eq!(quorum, Quorum { held: false, ago: Some(Duration::from_millis(1_100)), silent: vec![2] });
        assert!(answered.quorum([2, 3], Some(Duration::from_millis(5)), second, at(9_000)).held, "it leads");
    }
}
