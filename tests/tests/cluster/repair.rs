//! Disks that forget or change what they were given: found, reported, repaired from another replica.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bus_testkit::Cluster;

const RECORDS: usize = 60_000;

/// So many processes, and a topic with several segments on each of them.
async fn filled(nodes: u32) -> Cluster {
    filled_on(nodes, nodes, nodes.div_ceil(2)).await
}

/// So many processes, and a topic with several segments on some of them.
async fn filled_on(nodes: u32, replicas: u32, min: u32) -> Cluster {
    // A short tail in memory, so that readers meet the disk.
    let config = "[log]\ntail_bytes = 65536\n";
    let cluster = Cluster::builder().nodes(nodes.into()).processes().config(config).start().await.unwrap();
    let min = min.to_string();
    let settings = [("min.insync.replicas", min.as_str()), ("segment.bytes", "1048576")];
    cluster.create_topic("t", 1, replicas, &settings).await.unwrap();
    let lines: String = (0..RECORDS).map(|number| format!("record {number:>90}\n")).collect();
    cluster.bus(["produce", "t"]).stdin(lines).finished().await.unwrap().success().unwrap();
    cluster
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "log")).collect();
    segments.sort();
    assert!(segments.len() > 2, "{segments:?}");
    segments
}

/// Changes one byte in the middle of a file, in place.
fn damage(file: &Path) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], middle).unwrap();
}

async fn all_is_there(cluster: &Cluster) {
    let read = cluster.bus(["consume", "t", "--until", "end"]).finished().await.unwrap().success().unwrap();
    let lines = read.lines();
    assert_eq!(lines.len(), RECORDS);
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("record {number:>90}"));
    }
}

