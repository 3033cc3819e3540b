//! Ports that stay a node's own while it is down.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::bail;

/// Below the ports that the system gives to whoever asks for a free one (from 32768 on with Linux).
const FIRST: u16 = 12_000;
const COUNT: u16 = 20_000;

/// Where this process looks next.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// A UDP port on loopback that no other harness on this machine takes, though nobody may listen on it at times:
/// each holds the TCP port of the same number as its token.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    _token: TcpListener,
}

impl Port {
    /// The next free one.
    pub(crate) fn reserve() -> anyhow::Result<Self> {
        // Processes that start at once look in different places.
        let start = (std::process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = FIRST + (start.wrapping_add(step)) % COUNT;
            let address = (Ipv4Addr::LOCALHOST, number);
            if let Ok(token) = TcpListener::bind(address)
                && UdpSocket::bind(address).is_ok()
            {
                return Ok(Self { number, _token: token });
            }
        }
        bail!("no free port from {FIRST} to {}", FIRST + COUNT - 1)
    }

    /// The address.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_port_is_reserved_once() {
        let ports: Vec<_> = (0..50).map(|_| Port::reserve().unwrap()).collect();
        let mut numbers: Vec<_> = ports.iter().map(|port| port.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 50);
        UdpSocket::bind(ports[0].address()).unwrap();
    }
}
