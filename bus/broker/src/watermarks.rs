//! Up to where partitions were committed, kept over a restart: a leader that comes back with too few others can
//! still serve what was committed before.
//!
//! The file is a hint, written now and then and never synced: what it says was true, and more may be by now.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use bus_protocol::{Offset, PartitionId, TopicId};

use crate::data_dir::write_atomically;
use crate::topics::Topics;

type Known = BTreeMap<(u64, PartitionId), Offset>;

/// The high watermarks that this node knew when it last wrote them down.
pub(crate) struct Watermarks {
    file: PathBuf,
    known: Mutex<Known>,
}

impl Watermarks {
    /// Reads the file; one that is missing or damaged says nothing.
    pub(crate) fn load(file: PathBuf) -> Self {
        let read =
            || serde_json::from_slice::<Vec<(u64, PartitionId, Offset)>>(&std::fs::read(&file).ok()?).ok();
        let known = read().unwrap_or_default();
        let known =
            known.into_iter().map(|(topic, partition, offset)| ((topic, partition), offset)).collect();
        Self { file, known: Mutex::new(known) }
    }

    /// Below it all of the partition was committed; 0 where nothing is known.
    pub(crate) fn known(&self, (topic, partition): (TopicId, PartitionId)) -> Offset {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(topic.0, partition)).copied().unwrap_or(0)
    }

    /// Notes that below `offset` all of the partition was committed.
    pub(crate) fn note(&self, (topic, partition): (TopicId, PartitionId), offset: Offset) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((topic.0, partition), offset);
    }

    /// Writes down where the replicas are now, if anything has moved. Blocks on the disk.
    pub(crate) fn save(&self, topics: &Topics) -> io::Result<()> {
        let mut now = Known::new();
        for topic in topics.all().values() {
            for replica in topic.replicas() {
                now.insert((topic.id.0, replica.number()), replica.high_watermark());
            }
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == now {
            return Ok(());
        }
        let list: Vec<_> =
            now.iter().map(|((topic, partition), offset)| (topic, partition, offset)).collect();
        let bytes = serde_json::to_vec(&list).map_err(io::Error::other)?;
        write_atomically(&self.file, &bytes)?;
        *known = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("high-watermarks");
        std::fs::write(&file, "[[3,0,17]]").unwrap();
        assert_eq!(Watermarks::load(file.clone()).known((TopicId(3), 0)), 17);
        std::fs::write(&file, "[[3,0").unwrap();
        assert_eq!(Watermarks::load(file).known((TopicId(3), 0)), 0);
    }
}
