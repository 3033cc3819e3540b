//! Brokers that die, or lead no more: the client goes where the partition goes.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::broker::{Broker, TOPIC};
use crate::soon;
use bus_client::{Client, Delivery, Error, From, Producer, Record};
use bus_protocol::{ErrorCode, LeaderHint, TopicName};

async fn client(brokers: &[Broker]) -> Client {
    let servers: Vec<_> = brokers.iter().map(|broker| broker.address.clone()).collect();
    brokers[0].builder().servers(servers.join(",")).connect().await.unwrap()
}

async fn send(producer: &Producer, numbers: std::ops::Range<i64>) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for number in numbers {
        let value = number.to_string();
        deliveries.push(soon(producer.send(Record::to(TOPIC).value(&value))).await.unwrap());
    }
    deliveries
}

fn expected(count: i64) -> Vec<(i64, String)> {
    (0..count).map(|number| (number, number.to_string())).collect()
}

#[expect(clippy::disallowed_methods, reason = "it measures how long the client takes")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn what_was_under_way_to_a_leader_that_dies_is_stored_once_and_in_order_by_the_next() {
    let mut brokers = Broker::cluster(3, 1);
    let producer = client(&brokers).await.producer().batch_bytes(1_024).build().await.unwrap();
    for delivery in send(&producer, 0..100).await {
        soon(delivery).await.unwrap();
    }
    let acknowledged = brokers[0].headers(0).len();
    // It stores, and nobody hears of it; the next leader has some of it.
    brokers[0].state.mute.store(true, Ordering::Relaxed);
    let mut stored = brokers[0].state.batches.subscribe();
    let before = *stored.borrow();
    let deliveries = send(&producer, 100..1_000).await;
    soon(stored.wait_for(|count| *count >= before + 5)).await.unwrap();
    brokers[0].freeze();
    let (old, new) = brokers.split_at(1);
    new[0].take_over(&old[0], 0, acknowledged + 3);
    let start = now();
    for (number, delivery) in (100..).zip(deliveries) {
        assert_eq!(soon(delivery).await.unwrap().offset, number);
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(brokers[1].values(0), expected(1_000));
    assert!(brokers[1].headers(0).iter().all(|it| it.producer_epoch == 0), "nothing was numbered anew");
}

