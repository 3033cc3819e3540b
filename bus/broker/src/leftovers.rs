//! What lies in the data folder of a node that has been taken from it while it was down: topics that were deleted, and
//! replicas that were moved to others.
//!
//! A topic's id is its place in the metadata's log, so that one of the same name that was created since has another
//! folder. What the metadata cannot have known of when it let go of it is not touched: then it is the metadata that has
//! lost something. Metadata that goes on from an older copy comes to look as if it had known, so that such a folder is
//! marked, and stays until the metadata has a place for it. (Metadata that has gone on for so long before this node starts
//! that it is past the topic's id already cannot be told from one that knew: who restores a copy on all nodes, starts all.)

use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use bus_log::{Env, Log, LogConfig};
use bus_metadata::{MetadataImage, Topic};
use bus_protocol::{NodeId, PartitionId};
use futures::FutureExt as _;

use crate::data_dir::{LOST_AND_FOUND, topic_folder, topic_id, write_atomically};
use crate::node::Node;
use crate::traces::is_missing;

/// Lies in a folder that the metadata did not know.
const UNKNOWN: &str = "unknown-to-the-metadata";

/// Removes it. `image` is of this broker's registration, or later; nothing is open in the folder yet.
pub(crate) async fn remove(node: &Node, image: Arc<MetadataImage>) {
    let (topics, env, id) = (node.data.topics(), node.logs.clone(), node.id);
    let removed = node.blocking(move || remove_in(&topics, &image, id, &env));
    // The broker does without it: a log that cannot be looked at must not keep it from the others, at each start.
    match AssertUnwindSafe(removed).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "what was taken from this node while it was down was not removed");
        }
        Err(_) => tracing::error!(
            "what was taken from this node while it was down was not removed: looking at it panicked"
        ),
    }
}

fn remove_in(topics: &Path, image: &MetadataImage, node: NodeId, env: &Env) -> io::Result<()> {
    for entry in std::fs::read_dir(topics)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !path.is_dir() || name == LOST_AND_FOUND {
            continue;
        }
        let removed = match topic_id(name).map(|id| (id, image.topic_by_id(id))) {
            Some((id, Some(topic))) if name == topic_folder(&topic.name, id) => {
                unmark(&path).and_then(|()| remove_replicas(&path, topic, node, env))
            }
            Some((id, None)) if id.0 <= image.index() && !is_marked(&path) => std::fs::remove_dir_all(&path).map(|()| {
                tracing::info!(folder = %path.display(), "a topic was deleted while this node was down: its folder is removed");
            }),
            topic => {
                tracing::error!(folder = %path.display(), "the metadata does not know this folder: it stays as it is");
                // One that is called like no topic is nothing that could be taken for one.
                topic.map_or(Ok(()), |_| mark(&path))
            }
        };
        // The others go all the same.
        if let Err(error) = removed {
            tracing::warn!(folder = %path.display(), %error, "what was taken from this node while it was down was not removed");
        }
    }
    Ok(())
}

/// Notes, for good, that the metadata did not know of a folder.
fn mark(folder: &Path) -> io::Result<()> {
    if is_marked(folder) { Ok(()) } else { write_atomically(&folder.join(UNKNOWN), b"") }
}

fn is_marked(folder: &Path) -> bool {
    !is_missing(&folder.join(UNKNOWN))
}

/// The metadata has a place for it.
fn unmark(folder: &Path) -> io::Result<()> {
    if is_marked(folder) { std::fs::remove_file(folder.join(UNKNOWN)) } else { Ok(()) }
}

