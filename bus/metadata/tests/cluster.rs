//! Three to five nodes in one process, over a network that can be cut.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on says where")]

mod wires;

use std::sync::Arc;
use std::time::Duration;

use bus_metadata::{Command, EnterError, Error, Keeps, Metadata, Options, ProposeError};
use bus_protocol::ErrorCode;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use wires::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_forms_grows_and_forwards() {
    let began = Instant::now();
    let mut cluster = Cluster::of(3).await;
    println!("three nodes, up and voting: {} ms", since(began));
    assert_eq!(cluster.node(1).cluster_id(), cluster.node(3).cluster_id());
    // Any node takes a proposal, and shows what came of it.
    for (node, number) in (1..=3).zip(0..) {
        let metadata = cluster.node(node);
        metadata.propose(create_wide(number, 1, 3)).await.unwrap();
        assert!(metadata.image().topic(&name(number)).is_some());
        let missing = metadata.propose(Command::DeleteTopic { topic: name(99) }).await.unwrap_err();
        assert_eq!(missing.code(), ErrorCode::UnknownTopic);
    }
    // Two more, which are not in the others' lists; one by a node that does not lead.
    for node in [4, 5] {
        let dir = TempDir::new().unwrap();
        let joined = up(&cluster.wires, node, &dir, &[3, 2, 1], 0).await;
        cluster.dirs.push(dir);
        cluster.nodes.push(joined);
    }
    cluster.voters(5).await;
    assert!(cluster.node(5).image().topic(&name(2)).is_some());
    // A node id that is taken.
    let dir = TempDir::new().unwrap();
    let double = Arc::new(Wires::default());
    cluster.nodes.iter().for_each(|node| double.plug(node));
    let second = start(&double, 5, &dir).await;
    double.unplug(5);
    let refused = enter(&second, &[1, 2, 3], 9).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "node id 5 is taken by the broker at node-5:1: give this node another id"
    );
    second.shutdown().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed_and_others_take_over() {
    let mut cluster = Cluster::of(3).await;
    cluster.node(1).propose(create_wide(0, 900, 3)).await.unwrap();
    for _ in 0..2 {
        let dead = cluster.leader().await.node();
        let witness = cluster.nodes.iter().find(|node| node.node() != dead).unwrap().clone();
        until(&witness, "its share of leaders", |image| leads(image, dead) == 300).await;
        cluster.wires.silence(dead);
        let began = Instant::now();
        until(&witness, "failover", |image| {
            leads(image, dead) == 0
                && image
                    .topics()
                    .all(|topic| topic.partitions.iter().all(|partition| partition.leader.is_some()))
        })
        .await;
        println!("failover from a dead controller: {} ms", since(began));
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        cluster.kill(dead).await;
        let dir = &cluster.dirs[dead as usize - 1];
        let back = up(&cluster.wires, dead, dir, &[1, 2, 3], 0).await;
        cluster.nodes.push(back);
        catch_up(&cluster).await;
    }
    cluster.shutdown().await;
}