#[tokio::test]
async fn while_nobody_leads_records_wait_and_go_out_when_somebody_does() {
    let mut brokers = Broker::cluster(3, 1);
    let producer = client(&brokers).await.producer().build().await.unwrap();
    for delivery in send(&producer, 0..10).await {
        soon(delivery).await.unwrap();
    }
    brokers[0].freeze();
    brokers[0].state.world.elect(0, None);
    let mut asked = brokers[1].state.world.asked.subscribe();
    let before = *asked.borrow();
    let deliveries = send(&producer, 10..20).await;
    soon(asked.wait_for(|count| *count > before + 5)).await.unwrap();
    let (old, new) = brokers.split_at(1);
    new[1].take_over(&old[0], 0, usize::MAX);
    let start = now();
    for (number, delivery) in (10..).zip(deliveries) {
        assert_eq!(soon(delivery).await.unwrap().offset, number);
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(brokers[2].values(0), expected(20));
}

#[tokio::test]
async fn all_partitions_of_a_leader_that_dies_go_on_with_few_questions() {
    let mut brokers = Broker::cluster(3, 8);
    let producer = client(&brokers).await.producer().build().await.unwrap();
    let send = async |value| {
        let mut deliveries = Vec::new();
        for partition in 0..8 {
            let record = Record::to(TOPIC).partition(partition).value(value);
            deliveries.push(soon(producer.send(record)).await.unwrap());
        }
        deliveries
    };
    for delivery in send("before").await {
        soon(delivery).await.unwrap();
    }
    brokers[0].freeze();
    let asked = brokers[0].state.world.asked.subscribe();
    let before = *asked.borrow();
    let deliveries = send("after").await;
    let (old, new) = brokers.split_at(1);
    (0..8).for_each(|partition| new[partition % 2].take_over(&old[0], partition, usize::MAX));
    for delivery in deliveries {
        assert_eq!(soon(delivery).await.unwrap().offset, 1);
    }
    let asked = *asked.borrow() - before;
    assert!(asked < 30, "{asked} questions for 8 partitions");
}

#[tokio::test]
async fn a_leader_that_steps_down_names_the_next_which_is_asked_at_once() {
    let brokers = Broker::cluster(2, 1);
    let producer = client(&brokers).await.producer().build().await.unwrap();
    for delivery in send(&producer, 0..3).await {
        soon(delivery).await.unwrap();
    }
    // Metadata does not know yet.
    brokers[1].take_over(&brokers[0], 0, usize::MAX);
    brokers[0].state.world.elect(0, 1);
    *brokers[0].state.believes.lock().unwrap() = Some(Err(Some(LeaderHint { node: 2, epoch: 3 })));
    *brokers[1].state.believes.lock().unwrap() = Some(Ok(()));
    for delivery in send(&producer, 3..6).await {
        soon(delivery).await.unwrap();
    }
    assert_eq!(brokers[1].values(0), expected(6));
}

#[tokio::test]
async fn a_hint_of_a_broker_that_lags_behind_holds_nobody_up() {
    // The dead one is the last leader, which the producer knows; or one that it never had to do with.
    for dead in [0, 2] {
        let mut brokers = Broker::cluster(3, 1);
        let producer = client(&brokers).await.producer().build().await.unwrap();
        soon(send(&producer, 0..1).await.remove(0)).await.unwrap();
        let hint = brokers[dead].state.node;
        *brokers[1].state.believes.lock().unwrap() = Some(Err(Some(LeaderHint { node: hint, epoch: 0 })));
        let (old, new) = brokers.split_at(1);
        new[0].take_over(&old[0], 0, usize::MAX);
        let mut opened = brokers[1].state.opened.subscribe();
        brokers[dead].freeze();
        let delivery = send(&producer, 1..2).await.remove(0);
        soon(opened.wait_for(|count| *count > 0)).await.unwrap();
        *brokers[1].state.believes.lock().unwrap() = None;
        let start = now();
        assert_eq!(soon(delivery).await.unwrap().offset, 1);
        assert!(start.elapsed() < Duration::from_secs(2), "broker {hint}: {:?}", start.elapsed());
        assert_eq!(brokers[1].values(0), expected(2));
    }
}

#[tokio::test]
async fn a_reader_is_not_held_up_by_a_hint_either() {
    let mut brokers = Broker::cluster(3, 1);
    brokers[0].store(0, &["0"], 0);
    let client = client(&brokers).await;
    let mut reader = client.reader([TOPIC]).from(From::Start).build().await.unwrap();
    assert_eq!(soon(reader.next()).await.unwrap().unwrap().offset, 0);
    *brokers[1].state.believes.lock().unwrap() = Some(Err(Some(LeaderHint { node: 3, epoch: 0 })));
    let mut opened = brokers[1].state.fetches.subscribe();
    let (old, new) = brokers.split_at(1);
    new[0].take_over(&old[0], 0, usize::MAX);
    brokers[2].freeze();
    brokers[0].freeze();
    brokers[1].store(0, &["1"], 0);
    let (next, start) = tokio::join!(soon(reader.next()), async {
        soon(opened.wait_for(|count| *count > 0)).await.unwrap();
        *brokers[1].state.believes.lock().unwrap() = None;
        now()
    });
    assert_eq!(next.unwrap().unwrap().offset, 1);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_leader_that_is_cut_off_is_not_the_only_one_to_be_asked() {
    // It refuses, or says nothing at all.
    for refusal in [Some(ErrorCode::NotEnoughReplicas), None] {
        let brokers = Broker::cluster(3, 1);
        // The only server that the client is given.
        let client = brokers[0].client().await;
        let (producer, reader) = (client.producer(), client.reader([TOPIC]).from(From::Start));
        let (producer, mut reader) = (producer.build().await.unwrap(), reader.build().await.unwrap());
        soon(send(&producer, 0..1).await.remove(0)).await.unwrap();
        brokers[0].cut_off();
        *brokers[0].state.refuses_batches.lock().unwrap() = refusal;
        brokers[0].state.mute.store(refusal.is_none(), Ordering::Relaxed);
        brokers[1].take_over(&brokers[0], 0, usize::MAX);
        let start = now();
        let delivery = send(&producer, 1..2).await.remove(0);
        assert_eq!(soon(delivery).await.unwrap().offset, 1);
        assert!(start.elapsed() < Duration::from_secs(2), "{refusal:?}: {:?}", start.elapsed());
        for offset in 0..2 {
            assert_eq!(soon(reader.next()).await.unwrap().unwrap().offset, offset);
        }
        assert_eq!(brokers[1].values(0), expected(2));
    }
}

#[tokio::test]
async fn a_producer_that_saw_a_cut_off_leader_only_goes_on_when_it_sees_the_others() {
    // It leads again then; or it stays cut off.
    for leads_again in [true, false] {
        let mut brokers = Broker::cluster(3, 1);
        let client = client(&brokers).await;
        let producer = client.producer().delivery_timeout(Duration::from_secs(3)).build().await.unwrap();
        soon(send(&producer, 0..1).await.remove(0)).await.unwrap();
        brokers[0].cut_off();
        *brokers[0].state.refuses_batches.lock().unwrap() = Some(ErrorCode::NotEnoughReplicas);
        brokers[1].freeze();
        brokers[2].freeze();
        let (old, new) = brokers.split_at(1);
        new[0].take_over(&old[0], 0, usize::MAX);
        let error = soon(send(&producer, 1..2).await.remove(0)).await.unwrap_err();
        assert!(matches!(error, Error::NotAcknowledged { .. }), "{error}");
        brokers[1].restart();
        brokers[2].restart();
        let leader = if leads_again { 0 } else { 1 };
        if leads_again {
            brokers[0].heal();
            brokers[0].state.world.elect(0, 1);
        }
        let start = now();
        assert_eq!(soon(send(&producer, 2..3).await.remove(0)).await.unwrap().offset, 1);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!(brokers[leader].values(0), [(0, "0".to_owned()), (1, "2".to_owned())]);
    }
}

#[tokio::test]
async fn brokers_that_send_it_to_each_other_are_not_asked_without_end() {
    let brokers = Broker::cluster(2, 1);
    for (broker, node) in [(0, 2), (1, 1)] {
        // Newer each time, as nobody would have it.
        let other = LeaderHint { node, epoch: 1 + broker as i32 };
        *brokers[broker].state.believes.lock().unwrap() = Some(Err(Some(other)));
    }
    let producer = client(&brokers).await.producer().delivery_timeout(Duration::from_millis(600));
    let producer = producer.build().await.unwrap();
    let delivery = send(&producer, 0..1).await.remove(0);
    let error = soon(delivery).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }), "{error}");
    let opened: u64 = brokers.iter().map(|broker| *broker.state.opened.borrow()).sum();
    assert!((2..30).contains(&opened), "{opened}");
}

