//! Whether most of the cluster's voters are there, as its brokers say.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bus_protocol::request::{BrokerInfo, ClusterInfo};
use bus_protocol::{ErrorCode, NodeId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Client, Error};

/// For so long the word of one broker that there is a majority outweighs that of another that there is none: who is cut
/// off from the others hears of none.
const OUTWEIGHS: Duration = Duration::from_secs(2);
/// What was said longer ago is no reason for what fails now. Whoever waits for something asks more often.
const STALE: Duration = Duration::from_secs(10);

/// A broker's word that no controller has most of the voters behind it: until one has, nothing can be changed, and what
/// has no leader gets none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoMajority {
    /// Who says so.
    pub node: NodeId,
    /// How many voters there are.
    pub voters: usize,
    /// For how long; `None`: since that broker started.
    pub ago: Option<Duration>,
    /// The voters that do not answer it, and where they are.
    pub silent: Vec<(NodeId, String)>,
}

impl NoMajority {
    /// What a broker says of the majority; `None` where it knows of one.
    pub fn of(cluster: &ClusterInfo) -> Option<Self> {
        let ClusterInfo { node, quorum, brokers, .. } = cluster;
        if quorum.held {
            return None;
        }
        let address = |node: NodeId| {
            let broker = brokers.iter().find(|broker: &&BrokerInfo| broker.node == node);
            broker.map_or_else(|| "an unknown address".to_owned(), |broker| broker.address.clone())
        };
        Some(Self {
            node: *node,
            voters: brokers.iter().filter(|broker| broker.voter).count(),
            ago: quorum.ago_ms.map(Duration::from_millis),
            silent: quorum.silent.iter().map(|silent| (*silent, address(*silent))).collect(),
        })
    }
}

impl fmt::Display for NoMajority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, voters, ago, silent } = self;
        write!(
            f,
            "no majority: node {node} has heard of no controller with most of the {voters} voters behind it "
        )?;
        match ago {
            Some(ago) if *ago < Duration::from_secs(120) => write!(f, "for {} s", ago.as_secs().max(1))?,
            Some(ago) => write!(f, "for {} min", ago.as_secs() / 60)?,
            None => write!(f, "since it started")?,
        }
        let silent: Vec<_> = silent.iter().map(|(node, address)| format!("{node} at {address}")).collect();
        match &silent[..] {
            [] => Ok(()),
            [one] => write!(f, "; voter {one} does not answer it: start it"),
            several => write!(f, "; voters {} do not answer it: start them", several.join(", ")),
        }
    }
}

/// What the brokers said last.
#[derive(Default)]
pub(crate) struct Majority {
    /// Who said last that there is one, and when.
    held: Mutex<Option<(NodeId, Instant)>>,
    missing: watch::Sender<Option<NoMajority>>,
    /// When it was said that there is none.
    said: Mutex<Option<Instant>>,
}

impl Majority {
    pub(crate) fn hear(&self, cluster: &ClusterInfo, now: Instant) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = NoMajority::of(cluster);
        match (&missing, *held) {
            (None, _) => *held = Some((cluster.node, now)),
            (Some(missing), Some((node, at)))
                if node != missing.node && now.saturating_duration_since(at) < OUTWEIGHS =>
            {
                return;
            }
            (Some(_), _) => {
                *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
            }
        }
        self.missing.send_if_modified(|before| {
            let news = *before != missing;
            *before = missing;
            news
        });
    }

    /// The last word that there is none, if it is not old.
    fn missing(&self, now: Instant) -> Option<NoMajority> {
        let said = (*self.said.lock().unwrap_or_else(PoisonError::into_inner))?;
        let missing = self.missing.borrow().clone();
        missing.filter(|_| now.saturating_duration_since(said) < STALE)
    }
}

impl Client {
    /// Whether brokers say that the cluster has no majority. They are asked whenever something takes long, and by
    /// nobody while nothing does.
    pub fn majority(&self) -> watch::Receiver<Option<NoMajority>> {
        self.metadata().majority.missing.subscribe()
    }

    /// The error; or, where it may pass and there is no majority, that: then it does not pass before there is one.
    pub(crate) fn majority_or(&self, error: Error) -> Error {
        let code = error.code();
        let may_be_why = code.is_none_or(|code| {
            matches!(code, ErrorCode::NotLeader | ErrorCode::NotEnoughReplicas | ErrorCode::TimedOut)
        });
        if matches!(error, Error::NoMajority { .. }) || !may_be_why || !error.is_retriable() {
            return error;
        }
        match self.metadata().majority.missing(Instant::now()) {
            Some(missing) => Error::NoMajority { missing, last: error.to_string() },
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use bus_protocol::request::Quorum;

    use super::*;

    fn word(node: NodeId, quorum: Quorum) -> ClusterInfo {
        let broker = |node| BrokerInfo {
            node,
            address: format!("10.0.0.{node}:9440"),
            fenced: false,
            drained: false,
            epoch: 1,
            rack: None,
            voter: true,
        };
        ClusterInfo {
            cluster_id: "c".to_owned(),
            node,
            version: "0".to_owned(),
            controller: None,
            quorum,
            throttle: None,
            brokers: (1..=3).map(broker).collect(),
        }
    }

    fn lost(ago_ms: Option<u64>, silent: &[NodeId]) -> Quorum {
        Quorum { held: false, ago_ms, silent: silent.to_vec() }
    }

    #[test]
    fn who_is_silent_and_for_how_long_is_said() {
        let said = |quorum| NoMajority::of(&word(1, quorum)).unwrap().to_string();
        assert_eq!(
            said(lost(Some(12_400), &[2, 3])),
            "no majority: node 1 has heard of no controller with most of the 3 voters behind it for 12 s; voters 2 at \
             10.0.0.2:9440, 3 at 10.0.0.3:9440 do not answer it: start them"
        );
        assert!(said(lost(None, &[])).ends_with("behind it since it started"));
        assert!(
            said(lost(Some(300_000), &[9])).contains("for 5 min; voter 9 at an unknown address does not")
        );
        assert_eq!(NoMajority::of(&word(1, Quorum { held: true, ..Quorum::default() })), None);
    }

    #[test]
    fn one_that_is_cut_off_does_not_outweigh_another_that_is_not() {
        let (majority, start) = (Majority::default(), Instant::now());
        let held = || Quorum { held: true, ..Quorum::default() };
        majority.hear(&word(2, held()), start);
        majority.hear(&word(1, lost(None, &[2, 3])), start + OUTWEIGHS / 2);
        assert_eq!(majority.missing(start + OUTWEIGHS / 2), None);
        // Its own word, and one that is old, do not stand against it.
        majority.hear(&word(2, lost(None, &[1, 3])), start + OUTWEIGHS / 2);
        assert_eq!(majority.missing(start + OUTWEIGHS).unwrap().node, 2);
        majority.hear(&word(1, lost(None, &[2, 3])), start + OUTWEIGHS);
        assert_eq!(majority.missing(start + OUTWEIGHS).unwrap().node, 1);
        assert_eq!(majority.missing(start + OUTWEIGHS + STALE), None, "too old to be the reason");
        majority.hear(&word(3, held()), start + OUTWEIGHS);
        assert_eq!(*majority.missing.borrow(), None);
    }
}
