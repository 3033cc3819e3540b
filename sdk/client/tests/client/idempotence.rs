//! The producer's numbers: what it does with them when batches are refused, given up, or come in twice.

use std::time::Duration;

use crate::broker::{Broker, Fault, TOPIC};
use crate::soon;
use bus_client::{Acks, Delivery, Error, Producer, Record};
use bus_protocol::ErrorCode;
use tokio::sync::watch;

/// Whose batches are stored: id, epoch and first number of each.
fn numbers(broker: &Broker) -> Vec<(i64, i16, i32)> {
    let headers = broker.headers(0);
    headers.iter().map(|it| (it.producer_id, it.producer_epoch, it.base_sequence)).collect()
}

async fn send(producer: &Producer, value: &str) -> Delivery {
    producer.send(Record::to(TOPIC).value(value)).await.unwrap()
}

/// Sends records, a batch each, that are all under way before the first is looked at.
async fn send_together(broker: &Broker, producer: &Producer, values: &[&str]) -> Vec<Delivery> {
    let (hold, held) = watch::channel(true);
    *broker.state.hold.lock().unwrap() = Some(held);
    let mut deliveries = Vec::new();
    for value in values {
        // So large that the next one does not fit into its batch.
        let value = format!("{value}{}", " ".repeat(700));
        deliveries.push(send(producer, &value).await);
    }
    soon(broker.state.batches.subscribe().wait_for(|count| *count > 0)).await.unwrap();
    *broker.state.hold.lock().unwrap() = None;
    hold.send_replace(false);
    deliveries
}

fn values(broker: &Broker) -> Vec<String> {
    broker.values(0).into_iter().map(|(_, value)| value.trim_end().to_owned()).collect()
}

#[tokio::test]
async fn batches_are_numbered_by_their_records_and_each_producer_has_its_id() {
    let broker = Broker::start(1);
    let client = broker.client().await;
    for id in [1_000, 1_001] {
        let producer = client.producer().build().await.unwrap();
        for value in ["a", "b", "c"] {
            soon(send(&producer, value).await).await.unwrap();
        }
        let stored = numbers(&broker);
        assert_eq!(stored[stored.len() - 3..], [(id, 0, 0), (id, 0, 1), (id, 0, 2)]);
    }
    let producer = client.producer().idempotent(false).build().await.unwrap();
    soon(send(&producer, "d").await).await.unwrap();
    assert_eq!(numbers(&broker).last(), Some(&(-1, -1, -1)));
}

#[tokio::test]
async fn idempotence_needs_acks_of_all() {
    let broker = Broker::start(1);
    let client = broker.client().await;
    for acks in [Acks::Leader, Acks::None] {
        let error = client.producer().acks(acks).idempotent(true).build().await.unwrap_err();
        assert!(error.to_string().contains("acks=all"), "{error}");
        let producer = client.producer().acks(acks).build().await.unwrap();
        soon(send(&producer, "v").await).await.unwrap();
        soon(producer.close()).await.unwrap();
    }
    client.producer().acks(Acks::All).idempotent(true).build().await.unwrap();
    assert!(numbers(&broker).iter().all(|numbers| *numbers == (-1, -1, -1)));
}

#[tokio::test]
async fn behind_a_batch_that_is_refused_for_good_the_rest_is_numbered_anew_and_stored_in_order() {
    // The first of all that the broker sees of the producer, and one in the middle.
    for stored_before in [0, 2] {
        let broker = Broker::start(1);
        let producer = broker.client().await.producer().batch_bytes(1_024).build().await.unwrap();
        for _ in 0..stored_before {
            soon(send(&producer, "before").await).await.unwrap();
        }
        broker.fault(Fault::RefuseRecord(0));
        let mut deliveries =
            send_together(&broker, &producer, &["bad", "b", "c", "d", "e"]).await.into_iter();
        let error = soon(deliveries.next().unwrap()).await.unwrap_err();
        assert!(matches!(error, Error::RecordRefused { .. }), "{error}");
        for (index, delivery) in (0..).zip(deliveries) {
            assert_eq!(soon(delivery).await.unwrap().offset, stored_before + index);
        }
        assert_eq!(values(&broker)[stored_before as usize..], ["b", "c", "d", "e"]);
        soon(send(&producer, "later").await).await.unwrap();
        let last = *numbers(&broker).last().unwrap();
        assert_eq!(last.1, 1, "{last:?}");
        assert_eq!(producer.counts().failed, 1);
    }
}