#[tokio::test]
async fn a_hint_that_is_refused_by_whom_it_names_holds_nobody_up() {
    let brokers = Broker::cluster(3, 1);
    let producer = client(&brokers).await.producer().delivery_timeout(Duration::from_secs(5));
    let producer = producer.build().await.unwrap();
    soon(send(&producer, 0..1).await.remove(0)).await.unwrap();
    brokers[2].take_over(&brokers[0], 0, usize::MAX);
    // Newer than all that metadata will ever say.
    let nonsense = LeaderHint { node: 2, epoch: 1_000_000 };
    *brokers[0].state.believes.lock().unwrap() = Some(Err(Some(nonsense)));
    assert_eq!(soon(send(&producer, 1..2).await.remove(0)).await.unwrap().offset, 1);
    assert_eq!(brokers[2].values(0), expected(2));
    assert!(*brokers[1].state.opened.borrow() > 0);
}

#[tokio::test]
async fn a_broker_that_is_killed_and_starts_again_at_once_is_found_before_quic_gives_it_up() {
    let mut broker = Broker::start(1);
    let producer = broker.client().await.producer().build().await.unwrap();
    let mut reader = broker.client().await.reader([TOPIC]).from(From::Start).build().await.unwrap();
    for delivery in send(&producer, 0..3).await {
        soon(delivery).await.unwrap();
    }
    broker.restart();
    let start = now();
    for delivery in send(&producer, 3..6).await {
        soon(delivery).await.unwrap();
    }
    for number in 0..6 {
        assert_eq!(soon(reader.next()).await.unwrap().unwrap().offset, number);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(broker.values(0), expected(6));
}

#[tokio::test]
async fn a_reader_goes_on_at_the_same_offset_and_waits_where_the_next_leader_is_behind() {
    let mut brokers = Broker::cluster(2, 1);
    for number in 0..20 {
        brokers[0].store(0, &[&number.to_string()], 0);
    }
    let client = client(&brokers).await;
    let mut reader = client.reader([TOPIC]).from(From::Start).build().await.unwrap();
    for number in 0..20 {
        assert_eq!(soon(reader.next()).await.unwrap().unwrap().offset, number);
    }
    brokers[0].freeze();
    // It does not know yet that the last three are committed.
    let (old, new) = brokers.split_at(1);
    let mut asked = new[0].state.world.asked.subscribe();
    new[0].take_over(&old[0], 0, 17);
    let before = *asked.borrow_and_update();
    let (next, more) = tokio::join!(soon(reader.next()), async {
        soon(asked.wait_for(|count| *count > before + 10)).await.unwrap();
        for number in 17..25 {
            new[0].store(0, &[&number.to_string()], 0);
        }
    });
    let () = more;
    assert_eq!(next.unwrap().unwrap().offset, 20);
    for number in 21..25 {
        assert_eq!(soon(reader.next()).await.unwrap().unwrap().offset, number);
    }
}

#[tokio::test]
async fn new_partitions_are_found_by_producers_and_readers() {
    let brokers = Broker::cluster(2, 1);
    let client = brokers[0].builder().metadata_interval(Duration::from_millis(20)).connect().await.unwrap();
    let producer = client.producer().build().await.unwrap();
    let topic = producer.topic(TOPIC).await.unwrap();
    let mut reader = client.reader([TOPIC]).from(From::End).build().await.unwrap();
    let record = |partition| Record::new().partition(partition).value("v");
    soon(topic.send(record(0)).await.unwrap()).await.unwrap();
    assert!(topic.send(record(1)).await.is_err());
    brokers[0].state.world.add_partition(2);
    let found = async {
        loop {
            if let Ok(delivery) = topic.send(record(1)).await {
                return delivery.await;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(soon(found).await.unwrap().partition, 1);
    assert_eq!(topic.partitions(), 2);
    let mut partitions = Vec::new();
    for _ in 0..2 {
        partitions.push(soon(reader.next()).await.unwrap().unwrap().partition);
    }
    partitions.sort_unstable();
    assert_eq!(partitions, [0, 1]);
}

#[tokio::test]
async fn dead_brokers_hold_nobody_up() {
    let mut brokers = Broker::cluster(3, 2);
    brokers[0].state.world.elect(0, 3);
    brokers[0].state.world.elect(1, 3);
    let known = client(&brokers).await;
    known.admin().cluster().await.unwrap();
    brokers[0].freeze();
    brokers[1].freeze();
    let start = now();
    // One that knew them when they lived, and one that finds them dead.
    for client in [known, client(&brokers).await] {
        let topic = TopicName::new(TOPIC).unwrap();
        soon(client.admin().cluster()).await.unwrap();
        assert_eq!(soon(client.admin().describe_partitions(&topic)).await.unwrap().len(), 2);
        soon(client.admin().commit_offsets("g", vec![(topic, 0, 7)])).await.unwrap();
        let producer = client.producer().build().await.unwrap();
        for delivery in send(&producer, 0..2).await {
            soon(delivery).await.unwrap();
        }
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn what_is_under_way_survives_a_change_of_the_clients_address() {
    let broker = Broker::start(1);
    let client = broker.client().await;
    let producer = client.producer().batch_bytes(1_024).build().await.unwrap();
    let mut reader = client.reader([TOPIC]).from(From::Start).build().await.unwrap();
    let mut deliveries = Vec::new();
    for round in 0..5 {
        deliveries.extend(send(&producer, round * 200..(round + 1) * 200).await);
        client.rebind().unwrap();
    }
    for (number, delivery) in (0..).zip(deliveries) {
        assert_eq!(soon(delivery).await.unwrap().offset, number);
    }
    for number in 0..1_000 {
        assert_eq!(soon(reader.next()).await.unwrap().unwrap().offset, number);
    }
    assert_eq!(broker.values(0), expected(1_000));
    assert_eq!(*broker.state.opened.borrow(), 1, "the connection moved, and was not made anew");
}
