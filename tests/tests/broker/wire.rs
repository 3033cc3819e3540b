//! Clients that break the protocol, or do not keep up: each is told why or left alone, and nobody else notices.

use std::time::Duration;

use bus_protocol::batch::{BatchBuilder, Compression};
use bus_protocol::fetch::{FetchCredit, FetchOpen, FetchPush, Isolation};
use bus_protocol::produce::{Acks, ProduceAnswer, ProduceOpen, ProduceOpened};
use bus_protocol::request::{Answer, Request, Response};
use bus_protocol::{
    ErrorCode, FrameHeader, Preamble, StreamKind, TopicId, TopicName, WireError, encode_control,
};
use bus_testkit::BrokerProcess;
use bus_transport::{Connection, Endpoint, Error, Options, RecvStream, SendStream, Trust, TrustStore};
use bytes::Bytes;

const DEADLINE: Duration = Duration::from_secs(30);

/// A broker with a topic `t` that takes batches of up to 1 MiB and holds one record.
fn broker() -> BrokerProcess {
    start(BrokerProcess::builder())
}

fn start(builder: bus_testkit::Builder) -> BrokerProcess {
    let broker = builder.start().unwrap();
    let create = ["topic", "create", "t", "--config", "max.message.bytes=1048576"];
    broker.bus(create).run().unwrap().success().unwrap();
    broker.bus(["produce", "t"]).stdin("one\n").run().unwrap().success().unwrap();
    broker
}

/// The broker takes and gives records as ever, holds `lines` and no other, and has logged no panic.
fn still_serves(broker: &BrokerProcess, lines: &str) {
    broker.bus(["produce", "t"]).stdin("still here\n").run().unwrap().success().unwrap();
    let read = broker.bus(["consume", "t", "--until", "end"]).run().unwrap().success().unwrap();
    assert_eq!(read.text(), format!("{lines}still here\n"));
    assert!(!broker.stderr().contains("panicked"), "{}", broker.stderr());
}

async fn connect(broker: &BrokerProcess) -> Connection {
    let trust = Trust::Store(TrustStore::at(broker.scratch().join("trust")));
    let endpoint = Endpoint::client(trust, None, &Options::default()).unwrap();
    endpoint.connect(broker.address()).await.unwrap()
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the broker gives no answer")
}

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

async fn produce(connection: &Connection, partition: u32) -> (SendStream, RecvStream) {
    let (mut send, recv) = connection.open(StreamKind::Produce).await.unwrap();
    let open = ProduceOpen { topic: topic(), partition, acks: Acks::All, id: None };
    send.write_frame(&open, &[]).await.unwrap();
    (send, recv)
}

async fn fetch(connection: &Connection, from: i64, credit: u64) -> (SendStream, RecvStream) {
    let (mut send, recv) = connection.open(StreamKind::Fetch).await.unwrap();
    let isolation = Isolation::Committed;
    let open = FetchOpen { topic: topic(), partition: 0, from, isolation, credit, id: None };
    send.write_frame(&open, &[]).await.unwrap();
    (send, recv)
}

/// Sends bytes as they are; the test's memory holds them to its end.
async fn raw(connection: &Connection, bytes: Vec<u8>) -> (SendStream, RecvStream) {
    connection.open_raw(Vec::leak(bytes)).await.unwrap()
}

fn batch(value: &[u8]) -> Bytes {
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(1, None, Some(value), &[]);
    batch.build().unwrap()
}

fn changed(batch: &Bytes, change: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut bytes = batch.to_vec();
    change(&mut bytes);
    bytes.into()
}

