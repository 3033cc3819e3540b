//! Real endpoints on loopback: what goes through, and what each kind of stranger gets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use bus_protocol::{ErrorCode, PreambleError, StreamKind};
use bus_transport::{
    Close, Connection, Endpoint, Error, Identity, Options, RecvStream, SendStream, Trust, TrustStore, drain,
    measure,
};
use bytes::Bytes;
use tempfile::TempDir;

struct Cluster {
    folder: TempDir,
    identity: Arc<Identity>,
    server: Endpoint,
    address: String,
}

fn options() -> Options {
    Options { connect_timeout_ms: 3_000, preamble_timeout_ms: 200, ..Options::default() }
}

fn cluster() -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let identity = Arc::new(Identity::load_or_create(folder.path(), 1, &[]).unwrap());
    let server = Endpoint::server("127.0.0.1:0".parse().unwrap(), identity.clone(), &options()).unwrap();
    let address = server.local_addr().unwrap().to_string();
    Cluster { folder, identity, server, address }
}

impl Cluster {
    fn trust(&self) -> Trust {
        Trust::File(self.folder.path().join("ca.pem"))
    }

    fn client(&self) -> Endpoint {
        Endpoint::client(self.trust(), None, &options()).unwrap()
    }

    /// Both ends of a new connection.
    async fn pair(&self) -> (Connection, Connection) {
        let accept = async { self.server.accept().await.unwrap().accept().await.unwrap() };
        let client = self.client();
        let (near, far) = tokio::join!(client.connect(&self.address), accept);
        (near.unwrap(), far)
    }
}

type Stream = (SendStream, RecvStream);

/// Both ends of a new stream, after its first frame.
async fn stream(near: &Connection, far: &Connection) -> (Stream, Stream) {
    let (mut send, recv) = near.open(StreamKind::Produce).await.unwrap();
    send.write_frame(&0u64, &[]).await.unwrap();
    let (kind, far_send, mut far_recv) = far.accept().await.unwrap().accept().await.unwrap();
    assert_eq!(kind, StreamKind::Produce);
    assert_eq!(far_recv.read_frame::<u64>().await.unwrap().unwrap().0, 0);
    ((send, recv), (far_send, far_recv))
}

#[tokio::test]
async fn frames_arrive_whole_and_in_order_and_then_the_end() {
    let cluster = cluster();
    let (near, far) = cluster.pair().await;
    assert_eq!((near.peer_node(), far.peer_node()), (Some(1), None));
    let ((mut send, mut recv), (mut far_send, mut far_recv)) = stream(&near, &far).await;
    let big = Bytes::from((0..3_000_000u32).map(|i| i as u8).collect::<Vec<_>>());
    let parts = [big.slice(..1), big.slice(1..2_000_000), big.slice(2_000_000..)];
    let echo = async {
        while let Some((number, payload)) = far_recv.read_frame::<u64>().await.unwrap() {
            far_send.write_frame(&(number + 1), &[payload]).await.unwrap();
        }
        far_send.finish().unwrap();
    };
    let ask = async {
        for number in 0..3u64 {
            send.write_frame(&number, &parts).await.unwrap();
            assert_eq!(recv.read_frame::<u64>().await.unwrap(), Some((number + 1, big.clone())));
        }
        send.finish().unwrap();
        assert_eq!(recv.read_frame::<u64>().await.unwrap(), None);
        assert_eq!(recv.read_frame::<u64>().await.unwrap(), None);
    };
    tokio::join!(ask, echo);
}

#[tokio::test]
async fn a_payload_over_the_readers_limit_is_skipped_and_the_stream_goes_on() {
    let cluster = cluster();
    let (near, far) = cluster.pair().await;
    let ((mut send, _recv), (_far_send, mut far_recv)) = stream(&near, &far).await;
    let write = async {
        send.write_frame(&1u64, &[Bytes::from(vec![1; 200_000])]).await.unwrap();
        send.write_frame(&2u64, &[Bytes::from_static(b"fits")]).await.unwrap();
        send.finish().unwrap();
    };
    let read = async {
        let refused = far_recv.read_frame_within::<u64>(100_000).await.unwrap_err();
        assert!(matches!(refused, Error::PayloadTooLarge { bytes: 200_000, limit: 100_000 }), "{refused}");
        let next = far_recv.read_frame_within::<u64>(100_000).await.unwrap();
        assert_eq!(next, Some((2, Bytes::from_static(b"fits"))));
        assert_eq!(far_recv.read_frame::<u64>().await.unwrap(), None);
    };
    tokio::join!(write, read);
}

