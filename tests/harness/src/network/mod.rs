//! The network between nodes and clients, and what is wrong with it.
//!
//! ```text
//!   node 1 (sends from L1) ──▶ R2, node 2's relay ──▶ U ──▶ L2, where node 2 listens
//!                          ◀── R2                 ◀── U ◀── (node 2's answers)
//! ```
//!
//! Nodes are advertised by their relays' addresses, so all that anybody sends passes the relay of one of the two ends.
//! A node sends from the socket that it listens on, hence a relay knows it by its source address; who is no node is a
//! client. The link from 1 to 2 is thus in force wherever a datagram passes: on its way in at node 2's relay, where 1
//! made the connection, and on its way back at node 1's, where 2 did.

mod delay;
mod links;
mod relay;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bus_protocol::NodeId;
use tokio::runtime::{Builder, Handle, Runtime};

pub use links::{Link, Peer};

pub(crate) use links::Links;
use relay::Relay;

/// Threads that carry datagrams. Their own: a test that blocks does not hold the network up.
const THREADS: usize = 2;

/// Relays in front of nodes, and the faults on the links between them. Dropping it ends the relays.
#[derive(Debug)]
pub struct Network {
    links: Arc<Links>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Network {
    /// A network without nodes and without faults. What chance decides about losses and delays depends on the seed.
    pub fn new(seed: u64) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("testkit-network")
            .enable_all()
            .build()
            .context("the network's threads")?;
        Ok(Self { links: Arc::new(Links::new(seed)), runtime: Some(runtime) })
    }

    /// A relay in front of the node that listens, or will, at `listen`; answers the address to advertise.
    pub fn relay(&self, node: NodeId, listen: SocketAddr) -> anyhow::Result<SocketAddr> {
        let handle = self.handle()?;
        let _guard = handle.enter();
        let relay = Relay::bind(node, listen, Arc::clone(&self.links))
            .with_context(|| format!("the relay of node {node}"))?;
        let address = relay.address()?;
        self.links.know(listen, node);
        handle.spawn(relay.run());
        Ok(address)
    }

    /// The links' state now.
    pub fn link(&self, from: impl Into<Peer>, to: impl Into<Peer>) -> Link {
        self.links.get(from.into(), to.into())
    }

    /// Changes a link; in force for all that passes a relay from now on, and for what is delayed there.
    pub fn change(&self, from: impl Into<Peer>, to: impl Into<Peer>, change: impl FnOnce(&mut Link)) {
        self.links.change(from.into(), to.into(), change);
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.links.heal();
    }

    /// Datagrams carried, and dropped by a fault or for want of room, so far.
    pub fn counts(&self) -> (u64, u64) {
        self.links.counts()
    }

    /// The threads that the relays run on; what else must not stand still with the test may run there.
    pub(crate) fn handle(&self) -> anyhow::Result<&Handle> {
        Ok(self.runtime.as_ref().context("the network has ended")?.handle())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not a wait: it may be dropped within another runtime.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests;
