//! The producer against a broker that refuses, stalls and goes away.

use std::time::Duration;

use crate::broker::{Broker, Fault, MAX_MESSAGE_BYTES, TOPIC};
use crate::soon;
use bus_client::{Acks, Compression, Error, Record};
use bus_protocol::{ErrorCode, partition_for_key};
use tokio::sync::watch;

#[tokio::test]
async fn records_are_stored_in_order_and_acknowledged_with_their_offsets() {
    let broker = Broker::start(1);
    for compression in [Compression::None, Compression::Lz4] {
        let producer = broker.client().await.producer().compression(compression).batch_bytes(2_000).build();
        let producer = producer.await.unwrap();
        let before = broker.values(0).len() as i64;
        let mut deliveries = Vec::new();
        for number in 0..1_000 {
            let value = number.to_string();
            deliveries.push(producer.send(Record::to(TOPIC).value(&value).timestamp(5)).await.unwrap());
        }
        for (number, delivery) in (0..).zip(deliveries) {
            let ack = soon(delivery).await.unwrap();
            assert_eq!((ack.partition, ack.offset, ack.timestamp), (0, before + number, 5));
        }
        soon(producer.close()).await.unwrap();
        let counts = producer.counts();
        assert_eq!((counts.sent, counts.acknowledged, counts.failed), (1_000, 1_000, 0));
        assert!(matches!(producer.send(Record::to(TOPIC)).await, Err(Error::Closed(_))));
    }
    let values: Vec<_> =
        broker.values(0).into_iter().map(|(_, value)| value.parse::<i64>().unwrap()).collect();
    assert_eq!(values, (0..1_000).chain(0..1_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn keys_go_where_kafkas_clients_put_them_and_the_rest_is_spread() {
    let broker = Broker::start(3);
    let producer = broker.client().await.producer().build().await.unwrap();
    for key in 0..50 {
        let key = key.to_string();
        let ack = soon(producer.send(Record::to(TOPIC).key(&key).value("v")).await.unwrap()).await.unwrap();
        assert_eq!(ack.partition, partition_for_key(key.as_bytes(), 3));
    }
    let topic = producer.topic(TOPIC).await.unwrap();
    let mut seen = [false; 3];
    for _ in 0..9 {
        let ack = soon(topic.send(Record::new().value("v")).await.unwrap()).await.unwrap();
        seen[ack.partition as usize] = true;
    }
    assert_eq!(seen, [true; 3]);
    let ack = soon(topic.send(Record::new().key("1").partition(2)).await.unwrap()).await.unwrap();
    assert_eq!(ack.partition, 2);
    let error = topic.send(Record::new().partition(3)).await.unwrap_err();
    assert!(matches!(error, Error::UnknownPartition { partitions: 3, .. }), "{error}");
}

#[tokio::test]
async fn what_a_lost_connection_took_is_sent_again_in_order() {
    for fault in [Fault::Drop, Fault::Refuse(ErrorCode::NotLeader)] {
        let broker = Broker::start(1);
        let producer = broker.client().await.producer().batch_bytes(1_024).build().await.unwrap();
        let mut deliveries = Vec::new();
        for number in 0..500 {
            if number == 100 {
                broker.fault(fault.clone());
            }
            let value = number.to_string();
            deliveries.push(producer.send(Record::to(TOPIC).value(&value)).await.unwrap());
        }
        for (number, delivery) in (0..).zip(deliveries) {
            assert_eq!(soon(delivery).await.unwrap().offset, number);
        }
        let expected: Vec<_> = (0..500).map(|number| (number, number.to_string())).collect();
        assert_eq!(broker.values(0), expected);
    }
}

#[tokio::test]
async fn a_batch_whose_acknowledgement_is_lost_is_sent_again_and_stored_once_unless_told() {
    for (idempotent, offset) in [(true, 0), (false, 1)] {
        let broker = Broker::start(1);
        broker.fault(Fault::StoreAndDrop);
        let producer = broker.client().await.producer().idempotent(idempotent).build().await.unwrap();
        let delivery = producer.send(Record::to(TOPIC).value("v")).await.unwrap();
        assert_eq!(soon(delivery).await.unwrap().offset, offset);
        assert_eq!(broker.values(0).len() as i64, offset + 1);
    }
}

#[tokio::test]
async fn a_refused_record_fails_its_batch_and_no_other() {
    let broker = Broker::start(1);
    broker.fault(Fault::RefuseRecord(1));
    let (hold, held) = watch::channel(true);
    let producer = broker.client().await.producer().linger(Duration::from_millis(20)).build().await.unwrap();
    *broker.state.hold.lock().unwrap() = Some(held);
    let send = async |value| producer.send(Record::to(TOPIC).value(value)).await.unwrap();
    let (first, second) = (send("first").await, send("second").await);
    soon(broker.state.batches.subscribe().wait_for(|count| *count == 1)).await.unwrap();
    let third = send("third").await;
    hold.send(false).unwrap();
    let error = soon(second).await.unwrap_err();
    assert!(matches!(&error, Error::RecordRefused { reason } if reason == "it is blue"), "{error}");
    assert!(!error.is_retriable());
    let error = soon(first).await.unwrap_err();
    assert!(matches!(&error, Error::RefusedWithBatch { index: 1, .. }), "{error}");
    assert_eq!(error.code(), Some(ErrorCode::RecordRefused));
    assert_eq!(soon(third).await.unwrap().offset, 0);
    assert_eq!(producer.counts().failed, 2);
}

#[tokio::test]
async fn send_waits_while_the_memory_is_used_up_and_goes_on_as_it_frees() {
    let broker = Broker::start(1);
    let (hold, held) = watch::channel(true);
    *broker.state.hold.lock().unwrap() = Some(held);
    let producer =
        broker.client().await.producer().batch_bytes(4 << 10).buffer_memory(64 << 10).build().await.unwrap();
    let value = vec![b'x'; 1_000];
    let mut sent = 0;
    // Nothing is answered, so at some point a `send` does not return.
    while let Ok(delivery) =
        tokio::time::timeout(Duration::from_millis(300), producer.send(Record::to(TOPIC).value(&value))).await
    {
        drop(delivery.unwrap());
        sent += 1;
        assert!(sent < 100, "no back-pressure");
    }
    hold.send(false).unwrap();
    for _ in 0..200 {
        drop(soon(producer.send(Record::to(TOPIC).value(&value))).await.unwrap());
    }
    soon(producer.flush()).await.unwrap();
    // A `send` that was cancelled queued nothing.
    assert_eq!(broker.values(0).len(), sent + 200);
    assert_eq!(producer.counts().acknowledged, sent as u64 + 200);
}

#[tokio::test]
async fn what_is_not_acknowledged_in_time_fails_and_says_that_nobody_knows() {
    let broker = Broker::start(1);
    let (_hold, held) = watch::channel(true);
    *broker.state.hold.lock().unwrap() = Some(held);
    let producer = broker.client().await.producer().delivery_timeout(Duration::from_millis(200));
    let producer = producer.build().await.unwrap();
    let delivery = producer.send(Record::to(TOPIC).value("lost?")).await.unwrap();
    let error = soon(delivery).await.unwrap_err();
    assert!(matches!(error, Error::NotAcknowledged { .. }), "{error}");
    assert!(error.to_string().contains("not known"), "{error}");
    assert!(matches!(soon(producer.flush()).await, Ok(())));
}

#[tokio::test]
async fn what_can_never_be_stored_is_refused_at_once() {
    let broker = Broker::start(1);
    let client = broker.client().await;
    let producer = client.producer().build().await.unwrap();
    let large = vec![0; MAX_MESSAGE_BYTES + 1];
    let error = producer.send(Record::to(TOPIC).value(&large)).await.unwrap_err();
    assert!(matches!(error, Error::RecordTooLarge { .. }), "{error}");
    let error = producer.send(Record::to("nowhere").value("v")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    assert!(producer.send(Record::to("no/name")).await.is_err());
    // Larger than a batch is meant to be, and still fine.
    let medium = vec![b'm'; 600_000];
    assert_eq!(soon(producer.send(Record::to(TOPIC).value(&medium)).await.unwrap()).await.unwrap().offset, 0);
    broker.fault(Fault::Refuse(ErrorCode::MessageTooLarge));
    let refused = producer.send(Record::to(TOPIC).value("v")).await.unwrap();
    assert_eq!(soon(refused).await.unwrap_err().code(), Some(ErrorCode::MessageTooLarge));
    assert_eq!(soon(producer.send(Record::to(TOPIC).value("v")).await.unwrap()).await.unwrap().offset, 1);
}

#[tokio::test]
async fn without_acknowledgements_a_record_is_done_when_it_is_sent_and_close_waits_for_it() {
    let broker = Broker::start(1);
    let producer = broker.client().await.producer().acks(Acks::None).build().await.unwrap();
    let delivery = producer.send(Record::to(TOPIC).value("v")).await.unwrap();
    assert_eq!(soon(delivery).await.unwrap().offset, -1);
    let mut stored = broker.state.batches.subscribe();
    soon(producer.close()).await.unwrap();
    soon(stored.wait_for(|count| *count == 1)).await.unwrap();
}

#[tokio::test]
async fn without_acknowledgements_a_refused_batch_does_not_fail_others() {
    let broker = Broker::start(1);
    broker.fault(Fault::RefuseRecord(0));
    let producer = broker.client().await.producer().acks(Acks::None).build().await.unwrap();
    soon(producer.send(Record::to(TOPIC).value("culprit")).await.unwrap()).await.unwrap();
    // Far more than fits on the way: most of it is queued when the refusal comes.
    let value = vec![b'v'; 500_000];
    let mut deliveries = Vec::new();
    for _ in 0..50 {
        deliveries.push(soon(producer.send(Record::to(TOPIC).value(&value))).await.unwrap());
    }
    for delivery in deliveries {
        soon(delivery).await.unwrap();
    }
    soon(producer.close()).await.unwrap();
    assert_eq!(producer.counts().failed, 0);
    assert!(broker.values(0).iter().all(|(_, value)| value.starts_with('v')));
}

#[tokio::test]
async fn sends_that_are_cancelled_leave_their_memory_to_others() {
    let broker = Broker::start(2);
    let (held, hold) = watch::channel(true);
    *broker.state.hold.lock().unwrap() = Some(hold);
    let memory = 64 << 10;
    let producer = broker.client().await.producer().batch_bytes(memory).buffer_memory(memory);
    let producer = producer.build().await.unwrap();
    let value = vec![b'v'; 40 << 10];
    let send = |partition| producer.send(Record::to(TOPIC).value(&value).partition(partition));
    let first = soon(send(0)).await.unwrap();
    for _ in 0..20 {
        let cancelled = tokio::time::timeout(Duration::from_millis(1), send(1)).await;
        assert!(cancelled.is_err(), "there is no memory for it");
    }
    held.send_replace(false);
    soon(first).await.unwrap();
    // Both partitions' records, one after the other, take all there is.
    for partition in [1, 0, 1] {
        soon(soon(send(partition)).await.unwrap()).await.unwrap();
    }
    assert_eq!(producer.counts().sent, 4);
}

#[tokio::test]
async fn a_producer_that_is_dropped_still_sends_what_it_queued() {
    let broker = Broker::start(1);
    let producer = broker.client().await.producer().linger(Duration::from_secs(60)).build().await.unwrap();
    let delivery = producer.send(Record::to(TOPIC).value("v")).await.unwrap();
    drop(producer);
    assert_eq!(soon(delivery).await.unwrap().offset, 0);
}