#[tokio::test]
async fn a_read_that_was_cancelled_loses_nothing() {
    let cluster = cluster();
    let (near, far) = cluster.pair().await;
    let ((mut send, _recv), (_far_send, mut far_recv)) = stream(&near, &far).await;
    let payload = Bytes::from(vec![7; 2_000_000]);
    let write = send.write_frame(&9u64, std::slice::from_ref(&payload));
    let read = async {
        loop {
            tokio::select! {
                biased;
                frame = far_recv.read_frame::<u64>() => break frame.unwrap().unwrap(),
                () = tokio::task::yield_now() => {}
            }
        }
    };
    let (written, frame) = tokio::join!(write, read);
    written.unwrap();
    assert_eq!(frame, (9, payload));
}

#[tokio::test]
async fn strangers_on_a_stream_are_answered_and_the_connection_goes_on() {
    let cluster = cluster();
    let (near, far) = cluster.pair().await;
    for (bytes, check) in [
        (
            b"BUS\x02\x01",
            (|e| matches!(e, PreambleError::Version { theirs: 2 })) as fn(&PreambleError) -> bool,
        ),
        (b"GET /", |e| matches!(e, PreambleError::NotBus(_))),
        (b"BUS\x01\x63", |e| matches!(e, PreambleError::Kind(0x63))),
    ] {
        let (mut send, mut recv) = near.open_raw(bytes).await.unwrap();
        let refused = far.accept().await.unwrap().accept().await.unwrap_err();
        assert!(matches!(&refused, Error::Preamble(error) if check(error)), "{refused}");
        // An `Answer`'s reader sees the refusal, not nonsense.
        match recv.read_frame::<Result<u64, bus_protocol::WireError>>().await {
            Err(Error::Refused(refusal)) => assert_eq!(refusal.code, ErrorCode::UnsupportedVersion),
            other => panic!("{other:?}"),
        }
        send.reset(0);
    }
    stream(&near, &far).await;
}

#[tokio::test]
async fn a_half_open_stream_is_dropped_and_a_half_closed_one_is_noticed() {
    let cluster = cluster();
    let (near, far) = cluster.pair().await;
    let (send, _recv) = near.open_raw(b"BU").await.unwrap();
    let error = far.accept().await.unwrap().accept().await.unwrap_err();
    assert!(matches!(error, Error::PreambleTimeout(_)), "{error}");
    drop(send);

    let (mut send, _recv) = near.open_raw(b"BUS").await.unwrap();
    send.finish().unwrap();
    let error = far.accept().await.unwrap().accept().await.unwrap_err();
    assert!(matches!(error, Error::Truncated), "{error}");

    // A header that promises more than comes.
    let (mut send, _recv) = near.open_raw(b"BUS\x01\x02\x01\0\0\0\xff\0\0\0\x07half").await.unwrap();
    send.finish().unwrap();
    let (_, _far_send, mut far_recv) = far.accept().await.unwrap().accept().await.unwrap();
    let error = far_recv.read_frame::<u64>().await.unwrap_err();
    assert!(matches!(error, Error::Truncated), "{error}");

    // One that promises more than anybody may.
    let (_send, _recv) = near.open_raw(b"BUS\x01\x02\xff\xff\xff\xff\xff\xff\xff\xff").await.unwrap();
    let (_, _far_send, mut far_recv) = far.accept().await.unwrap().accept().await.unwrap();
    assert!(matches!(far_recv.read_frame::<u64>().await, Err(Error::Frame(_))));
}

