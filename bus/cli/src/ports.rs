//! UDP ports of this machine that are free.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

/// The port that the other verbs look at without a flag.
const USUAL: u16 = 9440;

/// So many addresses of this machine, nobody's at the moment; the first is the usual one if that is free and `usual` is
/// asked for. Another program may take one before it is used: whoever uses it then says so.
pub(crate) fn free(count: usize, usual: bool) -> io::Result<Vec<SocketAddr>> {
    // Held until all are found, so that none is found twice.
    let mut held = Vec::new();
    if usual && let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, USUAL)) {
        held.push(socket);
    }
    while held.len() < count {
        held.push(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
    }
    held.iter().take(count).map(UdpSocket::local_addr).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let addresses = free(5, true).unwrap();
        assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 5);
        let taken = UdpSocket::bind(addresses[1]).unwrap();
        assert!(!free(3, false).unwrap().contains(&taken.local_addr().unwrap()));
    }
}