async fn ask(connection: &Connection, request: &Request) -> Answer {
    let (mut send, mut recv) = connection.open(StreamKind::Request).await.unwrap();
    send.write_frame(request, &[]).await.unwrap();
    within(recv.read_frame::<Answer>()).await.unwrap().unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_a_stream_is_answered_and_the_connection_goes_on() {
    let broker = broker();
    let connection = connect(&broker).await;
    for (bytes, word) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "does not start as a bus stream does"),
        (&b"BUS\x02\x01"[..], "speaks protocol version 2, this side speaks version 1"),
        (&b"BUS\x00\x01"[..], "use a newer client"),
        (&b"BUS\x01\x63"[..], "stream kind 99 is unknown"),
    ] {
        let (_send, mut recv) = raw(&connection, bytes.to_vec()).await;
        match within(recv.read_frame::<Answer>()).await {
            Err(Error::Refused(refusal)) => {
                assert_eq!(refusal.code, ErrorCode::UnsupportedVersion, "{refusal}");
                assert!(refusal.message.contains(word), "{refusal}");
            }
            other => panic!("{word}: {other:?}"),
        }
    }
    let request = Preamble::new(StreamKind::Request).encode();
    let frame = |header: FrameHeader, bytes: &[u8]| [&request[..], &header.encode(), bytes].concat();
    for bytes in [
        frame(FrameHeader::new(6, 0).unwrap(), &[0xff; 6]),
        frame(FrameHeader::new(0, 0).unwrap(), &[]),
        [&request[..], &[0xff; 8]].concat(),
    ] {
        let (_send, mut recv) = raw(&connection, bytes.clone()).await;
        let (answer, _) = within(recv.read_frame::<Answer>()).await.unwrap().unwrap();
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::InvalidRequest, "{bytes:?}");
        assert!(refusal.message.contains("cannot be read"), "{refusal}");
    }
    // What only brokers may do.
    let (mut send, mut recv) = connection.open(StreamKind::Metadata).await.unwrap();
    send.write_frame(&0_u8, &[]).await.unwrap();
    let refused = match within(recv.read_frame::<Answer>()).await {
        Err(Error::Refused(refusal)) => refusal.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused, ErrorCode::Unauthorized);

    assert!(matches!(ask(&connection, &Request::Cluster).await, Ok(Response::Cluster(_))));
    still_serves(&broker, "one\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_means_another_topic_of_the_name_is_refused() {
    let broker = broker();
    let connection = connect(&broker).await;
    let id = async || match ask(&connection, &Request::Topics { topics: Some(vec![topic()]) }).await {
        Ok(Response::Topics(topics)) => topics[0].id,
        other => panic!("{other:?}"),
    };
    let old = id().await;
    for arguments in [["topic", "delete", "t"], ["topic", "create", "t"]] {
        broker.bus(arguments).run().unwrap().success().unwrap();
    }
    broker.bus(["produce", "t"]).stdin("two\n").run().unwrap().success().unwrap();
    for (id, is_it) in [(id().await, true), (old, false), (TopicId(u64::MAX), false)] {
        let (mut send, mut recv) = connection.open(StreamKind::Produce).await.unwrap();
        let open = ProduceOpen { topic: topic(), partition: 0, acks: Acks::All, id: Some(id) };
        send.write_frame(&open, &[]).await.unwrap();
        let opened = within(recv.read_frame::<Result<ProduceOpened, WireError>>()).await.unwrap().unwrap().0;
        let (mut send, mut recv) = connection.open(StreamKind::Fetch).await.unwrap();
        let isolation = Isolation::Committed;
        let open = FetchOpen { topic: topic(), partition: 0, from: 0, isolation, credit: 1, id: Some(id) };
        send.write_frame(&open, &[]).await.unwrap();
        let pushed = match within(recv.read_frame::<FetchPush>()).await.unwrap().unwrap().0 {
            FetchPush::Batches { .. } => Ok(()),
            FetchPush::Error(refusal) => Err(refusal),
        };
        for answer in [opened.map(drop), pushed] {
            let refused =
                answer.err().map(|refusal| (refusal.code, refusal.message.contains("not the one meant")));
            assert_eq!(refused, (!is_it).then_some((ErrorCode::UnknownTopic, true)));
        }
    }
    still_serves(&broker, "two\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_stream_is_dropped_and_stores_nothing() {
    let broker = start(BrokerProcess::builder().config("[transport]\npreamble_timeout_ms = 200\n"));
    let connection = connect(&broker).await;
    // Says too little, and then nothing.
    let (_send, mut recv) = raw(&connection, b"BU".to_vec()).await;
    assert!(within(recv.read_frame::<Answer>()).await.is_err());
    // Ends within each part in turn: the preamble, the header, the control part.
    let open = ProduceOpen { topic: topic(), partition: 0, acks: Acks::All, id: None };
    let open =
        [&Preamble::new(StreamKind::Produce).encode()[..], &encode_control(&open, 0).unwrap()].concat();
    for length in 1..open.len() {
        let (mut send, mut recv) = raw(&connection, open[..length].to_vec()).await;
        send.finish().unwrap();
        let answer = within(recv.read_frame::<Result<ProduceOpened, WireError>>()).await;
        assert!(!matches!(answer, Ok(Some((Ok(_), _)))), "{length} bytes opened a stream");
    }
    // Ends within a batch, by finishing or by a reset, with the connection, or never.
    let good = batch(b"half a batch");
    let cut = [&open[..], &encode_control(&(), good.len()).unwrap(), &good[..good.len() / 2]].concat();
    let (mut finished, mut recv) = raw(&connection, cut.clone()).await;
    within(recv.read_frame::<Result<ProduceOpened, WireError>>()).await.unwrap().unwrap().0.unwrap();
    finished.finish().unwrap();
    let answer = within(recv.read_frame::<ProduceAnswer>()).await;
    assert!(!matches!(answer, Ok(Some((Ok(_), _)))), "half a batch was acknowledged");
    let (mut reset, _recv) = raw(&connection, cut.clone()).await;
    reset.reset(7);
    let stalled = raw(&connection, cut.clone()).await;
    let other = connect(&broker).await;
    let _lost = raw(&other, cut).await;
    other.close(bus_transport::Close::Done);

    assert!(matches!(ask(&connection, &Request::Cluster).await, Ok(Response::Cluster(_))));
    still_serves(&broker, "one\n");
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_not_valid_is_refused_and_the_next_is_stored() {
    let broker = broker();
    let connection = connect(&broker).await;
    let (mut send, mut recv) = produce(&connection, 0).await;
    let (opened, _) = within(recv.read_frame::<Result<ProduceOpened, WireError>>()).await.unwrap().unwrap();
    assert_eq!(opened.unwrap().max_message_bytes, 1 << 20);
    let good = batch(b"good");
    let mut control = BatchBuilder::new(Compression::None);
    control.push(1, Some(b"k"), Some(b"v"), &[]);
    control.set_control(true);
    let cases: Vec<(&str, Bytes, Result<i64, ErrorCode>)> = vec![
        ("good", good.clone(), Ok(1)),
        ("a flipped bit", changed(&good, |b| b[70] ^= 1), Err(ErrorCode::CorruptBatch)),
        ("a wrong CRC", changed(&good, |b| b[17] ^= 0x80), Err(ErrorCode::CorruptBatch)),
        ("another format", changed(&good, |b| b[16] = 1), Err(ErrorCode::CorruptBatch)),
        ("cut", good.slice(..good.len() - 1), Err(ErrorCode::CorruptBatch)),
        ("two at once", [&good[..], &good].concat().into(), Err(ErrorCode::CorruptBatch)),
        ("no batch", Bytes::from_static(&[0xff; 100]), Err(ErrorCode::CorruptBatch)),
        ("nothing", Bytes::new(), Err(ErrorCode::CorruptBatch)),
        ("control", control.build().unwrap(), Err(ErrorCode::InvalidRequest)),
        ("too large", batch(&vec![7; 2 << 20]), Err(ErrorCode::MessageTooLarge)),
        ("good again", batch(b"good again"), Ok(2)),
    ];
    for (name, bytes, wanted) in cases {
        send.write_frame(&(), &[bytes]).await.unwrap();
        let (answer, _) = within(recv.read_frame::<ProduceAnswer>()).await.unwrap().unwrap();
        match (answer, wanted) {
            (Ok(ack), Ok(offset)) => assert_eq!(ack.base_offset, offset, "{name}"),
            (Err(refusal), Err(code)) => {
                assert_eq!(refusal.code, code, "{name}: {refusal}");
                assert!(refusal.message.len() > 20 && !refusal.message.contains('\n'), "{name}: {refusal}");
            }
            (answer, _) => panic!("{name}: {answer:?}"),
        }
    }
    send.finish().unwrap();
    assert!(within(recv.read_frame::<ProduceAnswer>()).await.unwrap().is_none());

    // A partition that does not exist, and an offset that does not.
    let (_send, mut recv) = produce(&connection, 9).await;
    let (opened, _) = within(recv.read_frame::<Result<ProduceOpened, WireError>>()).await.unwrap().unwrap();
    assert_eq!(opened.unwrap_err().code, ErrorCode::UnknownPartition);
    for from in [-1, 99, i64::MAX] {
        let (_send, mut recv) = fetch(&connection, from, 1 << 20).await;
        match within(recv.read_frame::<FetchPush>()).await.unwrap().unwrap().0 {
            FetchPush::Error(refusal) => assert_eq!(refusal.code, ErrorCode::OffsetOutOfRange),
            push => panic!("{from}: {push:?}"),
        }
    }
    still_serves(&broker, "one\ngood\ngood again\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stall_hold_nobody_up() {
    let broker = broker();
    let line = "a line that somebody will not read, however long it waits for it\n";
    let text = line.repeat(400_000);
    broker.bus(["produce", "t"]).stdin(text.clone()).run().unwrap().success().unwrap();
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let connection = connect(&broker).await;
        // More credit than there are bytes: only the windows hold the broker back.
        for _ in 0..4 {
            stalled.push(fetch(&connection, 0, u64::MAX).await);
        }
    }
    // Each has been served as far as its windows go, so that all of them stall from here on.
    let (_, first) = &mut stalled[0];
    let push = within(first.read_frame::<FetchPush>()).await.unwrap().unwrap();
    assert!(matches!(push.0, FetchPush::Batches { .. }) && !push.1.is_empty());

    let read = broker.bus(["consume", "t", "--until", "end"]).deadline(DEADLINE).run().unwrap();
    assert!(read.success().unwrap().stdout == format!("one\n{text}").as_bytes());
    still_serves(&broker, &format!("one\n{text}"));
    let memory = std::fs::read_to_string(format!("/proc/{}/status", broker.id().unwrap())).unwrap();
    let resident = memory.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    // 8 connections with a send window of 8 MiB each, and what the broker holds for itself.
    assert!(resident < 600 << 10, "the broker holds {resident} kB for readers that stall");
}

/// Batches of very different sizes, in segments that are closed: wherever a reader starts, it finds its batch.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_may_start_anywhere_in_a_closed_segment() {
    let mut broker = broker();
    let alter = ["topic", "alter", "t", "--config", "segment.bytes=1048576"];
    broker.bus(alter).run().unwrap().success().unwrap();
    let connection = connect(&broker).await;
    let (mut send, mut recv) = produce(&connection, 0).await;
    within(recv.read_frame::<Result<ProduceOpened, WireError>>()).await.unwrap().unwrap().0.unwrap();
    for offset in 1..=40 {
        let size = [10, 400_000, 10, 20_000, 300_000][offset % 5];
        send.write_frame(&(), &[batch(&vec![offset as u8; size])]).await.unwrap();
        let (answer, _) = within(recv.read_frame::<ProduceAnswer>()).await.unwrap().unwrap();
        assert_eq!(answer.unwrap().base_offset, offset as i64);
    }
    connection.close(bus_transport::Close::Done);
    // Nothing is in memory any more.
    assert!(broker.terminate().unwrap().success());
    broker.restart().unwrap();
    let connection = connect(&broker).await;
    for from in 0..=40 {
        let (_send, mut recv) = fetch(&connection, from, 1).await;
        let (push, bytes) = within(recv.read_frame::<FetchPush>()).await.unwrap().unwrap();
        assert!(matches!(push, FetchPush::Batches { .. }), "from {from}: {push:?}");
        let first = bus_protocol::batch::split(bytes).next().unwrap().unwrap();
        assert_eq!(first.header().base_offset, from);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_all_in_order_as_it_gives_credit() {
    let broker = broker();
    let text = "a line that is read slowly\n".repeat(200_000);
    broker.bus(["produce", "t"]).stdin(text).run().unwrap().success().unwrap();
    let connection = connect(&broker).await;
    let (mut send, mut recv) = fetch(&connection, 0, 1).await;
    let mut next = 0;
    while next < 200_001 {
        // One byte of credit is one push.
        let (push, bytes) = within(recv.read_frame::<FetchPush>()).await.unwrap().unwrap();
        assert!(matches!(push, FetchPush::Batches { .. }), "{push:?}");
        for batch in bus_protocol::batch::split(bytes.clone()) {
            let batch = batch.unwrap();
            assert_eq!(batch.header().base_offset, next);
            next = batch.header().next_offset();
        }
        // What was overdrawn, and one byte more.
        send.write_frame(&FetchCredit { bytes: bytes.len() as u64 }, &[]).await.unwrap();
    }
    send.finish().unwrap();
}
