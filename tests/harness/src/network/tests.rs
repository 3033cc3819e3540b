#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

use std::net::UdpSocket;
use std::time::Duration;

use bus_transport::{Endpoint, Identity, Options, Trust, drain, measure};

use super::*;

/// Two nodes' sockets and the addresses of their relays.
struct Pair {
    network: Network,
    sockets: [UdpSocket; 2],
    relays: [SocketAddr; 2],
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

fn pair() -> Pair {
    let network = Network::new(1).unwrap();
    let sockets = [socket(), socket()];
    let relays = [0, 1].map(|i| network.relay(i as NodeId + 1, sockets[i].local_addr().unwrap()).unwrap());
    Pair { network, sockets, relays }
}

fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 100];
    let (length, from) = socket.recv_from(&mut buffer).expect("nothing arrives");
    (String::from_utf8(buffer[..length].to_vec()).unwrap(), from)
}

/// Sends a datagram: whether it is dropped, or arrives at `at`, whichever is seen first.
fn is_dropped(network: &Network, from: &UdpSocket, to: SocketAddr, at: &UdpSocket) -> bool {
    let before = network.counts().1;
    at.set_nonblocking(true).unwrap();
    from.send_to(b"x", to).unwrap();
    let dropped = loop {
        if at.recv_from(&mut [0; 100]).is_ok() {
            break false;
        }
        if network.counts().1 > before {
            break true;
        }
        std::thread::yield_now();
    };
    at.set_nonblocking(false).unwrap();
    dropped
}

#[test]
fn datagrams_pass_both_ways_and_sources_are_told_apart() {
    let Pair { network: _network, sockets: [one, two], relays } = pair();
    let client = socket();
    one.send_to(b"from one", relays[1]).unwrap();
    let (text, one_upstream) = receive(&two);
    assert_eq!(text, "from one");
    client.send_to(b"from a client", relays[1]).unwrap();
    let (text, client_upstream) = receive(&two);
    assert_eq!(text, "from a client");
    assert_ne!(one_upstream, client_upstream);
    two.send_to(b"back", one_upstream).unwrap();
    assert_eq!(receive(&one), ("back".into(), relays[1]));
    two.send_to(b"back", client_upstream).unwrap();
    assert_eq!(receive(&client), ("back".into(), relays[1]));
}

#[test]
fn a_cut_holds_in_one_direction_whoever_made_the_connection() {
    let Pair { network, sockets: [one, two], relays } = pair();
    one.send_to(b"hello", relays[1]).unwrap();
    let (_, to_one) = receive(&two);
    two.send_to(b"hello", relays[0]).unwrap();
    let (_, to_two) = receive(&one);

    network.change(1, 2, |link| link.cut = true);
    let dropped = |from: &UdpSocket, to, at: &UdpSocket| is_dropped(&network, from, to, at);
    assert!(dropped(&one, relays[1], &two), "1 to 2 as a client");
    assert!(dropped(&one, to_two, &two), "1 to 2 as a server");
    assert!(!dropped(&two, relays[0], &one));
    assert!(!dropped(&two, to_one, &one));
    let client = socket();
    assert!(!dropped(&client, relays[1], &two));

    network.heal();
    assert!(!dropped(&one, relays[1], &two));
    network.change(Peer::Clients, 2, |link| link.cut = true);
    assert!(dropped(&client, relays[1], &two));
    assert!(!dropped(&one, relays[1], &two));
}

#[test]
fn loss_is_about_what_was_asked_for_and_jitter_reorders() {
    let Pair { network, sockets: [one, two], relays } = pair();
    network.change(1, 2, |link| link.loss = 0.3);
    let sends = 2_000;
    let lost = (0..sends).filter(|_| is_dropped(&network, &one, relays[1], &two)).count();
    assert!((sends / 5..sends * 2 / 5).contains(&lost), "{lost} of {sends}");

    network.heal();
    let delay = Duration::from_millis(20);
    network.change(1, 2, |link| (link.delay, link.jitter) = (delay, delay));
    let started = tokio::time::Instant::now();
    for number in 0..50 {
        one.send_to(format!("{number}").as_bytes(), relays[1]).unwrap();
    }
    let order: Vec<u32> = (0..50).map(|_| receive(&two).0.parse().unwrap()).collect();
    assert!(started.elapsed() >= delay);
    assert!(!order.is_sorted(), "nothing was overtaken");
}

/// What a QUIC stream carries through two relays, as between two nodes: not an assertion of speed (the machine is
/// shared), but of no loss that would make it crawl.
#[tokio::test(flavor = "multi_thread")]
async fn a_quic_stream_gets_through_at_speed() {
    let folder = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::load_or_create(folder.path(), 1, &[]).unwrap());
    let options = Options::default();
    let server = Endpoint::server("127.0.0.1:0".parse().unwrap(), identity, &options).unwrap();
    let network = Network::new(1).unwrap();
    let relay = network.relay(1, server.local_addr().unwrap()).unwrap();
    let serve = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().accept().await.unwrap();
        let (_, send, recv) = connection.accept().await.unwrap().accept().await.unwrap();
        drain(send, recv).await.unwrap();
        // Until the client has its answer.
        connection.closed().await;
    });
    let client = Endpoint::client(Trust::File(folder.path().join("ca.pem")), None, &options).unwrap();
    let connection = client.connect(&relay.to_string()).await.unwrap();
    let went = measure(&connection, Duration::from_secs(1)).await.unwrap();
    let speed = went.bytes as f64 / went.elapsed.as_secs_f64() / 1e6;
    eprintln!("{speed:.0} MB/s through a relay; carried and dropped: {:?}", network.counts());
    assert!(speed > 10.0, "{speed:.0} MB/s");
    connection.close(bus_transport::Close::Done);
    serve.await.unwrap();
}
