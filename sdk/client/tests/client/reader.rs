//! The reader against a broker that loses streams, damages batches and has gaps.

use std::time::Duration;

use crate::broker::{Broker, Fault, TOPIC};
use crate::soon;
use bus_client::{Error, From, Reader, Record};
use bus_protocol::ErrorCode;

async fn values(reader: &mut Reader) -> Vec<(i64, String)> {
    let mut values = Vec::new();
    while let Some(record) = soon(reader.next()).await {
        let record = record.unwrap();
        values.push((record.offset, String::from_utf8(record.value.unwrap().to_vec()).unwrap()));
    }
    values
}

#[tokio::test]
async fn it_reads_to_the_end_as_it_was_though_the_last_offsets_hold_no_records() {
    let broker = Broker::start_at(1, 5);
    broker.store(0, &["a", "b", "c"], 1);
    broker.store(0, &["d", "e"], 2);
    let client = broker.client().await;
    let mut reader = client.reader([TOPIC]).from(From::Start).until_end(true).build().await.unwrap();
    broker.store(0, &["later"], 0);
    assert_eq!(values(&mut reader).await, [(5, "a".to_owned()), (6, "b".to_owned())]);
    let mut reader = client.reader([TOPIC]).from(From::Offset(6)).until_end(true).build().await.unwrap();
    assert_eq!(values(&mut reader).await, [(6, "b".to_owned()), (10, "later".to_owned())]);
    let mut reader = client.reader([TOPIC]).from(From::End).until_end(true).build().await.unwrap();
    assert_eq!(values(&mut reader).await, []);
}

#[tokio::test]
async fn a_lost_stream_is_taken_up_where_it_broke() {
    let broker = Broker::start(1);
    let expected: Vec<_> = (0..60).map(|number| (number, number.to_string())).collect();
    for (_, value) in &expected {
        broker.store(0, &[value], 0);
    }
    for _ in 0..3 {
        broker.fault(Fault::Drop);
    }
    let mut reader =
        broker.client().await.reader([TOPIC]).from(From::Start).until_end(true).build().await.unwrap();
    assert_eq!(values(&mut reader).await, expected);
}

#[tokio::test]
async fn a_tailing_reader_gets_what_is_stored_later() {
    let broker = Broker::start(2);
    let client = broker.client().await;
    let mut reader = client.reader([TOPIC]).from(From::End).build().await.unwrap();
    let producer = client.producer().build().await.unwrap();
    for (partition, value) in [(0, "x"), (1, "y"), (0, "z")] {
        let record = Record::to(TOPIC).partition(partition).key("k").value(value).header("h", "1");
        soon(producer.send(record).await.unwrap()).await.unwrap();
        let got = soon(reader.next()).await.unwrap().unwrap();
        assert_eq!((got.partition, got.value.as_deref()), (partition, Some(value.as_bytes())));
        assert_eq!((got.topic.as_str(), &got.headers[0].key[..]), (TOPIC, &b"h"[..]));
    }
}

#[tokio::test]
async fn a_stalled_reader_is_sent_no_more_than_its_prefetch() {
    let broker = Broker::start(1);
    // Of what compression makes little: 200 batches of about 4 KiB, far more than the window of 64 KiB.
    let size = 200;
    let mut random = 1u32;
    for _ in 0..size {
        let value = std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            format!("{random:08x}")
        });
        let value: String = value.take(1_000).collect();
        broker.store(0, &[&value], 0);
    }
    let reader = broker.client().await.reader([TOPIC]).from(From::Start).until_end(true).prefetch_bytes(1);
    let mut pushed = broker.state.pushed.subscribe();
    let mut reader = reader.build().await.unwrap();
    assert!(soon(reader.next()).await.unwrap().is_ok());
    soon(pushed.wait_for(|bytes| *bytes > 64 << 10)).await.unwrap();
    assert!(*pushed.borrow() <= (64 << 10) + (9 << 10), "{}", *pushed.borrow());
    let mut read = 1;
    // The record above was all of its batch.
    while let Some(batch) = soon(reader.next_batch()).await {
        read += batch.unwrap().records().unwrap().count();
    }
    assert_eq!(read, size);
}

#[tokio::test]
async fn damage_and_wrong_offsets_are_told() {
    let broker = Broker::start_at(2, 3);
    broker.store(0, &["a"], 0);
    broker.store(1, &["b"], 0);
    let client = broker.client().await;
    broker.fault(Fault::Damage);
    let mut reader = client.reader([TOPIC]).from(From::Start).until_end(true).build().await.unwrap();
    let (mut read, mut failed) = (0, 0);
    while let Some(record) = soon(reader.next()).await {
        match record {
            Ok(_) => read += 1,
            Err(error) => {
                assert!(matches!(&error, Error::Protocol(why) if why.contains("orders-")), "{error}");
                failed += 1;
            }
        }
    }
    assert_eq!((read, failed), (1, 1));
    let error = client.reader([TOPIC]).from(From::Offset(9)).build().await.unwrap_err();
    assert!(matches!(error, Error::OffsetOutOfRange { offset: 9, start: 3, end: 4, .. }), "{error}");
    let error = client.reader([TOPIC]).partitions([2]).build().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownPartition));
    let error = client.reader(["nowhere"]).build().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
}

#[tokio::test]
async fn requests_are_answered_and_refused() {
    let broker = Broker::start(2);
    broker.store(1, &["a", "b"], 0);
    let client = broker.client().await;
    let admin = client.admin();
    assert_eq!(admin.cluster().await.unwrap().brokers.len(), 1);
    let topic = bus_protocol::TopicName::new(TOPIC).unwrap();
    assert_eq!(admin.topics(None).await.unwrap()[0].topic, topic);
    let ends: Vec<_> = admin.describe_partitions(&topic).await.unwrap().iter().map(|it| it.log_end).collect();
    assert_eq!(ends, [0, 2]);
    let offsets = admin.list_offsets(&topic, &[1, 0], bus_client::Position::End).await.unwrap();
    assert_eq!(offsets, [(1, 2), (0, 0)]);
    let error = admin.delete_topic(&topic).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest));
    assert!(client.measure_link(Duration::from_millis(20)).await.unwrap().bytes > 0);
    client.close();
    assert!(admin.cluster().await.is_err());
}

#[tokio::test]
async fn where_no_broker_answers_the_error_names_the_address() {
    let broker = Broker::start(1);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let quick = Duration::from_millis(50);
    let error = broker.builder().servers(&address).connect_timeout(quick).connect().await.unwrap_err();
    assert!(error.to_string().contains(&address), "{error}");
    // The second of two is enough.
    let both = format!("{address},{}", broker.address);
    broker.builder().servers(both).connect_timeout(Duration::from_secs(1)).connect().await.unwrap();
}
