//! What is wrong with the way from one peer to another.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use bus_protocol::NodeId;

use crate::random::Random;

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// A node.
    Node(NodeId),
    /// Everybody who is no node.
    Clients,
}

impl From<NodeId> for Peer {
    fn from(node: NodeId) -> Self {
        Self::Node(node)
    }
}

/// The way from one peer to another, in this direction only. As it should be, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Link {
    /// Nothing passes.
    pub cut: bool,
    /// The probability that a datagram is lost, 0 to 1.
    pub loss: f64,
    /// What each datagram takes longer.
    pub delay: Duration,
    /// What it takes longer on top of that at most, by chance: so datagrams overtake each other.
    pub jitter: Duration,
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fate {
    Pass,
    Drop,
    Late(Duration),
}

impl Link {
    pub(crate) fn fate(&self, random: &mut Random) -> Fate {
        if self.cut || (self.loss > 0.0 && random.chance(self.loss)) {
            return Fate::Drop;
        }
        let jitter = u64::try_from(self.jitter.as_micros()).unwrap_or(u64::MAX - 1);
        match self.delay + Duration::from_micros(random.below(jitter + 1)) {
            Duration::ZERO => Fate::Pass,
            late => Fate::Late(late),
        }
    }
}

/// All links, and who is who. Shared by the relays.
#[derive(Debug)]
pub(crate) struct Links {
    seed: AtomicU64,
    /// Whether any link has a fault: where none has, nobody takes the lock.
    faulty: AtomicBool,
    links: RwLock<HashMap<(Peer, Peer), Link>>,
    nodes: RwLock<HashMap<SocketAddr, NodeId>>,
    carried: AtomicU64,
    dropped: AtomicU64,
}

impl Links {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed: AtomicU64::new(seed),
            faulty: AtomicBool::new(false),
            links: RwLock::default(),
            nodes: RwLock::default(),
            carried: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Chance for one more task.
    pub(crate) fn random(&self) -> Random {
        Random::new(self.seed.fetch_add(0x5851_f42d_4c95_7f2d, Ordering::Relaxed))
    }

    /// From now on `node` is who sends from `address`.
    pub(crate) fn know(&self, address: SocketAddr, node: NodeId) {
        self.nodes.write().unwrap_or_else(PoisonError::into_inner).insert(address, node);
    }

    pub(crate) fn who(&self, address: SocketAddr) -> Peer {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&address).map_or(Peer::Clients, |node| Peer::Node(*node))
    }

    pub(crate) fn get(&self, from: Peer, to: Peer) -> Link {
        if !self.faulty.load(Ordering::Acquire) {
            return Link::default();
        }
        let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
        links.get(&(from, to)).copied().unwrap_or_default()
    }

    pub(crate) fn change(&self, from: Peer, to: Peer, change: impl FnOnce(&mut Link)) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        let link = links.entry((from, to)).or_default();
        change(link);
        if *link == Link::default() {
            links.remove(&(from, to));
        }
        self.faulty.store(!links.is_empty(), Ordering::Release);
    }

    pub(crate) fn heal(&self) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        links.clear();
        self.faulty.store(false, Ordering::Release);
    }

    pub(crate) fn count(&self, carried: u64, dropped: u64) {
        self.carried.fetch_add(carried, Ordering::Relaxed);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.carried.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }
}
