//! A topic that is deleted, and another of its name created: its leaders, epochs and offsets are none of the old one's.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::broker::{Broker, TOPIC};
use crate::soon;
use bus_client::{Client, Delivery, Error, From, Producer, Record};
use bus_protocol::{ErrorCode, LeaderHint};

/// A cluster whose first broker leads, in a high epoch.
fn cluster(partitions: usize) -> Vec<Broker> {
    let brokers = Broker::cluster(3, partitions);
    let world = &brokers[0].state.world;
    (0..partitions).for_each(|partition| (0..7).for_each(|_| world.elect(partition, 1)));
    brokers
}

async fn producer(client: &Client) -> Producer {
    client.producer().delivery_timeout(Duration::from_secs(10)).build().await.unwrap()
}

async fn send(producer: &Producer, value: &str) -> Delivery {
    producer.send(Record::to(TOPIC).value(value)).await.unwrap()
}

#[tokio::test]
async fn a_producer_goes_to_its_leader_though_the_old_one_had_a_higher_epoch() {
    let brokers = cluster(1);
    let client = brokers[0].client().await;
    let before = producer(&client).await;
    soon(send(&before, "old").await).await.unwrap();
    soon(before.close()).await.unwrap();
    Broker::create_anew(&brokers, 1, (2, 0), &[]);
    // What the client knows is of the old topic, and it has no stream.
    let after = producer(&client).await;
    assert_eq!(soon(send(&after, "new").await).await.unwrap().offset, 0);
    assert_eq!(brokers[2].values(0), [(0, "new".to_owned())]);
}

#[tokio::test]
async fn what_was_under_way_to_the_old_one_goes_to_the_new_one() {
    // The old leader refuses it, or says nothing at all.
    for silent in [false, true] {
        let brokers = cluster(1);
        let producer = producer(&brokers[0].client().await).await;
        soon(send(&producer, "old").await).await.unwrap();
        brokers[0].state.mute.store(true, Ordering::Relaxed);
        let delivery = send(&producer, "under way").await;
        soon(brokers[0].state.batches.subscribe().wait_for(|count| *count == 2)).await.unwrap();
        brokers[0].state.mute.store(silent, Ordering::Relaxed);
        let next = send(&producer, "next").await;
        Broker::create_anew(&brokers, 1, (1, 0), &[]);
        assert_eq!(soon(delivery).await.unwrap().offset, 0);
        assert_eq!(soon(next).await.unwrap().offset, 1);
        assert_eq!(brokers[1].values(0), [(0, "under way".to_owned()), (1, "next".to_owned())]);
    }
}

#[tokio::test]
async fn a_producer_counts_its_partitions_and_not_those_of_the_old_one() {
    let brokers = cluster(3);
    let client = brokers[0].client().await;
    let producer = producer(&client).await;
    let topic = producer.topic(TOPIC).await.unwrap();
    let record = |partition| Record::new().partition(partition).value("v");
    for partition in 0..3 {
        soon(topic.send(record(partition)).await.unwrap()).await.unwrap();
    }
    Broker::create_anew(&brokers, 1, (1, 0), &[]);
    let (kept, gone) = (topic.send(record(0)).await.unwrap(), topic.send(record(2)).await.unwrap());
    assert_eq!(soon(kept).await.unwrap().offset, 0);
    assert_eq!(soon(gone).await.unwrap_err().code(), Some(ErrorCode::UnknownPartition));
    assert_eq!(topic.partitions(), 1);
    for key in 0..10 {
        let key = key.to_string();
        let ack = soon(topic.send(Record::new().key(&key).value("v")).await.unwrap()).await.unwrap();
        assert_eq!(ack.partition, 0);
    }
    let error = topic.send(record(2)).await.unwrap_err();
    assert!(matches!(error, Error::UnknownPartition { partitions: 1, .. }), "{error}");
    soon(producer.close()).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_knows_the_old_one_only_gets_nothing_that_is_for_the_new_one() {
    let brokers = cluster(1);
    let old = brokers[0].state.topic();
    Broker::create_anew(&brokers, 1, (2, 0), &[]);
    let producer = producer(&brokers[2].client().await).await;
    soon(send(&producer, "0").await).await.unwrap();
    *brokers[0].state.heard.lock().unwrap() = Some(old);
    *brokers[0].state.believes.lock().unwrap() = Some(Ok(()));
    *brokers[2].state.believes.lock().unwrap() = Some(Err(Some(LeaderHint { node: 1, epoch: 7 })));
    let mut opened = brokers[0].state.opened.subscribe();
    let delivery = send(&producer, "1").await;
    soon(opened.wait_for(|count| *count > 0)).await.unwrap();
    *brokers[2].state.believes.lock().unwrap() = None;
    assert_eq!(soon(delivery).await.unwrap().offset, 1);
    assert_eq!(brokers[0].values(0), []);
}

#[tokio::test]
async fn a_reader_of_the_old_one_reads_nothing_of_the_new_one_and_says_so() {
    // It ends before the old one's offset, or behind it; others lead it, and the hint may be newer than what is known.
    for values in [&[][..], &["x"; 9]] {
        for (leader, epoch) in [(0, 0), (2, 0), (0, 9), (2, 9)] {
            let brokers = cluster(1);
            (0..3).for_each(|_| brokers[0].store(0, &["old"], 0));
            let client = brokers[0].builder().metadata_interval(Duration::from_millis(20));
            let client = client.connect().await.unwrap();
            let mut reader = client.reader([TOPIC]).from(From::Start).build().await.unwrap();
            for offset in 0..3 {
                assert_eq!(soon(reader.next()).await.unwrap().unwrap().offset, offset);
            }
            Broker::create_anew(&brokers, 2, (leader, epoch), values);
            let error = soon(reader.next()).await.unwrap().unwrap_err();
            assert!(matches!(error, Error::TopicReplaced { partition: 0, offset: 3, .. }), "{error}");
            assert!(soon(reader.next()).await.is_none(), "its partitions are none of the reader's");
            let mut anew = client.reader([TOPIC]).from(From::Start).until_end(true).build().await.unwrap();
            for offset in 0..values.len() as i64 {
                assert_eq!(soon(anew.next()).await.unwrap().unwrap().offset, offset);
            }
        }
    }
}
