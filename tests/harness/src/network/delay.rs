//! Datagrams that are late.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::links::{Links, Peer};

/// Datagrams that one relay holds back at most; what comes on top is dropped, as a router would.
const HELD: usize = 16 << 10;

/// Where a datagram goes.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) from: Peer,
    pub(crate) to: Peer,
    pub(crate) socket: Arc<UdpSocket>,
    /// The address; none where the socket is connected.
    pub(crate) address: Option<SocketAddr>,
}

impl Way {
    /// Whether the system took it. A full buffer drops it, as does a peer that is not there.
    pub(crate) fn send(&self, datagram: &[u8]) -> bool {
        match self.address {
            Some(address) => self.socket.try_send_to(datagram, address).is_ok(),
            None => self.socket.try_send(datagram).is_ok(),
        }
    }
}

/// A datagram, and when it is due.
#[derive(Debug)]
pub(crate) struct Late {
    pub(crate) due: Instant,
    pub(crate) way: Way,
    pub(crate) datagram: Bytes,
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Late {}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> Ordering {
        self.due.cmp(&other.due)
    }
}

/// A relay's late datagrams, to be sent when they are due.
#[derive(Clone, Debug)]
pub(crate) struct Delays {
    late: mpsc::Sender<Late>,
}

impl Delays {
    /// Starts the task that sends them; it ends with the last clone.
    pub(crate) fn start(links: Arc<Links>) -> Self {
        let (late, received) = mpsc::channel(HELD);
        tokio::spawn(deliver(received, links));
        Self { late }
    }

    /// Whether there was room.
    pub(crate) fn hold(&self, late: Late) -> bool {
        self.late.try_send(late).is_ok()
    }
}

async fn deliver(mut received: mpsc::Receiver<Late>, links: Arc<Links>) {
    let mut held = BinaryHeap::new();
    loop {
        let next = held.peek().map(|Reverse(Late { due, .. })| *due);
        tokio::select! {
            late = received.recv(), if held.len() < HELD => match late {
                Some(late) => held.push(Reverse(late)),
                None => return,
            },
            () = async { sleep_until(next.unwrap_or_else(Instant::now)).await }, if next.is_some() => {
                let now = Instant::now();
                while let Some(Reverse(late)) = held.pop() {
                    if late.due > now {
                        held.push(Reverse(late));
                        break;
                    }
                    // What was on its way when the link was cut does not arrive.
                    let passes = !links.get(late.way.from, late.way.to).cut && late.way.send(&late.datagram);
                    links.count(u64::from(passes), u64::from(!passes));
                }
            }
        }
    }
}
