//! Real endpoints on loopback, with few places.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use bus_protocol::StreamKind;
use bus_transport::{Identity, Options, RecvStream, SendStream, Trust};
use tempfile::TempDir;

use super::*;

const FEW: Places = Places {
    handshakes: 4,
    clients: 2,
    brokers: 2,
    client_streams: 3,
    streams: Streams { at_first: 2, of_client: 16, of_broker: 50_000 },
};

struct House {
    folders: Vec<TempDir>,
    door: Door,
    address: String,
}

fn options() -> Options {
    Options { connect_timeout_ms: 1_500, streams: FEW.streams.at_first, ..Options::default() }
}

fn house() -> House {
    let folder = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::load_or_create(folder.path(), 1, &[]).unwrap());
    let endpoint = Endpoint::server("127.0.0.1:0".parse().unwrap(), identity, &options()).unwrap();
    let address = endpoint.local_addr().unwrap().to_string();
    House { folders: vec![folder], door: Door::new(endpoint, FEW), address }
}

impl House {
    fn client(&self) -> Endpoint {
        let trust = Trust::File(self.folders[0].path().join("ca.pem"));
        Endpoint::client(trust, None, &options()).unwrap()
    }

    /// Another broker of the cluster.
    fn broker(&mut self) -> Endpoint {
        let folder = tempfile::tempdir().unwrap();
        for file in ["ca.pem", "ca.key"] {
            std::fs::copy(self.folders[0].path().join(file), folder.path().join(file)).unwrap();
        }
        let identity = Arc::new(Identity::load_or_create(folder.path(), 2, &[]).unwrap());
        self.folders.push(folder);
        Endpoint::server("127.0.0.1:0".parse().unwrap(), identity, &options()).unwrap()
    }

    /// Lets `from` in; no guest where it is refused.
    async fn enter(&mut self, from: &Endpoint) -> (Connection, Option<Guest>) {
        let connecting = from.connect(&self.address);
        tokio::pin!(connecting);
        let mut guest = None;
        let near = loop {
            tokio::select! {
                entered = self.door.next(), if guest.is_none() => guest = entered,
                connected = &mut connecting => break connected.unwrap(),
            }
        };
        // It knows a moment before the door does.
        while guest.is_none() && !near.is_closed() {
            tokio::select! {
                entered = self.door.next() => guest = entered,
                _ = near.closed() => {}
            }
        }
        (near, guest)
    }
}

#[tokio::test]
async fn clients_do_not_take_the_brokers_places() {
    let mut house = house();
    let (client, broker) = (house.client(), house.broker());
    let (_near, first) = house.enter(&client).await;
    let (_near, second) = house.enter(&client).await;
    assert!(first.is_some_and(|guest| guest.peer_node().is_none()) && second.is_some());
    // The first was dropped just now: its place is free again.
    let (_near, third) = house.enter(&client).await;
    assert!(third.is_some());

    let (refused, none) = house.enter(&client).await;
    assert!(none.is_none());
    let error = refused.closed().await;
    assert!(error.is_retriable() && error.to_string().contains("as many connections as it may"), "{error}");

    for _ in 0..FEW.brokers {
        let (near, guest) = house.enter(&broker).await;
        let guest = guest.unwrap();
        assert_eq!(guest.peer_node(), Some(2));
        std::mem::forget((near, guest));
    }
    let (_, none) = house.enter(&broker).await;
    assert!(none.is_none(), "they are bounded, too");
}

/// Passes on what the client says, and of what the server says only that the client is to prove its address: so no
/// handshake ever ends.
fn dead_end(server: SocketAddr) -> SocketAddr {
    let (near, far) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let address = near.local_addr().unwrap();
    let (to_client, from_server) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    let (tell, client) = std::sync::mpsc::channel();
    let patience = Some(Duration::from_secs(10));
    near.set_read_timeout(patience).unwrap();
    far.set_read_timeout(patience).unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok((length, from)) = near.recv_from(&mut packet) {
            tell.send(from).ok();
            far.send_to(&packet[..length], server).ok();
        }
    });
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        let Ok(client) = client.recv() else { return };
        while let Ok(length) = from_server.recv(&mut packet) {
            // A Retry packet: a long header of type 3 (RFC 9000, section 17.2.5).
            if packet[0] & 0xf0 == 0xf0 {
                to_client.send_to(&packet[..length], client).ok();
            }
        }
    });
    address
}