fn repaired_once(cluster: &Cluster, node: u64) {
    for counter in ["bus_lost_replicas_total", "bus_refetched_replicas_total"] {
        assert_eq!(cluster.node(node).unwrap().counted(counter).unwrap(), 1.0, "{counter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_replica_that_is_alone_is_left_as_it_is_and_counted_once() {
    let cluster = filled(1).await;
    cluster.kill(1).await.unwrap();
    let folder = cluster.partition_folder(1, "t", 0).unwrap();
    let files = segments(&folder);
    damage(files.last().unwrap());
    let before = std::fs::read(files.last().unwrap()).unwrap();
    cluster.start_node(1).await.unwrap();
    // It is tried again at each change.
    for topic in ["u", "v"] {
        cluster.bus(["topic", "create", topic]).finished().await.unwrap().success().unwrap();
    }
    let node = cluster.node(1).unwrap();
    assert_eq!(node.counted("bus_lost_replicas_total").unwrap(), 1.0);
    assert!(node.stderr().contains("restore its folder from a backup"), "{}", node.stderr());
    assert!(std::fs::read(files.last().unwrap()).unwrap() == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_of_a_follower_is_repaired_from_the_leader() {
    let cluster = filled(3).await;
    let leader = cluster.leader_of("t", 0).await.unwrap();
    let follower = cluster.nodes().into_iter().find(|node| *node != leader).unwrap();
    cluster.kill(follower).await.unwrap();
    let folder = cluster.partition_folder(follower, "t", 0).unwrap();
    // The last: what is looked at after a kill.
    damage(segments(&folder).last().unwrap());
    cluster.start_node(follower).await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    repaired_once(&cluster, follower);
    all_is_there(&cluster).await;
    assert_eq!(cluster.check_replicas("t").await.unwrap().records, RECORDS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_of_the_leader_is_never_served_and_is_repaired() {
    let cluster = filled(3).await;
    let leader = cluster.leader_of("t", 0).await.unwrap();
    let folder = cluster.partition_folder(leader, "t", 0).unwrap();
    // An old one, while it runs: found when it is read.
    damage(&segments(&folder)[0]);
    // The first who reads it may be told, but is never given it; others find it repaired.
    let read = cluster.bus(["consume", "t", "--until", "end"]).finished().await.unwrap();
    if read.code != 0 {
        assert!(read.stderr.contains("is damaged at byte"), "{}", read.stderr);
    }
    for (number, line) in read.lines().iter().enumerate() {
        assert_eq!(*line, format!("record {number:>90}"));
    }
    let node = cluster.node(leader).unwrap();
    cluster
        .wait_until("the damage is reported", Duration::from_secs(30), async || {
            let said = node.stderr();
            Ok(said.contains("00000000000000000000.log") && said.contains("this one is fetched anew from it"))
        })
        .await
        .unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    repaired_once(&cluster, leader);
    all_is_there(&cluster).await;
    assert_eq!(cluster.check_replicas("t").await.unwrap().records, RECORDS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_folder_that_is_gone_is_fetched_anew() {
    let cluster = filled(3).await;
    let leader = cluster.leader_of("t", 0).await.unwrap();
    cluster.kill(leader).await.unwrap();
    std::fs::remove_dir_all(cluster.partition_folder(leader, "t", 0).unwrap()).unwrap();
    cluster.start_node(leader).await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    all_is_there(&cluster).await;
    assert_eq!(cluster.check_replicas("t").await.unwrap().records, RECORDS as u64);
}

/// Both replicas of a topic are in sync, and stay so while one is down: as `min.insync.replicas` wants two. What the
/// preferred leader stored is taken away meanwhile; nothing is lost by its coming back.
async fn loses_what_it_stored(lose: impl Fn(&Path)) {
    let cluster = filled_on(3, 2, 2).await;
    let leader = cluster.leader_of("t", 0).await.unwrap();
    cluster.kill(leader).await.unwrap();
    lose(&cluster.partition_folder(leader, "t", 0).unwrap());
    cluster.start_node(leader).await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    all_is_there(&cluster).await;
    assert_eq!(cluster.check_replicas("t").await.unwrap().records, RECORDS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_folder_that_is_gone_while_its_replica_is_in_sync_is_fetched_anew() {
    loses_what_it_stored(|partition| std::fs::remove_dir_all(partition).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_gone_while_their_replicas_are_in_sync_are_fetched_anew() {
    loses_what_it_stored(lose_topics).await;
}

/// Takes away all that a partition's folder lies in, and says that it is lost.
fn lose_topics(partition: &Path) {
    let topics = partition.parent().and_then(Path::parent).unwrap();
    std::fs::remove_dir_all(topics).unwrap();
    std::fs::create_dir(topics).unwrap();
    std::fs::write(topics.join("lost"), "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_topics_are_not_mounted_says_so_and_goes_on_once_they_are() {
    let cluster = filled(1).await;
    cluster.kill(1).await.unwrap();
    let partition = cluster.partition_folder(1, "t", 0).unwrap();
    let topics = partition.parent().and_then(Path::parent).unwrap();
    let away = cluster.scratch().join("away");
    std::fs::rename(topics, &away).unwrap();
    for mount_point in [false, true] {
        assert!(!topics.exists(), "it must not be in the way of what comes back");
        if mount_point {
            std::fs::create_dir(topics).unwrap();
        }
        let error = format!("{:#}", cluster.start_node(1).await.unwrap_err());
        assert!(
            error.contains("the topics of node 1 are not there: if their disk is not mounted"),
            "{error}"
        );
    }
    std::fs::remove_dir(topics).unwrap();
    std::fs::rename(&away, topics).unwrap();
    cluster.start_node(1).await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    all_is_there(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_gone_when_all_have_stopped_are_fetched_anew() {
    let cluster = filled(3).await;
    cluster.wait_all_in_sync().await.unwrap();
    let preferred = cluster.partition_state("t", 0).await.unwrap().replicas[0];
    cluster.kill_all().await.unwrap();
    lose_topics(&cluster.partition_folder(preferred, "t", 0).unwrap());
    cluster.start_all().await.unwrap();
    cluster.wait_all_in_sync().await.unwrap();
    all_is_there(&cluster).await;
    assert_eq!(cluster.check_replicas("t").await.unwrap().records, RECORDS as u64);
}
