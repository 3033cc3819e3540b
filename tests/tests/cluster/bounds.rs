//! What brokers have for each other, whatever their clients do.

use anyhow::Context as _;
use bus_client::{Acks, Record};
use bus_protocol::request::{Answer, PartitionState, Request, Response};
use bus_protocol::{NodeId, StreamKind};
use bus_testkit::Cluster;
use bus_transport::{Close, Connection, Endpoint, Options};

use super::MINUTE;

/// What a node counts under a name, over all labels.
fn counted(cluster: &Cluster, node: NodeId, name: &str) -> f64 {
    cluster.node(node).unwrap().counted(name).unwrap()
}

async fn ask(connection: &Connection, request: Request) -> anyhow::Result<Response> {
    let (mut send, mut recv) = connection.open(StreamKind::Request).await?;
    send.write_frame(&request, &[]).await?;
    let (answer, _) = recv.read_frame::<Answer>().await?.context("no answer")?;
    Ok(answer?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_clients_keeps_no_broker_out() {
    let cluster = Cluster::builder().config("max_connections = 8").start().await.unwrap();
    cluster.create_topic("t", 3, 3, &[("min.insync.replicas", "2")]).await.unwrap();
    let flood = Endpoint::client(cluster.trust(), None, &Options::default()).unwrap();
    let mut held = Vec::new();
    for node in cluster.nodes() {
        let address = cluster.node(node).unwrap().address();
        let refused = loop {
            let connection = flood.connect(&address).await.unwrap();
            // Whether it is in is known when it is answered.
            match ask(&connection, Request::Cluster).await {
                Ok(_) => held.push(connection),
                Err(error) => break error,
            }
            assert!(held.len() <= 8 * cluster.nodes().len(), "nobody is refused");
        };
        assert!(refused.to_string().contains("as many connections as it may"), "{refused}");
    }
    // A broker that starts again gets in, and is in sync again.
    cluster.kill(3).await.unwrap();
    cluster.start_node(3).await.unwrap();
    let known = cluster.wait_until("all three are in sync", MINUTE, async || {
        let Response::Topics(topics) = ask(&held[0], Request::Topics { topics: None }).await? else {
            anyhow::bail!("another answer")
        };
        let whole = |state: &PartitionState| state.isr.len() == 3;
        Ok(topics.iter().flat_map(|topic| &topic.partitions).all(whole))
    });
    known.await.unwrap();
    let still = held.iter().filter(|connection| !connection.is_closed()).count();
    assert!(still >= 8, "the flood is gone: {still}");
    drop(held);
    flood.close(Close::Done);
    cluster.wait_all_in_sync().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_record_goes_to_each_follower_in_one_push_and_all_are_told_in_the_end() {
    const RECORDS: u32 = 200;
    let cluster = Cluster::builder().start().await.unwrap();
    cluster.create_topic("t", 1, 3, &[]).await.unwrap();
    let leader = cluster.leader_of("t", 0).await.unwrap();
    let pushes = || counted(&cluster, leader, "bus_replicated_pushes_total");
    let client = cluster.client().await.unwrap();
    let producer = client.producer().acks(Acks::All).build().await.unwrap();
    producer.send(Record::to("t").value("first")).await.unwrap().await.unwrap();
    let before = pushes();
    for _ in 0..RECORDS {
        producer.send(Record::to("t").value("one")).await.unwrap().await.unwrap();
    }
    let each = (pushes() - before) / f64::from(RECORDS) / 2.0;
    assert!((1.0..1.5).contains(&each), "{each} pushes a record and follower");
    // Nothing comes any more that would carry it.
    let told = cluster.wait_until("all know what is committed", MINUTE, async || {
        let knows = |node| counted(&cluster, node, "bus_partition_high_watermark") >= f64::from(RECORDS + 1);
        Ok(cluster.nodes().into_iter().all(knows))
    });
    told.await.unwrap();
}