#[tokio::test]
async fn handshakes_that_never_end_give_way() {
    let mut house = house();
    let client = house.client();
    let dead_end = dead_end(house.address.parse().unwrap()).to_string();
    let mut stuck = JoinSet::new();
    let patient = Options { connect_timeout_ms: 10_000, ..options() };
    let trust = Trust::File(house.folders[0].path().join("ca.pem"));
    let stranger = Endpoint::client(trust, None, &patient).unwrap();
    for _ in 0..2 * FEW.handshakes {
        let (stranger, dead_end) = (stranger.clone(), dead_end.clone());
        stuck.spawn(async move { stranger.connect(&dead_end).await.map(drop) });
    }
    let all_taken = async {
        while house.door.under_way.len() < FEW.handshakes {
            // Lets it work for a moment.
            tokio::time::timeout(Duration::from_millis(1), house.door.next()).await.map(drop).ok();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all_taken).await.unwrap();
    let (_near, guest) = house.enter(&client).await;
    assert!(guest.is_some());
    assert!(house.door.handshakes.len() <= FEW.handshakes, "{} are under way", house.door.handshakes.len());
}

type Ends = (SendStream, RecvStream);

/// Opens a stream, so that the other side knows of it.
async fn open(near: &Connection) -> Result<Ends, Error> {
    let (mut send, recv) = near.open(StreamKind::Request).await?;
    send.write_frame(&(), &[]).await?;
    Ok((send, recv))
}

#[tokio::test]
async fn a_broker_opens_a_stream_for_each_of_many_partitions_up_to_a_bound() {
    let mut house = house();
    let broker = house.broker();
    let (near, guest) = house.enter(&broker).await;
    let mut guest = guest.unwrap();
    assert_eq!(guest.allowed, FEW.streams.at_first, "nothing is set aside for who opens nothing");
    let most = FEW.streams.of_broker as usize;
    let opener = near.clone();
    let opening = tokio::spawn(async move {
        let mut open_ones = Vec::with_capacity(most);
        while open_ones.len() < most {
            open_ones.push(open(&opener).await?);
        }
        Ok::<_, Error>(open_ones)
    });
    let mut accepted = Vec::with_capacity(most);
    while accepted.len() < most {
        let stream = guest.stream(accepted.len()).await.unwrap();
        assert!(matches!(stream.place, Ok(None)));
        accepted.push(stream.opening);
    }
    let open_ones = opening.await.unwrap().unwrap();

    // One more waits, and does not do so for ever.
    let (one_more, ()) = tokio::join!(open(&near), async {
        drop(tokio::time::timeout(Duration::from_millis(50), guest.stream(most)).await);
    });
    assert!(matches!(one_more, Err(Error::NoStream(_))), "{one_more:?}");
    assert!(guest.full);
    drop(open_ones);
}

#[tokio::test]
async fn all_clients_share_the_places_of_streams() {
    let mut house = house();
    let client = house.client();
    let (near, guest) = house.enter(&client).await;
    let mut guest = guest.unwrap();
    let mut held = Vec::new();
    for number in 0..=FEW.client_streams {
        let (ends, stream) = tokio::join!(open(&near), guest.stream(number));
        held.push((ends.unwrap(), stream.unwrap()));
    }
    let ((_, mut answer), stream) = held.pop().unwrap();
    stream.opening.refuse(stream.place.unwrap_err()).await;
    match answer.read_frame::<()>().await {
        Err(Error::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::Busy),
        other => panic!("{other:?}"),
    }
    held.pop();
    let (_ends, stream) = tokio::join!(open(&near), guest.stream(held.len()));
    assert!(matches!(stream.unwrap().place, Ok(Some(_))));
}
