//! The relay in front of one node.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bus_protocol::NodeId;
use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::delay::{Delays, Late, Way};
use super::links::{Fate, Links, Peer};
use crate::random::Random;

/// The sockets' buffers, as far as the kernel grants them: what QUIC has under way at once.
const SOCKET_BUFFER: usize = 8 << 20;
/// Datagrams taken at one wake-up before others have their turn.
const BATCH: usize = 128;
/// No datagram is larger.
const DATAGRAM: usize = 64 << 10;
/// Sources that one relay knows at once; the one that was silent longest goes first.
const SOURCES: usize = 256;

/// A relay: a socket that stands for the node, and one upstream socket a source, by which the node tells them apart.
#[derive(Debug)]
pub(crate) struct Relay {
    node: NodeId,
    listen: SocketAddr,
    socket: Arc<UdpSocket>,
    links: Arc<Links>,
    delays: Delays,
    random: Random,
    sources: HashMap<SocketAddr, Source>,
    /// Counts wake-ups: the sources' age.
    turn: u64,
}

#[derive(Debug)]
struct Source {
    way: Way,
    answers: AbortHandle,
    /// The turn in which either end sent last.
    used: Arc<AtomicU64>,
}

impl Drop for Source {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

/// A socket on a free port, with room for what QUIC has under way.
fn socket() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // Less than that is no fault: it costs speed.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    UdpSocket::from_std(socket.into())
}

impl Relay {
    pub(crate) fn bind(node: NodeId, listen: SocketAddr, links: Arc<Links>) -> io::Result<Self> {
        Ok(Self {
            node,
            listen,
            socket: Arc::new(socket()?),
            delays: Delays::start(Arc::clone(&links)),
            random: links.random(),
            links,
            sources: HashMap::new(),
            turn: 0,
        })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Carries datagrams until it is dropped.
    pub(crate) async fn run(mut self) {
        let mut buffer = vec![0; DATAGRAM];
        let socket = Arc::clone(&self.socket);
        // As in `add`. An error comes again with the first datagram.
        let _ = socket.writable().await;
        loop {
            if socket.readable().await.is_err() {
                continue;
            }
            self.turn += 1;
            for _ in 0..BATCH {
                match socket.try_recv_from(&mut buffer) {
                    Ok((length, source)) => self.inward(&buffer[..length], source).await,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Word of an earlier datagram that found nobody.
                    Err(_) => {}
                }
            }
        }
    }

    async fn inward(&mut self, datagram: &[u8], address: SocketAddr) {
        if !self.sources.contains_key(&address)
            && let Err(error) = self.add(address).await
        {
            tracing::warn!(node = self.node, %error, "the relay has no socket for a source");
            self.links.count(0, 1);
            return;
        }
        if let Some(source) = self.sources.get(&address) {
            source.used.store(self.turn, Ordering::Relaxed);
            carry(datagram, &source.way, &self.links, &self.delays, &mut self.random);
        }
    }

    async fn add(&mut self, address: SocketAddr) -> io::Result<()> {
        if self.sources.len() >= SOURCES {
            let age = |source: &Source| source.used.load(Ordering::Relaxed);
            let clients = self.sources.iter().filter(|(_, source)| source.way.from == Peer::Clients);
            if let Some(oldest) = clients.min_by_key(|(_, source)| age(source)).map(|(address, _)| *address) {
                self.sources.remove(&oldest);
            }
        }
        let upstream = Arc::new(socket()?);
        upstream.connect(self.listen).await?;
        // Until the runtime knows that there is room, nothing can be sent without waiting.
        upstream.writable().await?;
        let (from, to) = (self.links.who(address), Peer::Node(self.node));
        let used = Arc::new(AtomicU64::new(self.turn));
        let answers = Answers {
            upstream: Arc::clone(&upstream),
            way: Way { from: to, to: from, socket: Arc::clone(&self.socket), address: Some(address) },
            links: Arc::clone(&self.links),
            delays: self.delays.clone(),
            random: self.links.random(),
        };
        let answers = tokio::spawn(answers.run()).abort_handle();
        let way = Way { from, to, socket: upstream, address: None };
        self.sources.insert(address, Source { way, answers, used });
        Ok(())
    }
}

/// What the node sends to one source.
struct Answers {
    upstream: Arc<UdpSocket>,
    way: Way,
    links: Arc<Links>,
    delays: Delays,
    random: Random,
}

impl Answers {
    async fn run(mut self) {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            if self.upstream.readable().await.is_err() {
                continue;
            }
            for _ in 0..BATCH {
                match self.upstream.try_recv(&mut buffer) {
                    Ok(length) => {
                        carry(&buffer[..length], &self.way, &self.links, &self.delays, &mut self.random);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // The node is not there, which the source learns from silence, as over a real network.
                    Err(_) => {}
                }
            }
        }
    }
}

fn carry(datagram: &[u8], way: &Way, links: &Links, delays: &Delays, random: &mut Random) {
    let passed = match links.get(way.from, way.to).fate(random) {
        Fate::Pass => way.send(datagram),
        Fate::Drop => false,
        Fate::Late(late) => {
            let late = Late {
                due: Instant::now() + late,
                way: way.clone(),
                datagram: Bytes::copy_from_slice(datagram),
            };
            if delays.hold(late) {
                // Counted when it is sent.
                return;
            }
            false
        }
    };
    links.count(u64::from(passed), u64::from(!passed));
}
