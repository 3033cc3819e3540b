//! A cluster as its operator changes it, while it is in use.

use std::collections::BTreeSet;

use anyhow::ensure;
use bus_client::{Error, From, Record};
use bus_protocol::{Epoch, NodeId, TopicName};
use bus_testkit::{Cluster, Load, LoadResult, LoadUnderWay};
use serde_json::Value;

use super::{MINUTE, all_is_well, run, status};

async fn loaded(partitions: u32, replicas: u32) -> (Cluster, LoadUnderWay) {
    let cluster = Cluster::builder().start().await.unwrap();
    cluster.create_topic("load", partitions, replicas, &[]).await.unwrap();
    let load = Load { partitions, records_per_second: 300, ..Load::default() };
    let load = load.start(&cluster).await.unwrap();
    load.wait_for_acks(100, MINUTE).await.unwrap();
    (cluster, load)
}

/// Waits until a node leads between `least` and `most` partitions.
async fn wait_for_leaders(cluster: &Cluster, node: NodeId, leads: impl Fn(u64) -> bool) {
    let waited = cluster.wait_until("leaders have moved", MINUTE, async || {
        let rows = status(cluster).await;
        let row = rows.into_iter().find(|row| row["node"] == node);
        let leaders = row.and_then(|row| row["leaders"].as_u64()).unwrap_or_default();
        ensure!(leads(leaders), "node {node} leads {leaders}");
        Ok(true)
    });
    waited.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_broker_leads_nothing_until_it_is_added_back() {
    let (cluster, load) = loaded(6, 3).await;
    wait_for_leaders(&cluster, 2, |leaders| leaders > 0).await;
    run(&cluster, &["cluster", "drain", "2"]).await;
    wait_for_leaders(&cluster, 2, |leaders| leaders == 0).await;
    run(&cluster, &["topic", "create", "while-drained", "--partitions", "4", "--replicas", "2"]).await;
    for partition in 0..4 {
        let state = cluster.partition_state("while-drained", partition).await.unwrap();
        assert!(!state.replicas.contains(&2), "{state:?}");
    }
    let wide = cluster.bus(["topic", "create", "wide", "--replicas", "3"]).finished().await.unwrap();
    wide.refused(1, &["2 can take one; broker 2 is drained"]).unwrap();
    let back = run(&cluster, &["cluster", "add-back", "2", "-o", "json"]).await;
    assert_eq!(back, [r#"{"done":"added back","down":false,"node":2}"#]);
    wait_for_leaders(&cluster, 2, |leaders| leaders > 0).await;
    let unknown = cluster.bus(["cluster", "drain", "9"]).finished().await.unwrap();
    unknown.refused(1, &["9", "does not exist"]).unwrap();
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_move_where_they_are_told_to() {
    let (cluster, load) = loaded(2, 2).await;
    for replicas in ["2,3", "3,1", "1,2,3", "1"] {
        run(&cluster, &["cluster", "reassign", "load", "--replicas", replicas]).await;
        let wanted: Vec<NodeId> = replicas.split(',').map(|node| node.parse().unwrap()).collect();
        let moved = cluster.wait_until("replicas have moved", MINUTE, async || {
            for partition in 0..2 {
                let state = cluster.partition_state("load", partition).await?;
                let (there, wanted): (BTreeSet<_>, BTreeSet<_>) =
                    (state.replicas.iter().collect(), wanted.iter().collect());
                ensure!(there == wanted && state.target.is_none(), "{state:?}");
            }
            Ok(true)
        });
        moved.await.unwrap();
        load.wait_for_acks(50, MINUTE).await.unwrap();
    }
    for (wrong, word) in [("1,9", "9"), ("1,1", "1"), ("", "")] {
        let refused = cluster.bus(["cluster", "reassign", "load", "--replicas", wrong]).finished().await;
        let refused = refused.unwrap();
        assert!(refused.code != 0 && refused.stderr.contains(word), "{wrong}: {}", refused.stderr);
    }
    let unknown = cluster.bus(["cluster", "reassign", "nowhere", "--replicas", "1"]).finished().await;
    unknown.unwrap().refused(1, &["nowhere"]).unwrap();
    all_is_well(&cluster, load).await;
}

/// The epoch of each broker's registration; and who leads each partition, in which leader epoch.
async fn who_leads(cluster: &Cluster, partitions: u32) -> (Vec<Value>, Vec<(Option<NodeId>, Epoch)>) {
    let epochs = status(cluster).await.iter().map(|row| row["epoch"].clone()).collect();
    let mut leaders = Vec::new();
    for partition in 0..partitions {
        let state = cluster.partition_state("load", partition).await.unwrap();
        leaders.push((state.leader, state.epoch));
    }
    (epochs, leaders)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_goes_away_and_comes_back_disturbs_nobody() {
    let (cluster, load) = loaded(3, 3).await;
    cluster.wait_all_in_sync().await.unwrap();
    let before = who_leads(&cluster, 3).await;
    let replicas = cluster.partition_state("load", 0).await.unwrap().replicas;
    let (all, kept) = (named(&replicas), named(&replicas[..2]));
    let away = cluster.partition_folder(replicas[2], "load", 0).unwrap();
    for _ in 0..4 {
        let reassign = ["cluster", "reassign", "load", "--partition", "0", "--replicas"];
        run(&cluster, &[&reassign[..], &[&kept]].concat()).await;
        let gone = cluster.wait_until("the replica is removed", MINUTE, async || Ok(!away.exists()));
        gone.await.unwrap();
        load.wait_for_acks(50, MINUTE).await.unwrap();
        run(&cluster, &[&reassign[..], &[&all]].concat()).await;
        cluster.wait_for_isr("load", 0, 3).await.unwrap();
        load.wait_for_acks(50, MINUTE).await.unwrap();
        assert_eq!(who_leads(&cluster, 3).await, before);
    }
    all_is_well(&cluster, load).await;
}

fn named(nodes: &[NodeId]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_broker_gets_its_share() {
    let (cluster, load) = loaded(8, 3).await;
    assert_eq!(cluster.add_node().await.unwrap(), 4);
    run(&cluster, &["cluster", "rebalance"]).await;
    let shared = cluster.wait_until("replicas are spread evenly", MINUTE, async || {
        let mut counts = [0; 4];
        for partition in 0..8 {
            let state = cluster.partition_state("load", partition).await?;
            ensure!(state.target.is_none(), "{state:?}");
            state.replicas.iter().for_each(|node| counts[*node as usize - 1] += 1);
        }
        ensure!(counts == [6; 4], "{counts:?}");
        Ok(true)
    });
    shared.await.unwrap();
    all_is_well(&cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_can_be_added_to_a_topic_in_use() {
    let (cluster, load) = loaded(2, 3).await;
    run(&cluster, &["topic", "alter", "load", "--partitions", "5"]).await;
    for partition in 0..5 {
        cluster.wait_for_isr("load", partition, 3).await.unwrap();
    }
    for partition in 2..5 {
        let topic = ["produce", "load", "--partition", &partition.to_string()];
        // The load's own history knows of no such records: they are read apart.
        cluster.bus(topic).stdin("added\n").finished().await.unwrap().success().unwrap();
        let read = ["consume", "load", "--partition", &partition.to_string(), "--until", "end"];
        assert_eq!(run(&cluster, &read).await, ["added"]);
    }
    let LoadResult { counts, failure, .. } = load.stop().await.unwrap();
    assert_eq!((failure, counts.unknown, counts.refused), (None, 0, 0));
    let fewer = cluster.bus(["topic", "alter", "load", "--partitions", "2"]).finished().await.unwrap();
    fewer.refused(1, &["5 partitions"]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_who_is_gone() {
    let cluster = Cluster::builder().processes().start().await.unwrap();
    cluster.create_topic("t", 3, 3, &[]).await.unwrap();
    cluster.kill(3).await.unwrap();
    let fenced = cluster.wait_until("node 3 is fenced", MINUTE, async || {
        let rows = status(&cluster).await;
        let row = rows.iter().find(|row| row["node"] == 3).cloned().unwrap_or_default();
        ensure!(row["state"] == "fenced" && row["leaders"] == 0, "{rows:?}");
        ensure!(rows.iter().any(|row| row["under_replicated"].as_u64() > Some(0)), "{rows:?}");
        Ok(true)
    });
    fenced.await.unwrap();
    // Nothing is moved to where it would wait.
    let refused = cluster.bus(["cluster", "reassign", "t", "--replicas", "3"]).finished().await.unwrap();
    refused.refused(1, &["broker 3 is down"]).unwrap();
    let left = cluster.bus(["cluster", "rebalance"]).finished().await.unwrap().success().unwrap();
    assert!(left.stderr.contains("left as they are: 3 partitions"), "{}", left.stderr);
    run(&cluster, &["cluster", "drain", "3"]).await;
    assert!(run(&cluster, &["cluster", "status"]).await.concat().contains("fenced, drained"));
    let rows = status(&cluster).await;
    assert!(rows.iter().any(|row| row["state"] == "fenced" && row["drained"] == true), "{rows:?}");
    run(&cluster, &["cluster", "add-back", "3"]).await;
    cluster.start_node(3).await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    let rows = status(&cluster).await;
    assert!(rows.iter().all(|row| row["state"] == "up" && row["offline"] == 0), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_spread_over_racks() {
    let builder = (1..=4).fold(Cluster::builder().nodes(4), |builder, node| {
        builder.config_of(node, &format!("rack = \"{}\"", if node <= 2 { "east" } else { "west" }))
    });
    let cluster = builder.start().await.unwrap();
    cluster.create_topic("t", 8, 2, &[]).await.unwrap();
    for partition in 0..8 {
        let state = cluster.partition_state("t", partition).await.unwrap();
        let east = state.replicas.iter().filter(|node| **node <= 2).count();
        assert_eq!(east, 1, "{state:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_says_how_far_it_is_and_whom_it_waits_for() {
    let cluster = Cluster::builder().processes().start().await.unwrap();
    cluster.create_topic("t", 1, 3, &[]).await.unwrap();
    run(&cluster, &["cluster", "reassign", "t", "--replicas", "1,2"]).await;
    let lines: String = (0..40_000).map(|number| format!("{number:0100}\n")).collect();
    cluster.bus(["produce", "t"]).stdin(lines).finished().await.unwrap().success().unwrap();
    let move_it = ["cluster", "reassign", "t", "--replicas", "2,3", "--throttle", "1KiB/s"];
    let moving = cluster.bus(move_it).spawn().unwrap();
    cluster
        .wait_until("the move shows, with its throttle", MINUTE, async || {
            let status = cluster.bus(["cluster", "status"]).finished().await?.success()?;
            Ok(status.stderr.contains("1 moving (each broker sends 1 KiB/s at most)"))
        })
        .await
        .unwrap();
    assert!(status(&cluster).await.iter().all(|row| row["throttle"] == 1024));
    cluster.kill(3).await.unwrap();
    cluster.wait_for_fenced(3).await.unwrap();
    // It leaves what is under way alone; the throttle is lifted all the same.
    let rebalance = ["cluster", "rebalance", "--throttle", "0", "--no-wait"];
    let left = cluster.bus(rebalance).finished().await.unwrap().success().unwrap();
    assert!(left.stderr.contains("left as they are: 1 partitions, being reassigned"), "{}", left.stderr);
    cluster.start_node(3).await.unwrap();
    let moved = tokio::task::spawn_blocking(|| moving.finish()).await.unwrap().unwrap().success().unwrap();
    let down = format!("waits for node 3 at {}, which is down", cluster.node(3).unwrap().address());
    assert!(moved.stderr.contains(&down), "{}", moved.stderr);
    assert!(moved.stderr.contains("t on nodes 2,3: 1 partition has moved"), "{}", moved.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_that_is_gone_is_said_and_a_node_that_lost_its_disk_says_what_it_waits_for() {
    let settings = "[metadata]\npropose_timeout_ms = 1000\n";
    let cluster = Cluster::builder().processes().config(settings).start().await.unwrap();
    cluster.create_topic("t", 1, 3, &[]).await.unwrap();
    // All vote, so that one of them alone is none.
    cluster
        .wait_until("all three vote", MINUTE, async || {
            Ok(cluster.cluster_info(1).await?.brokers.iter().all(|broker| broker.voter))
        })
        .await
        .unwrap();
    assert!(status(&cluster).await.iter().all(|row| row["quorum"] == true));
    let left = cluster.controller().await.unwrap();
    let dead: Vec<_> = cluster.nodes().into_iter().filter(|node| *node != left).collect();
    for node in &dead {
        cluster.kill(*node).await.unwrap();
    }
    let alone = cluster.node(left).unwrap().address();
    let ask = || cluster.bus(["cluster", "status", "-o", "json", "--server", &alone]).finished();
    cluster
        .wait_until("it is said that the majority is gone", MINUTE, async || {
            let finished = ask().await?.success()?;
            let rows: Vec<Value> =
                finished.lines().iter().map(|line| serde_json::from_str(line)).collect::<Result<_, _>>()?;
            ensure!(rows.iter().all(|row| row["quorum"] == false && row["controller"] == false), "{rows:?}");
            for node in &dead {
                let address = cluster.node(*node)?.address();
                ensure!(finished.stderr.contains(&format!("{node} at {address}")), "{}", finished.stderr);
            }
            Ok(finished.stderr.starts_with("no majority: "))
        })
        .await
        .unwrap();
    // A change waits for a majority, and says so; what can be shown is.
    let creating =
        cluster.bus(["topic", "create", "u", "--replicas", "1", "--server", &alone]).spawn().unwrap();
    let described =
        cluster.bus(["topic", "describe", "t", "-o", "json", "--server", &alone]).finished().await;
    assert_eq!(described.unwrap().success().unwrap().lines().len(), 1);

    cluster.wipe(dead[0]).await.unwrap();
    let starting = cluster.start_node(dead[0]);
    tokio::pin!(starting);
    let waiting = cluster.wait_until("it says what it waits for", MINUTE, async || {
        let said = cluster.node(dead[0])?.stderr();
        ensure!(said.contains("this node waits for cluster") && said.contains("to take it in"), "{said}");
        Ok(said.contains("most of its voters do not answer") && said.contains(&alone))
    });
    tokio::select! {
        waited = waiting => waited.unwrap(),
        started = &mut starting => panic!("it has no majority to join: {started:?}"),
    }
    cluster.start_node(dead[1]).await.unwrap();
    starting.await.unwrap();
    let created =
        tokio::task::spawn_blocking(|| creating.finish()).await.unwrap().unwrap().success().unwrap();
    let said = [
        "no majority: node ",
        "; what needs one waits for it",
        "there is a majority again",
        "topic u is ready",
    ];
    assert!(said.iter().all(|said| created.stderr.contains(said)), "{}", created.stderr);
    cluster.wait_all_in_sync().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_from_a_broker_that_is_down_is_gone_when_it_is_back() {
    let cluster = Cluster::builder().start().await.unwrap();
    for topic in ["moved", "deleted", "again"] {
        cluster.create_topic(topic, 1, 3, &[]).await.unwrap();
        let produce = cluster.bus(["produce", topic]).stdin("before\n").finished().await.unwrap();
        produce.success().unwrap();
    }
    cluster.wait_all_in_sync().await.unwrap();
    let folder = |topic: &str| cluster.partition_folder(3, topic, 0).unwrap();
    let (moved, deleted, again) = (folder("moved"), folder("deleted"), folder("again"));
    cluster.stop(3).await.unwrap();
    run(&cluster, &["cluster", "reassign", "moved", "--replicas", "1,2"]).await;
    for topic in ["deleted", "again"] {
        run(&cluster, &["topic", "delete", topic]).await;
    }
    cluster.create_topic("again", 1, 2, &[]).await.unwrap();
    let produce = cluster.bus(["produce", "again"]).stdin("after\n").finished().await.unwrap();
    produce.success().unwrap();
    assert!(moved.exists() && deleted.exists() && again.exists());

    cluster.start_node(3).await.unwrap();
    let gone = cluster.wait_until("all is removed", MINUTE, async || {
        Ok([&moved, &deleted, &again].iter().all(|folder| !folder.exists()))
    });
    gone.await.unwrap();
    run(&cluster, &["cluster", "reassign", "again", "--replicas", "3"]).await;
    let moved = cluster.wait_until("it leads", MINUTE, async || {
        let state = cluster.partition_state("again", 0).await?;
        Ok(state.leader == Some(3) && state.replicas == [3])
    });
    moved.await.unwrap();
    assert_eq!(run(&cluster, &["consume", "again", "--until", "end"]).await, ["after"]);
    assert_eq!(run(&cluster, &["consume", "moved", "--until", "end"]).await, ["before"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_tell_a_topic_that_is_created_again_from_the_one_that_was_deleted() {
    let cluster = Cluster::builder().start().await.unwrap();
    let topic = TopicName::new("t").unwrap();
    cluster.create_topic("t", 2, 3, &[]).await.unwrap();
    // The old one's epochs are higher than the new one's.
    let leader = cluster.leader_of("t", 0).await.unwrap().to_string();
    run(&cluster, &["cluster", "drain", &leader]).await;
    run(&cluster, &["cluster", "add-back", &leader]).await;
    let client = cluster.client().await.unwrap();
    let producer = client.producer().build().await.unwrap();
    let send = async || producer.send(Record::to("t").key("k").value("v")).await.unwrap().await.unwrap();
    assert_eq!((send().await.offset, send().await.offset), (0, 1));
    let mut reader = client.reader(["t"]).from(From::Start).build().await.unwrap();
    for offset in 0..2 {
        assert_eq!(reader.next().await.unwrap().unwrap().offset, offset);
    }
    client.admin().delete_topic(&topic).await.unwrap();
    cluster.create_topic("t", 1, 3, &[]).await.unwrap();
    for offset in 0..3 {
        let ack = tokio::time::timeout(MINUTE, send()).await.unwrap();
        assert_eq!((ack.partition, ack.offset), (0, offset));
    }
    for _ in 0..2 {
        let failed = tokio::time::timeout(MINUTE, reader.next()).await.unwrap().unwrap();
        assert!(matches!(failed, Err(Error::TopicReplaced { .. })), "{failed:?}");
    }
    assert!(reader.next().await.is_none());
}