#[tokio::test]
async fn what_was_given_up_is_not_stored_behind_newer_records() {
    let broker = Broker::start(1);
    let producer = broker.client().await.producer().delivery_timeout(Duration::from_millis(300));
    let producer = producer.build().await.unwrap();
    soon(send(&producer, "before").await).await.unwrap();
    let (hold, held) = watch::channel(true);
    *broker.state.hold.lock().unwrap() = Some(held);
    let error = soon(send(&producer, "given up").await).await.unwrap_err();
    assert!(matches!(error, Error::NotAcknowledged { .. }), "{error}");
    *broker.state.hold.lock().unwrap() = None;
    let mut offset = None;
    while offset.is_none() {
        // On a machine that is busy it may be given up, too.
        offset = soon(send(&producer, "after").await).await.ok();
    }
    hold.send_replace(false);
    soon(broker.state.batches.subscribe().wait_for(|count| *count >= 3)).await.unwrap();
    soon(send(&producer, "last").await).await.unwrap();
    let stored = values(&broker);
    let place = |wanted: &str| stored.iter().position(|value| value == wanted);
    assert!(place("given up") < place("after"), "{stored:?}");
    assert_eq!(stored.last().unwrap(), "last");
    assert!(numbers(&broker).last().unwrap().1 >= 1);
}

#[tokio::test]
async fn numbers_that_do_not_continue_fail_one_batch_and_the_next_is_taken() {
    let broker = Broker::start(1);
    let producer = broker.client().await.producer().batch_bytes(1_024).build().await.unwrap();
    soon(send(&producer, "before").await).await.unwrap();
    broker.fault(Fault::Refuse(ErrorCode::OutOfOrderSequence));
    let mut deliveries = send_together(&broker, &producer, &["lost", "b", "c"]).await.into_iter();
    let error = soon(deliveries.next().unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::SequenceLost { .. }), "{error}");
    assert_eq!(error.code(), Some(ErrorCode::OutOfOrderSequence));
    for delivery in deliveries {
        soon(delivery).await.unwrap();
    }
    assert_eq!(values(&broker), ["before", "b", "c"]);
    assert_eq!(numbers(&broker), [(1_000, 0, 0), (1_000, 1, 0), (1_000, 1, 1)]);
}

#[tokio::test]
async fn a_fenced_producer_goes_on_under_another_id() {
    let broker = Broker::start(1);
    let producer = broker.client().await.producer().build().await.unwrap();
    soon(send(&producer, "before").await).await.unwrap();
    broker.fault(Fault::Refuse(ErrorCode::FencedProducer));
    let error = soon(send(&producer, "fenced").await).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::FencedProducer));
    soon(send(&producer, "after").await).await.unwrap();
    assert_eq!(values(&broker), ["before", "after"]);
    assert_eq!(numbers(&broker), [(1_000, 0, 0), (1_001, 0, 0)]);
}

#[tokio::test]
async fn a_broker_that_is_slow_is_waited_for_and_asked_nothing_twice() {
    let brokers = Broker::cluster(2, 1);
    let producer = brokers[0].client().await.producer().build().await.unwrap();
    soon(send(&producer, "before").await).await.unwrap();
    let (hold, held) = watch::channel(true);
    *brokers[0].state.hold.lock().unwrap() = Some(held);
    let delivery = send(&producer, "slow").await;
    let mut asked = brokers[0].state.world.asked.subscribe();
    let before = *asked.borrow();
    soon(asked.wait_for(|count| *count >= before + 5)).await.unwrap();
    assert_eq!(*brokers[0].state.batches.borrow(), 2, "it is not sent again");
    hold.send_replace(false);
    assert_eq!(soon(delivery).await.unwrap().offset, 1);
    assert_eq!(*brokers[0].state.opened.borrow(), 1);
}
