//! Replicas that fail, and what becomes of them.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use bus_metadata::Command;
use bus_protocol::batch::{BatchBuilder, Compression};
use bus_protocol::produce::Acks;
use bus_protocol::request::CreateTopic;
use bus_protocol::{Epoch, TopicName};

use super::*;
use crate::{Broker, Options};

async fn start(folder: &Path, node_id: NodeId, join: &[&Broker]) -> Broker {
    let options = Options {
        node_id,
        data: folder.join(node_id.to_string()),
        listen: ([127, 0, 0, 1], 0).into(),
        http: None,
        join: join.iter().map(|broker| broker.address().to_owned()).collect(),
        trust: Some(folder.join("trust")),
        ..Options::default()
    };
    Broker::start(options).await.unwrap()
}

/// Waits until these are the ISR of the one partition of topic `t`, in leader epoch `least` or later, and the node runs
/// that; gives the epoch.
async fn in_sync(on: &Broker, isr: &[NodeId], least: Epoch) -> Epoch {
    let state = |image: &MetadataImage| {
        image.topic(&TopicName::new("t").unwrap()).and_then(|topic| topic.partition(0)).cloned()
    };
    let mut images = on.node.metadata.watch();
    let is_so = |image: &Arc<MetadataImage>| {
        state(image).is_some_and(|now| now.isr == isr && now.leader.is_some() && now.leader_epoch >= least)
    };
    let image = tokio::time::timeout(Duration::from_secs(60), images.wait_for(is_so)).await;
    let image = image.unwrap_or_else(|_| panic!("not in time: {:?}", state(&on.node.metadata.image())));
    let (index, epoch) = image.map(|image| (image.index(), state(&image).unwrap().leader_epoch)).unwrap();
    on.node.await_metadata(index).await.unwrap();
    epoch
}

/// The replica on this node is told what cannot be, and so panics.
async fn panic(broker: &Broker) {
    let replica = broker.node.topics.get(&TopicName::new("t").unwrap()).unwrap().replicas().remove(0);
    let wrong = Role {
        node: broker.node.id,
        leader: Some(broker.node.id),
        epoch: 1_000,
        partition_epoch: 1_000,
        replicas: BTreeMap::new(),
        isr: Vec::new(),
        live: 0,
        config: Default::default(),
    };
    replica.configure(wrong).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_task_has_panicked_keeps_what_it_has_and_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let one = start(folder.path(), 1, &[]).await;
    let two = start(folder.path(), 2, &[&one]).await;
    let name = TopicName::new("t").unwrap();
    let create = CreateTopic {
        topic: name.clone(),
        partitions: 1,
        replicas: 2,
        config: BTreeMap::new(),
        if_not_exists: false,
    };
    one.node.change_everywhere(Command::CreateTopic(create)).await.unwrap();
    let leader = one.node.metadata.image().topic(&name).unwrap().partition(0).unwrap().leader.unwrap();
    let (old, new) = if leader == 1 { (&one, &two) } else { (&two, &one) };
    let epoch = in_sync(old, &[1, 2], 0).await;
    let (topic, replica) = old.node.topics.partition(&name, 0).unwrap();
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(1_000, None, Some(b"kept"), &[]);
    let lane = replica.lane().unwrap();
    let ticket = replica.append(batch.build_batch().unwrap(), Acks::All, &lane).await.unwrap();
    ticket.await.unwrap();
    let folder = old.node.data.partition(&name, topic.id, 0);
    let inode = || std::fs::metadata(&folder).unwrap().ino();
    let before = inode();

    // Another leads, and this one follows it with the log that it has.
    panic(old).await;
    let epoch = in_sync(old, &[1, 2], epoch + 1).await;
    let offline = || topic.replicas().iter().map(|replica| replica.offline().cloned()).collect::<Vec<_>>();
    assert_eq!((inode(), offline()), (before, vec![None]));
    // One that panics again is left alone.
    panic(old).await;
    in_sync(old, &[new.node.id], epoch).await;
    assert_eq!((inode(), offline()), (before, vec![Some(Fault::Panicked)]));
    let counted = old.node.metrics.render();
    for counter in ["bus_lost_replicas_total 0", "bus_refetched_replicas_total 0"] {
        assert!(counted.contains(counter), "{counter}: {counted}");
    }
}

#[test]
fn a_backup_is_for_what_is_damaged_and_nowhere_else() {
    let up = |up: &'static [NodeId]| move |node| up.contains(&node);
    let (failed, damaged) = (Fault::Failed("EIO".into()), Fault::Damaged("a wrong CRC".into()));
    for fault in [&failed, &damaged] {
        assert!(remedy(fault, &[1, 2, 3], 1, up(&[1, 3])).starts_with("another replica goes on"));
        let down = remedy(fault, &[1, 2, 3], 1, up(&[1]));
        assert!(down.contains("start its broker"), "{down}");
    }
    assert!(remedy(&damaged, &[1], 1, up(&[1, 2])).contains("from a backup"));
    let again = remedy(&failed, &[1], 1, up(&[1, 2]));
    assert!(!again.contains("backup") && again.contains("start the broker again"), "{again}");
}
