//! Brokers that go, in every way there is, under load: what was acknowledged stays, and clients go on.

use std::time::Duration;

use bus_client::{Client, From, Record};
use bus_protocol::NodeId;
use bus_testkit::{Cluster, History, Load, LoadUnderWay, Outcome, Peer, components};
use tokio::time::Instant;

use super::{MINUTE, all_is_well, produce, run};

const TWO_IN_SYNC: &[(&str, &str)] = &[("min.insync.replicas", "2")];

/// Three processes, a topic `load` with three replicas of each partition, and producers at work.
async fn loaded(partitions: u32, producers: u32) -> (Cluster, LoadUnderWay) {
    let cluster = Cluster::builder().processes().start().await.unwrap();
    cluster.create_topic("load", partitions, 3, TWO_IN_SYNC).await.unwrap();
    let load = Load { partitions, producers, ..Load::default() }.start(&cluster).await.unwrap();
    load.wait_for_acks(500, MINUTE).await.unwrap();
    (cluster, load)
}

fn others(cluster: &Cluster, node: NodeId) -> Vec<NodeId> {
    cluster.nodes().into_iter().filter(|other| *other != node).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_outlive_their_leader_and_nothing_is_lost() {
    let (cluster, load) = loaded(3, 2).await;
    let leader = cluster.leader_of("load", 0).await.unwrap();
    load.forget_gaps();
    cluster.kill(leader).await.unwrap();
    let next = cluster.new_leader_of("load", 0, leader).await.unwrap();
    assert_ne!(next, leader);
    load.wait_for_acks(2_000, MINUTE).await.unwrap();
    let gap = load.take_longest_gap();
    eprintln!("killed: {gap:?} without an acknowledgement");
    assert!(gap < Duration::from_secs(10), "{gap:?}");
    cluster.start_node(leader).await.unwrap();
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_first() {
    let (cluster, load) = loaded(1, 1).await;
    let leader = cluster.leader_of("load", 0).await.unwrap();
    load.forget_gaps();
    cluster.stop(leader).await.unwrap();
    load.wait_for_acks(1_000, MINUTE).await.unwrap();
    let gap = load.take_longest_gap();
    eprintln!("stopped: {gap:?} without an acknowledgement (aim: 100 ms)");
    assert!(gap < Duration::from_secs(2), "{gap:?}");
    cluster.start_node(leader).await.unwrap();
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_nodes_stop_at_once() {
    let cluster = Cluster::builder().processes().start().await.unwrap();
    cluster.create_topic("t", 6, 3, TWO_IN_SYNC).await.unwrap();
    // Whoever controls the cluster hands that over as well.
    for _ in 0..2 {
        let controller = cluster.controller().await.unwrap();
        let began = Instant::now();
        cluster.stop(controller).await.unwrap();
        eprintln!("the controller stopped in {:?} (aim: 500 ms)", began.elapsed());
        assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
        cluster.start_node(controller).await.unwrap();
        cluster.wait_all_in_sync().await.unwrap();
    }
    let began = Instant::now();
    cluster.stop_all().await.unwrap();
    eprintln!("all stopped in {:?} (aim: 1.5 s)", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    for node in cluster.nodes() {
        let said = cluster.node(node).unwrap().stderr();
        assert!(!said.contains("handed over"), "{said}");
    }
    cluster.start_all().await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_fails_no_record() {
    let (cluster, load) = loaded(3, 3).await;
    for node in cluster.nodes() {
        cluster.stop(node).await.unwrap();
        load.wait_for_acks(500, MINUTE).await.unwrap();
        cluster.start_node(node).await.unwrap();
        cluster.wait_all_in_sync().await.unwrap();
        load.wait_for_acks(500, MINUTE).await.unwrap();
    }
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_house_loses_power_and_comes_back_without_a_hand() {
    let (cluster, load) = loaded(3, 3).await;
    cluster.kill_all().await.unwrap();
    cluster.start_all().await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    load.wait_for_acks(500, MINUTE).await.unwrap();
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_network_costs_time_and_nothing_else() {
    let (cluster, load) = loaded(2, 2).await;
    let (delay, jitter) = (Duration::from_millis(3), Duration::from_millis(5));
    cluster.weather(delay, jitter, 0.01).await.unwrap();
    load.wait_for_acks(2_000, MINUTE).await.unwrap();
    cluster.heal().await.unwrap();
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_leader_acknowledges_nothing_more() {
    let cluster = Cluster::builder().start().await.unwrap();
    cluster.create_topic("t", 1, 3, TWO_IN_SYNC).await.unwrap();
    let history = History::default();
    let producer_of = async |client: &Client| {
        let producer = client.producer().delivery_timeout(Duration::from_secs(4)).build().await.unwrap();
        producer.topic("t").await.unwrap();
        producer
    };
    let produce = async |producer: &bus_client::Producer, number: u32| {
        let sent = history.send(number, 0);
        let delivery = producer.send(Record::to("t").value(sent.value(50))).await.unwrap();
        let delivered = delivery.await;
        let outcome = Outcome::of(&delivered);
        eprintln!("producer {number}: {delivered:?}");
        history.settle(sent, outcome);
        outcome
    };
    let client = cluster.client().await.unwrap();
    let producer = producer_of(&client).await;
    assert!(matches!(produce(&producer, 0).await, Outcome::Acknowledged(0)));

    // The clients that are there see the old leader only.
    let leader = cluster.leader_of("t", 0).await.unwrap();
    for node in others(&cluster, leader) {
        cluster.cut(Peer::Clients, node).await.unwrap();
        cluster.cut(node, Peer::Clients).await.unwrap();
    }
    cluster.partition(&[leader], &others(&cluster, leader)).await.unwrap();
    for _ in 0..3 {
        let outcome = produce(&producer, 0).await;
        assert!(!matches!(outcome, Outcome::Acknowledged(_)), "the isolated leader: {outcome:?}");
    }
    // Others see the rest of the cluster, which goes on.
    for node in others(&cluster, leader) {
        cluster.network().change(Peer::Clients, node, |link| link.cut = false);
        cluster.network().change(node, Peer::Clients, |link| link.cut = false);
    }
    cluster.new_leader_of("t", 0, leader).await.unwrap();
    let other = cluster.client().await.unwrap();
    let outcome = produce(&producer_of(&other).await, 1).await;
    assert!(matches!(outcome, Outcome::Acknowledged(_)), "{outcome:?}");

    cluster.heal().await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    let outcome = produce(&producer, 0).await;
    assert!(matches!(outcome, Outcome::Acknowledged(_)), "{outcome:?}");
    cluster.check_history("t", &history).await.unwrap();
    cluster.check_replicas("t").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_in_sync_refuse_writes_and_say_so() {
    let cluster = Cluster::builder().processes().start().await.unwrap();
    cluster.create_topic("t", 1, 2, TWO_IN_SYNC).await.unwrap();
    produce(&cluster, "t", "before\n").await;
    let state = cluster.partition_state("t", 0).await.unwrap();
    let follower = state.replicas.into_iter().find(|node| Some(*node) != state.leader).unwrap();
    // It stays in the ISR, which would be too small without it; but it is down, and does not count.
    cluster.kill(follower).await.unwrap();
    cluster.wait_for_fenced(follower).await.unwrap();
    let refused = cluster.bus(["produce", "t", "--timeout", "2s"]).stdin("refused\n");
    let refused = refused.finished().await.unwrap().exits(1).unwrap();
    assert!(refused.stderr.contains("min.insync.replicas"), "{}", refused.stderr);
    assert_eq!(run(&cluster, &["consume", "t", "--until", "end"]).await, ["before"]);
    cluster.start_node(follower).await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    produce(&cluster, "t", "after\n").await;
    assert_eq!(run(&cluster, &["consume", "t", "--until", "end"]).await, ["before", "after"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_leader_is_told_what_for() {
    let cluster = Cluster::builder().processes().start().await.unwrap();
    cluster.create_topic("t", 1, 1, &[]).await.unwrap();
    let alone = cluster.leader_of("t", 0).await.unwrap();
    cluster.kill(alone).await.unwrap();
    cluster.wait_for_fenced(alone).await.unwrap();
    let failed = cluster.bus(["produce", "t", "--timeout", "3s"]).stdin("early\n");
    let failed = failed.finished().await.unwrap().refused(1, &["not sent within 3s"]).unwrap();
    let only = format!("partition t-0 has no leader: only node {alone} at ");
    let said: Vec<_> = failed.stderr.lines().filter(|line| line.contains(&only)).collect();
    assert_eq!(said.len(), 2, "while it waits, and in the end: {}", failed.stderr);
    let late = cluster.bus(["produce", "t"]).stdin("late\n").spawn().unwrap();
    cluster.start_node(alone).await.unwrap();
    tokio::task::spawn_blocking(|| late.finish()).await.unwrap().unwrap().success().unwrap();
    assert_eq!(run(&cluster, &["consume", "t", "--until", "end"]).await, ["late"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_reads_go_on_and_writes_say_why_not() {
    let cluster = Cluster::builder().processes().start().await.unwrap();
    cluster.create_topic("t", 1, 3, TWO_IN_SYNC).await.unwrap();
    produce(&cluster, "t", "before\n").await;
    let leader = cluster.leader_of("t", 0).await.unwrap();
    for node in others(&cluster, leader) {
        cluster.kill(node).await.unwrap();
    }
    assert_eq!(run(&cluster, &["consume", "t", "--until", "end"]).await, ["before"]);
    let failed = cluster.bus(["produce", "t", "--timeout", "3s"]).stdin("unknown\n");
    let failed = failed.finished().await.unwrap().refused(1, &["not acknowledged"]).unwrap();
    assert!(failed.stdout.is_empty());
    let create = cluster.bus(["topic", "create", "u"]).finished().await.unwrap();
    create.refused(1, &["majority"]).unwrap();
    for node in others(&cluster, leader) {
        cluster.start_node(node).await.unwrap();
    }
    cluster.wait_all_in_sync().await.unwrap();
    produce(&cluster, "t", "after\n").await;
    let read = run(&cluster, &["consume", "t", "--until", "end"]).await;
    assert_eq!((read.first().unwrap().as_str(), read.last().unwrap().as_str()), ("before", "after"));
    assert!(read.len() <= 3, "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_goes_on_at_the_same_offset() {
    let (cluster, load) = loaded(1, 1).await;
    let client = cluster.client().await.unwrap();
    let mut reader = client.reader(["load"]).from(From::Start).build().await.unwrap();
    let mut next = 0;
    let mut leader = cluster.leader_of("load", 0).await.unwrap();
    for round in 0..4 {
        for _ in 0..400 {
            let read = tokio::time::timeout(MINUTE, reader.next()).await.expect("the reader stands still");
            let record = read.unwrap().unwrap();
            assert_eq!(record.offset, next, "round {round}");
            next += 1;
        }
        match round {
            0 => cluster.kill(leader).await.unwrap(),
            1 => {
                cluster.start_node(leader).await.unwrap();
                cluster.wait_all_in_sync().await.unwrap();
                leader = cluster.leader_of("load", 0).await.unwrap();
                cluster.stop(leader).await.unwrap();
            }
            2 => cluster.start_node(leader).await.unwrap(),
            _ => {}
        }
    }
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_goes_on_where_it_was_after_a_failover() {
    let cluster = Cluster::builder().processes().start().await.unwrap();
    for topic in ["in", "late", "rest"] {
        cluster.create_topic(topic, 1, 3, TWO_IN_SYNC).await.unwrap();
    }
    let route = components("route").unwrap().to_str().unwrap().to_owned();
    let deploy = ["function", "deploy", "route", &route, "--consume", "in", "--output", "late,rest"];
    let settings = ["--config", "delayed=late", "--config", "on-time=rest"];
    run(&cluster, &[&deploy[..], &settings].concat()).await;
    for round in 1..=4_usize {
        let flight = format!("{{\"tailnum\":\"N{round}\",\"dep_delay\":{}}}\n", round * 100);
        produce(&cluster, "in", &flight).await;
        run(&cluster, &["consume", "late", "-n", &round.to_string()]).await;
        let leader = cluster.leader_of("in", 0).await.unwrap();
        if round % 2 == 0 {
            cluster.stop(leader).await.unwrap();
        } else {
            cluster.kill(leader).await.unwrap();
        }
        cluster.new_leader_of("in", 0, leader).await.unwrap();
        cluster.start_node(leader).await.unwrap();
        cluster.wait_all_in_sync().await.unwrap();
    }
    let late = run(&cluster, &["consume", "late", "--until", "end"]).await;
    for round in 1..=4 {
        let tailnum = format!("\"N{round}\"");
        assert!(late.iter().any(|line| line.contains(&tailnum)), "{tailnum} is missing: {late:?}");
    }
    // At least once: a kill may come between the record and the place behind it. But never from the start again.
    assert!(late.len() <= 6, "{late:?}");
}
