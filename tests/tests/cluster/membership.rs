//! Who is in a cluster, and who is not let in.

use std::collections::BTreeSet;
use std::path::Path;

use bus_testkit::{BrokerProcess, Cluster};

use super::status;

/// Starts a broker that is none of the cluster's nodes and loses patience soon, and answers why it does not start.
fn refused(cluster: &Cluster, node: &str, data: &Path) -> String {
    let join = cluster.bootstrap();
    let broker = BrokerProcess::builder().data(data).arguments(["--node-id", node, "--join", &join]);
    let started = broker.config("[metadata]\njoin_timeout_ms = 3000\n").start();
    let error = format!("{:#}", started.expect_err("it was let in"));
    assert!(error.contains("error: ") && !error.contains("panicked"), "{error}");
    error
}

/// What lies in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_of_one_machine_form_a_cluster() {
    let cluster = Cluster::builder().processes().finds_ca().start().await.unwrap();
    let mut ids = BTreeSet::new();
    for node in cluster.nodes() {
        let info = cluster.cluster_info(node).await.unwrap();
        assert_eq!((info.node, info.brokers.len()), (node, 3));
        assert!(info.brokers.iter().all(|broker| !broker.fenced), "{info:?}");
        ids.insert(info.cluster_id);
    }
    assert_eq!(ids.len(), 1, "they are of several clusters");
    cluster
        .wait_until("all three vote", std::time::Duration::from_secs(30), async || {
            Ok(cluster.cluster_info(1).await?.brokers.iter().all(|broker| broker.voter))
        })
        .await
        .unwrap();

    let status = status(&cluster).await;
    let addresses: Vec<_> = status.iter().map(|broker| broker["address"].as_str().unwrap()).collect();
    assert_eq!(addresses, cluster.addresses());
    assert!(status.iter().all(|broker| broker["state"] == "up"), "{status:?}");
    let controllers: Vec<_> = status.iter().filter(|broker| broker["controller"] == true).collect();
    assert_eq!(controllers.len(), 1);
    assert_eq!(controllers[0]["node"], cluster.controller().await.unwrap());

    cluster.create_topic("t", 4, 3, &[]).await.unwrap();
    cluster.bus(["produce", "t"]).stdin("one\ntwo\n").finished().await.unwrap().success().unwrap();
    let read = cluster.bus(["consume", "t", "--until", "end"]).finished().await.unwrap().success().unwrap();
    let mut lines = read.lines();
    lines.sort();
    assert_eq!(lines, ["one", "two"]);
    assert_eq!(cluster.check_replicas("t").await.unwrap().records, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_nodes_join_and_five_vote_at_most() {
    let cluster = Cluster::builder().start().await.unwrap();
    let voters = async |wanted: usize| {
        let what = format!("{wanted} vote");
        let counted = cluster.wait_until(&what, std::time::Duration::from_secs(30), async || {
            let info = cluster.cluster_info(1).await?;
            let voters = info.brokers.iter().filter(|broker| broker.voter).count();
            anyhow::ensure!(voters == wanted, "{voters} do");
            Ok(true)
        });
        counted.await.unwrap();
    };
    voters(3).await;
    for (node, wanted) in [(4, 3), (5, 5), (6, 5)] {
        assert_eq!(cluster.add_node().await.unwrap(), node);
        voters(wanted).await;
    }
    cluster.wait_all_in_sync().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_comes_back_with_an_empty_disk() {
    let cluster = Cluster::builder().processes().start().await.unwrap();
    cluster.create_topic("t", 3, 3, &[("min.insync.replicas", "2")]).await.unwrap();
    let lines: String = (0..10_000).map(|number| format!("record {number}\n")).collect();
    cluster.bus(["produce", "t"]).stdin(lines).finished().await.unwrap().success().unwrap();
    // Each of them: the Raft leader too.
    for node in cluster.nodes() {
        cluster.kill(node).await.unwrap();
        cluster.wipe(node).await.unwrap();
        cluster.start_node(node).await.unwrap();
        cluster.wait_all_in_sync().await.unwrap();
    }
    assert_eq!(cluster.check_replicas("t").await.unwrap().records, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_id_that_is_taken_is_refused() {
    let cluster = Cluster::builder().start().await.unwrap();
    let data = cluster.scratch().join("second-2");
    cluster.give_ca(&data).unwrap();
    let error = refused(&cluster, "2", &data);
    assert!(error.contains("node id 2 is taken"), "{error}");
    assert!(error.contains(&cluster.node(2).unwrap().address()), "by whom? {error}");
    assert_eq!(names(&data), ["tls"], "only what it was given stays");
    assert_eq!(names(&data.join("tls")), ["ca.key", "ca.pem"]);
    cluster.wait_all_in_sync().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_another_ca_is_refused() {
    let cluster = Cluster::builder().start().await.unwrap();
    let data = cluster.scratch().join("stranger");
    let error = refused(&cluster, "4", &data);
    assert!(error.contains("CA"), "{error}");
    assert!(!data.exists(), "a start that fails leaves nothing behind");
    assert_eq!(cluster.cluster_info(1).await.unwrap().brokers.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_cluster_is_refused() {
    let cluster = Cluster::builder().start().await.unwrap();
    let data = cluster.scratch().join("other");
    cluster.give_ca(&data).unwrap();
    let other = BrokerProcess::builder().data(&data).arguments(["--node-id", "4"]);
    assert!(other.start().unwrap().terminate().unwrap().success());
    let error = refused(&cluster, "4", &data);
    assert!(error.contains("cluster"), "{error}");
    let ours = cluster.cluster_info(1).await.unwrap();
    assert!(error.contains(&ours.cluster_id), "which cluster? {error}");
    assert!(names(&data).contains(&"clean".to_owned()), "it stands as its last stop left it");
    assert_eq!(ours.brokers.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_nobody_says_so() {
    // Addresses of nodes that never start: their relays are there, as routers would be.
    let cluster = Cluster::builder().build().unwrap();
    let data = cluster.scratch().join("lonely");
    let error = refused(&cluster, "4", &data);
    for address in cluster.addresses() {
        assert!(error.contains(&address), "{address} is not named: {error}");
    }
    assert!(!data.exists());
}