fn remove_replicas(folder: &Path, topic: &Topic, node: NodeId, env: &Env) -> io::Result<()> {
    // Where this node holds nothing of the topic any more, nobody else ends what a crash has left of them.
    bus_log::finish_deletions(env.storage.as_ref(), folder).map_err(io::Error::other)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<PartitionId>().ok())
        else {
            continue;
        };
        let Some(partition) = topic.partition(number) else {
            tracing::error!(folder = %entry.path().display(), "the metadata does not know this partition: it stays as it is");
            mark(&entry.path())?;
            continue;
        };
        let path = entry.path();
        if partition.replicas.contains(&node) {
            unmark(&path)?;
            continue;
        }
        let removed = Log::open(env, &path, LogConfig::from(&topic.config)).and_then(|log| {
            let newest = log.epochs().last().map(|start| start.epoch);
            if is_marked(&path) || newest.is_some_and(|newest| newest > partition.leader_epoch) {
                return Ok(false);
            }
            log.delete().map(|()| true)
        });
        match removed {
            Ok(true) => {
                tracing::info!(topic = %topic.name, partition = number, "a replica was moved away while this node was down: its folder is removed");
            }
            Ok(false) => {
                tracing::error!(folder = %path.display(), "a replica that is not this node's any more is newer than the metadata: it stays as it is");
                mark(&path)?;
            }
            Err(error) => {
                tracing::warn!(folder = %path.display(), %error, "a replica that is not this node's any more stays: remove its folder");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use bus_log::AppendBatch;
    use bus_log::storage::DiskStorage;
    use bus_metadata::{Command, DirectoryId, PartitionChange, Registration};
    use bus_protocol::batch::{BatchBuilder, Compression};
    use bus_protocol::request::CreateTopic;
    use bus_protocol::{Epoch, SystemClock, TopicId, TopicName};

    use super::*;

    /// A cluster of nodes 1 and 2, in which topic `t` has one replica of each of two partitions, one on each node.
    fn image() -> MetadataImage {
        let mut image = MetadataImage::default();
        let mut commands = Vec::new();
        for node in [1, 2] {
            let (address, directory) = (format!("node-{node}:1"), DirectoryId([node as u8; 16]));
            let broker = Registration { node, address, rack: None, directory, clean: true, renewed: true };
            commands.push(Command::RegisterBroker { broker, follows: None });
            commands.push(Command::UnfenceBroker { node, epoch: 2 * node - 1 });
        }
        commands.push(Command::CreateTopic(CreateTopic {
            topic: TopicName::new("t").unwrap(),
            partitions: 2,
            replicas: 1,
            config: BTreeMap::new(),
            if_not_exists: false,
        }));
        for (index, command) in (1..).zip(commands) {
            image.apply(index, command).unwrap();
        }
        image
    }

    /// A log with one batch of that epoch.
    fn log(env: &Env, folder: PathBuf, epoch: Epoch) -> PathBuf {
        std::fs::create_dir_all(&folder).unwrap();
        let mut log = Log::open(env, &folder, LogConfig::from(&Default::default())).unwrap();
        let mut batch = BatchBuilder::new(Compression::None);
        batch.push(1_000, None, Some(b"kept"), &[]);
        log.append_all(vec![AppendBatch::from(batch.build_batch().unwrap())], epoch).unwrap();
        log.close().unwrap();
        folder
    }

    #[test]
    fn what_was_taken_away_goes_and_what_metadata_cannot_know_stays() {
        let folder = tempfile::tempdir().unwrap();
        let env = Env::new(
            Arc::new(DiskStorage::default()),
            Arc::new(SystemClock::new()),
            bus_log::Options::default(),
        );
        let image = image();
        let topic = image.topic(&TopicName::new("t").unwrap()).unwrap();
        let mine = (0..).zip(&topic.partitions).find(|(_, partition)| partition.replicas == [1]).unwrap().0;
        let other = 1 - mine;
        let now = topic.partitions[other as usize].leader_epoch;
        let at = |topic: &str, number: u32| folder.path().join(topic).join(number.to_string());
        let running = format!("t@{}", topic.id);
        let (kept, moved) = (log(&env, at(&running, mine), now), log(&env, at(&running, other), now));
        let deleted = log(&env, at("t@1", 0), 0);
        let (lost, copy) =
            (log(&env, at("t@900", 0), 0), log(&env, at(&format!("old-{running}"), other), now));
        // A crash in the middle of a deletion; and what is no folder.
        let half = folder.path().join(&running).join("9.deleted");
        std::fs::create_dir(&half).unwrap();
        std::fs::write(folder.path().join("t@0"), "").unwrap();
        remove_in(folder.path(), &image, 1, &env).unwrap();
        assert_eq!(
            (kept.exists(), moved.exists(), deleted.exists(), half.exists()),
            (true, false, false, false)
        );
        assert!(lost.exists() && copy.exists());

        // One that was written in an epoch that the metadata has not heard of, and a partition that it has not either.
        let (newer, unknown) = (log(&env, at(&running, other), now + 1), log(&env, at(&running, 7), 0));
        remove_in(folder.path(), &image, 1, &env).unwrap();
        assert!(newer.exists() && unknown.exists());

        // It goes on, from what is an older copy of it.
        let mut later = image.clone();
        elect(&mut later, topic.id, other);
        later.apply(1_000, Command::DrainBroker { node: 2, drained: true }).unwrap();
        for _ in 0..2 {
            remove_in(folder.path(), &later, 1, &env).unwrap();
            assert!(lost.exists() && newer.exists() && unknown.exists() && copy.exists());
        }
        later.apply(1_001, Command::DeleteTopic { topic: topic.name.clone() }).unwrap();
        remove_in(folder.path(), &later, 1, &env).unwrap();
        assert_eq!((copy.exists(), kept.exists()), (true, false));

        // Once the metadata has a place for it, it goes as any other.
        let again = log(&env, at(&running, mine), now);
        mark(&at(&running, mine)).unwrap();
        mark(again.parent().unwrap()).unwrap();
        remove_in(folder.path(), &image, 1, &env).unwrap();
        remove_in(folder.path(), &later, 1, &env).unwrap();
        assert!(!again.exists());
    }

    /// The leader of a partition goes and comes back: two elections.
    fn elect(image: &mut MetadataImage, topic: TopicId, partition: PartitionId) {
        for index in image.index() + 1..=image.index() + 2 {
            let now = image.topic_by_id(topic).unwrap().partition(partition).unwrap();
            let change = PartitionChange {
                topic,
                partition,
                partition_epoch: now.partition_epoch,
                leader: if now.leader.is_some() { None } else { now.isr.first().copied() },
                isr: now.isr.clone(),
                replicas: now.replicas.clone(),
                target: None,
            };
            image.apply(index, Command::ChangePartitions { changes: vec![change] }).unwrap();
        }
    }
}