/// Every replica comes back into the ISR, as the leaders would have it.
async fn catch_up(cluster: &Cluster) {
    let in_sync = async {
        loop {
            let image = cluster.leader().await.image();
            let mut changes = std::collections::BTreeMap::<u64, Vec<_>>::new();
            for topic in image.topics() {
                for (number, partition) in (0..).zip(&topic.partitions) {
                    let (Some(leader), true) =
                        (partition.leader, partition.isr.len() < partition.replicas.len())
                    else {
                        continue;
                    };
                    changes.entry(leader).or_default().push(bus_metadata::IsrChange {
                        topic: topic.id,
                        partition: number,
                        leader_epoch: partition.leader_epoch,
                        partition_epoch: partition.partition_epoch,
                        isr: partition
                            .replicas
                            .iter()
                            .map(|node| (*node, image.broker(*node).unwrap().epoch))
                            .collect(),
                    });
                }
            }
            if changes.is_empty() && image.brokers().all(|broker| !broker.fenced) {
                return;
            }
            for (node, changes) in changes {
                let epoch = image.broker(node).unwrap().epoch;
                cluster.nodes[0].propose(Command::AlterPartitions { node, epoch, changes }).await.ok();
            }
        }
    };
    timeout(DEADLINE, in_sync).await.expect("not all come back into sync");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_costs_no_election_timeout() {
    for nodes in [3, 5, 3, 5] {
        let mut cluster = Cluster::of(nodes).await;
        cluster.node(1).propose(create_wide(0, 90, 3)).await.unwrap();
        let leaving = cluster.leader().await;
        let began = Instant::now();
        leaving.leave().await;
        println!("leader of {nodes} leaves: {} ms", since(began));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert_eq!(leads(&leaving.image(), leaving.node()), 0);
        assert!(leaving.image().broker(leaving.node()).unwrap().fenced, "its heartbeats do not unfence it");
        assert_ne!(leaving.leader(), Some(leaving.node()));
        cluster.kill(leaving.node()).await;
        let began = Instant::now();
        cluster.nodes[0].propose(create(1)).await.unwrap();
        println!("the next change: {} ms", since(began));
        let back =
            up(&cluster.wires, leaving.node(), &cluster.dirs[leaving.node() as usize - 1], &[1, 2, 3], 0)
                .await;
        cluster.nodes.push(back);
        cluster.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_leader_commits_nothing_and_comes_back() {
    let cluster = Cluster::of(3).await;
    cluster.node(1).propose(create_wide(0, 90, 3)).await.unwrap();
    let old = cluster.leader().await;
    cluster.wires.isolate(old.node());
    let lonely = {
        let old = old.clone();
        tokio::spawn(async move { old.propose(create(7)).await })
    };
    let others: Vec<_> = cluster.nodes.iter().filter(|node| node.node() != old.node()).collect();
    let new = leader(&others).await;
    new.propose(create(1)).await.unwrap();
    until(new, "failover", |image| leads(image, old.node()) == 0 && !image.is_available(old.node())).await;
    assert_eq!(leads(&old.image(), old.node()), 30, "it does not know");
    let lonely = lonely.await.unwrap();
    assert!(matches!(lonely, Err(ProposeError::TimedOut(_) | ProposeError::NotLeader { .. })), "{lonely:?}");
    assert!(old.image().topic(&name(7)).is_none());
    cluster.wires.heal();
    until(&old, "the others' change", |image| image.topic(&name(1)).is_some()).await;
    until(&old, "it is up again", |image| image.is_available(old.node())).await;
    for node in &cluster.nodes {
        assert!(node.image().topic(&name(7)).is_none(), "what nobody committed is nowhere");
    }
    assert_eq!(cluster.node(1).image().brokers().filter(|broker| broker.fenced).count(), 0);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_voter_joins_again_and_remembers_nothing() {
    let mut cluster = Cluster::of(3).await;
    cluster.node(1).propose(create_wide(0, 3, 3)).await.unwrap();
    for (life, leads_now) in [(1, false), (2, true)] {
        let leader = cluster.leader().await.node();
        let emptied = if leads_now { leader } else { leader % 3 + 1 };
        cluster.kill(emptied).await;
        for number in 0..100 {
            cluster.nodes[0].propose(create(100 * u32::from(life) + number)).await.unwrap();
        }
        let dir = TempDir::new().unwrap();
        let back = start(&cluster.wires, emptied, &dir).await;
        // It takes part in nothing before it has joined.
        assert_eq!(back.progress().last, None);
        let epoch = enter(&back, &[1, 2, 3], life).await.unwrap();
        assert_eq!(back.image().broker(emptied).unwrap().epoch, epoch);
        let isr = &back.image().topic(&name(0)).unwrap().partitions[0].isr.clone();
        assert!(!isr.contains(&emptied), "what it had is gone");
        back.ready().await.unwrap();
        cluster.dirs.push(dir);
        cluster.nodes.push(back);
        cluster.voters(3).await;
        assert_eq!(cluster.leader().await.image().topics().len(), cluster.nodes[2].image().topics().len());
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_catches_up_by_a_snapshot_and_without_a_majority_nothing_goes() {
    let mut cluster = Cluster::of(3).await;
    let away = cluster.leader().await;
    let had = away.progress().last;
    cluster.kill(away.node()).await;
    for number in 0..200 {
        cluster.nodes[0].propose(create(number)).await.unwrap();
    }
    let leads = cluster.leader().await;
    assert!(leads.progress().purged > had, "the log still holds what it lacks: {:?}", leads.progress());
    let dir = &cluster.dirs[away.node() as usize - 1];
    let back = up(&cluster.wires, away.node(), dir, &[1, 2, 3], 0).await;
    until(&back, "all topics", |image| image.topics().len() == 200).await;
    assert!(back.progress().snapshot > had, "it was not sent a snapshot: {:?}", back.progress());
    cluster.nodes.push(back);

    let leads = cluster.leader().await;
    for node in &cluster.nodes {
        if node.node() != leads.node() {
            cluster.wires.isolate(node.node());
        }
    }
    let lonely = leads.propose(create(500)).await;
    assert!(matches!(lonely, Err(ProposeError::TimedOut(_) | ProposeError::NotLeader { .. })), "{lonely:?}");
    assert!(leads.image().topic(&name(500)).is_none());
    // Each of them knows without asking a majority that there is none.
    for node in &cluster.nodes {
        let others: Vec<_> = (1..=3).filter(|other| *other != node.node()).collect();
        let gone = async {
            while node.quorum().held || node.quorum().silent != others {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, gone).await.unwrap_or_else(|_| panic!("{:?}", node.quorum()));
        assert!(node.quorum().ago.is_some(), "there was one");
    }
    // From then on nothing is left lying about that would be carried out when they are back.
    let late = leads.propose(create(502)).await.unwrap_err();
    let silent = (1..=3).filter(|other| *other != leads.node()).collect();
    assert_eq!(late, ProposeError::NoMajority { node: leads.node(), silent });
    assert!(late.to_string().contains("nothing was changed"), "{late}");
    let fenced = |image: &bus_metadata::MetadataImage| image.brokers().filter(|broker| broker.fenced).count();
    assert_eq!(fenced(&leads.image()), 0, "who has no majority calls nobody silent");
    cluster.wires.heal();
    let again = async { while cluster.leader().await.propose(create(501)).await.is_err() {} };
    timeout(DEADLINE, again).await.unwrap();
    for node in &cluster.nodes {
        until(node, "the last topic", |image| image.topic(&name(501)).is_some()).await;
        assert!(node.image().topic(&name(502)).is_none());
        let back = async {
            while !node.quorum().held {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, back).await.unwrap_or_else(|_| panic!("{:?}", node.quorum()));
    }
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cannot_join_is_told_why() {
    let wires = Arc::new(Wires::default());
    let dirs = [(); 2].map(|()| TempDir::new().unwrap());
    let hurried = Options { join_timeout_ms: 300, ..quick() };
    let one = start_with(hurried.clone(), &wires, 1, &dirs[0]).await;
    let refused = enter(&one, &[8, 9, 1], 0).await.unwrap_err();
    assert!(matches!(refused, EnterError::NobodyAnswers { .. }));
    assert!(refused.to_string().contains("nobody answers at node-8:1, node-9:1"), "{refused}");
    one.shutdown().await;

    let one = start(&wires, 1, &dirs[0]).await;
    let two = start(&wires, 2, &dirs[1]).await;
    let (first, second) = tokio::join!(enter(&one, &[1, 2], 0), enter(&two, &[2, 1], 0));
    assert!(matches!(first, Err(EnterError::Disagree { .. })), "{first:?}");
    assert!(matches!(second, Err(EnterError::Disagree { .. })), "{second:?}");
    one.shutdown().await;
    two.shutdown().await;

    // Not all that are listed are there: nobody forms a cluster behind their backs.
    let one = start_with(hurried, &wires, 1, &dirs[0]).await;
    let two = start(&wires, 2, &dirs[1]).await;
    let waiting = {
        let two = two.clone();
        tokio::spawn(async move { enter(&two, &[1, 2, 3], 0).await })
    };
    let refused = enter(&one, &[1, 2, 3], 0).await.unwrap_err();
    assert!(refused.to_string().contains("node-3:1 to answer"), "{refused}");
    one.shutdown().await;
    waiting.abort();
    two.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_topics_enters_their_cluster_and_no_other() {
    let wires = Arc::new(Wires::default());
    let dirs = [(); 3].map(|()| TempDir::new().unwrap());
    let lost = |refused: Result<u64, EnterError>| {
        let refused = refused.unwrap_err();
        assert!(matches!(&refused, EnterError::MetadataLost { cluster_id } if cluster_id == "cluster-a"));
        assert!(refused.to_string().contains("restore metadata/ from a copy"), "{refused}");
    };
    // By itself, with or without a list; and with another that has lost its metadata, too.
    let (one, two) = (start(&wires, 1, &dirs[0]).await, start(&wires, 2, &dirs[1]).await);
    let of_a = Keeps::TopicsOf("cluster-a");
    lost(enter_keeping(&one, &[], of_a, 0).await);
    lost(enter_keeping(&one, &[1], of_a, 0).await);
    let both = tokio::join!(enter_keeping(&one, &[1, 2], of_a, 0), enter_keeping(&two, &[1, 2], of_a, 0));
    lost(both.0);
    lost(both.1);
    assert_eq!((one.cluster_id(), one.progress().last), (None, None), "it has formed nothing");
    two.shutdown().await;

    // A living cluster that is not theirs never hears of it; the one that is takes it in.
    enter(&one, &[1], 0).await.unwrap();
    one.ready().await.unwrap();
    let two = start(&wires, 2, &dirs[1]).await;
    let before = one.members();
    let refused = enter_keeping(&two, &[1, 2], Keeps::TopicsOf("cluster-b"), 0).await.unwrap_err();
    assert!(
        matches!(&refused, EnterError::OtherCluster { theirs, ours, .. } if theirs == "cluster-a" && ours == "cluster-b"),
        "{refused}"
    );
    assert_eq!((one.members(), two.cluster_id()), (before, None));
    enter_keeping(&two, &[1, 2], of_a, 0).await.unwrap();
    two.shutdown().await;
    // Nor does one enter by the metadata of another than that of its topics.
    let two = start(&wires, 2, &dirs[1]).await;
    let refused = enter_keeping(&two, &[1, 2], Keeps::TopicsOf("cluster-b"), 0).await.unwrap_err();
    assert!(matches!(refused, EnterError::Metadata(Error::OtherCluster { .. })), "{refused}");
    two.shutdown().await;

    // The one that it waits for may still come.
    let three = start_with(Options { join_timeout_ms: 300, ..quick() }, &wires, 3, &dirs[2]).await;
    let refused = enter_keeping(&three, &[7, 3], of_a, 0).await.unwrap_err().to_string();
    assert!(refused.contains("waited for node-7:1 to answer: its metadata is lost"), "{refused}");
    three.shutdown().await;
    one.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_starts_again_elsewhere_too() {
    let cluster = Cluster::of(3).await;
    cluster.node(1).propose(create_wide(0, 30, 3)).await.unwrap();
    let Cluster { wires, dirs, mut nodes } = cluster;
    for moved in [false, true] {
        nodes.iter().for_each(|node| wires.unplug(node.node()));
        for node in &nodes {
            node.shutdown().await;
        }
        if moved {
            wires.move_all();
        }
        let began = Instant::now();
        let starting: Vec<_> = (1..=3)
            .map(|node| {
                let (wires, dir) = (Arc::clone(&wires), dirs[node as usize - 1].path().to_owned());
                tokio::spawn(async move { again(wires, node, &dir).await })
            })
            .collect();
        nodes.clear();
        for node in starting {
            nodes.push(timeout(DEADLINE, node).await.unwrap().unwrap());
        }
        for node in &nodes {
            until(node, "leaders", |image| (1..=3).map(|node| leads(image, node)).sum::<usize>() == 30).await;
        }
        println!("a cluster starts again{}: {} ms", if moved { " elsewhere" } else { "" }, since(began));
    }
    for node in &nodes {
        node.shutdown().await;
    }
}

async fn again(wires: Arc<Wires>, node: u64, dir: &std::path::Path) -> Metadata {
    let wire = Arc::new(Wire { from: node, wires: Arc::clone(&wires) });
    let address = wires.address(node);
    let started = Metadata::start(quick(), node, &address, dir, wire).await.unwrap();
    wires.plug(&started);
    let seeds = [1, 2, 3].map(|node| wires.address(node));
    let registration = bus_metadata::Registration { address: address.clone(), ..registration(node, 0) };
    started.enter(&address, &seeds, nothing("cluster-b"), registration).await.unwrap();
    started.ready().await.unwrap();
    started
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_brokers_one_votes_and_calls_the_other_silent() {
    let mut cluster = Cluster::of(2).await;
    cluster.node(2).propose(create_wide(0, 4, 2)).await.unwrap();
    cluster.wires.silence(2);
    let began = Instant::now();
    until(cluster.node(1), "failover", |image| leads(image, 1) == 4 && !image.is_available(2)).await;
    println!("failover from a dead broker: {} ms", since(began));
    cluster.kill(2).await;
    let back = up(&cluster.wires, 2, &cluster.dirs[1], &[1, 2], 0).await;
    assert!(back.image().is_available(2));
    cluster.nodes.push(back);
    cluster.shutdown().await;
}
