//! What goes wrong between nodes.

use std::time::Duration;

use anyhow::ensure;
use bus_protocol::NodeId;

use super::Cluster;
use crate::network::Peer;

impl Cluster {
    fn check(&self, peers: &[Peer]) -> anyhow::Result<()> {
        ensure!(!self.direct, "the nodes have no relays, so their network has no faults");
        peers.iter().try_for_each(|peer| match peer {
            Peer::Node(node) => self.node(*node).map(drop),
            Peer::Clients => Ok(()),
        })
    }

    /// Nothing passes from one to the other; what the other sends still arrives.
    pub async fn cut(&self, from: impl Into<Peer>, to: impl Into<Peer>) -> anyhow::Result<()> {
        let (from, to) = (from.into(), to.into());
        self.check(&[from, to])?;
        self.network.change(from, to, |link| link.cut = true);
        Ok(())
    }

    /// Nothing passes between the two sides, in either direction. Clients reach both.
    pub async fn partition(&self, one: &[NodeId], other: &[NodeId]) -> anyhow::Result<()> {
        for &a in one {
            for &b in other {
                self.cut(a, b).await?;
                self.cut(b, a).await?;
            }
        }
        Ok(())
    }

    /// Nothing reaches the node or leaves it, clients' included.
    pub async fn isolate(&self, node: NodeId) -> anyhow::Result<()> {
        let others: Vec<_> = self.nodes().into_iter().filter(|other| *other != node).collect();
        self.partition(&[node], &others).await?;
        self.cut(node, Peer::Clients).await?;
        self.cut(Peer::Clients, node).await
    }

    /// What passes from one to the other takes longer: by `delay`, and by chance up to `jitter` on top.
    pub async fn delay(
        &self,
        from: impl Into<Peer>,
        to: impl Into<Peer>,
        delay: Duration,
        jitter: Duration,
    ) -> anyhow::Result<()> {
        let (from, to) = (from.into(), to.into());
        self.check(&[from, to])?;
        self.network.change(from, to, |link| (link.delay, link.jitter) = (delay, jitter));
        Ok(())
    }

    /// What passes from one to the other is lost with this probability.
    pub async fn loss(
        &self,
        from: impl Into<Peer>,
        to: impl Into<Peer>,
        probability: f64,
    ) -> anyhow::Result<()> {
        let (from, to) = (from.into(), to.into());
        self.check(&[from, to])?;
        self.network.change(from, to, |link| link.loss = probability);
        Ok(())
    }

    /// A bad network: all links, clients' too, delay, reorder and lose.
    pub async fn weather(&self, delay: Duration, jitter: Duration, loss: f64) -> anyhow::Result<()> {
        let mut peers: Vec<_> = self.nodes().into_iter().map(Peer::Node).collect();
        peers.push(Peer::Clients);
        for &from in &peers {
            for &to in &peers {
                if from != to {
                    self.delay(from, to, delay, jitter).await?;
                    self.loss(from, to, loss).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes all of the network's faults away. Paused and stopped nodes stay so.
    pub async fn heal(&self) -> anyhow::Result<()> {
        self.network.heal();
        Ok(())
    }
}