#[tokio::test]
async fn whoever_waits_learns_that_the_connection_is_closed_or_the_stream_reset() {
    let cluster = cluster();
    let (near, far) = cluster.pair().await;
    let ((_send, mut recv), (mut far_send, mut far_recv)) = stream(&near, &far).await;
    far_send.reset(42);
    assert!(matches!(recv.read_frame::<u64>().await, Err(Error::Reset(42))));
    let (waited, ()) = tokio::join!(far_recv.read_frame::<u64>(), async { near.close(Close::ShuttingDown) });
    match waited {
        Err(Error::Closed { code: 1, reason }) => assert!(reason.contains("stopping"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(far.is_closed() && near.is_closed());
    assert!(matches!(near.open(StreamKind::Request).await, Err(Error::LocallyClosed)));
}

#[tokio::test]
async fn brokers_prove_who_they_are_to_each_other() {
    let cluster = cluster();
    // Node 2 of the same cluster has the same CA.
    let folder = tempfile::tempdir().unwrap();
    for file in ["ca.pem", "ca.key"] {
        std::fs::copy(cluster.folder.path().join(file), folder.path().join(file)).unwrap();
    }
    let identity = Arc::new(Identity::load_or_create(folder.path(), 2, &[]).unwrap());
    let second = Endpoint::server("127.0.0.1:0".parse().unwrap(), identity, &options()).unwrap();
    let accept = async { cluster.server.accept().await.unwrap().accept().await.unwrap() };
    let (near, far) = tokio::join!(second.connect_node(&cluster.address, 1), accept);
    assert_eq!((near.unwrap().peer_node(), far.peer_node()), (Some(1), Some(2)));

    // Whoever is not the wanted node is not talked to.
    let accept = async { cluster.server.accept().await.unwrap().accept().await };
    let (near, _) = tokio::join!(second.connect_node(&cluster.address, 3), accept);
    assert!(matches!(near, Err(Error::Untrusted { .. })), "{near:?}");
}

#[tokio::test]
async fn without_a_ca_for_an_address_only_who_answers_there_is_distrusted() {
    let cluster = cluster();
    let folder = tempfile::tempdir().unwrap();
    let store = TrustStore::at(folder.path());
    store.publish("127.0.0.1:1", cluster.identity.ca_pem()).unwrap();
    let options = Options { connect_timeout_ms: 300, ..options() };
    let client = Endpoint::client(Trust::Store(store), None, &options).unwrap();
    // Bound, and silent: a port that nobody else takes meanwhile.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = client.connect(&silent.local_addr().unwrap().to_string()).await.unwrap_err();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    let accept = async { cluster.server.accept().await.unwrap().accept().await.unwrap() };
    let (near, far) = tokio::join!(client.connect(&cluster.address), accept);
    let error = near.unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
    assert!(far.accept().await.is_err(), "it is told nothing");
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_trusted_and_a_broker_of_one_is_not_let_in() {
    let (cluster, other) = (cluster(), self::cluster());
    let accept = async { cluster.server.accept().await.unwrap().accept().await };
    let client = other.client();
    let (near, far) = tokio::join!(client.connect(&cluster.address), accept);
    let error = near.unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
    assert!(error.to_string().contains("ca.pem") && error.to_string().contains("--ca"), "{error}");
    assert!(far.is_err());

    let insecure = Endpoint::client(Trust::Insecure, Some(other.identity.clone()), &options()).unwrap();
    let accept = async { cluster.server.accept().await.unwrap().accept().await };
    let (near, far) = tokio::join!(insecure.connect(&cluster.address), accept);
    assert!(far.is_err(), "{far:?}");
    // TLS 1.3 lets a client believe it is in until the server has looked at its certificate.
    if let Ok(near) = near {
        assert!(!near.closed().await.to_string().is_empty());
    }

    let insecure = Endpoint::client(Trust::Insecure, None, &options()).unwrap();
    let accept = async { cluster.server.accept().await.unwrap().accept().await };
    let (near, far) = tokio::join!(insecure.connect(&cluster.address), accept);
    assert_eq!(near.unwrap().peer_node(), None);
    far.unwrap();
}

#[tokio::test]
async fn where_no_broker_is_the_error_says_so() {
    let cluster = cluster();
    let quick = Options { connect_timeout_ms: 50, ..Options::default() };
    let client = Endpoint::client(cluster.trust(), None, &quick).unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = client.connect(&address).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("no broker answers at {address}")), "{error}");
    for wrong in ["localhost", "localhost:x", ":9440", ""] {
        let error = client.connect(wrong).await.unwrap_err();
        assert!(matches!(error, Error::Address { .. }), "{wrong}: {error}");
    }
}

#[tokio::test]
async fn what_is_discarded_is_counted() {
    let cluster = cluster();
    let (near, far) = cluster.pair().await;
    let serve = async {
        let (kind, send, recv) = far.accept().await.unwrap().accept().await.unwrap();
        assert_eq!(kind, StreamKind::Discard);
        drain(send, recv).await.unwrap()
    };
    let (measured, counted) = tokio::join!(measure(&near, Duration::from_millis(50)), serve);
    let measured = measured.unwrap();
    assert_eq!(measured.bytes, counted);
    assert!(counted >= 1 << 20 && counted % (1 << 20) == 0);
}
