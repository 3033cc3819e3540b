//! A cluster in which disks are full: it goes on where it can, refuses where it cannot, and needs no hand once there is
//! room.

use std::time::Duration;

use anyhow::ensure;
use bus_protocol::NodeId;
use bus_testkit::{Cluster, Load, LoadUnderWay, SmallDisk};

use super::{MINUTE, all_is_well};

const DISK_BYTES: u64 = 64 << 20;
const FULL: &str = "the disk is full: this replica stores nothing more";

/// Three processes, each with a small disk for this folder of its data; the disk of node 1 is the first.
/// `None`, and why on stderr, where this user may mount nothing.
async fn cluster(folder: &str) -> Option<(Cluster, Vec<SmallDisk>)> {
    let cluster = Cluster::builder().processes().build().unwrap();
    let mut disks = Vec::new();
    for node in cluster.nodes() {
        match SmallDisk::mount(&cluster.node(node).unwrap().data().join(folder), DISK_BYTES) {
            Ok(disk) => disks.push(disk),
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        }
    }
    cluster.start_all().await.unwrap();
    cluster.create_topic("load", 1, 3, &[("min.insync.replicas", "2")]).await.unwrap();
    Some((cluster, disks))
}

async fn loaded(cluster: &Cluster) -> LoadUnderWay {
    let load = Load { records_per_second: 500, ..Load::default() }.start(cluster).await.unwrap();
    load.wait_for_acks(200, MINUTE).await.unwrap();
    load.forget_gaps();
    load
}

fn disk(disks: &[SmallDisk], node: NodeId) -> &SmallDisk {
    &disks[node as usize - 1]
}

/// Waits until a node is out of the ISR, which the others are in; gives the leader epoch.
async fn wait_until_out(cluster: &Cluster, node: NodeId) -> i32 {
    let mut epoch = 0;
    let out = cluster.wait_until("it is out of the ISR", MINUTE, async || {
        let state = cluster.partition_state("load", 0).await?;
        ensure!(state.isr.len() == 2 && !state.isr.contains(&node), "{state:?}");
        ensure!(state.leader.is_some_and(|leader| leader != node), "{state:?}");
        epoch = state.epoch;
        Ok(true)
    });
    out.await.unwrap();
    epoch
}

/// Fills a node's disk: the others go on without a pause that a producer would call one, and it comes back once there is
/// room.
async fn fills_up_and_comes_back(cluster: &Cluster, disks: &[SmallDisk], node: NodeId) {
    let load = loaded(cluster).await;
    disk(disks, node).fill().unwrap();
    let epoch = wait_until_out(cluster, node).await;
    load.wait_for_acks(1_000, MINUTE).await.unwrap();
    let gap = load.take_longest_gap();
    eprintln!("node {node} is full: {gap:?} without an acknowledgement");
    assert!(gap < Duration::from_secs(5), "{gap:?}");
    let described = cluster.bus(["topic", "describe", "load"]).finished().await.unwrap().success().unwrap();
    let others: Vec<_> = cluster.nodes().into_iter().filter(|other| *other != node).collect();
    let [one, other] = others[..] else { unreachable!("three nodes") };
    let isr = [format!(" {one},{other} "), format!(" {other},{one} ")];
    assert!(isr.iter().any(|isr| described.text().contains(isr)), "{}", described.text());
    assert_eq!(wait_until_out(cluster, node).await, epoch, "the leadership does not wander");
    let said = cluster.node(node).unwrap().stderr();
    assert_eq!(said.matches(FULL).count(), 1, "{said}");

    disk(disks, node).make_room().unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    all_is_well(cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_without_room_leaves_the_isr_until_it_has_room() {
    let Some((cluster, disks)) = cluster("topics").await else { return };
    let leader = cluster.leader_of("load", 0).await.unwrap();
    let follower = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
    fills_up_and_comes_back(&cluster, &disks, follower).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_room_hands_over() {
    let Some((cluster, disks)) = cluster("topics").await else { return };
    let leader = cluster.leader_of("load", 0).await.unwrap();
    fills_up_and_comes_back(&cluster, &disks, leader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_disk_has_room_produce_is_refused_until_one_has() {
    let Some((cluster, disks)) = cluster("topics").await else { return };
    let produce = async |line: &str, timeout: &str| {
        let produce = cluster.bus(["produce", "load", "--timeout", timeout]).stdin(format!("{line}\n"));
        produce.finished().await.unwrap()
    };
    produce("before", "20s").await.success().unwrap();
    disks.iter().for_each(|disk| disk.fill().unwrap());
    // More than what is left of the last page of the file that it goes to.
    let refused = produce(&"refused".repeat(10_000), "3s").await.exits(1).unwrap();
    assert!(refused.stderr.contains("disk is full"), "{}", refused.stderr);
    disks.iter().for_each(|disk| disk.make_room().unwrap());
    produce("after", "20s").await.success().unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    let read = cluster.bus(["consume", "load", "--until", "end"]).finished().await.unwrap();
    let read = read.success().unwrap().lines();
    assert_eq!((read.first().unwrap().as_str(), read.last().unwrap().as_str()), ("before", "after"));
    cluster.check_replicas("load").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_store_its_metadata_stops_and_says_so() {
    let Some((cluster, disks)) = cluster("").await else { return };
    let load = loaded(&cluster).await;
    let node = cluster.nodes().into_iter().next_back().unwrap();
    disk(&disks, node).fill().unwrap();
    // Each is a change of the metadata, until one does not fit any more.
    let mut topics = 0;
    let stopped = cluster.wait_until("it stops", MINUTE, async || {
        let name = format!("more-{topics}");
        topics += 1;
        let create = ["topic", "create", &name, "--partitions", "100", "--replicas", "1"];
        cluster.bus(create).finished().await?.success()?;
        Ok(cluster.node(node)?.stderr().contains("its metadata cannot be stored any more"))
    });
    stopped.await.unwrap();
    load.wait_for_acks(500, MINUTE).await.unwrap();
    // It has ended by itself: this is for the harness to know.
    cluster.kill(node).await.unwrap();
    disk(&disks, node).make_room().unwrap();
    cluster.start_node(node).await.unwrap();
    all_is_well(&cluster, load).await;
}
