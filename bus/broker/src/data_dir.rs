//! The folder that holds everything a node keeps.
//!
//! ```text
//! bus-data/
//!   lock                  held (flock) by the process that uses the folder
//!   node.json             cluster id, node id, directory id: what this folder belongs to
//!   clean                 there while the node is stopped, if it stopped cleanly
//!   tls/                  CA, certificate, keys
//!   metadata/             the Raft log and its snapshots (sled)
//!   topics/NAME@ID/P/     one partition's log
//!   high-watermarks       up to where partitions were committed, as a hint
//!   blobs/SHA256          modules
//!   compiled/             wasmtime's cache of them
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bus_metadata::{DirectoryId, Keeps};
use bus_protocol::{NodeId, PartitionId, TopicId, TopicName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::traces::{Traces, is_missing};

/// A data folder, locked for as long as the value lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    node: NodeFile,
    was_clean: bool,
    traces: Traces,
    /// Dropped with the value: the operating system then lets the next process in.
    _lock: Arc<File>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NodeFile {
    cluster_id: String,
    node_id: NodeId,
    /// Drawn when the folder was made: an emptied or replaced disk gets another.
    directory_id: Uuid,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The operating system refused.
    #[error("data directory {path}: {error}", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// Another process uses it.
    #[error("data directory {path} is in use by another process: stop it, or choose another with --data", path = .path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// It is another node's.
    #[error("data directory {path} belongs to node {theirs}, not to node {ours}: pass --node-id {theirs}, or another --data", path = .path.display())]
    OtherNode {
        /// The folder.
        path: PathBuf,
        /// Whose it is.
        theirs: NodeId,
        /// Who asked.
        ours: NodeId,
    },
    /// It keeps topics of another cluster than the node has entered.
    #[error("data directory {path} holds topics of cluster {ours}, and the node is in cluster {theirs}: pass an empty --data, or the --join list of its own cluster", path = .path.display())]
    OtherCluster {
        /// The folder.
        path: PathBuf,
        /// Whose topics they are.
        ours: String,
        /// Where the node is.
        theirs: String,
    },
    /// Its `node.json` cannot be read.
    #[error("{path} is damaged: {why}: restore it from a copy, or start with an empty data directory", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl DataDir {
    /// Opens `root` for `node_id`, and makes it where it is missing; `new_id` draws identities. Where it fails all is as
    /// it was.
    pub(crate) fn open(
        root: &Path,
        node_id: NodeId,
        new_id: impl FnMut() -> Uuid,
    ) -> Result<Self, DataDirError> {
        let mut traces = Traces::default();
        traces.around(root);
        fs::create_dir_all(root).map_err(io(root))?;
        // Relative paths would follow a later change of the working directory.
        let root = root.canonicalize().map_err(io(root))?;
        let lock_path = root.join("lock");
        let is_new = is_missing(&lock_path);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataDirError::InUse { path: root }),
            Err(TryLockError::Error(error)) => return Err(DataDirError::Io { path: lock_path, error }),
        }
        // A start that failed may have taken its lock away between the two: then this one guards nothing.
        if !is_same(&lock, &lock_path).map_err(io(&lock_path))? {
            return Err(DataDirError::InUse { path: root });
        }
        let lock = Arc::new(lock);
        traces.locked(Arc::clone(&lock));
        // From here on nobody else makes anything in it. What a node has that was here before is never taken away.
        if is_missing(&root.join("node.json")) {
            let tls = root.join("tls");
            let inside = ["ca.key", "ca.pem", "node.key", "node.pem"].map(|name| tls.join(name));
            traces.note(if is_missing(&tls) { vec![tls] } else { inside.to_vec() });
            traces.note(["topics", "blobs", "metadata", "compiled", "node.json"].map(|name| root.join(name)));
            if is_new {
                traces.made(lock_path);
            }
        }
        let filled = Self::fill(&root, node_id, new_id);
        let (node, first) = filled.inspect_err(|_| traces.clone().remove())?;
        let was_clean = take_mark(&root).map_err(io(&root))?;
        if was_clean {
            traces.took(root.join("clean"));
        }
        Ok(Self { root, node, was_clean: first || was_clean, traces, _lock: lock })
    }

    /// Whose folder it is, and whether it was nobody's before.
    fn fill(
        root: &Path,
        node_id: NodeId,
        mut new_id: impl FnMut() -> Uuid,
    ) -> Result<(NodeFile, bool), DataDirError> {
        let path = root.join("node.json");
        let mut first = false;
        let node = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<NodeFile>(&bytes)
                .map_err(|error| DataDirError::Damaged { path: path.clone(), why: error.to_string() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                first = true;
                // Whose they are is not known, and topics of another cluster may bear the same names and ids.
                if !is_empty(&root.join("topics")).map_err(io(root))? {
                    let why = "it is missing, and topics/ is not empty".to_owned();
                    return Err(DataDirError::Damaged { path, why });
                }
                let node = NodeFile { cluster_id: new_id().to_string(), node_id, directory_id: new_id() };
                let bytes = serde_json::to_vec_pretty(&node).map_err(|error| DataDirError::Io {
                    path: path.clone(),
                    error: io::Error::other(error),
                })?;
                write_atomically(&path, &bytes).map_err(io(&path))?;
                node
            }
            Err(error) => return Err(DataDirError::Io { path, error }),
        };
        if node.node_id != node_id {
            return Err(DataDirError::OtherNode {
                path: root.to_owned(),
                theirs: node.node_id,
                ours: node_id,
            });
        }
        for folder in ["topics", "blobs", "metadata", "compiled", "tls"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(io(&folder))?;
        }
        Ok((node, first))
    }

    /// What a start takes away again that fails.
    pub(crate) fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// Notes which cluster the node belongs to, where it has joined another than it would have formed. While there are
    /// topics it stays what it is.
    pub(crate) fn note_cluster(&self, cluster_id: &str) -> Result<(), DataDirError> {
        if self.node.cluster_id == cluster_id {
            return Ok(());
        }
        if let Keeps::TopicsOf(ours) = self.keeps()? {
            let (ours, theirs) = (ours.to_owned(), cluster_id.to_owned());
            return Err(DataDirError::OtherCluster { path: self.root.clone(), ours, theirs });
        }
        let path = self.root.join("node.json");
        let node = NodeFile { cluster_id: cluster_id.to_owned(), ..self.node.clone() };
        serde_json::to_vec_pretty(&node)
            .map_err(io::Error::other)
            .and_then(|bytes| write_atomically(&path, &bytes))
            .map_err(|error| DataDirError::Io { path, error })
    }

    /// Whose topics the folder keeps. Where it keeps none, the cluster that `node.json` names is the one that the node
    /// would form.
    pub(crate) fn keeps(&self) -> Result<Keeps<'_>, DataDirError> {
        let (topics, cluster_id) = (self.topics(), self.node.cluster_id.as_str());
        let nothing = is_empty(&topics).map_err(io(&topics))?;
        Ok(if nothing {
            Keeps::Nothing { cluster_id_if_new: cluster_id }
        } else {
            Keeps::TopicsOf(cluster_id)
        })
    }

    pub(crate) fn directory(&self) -> DirectoryId {
        DirectoryId(self.node.directory_id.into_bytes())
    }

    /// Whether the node that used the folder last stopped cleanly; a first start is clean.
    pub(crate) fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Leaves word for the next start that all was synced and closed.
    pub(crate) fn mark_clean(&self) -> io::Result<()> {
        write_atomically(&self.root.join("clean"), b"")
    }

    pub(crate) fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    pub(crate) fn metadata(&self) -> PathBuf {
        self.root.join("metadata")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn compiled(&self) -> PathBuf {
        self.root.join("compiled")
    }

    pub(crate) fn watermarks(&self) -> PathBuf {
        self.root.join("high-watermarks")
    }

    pub(crate) fn topics(&self) -> PathBuf {
        self.root.join("topics")
    }

    /// The folder of one partition's log.
    pub(crate) fn partition(&self, topic: &TopicName, id: TopicId, partition: PartitionId) -> PathBuf {
        self.topics().join(topic_folder(topic, id)).join(partition.to_string())
    }
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |error| DataDirError::Io { path, error }
}

/// The folder of a topic's partitions below `topics/`. `@` cannot stand in a name, so no two topics share one.
pub(crate) fn topic_folder(topic: &TopicName, id: TopicId) -> String {
    format!("{topic}@{id}")
}

/// Whether the file at `path` is this one.
pub(crate) fn is_same(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;

    match fs::metadata(path) {
        Ok(there) => file.metadata().map(|file| (file.dev(), file.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a file system keeps at its own root, where a folder of ours may be mounted: nothing of ours.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// Whether nothing lies in a folder, or there is none.
fn is_empty(folder: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        if entry?.file_name() != LOST_AND_FOUND {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the mark of a clean stop away, for good: a crash from here on is one.
fn take_mark(root: &Path) -> io::Result<bool> {
    match fs::remove_file(root.join("clean")) {
        Ok(()) => File::open(root)?.sync_all().map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a file so that a crash leaves the old one or the new one, and the new one for good once this returns.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_nodes_and_one_processs() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("data");
        let mut ids = 0;
        let mut draw = || {
            ids += 1;
            Uuid::from_u128(ids)
        };
        let first = DataDir::open(&root, 1, &mut draw).unwrap();
        assert!(matches!(DataDir::open(&root, 1, &mut draw), Err(DataDirError::InUse { .. })));
        let cluster = first.node.cluster_id.clone();
        assert!(first.was_clean());
        first.mark_clean().unwrap();
        drop(first);
        assert!(matches!(
            DataDir::open(&root, 2, &mut draw),
            Err(DataDirError::OtherNode { theirs: 1, ours: 2, .. })
        ));
        let second = DataDir::open(&root, 1, &mut draw).unwrap();
        assert!(second.was_clean());
        assert_eq!(second.node.cluster_id, cluster);
        drop(second);
        assert!(!DataDir::open(&root, 1, &mut draw).unwrap().was_clean(), "it was not closed cleanly");
        // A start that fails marks it clean again only if it was.
        assert!(!root.join("clean").exists());
        let clean = DataDir::open(&root, 1, &mut draw).unwrap();
        clean.mark_clean().unwrap();
        drop(clean);
        DataDir::open(&root, 1, &mut draw).unwrap().traces().remove();
        assert!(DataDir::open(&root, 1, &mut draw).unwrap().was_clean());
        fs::write(root.join("node.json"), "{").unwrap();
        assert!(matches!(DataDir::open(&root, 1, &mut draw), Err(DataDirError::Damaged { .. })));
        // Without it nobody knows whose topics these are.
        fs::remove_file(root.join("node.json")).unwrap();
        fs::create_dir(root.join("topics/orders@7")).unwrap();
        assert!(matches!(DataDir::open(&root, 1, &mut draw), Err(DataDirError::Damaged { .. })));
        assert!(root.join("topics/orders@7").exists());
        fs::remove_dir(root.join("topics/orders@7")).unwrap();
        DataDir::open(&root, 1, &mut draw).unwrap();
    }

    #[test]
    fn topics_stay_with_the_cluster_that_they_are_of() {
        let temp = tempfile::tempdir().unwrap();
        let open = || DataDir::open(temp.path(), 1, || Uuid::from_u128(7)).unwrap();
        let new = Uuid::from_u128(7).to_string();
        let data = open();
        assert_eq!(data.keeps().unwrap(), Keeps::Nothing { cluster_id_if_new: &new });
        // A file system of its own.
        fs::create_dir(data.topics().join("lost+found")).unwrap();
        assert_eq!(data.keeps().unwrap(), Keeps::Nothing { cluster_id_if_new: &new });
        data.note_cluster("joined").unwrap();
        drop(data);
        let data = open();
        fs::create_dir(data.topics().join("orders@7")).unwrap();
        assert_eq!(data.keeps().unwrap(), Keeps::TopicsOf("joined"));
        data.note_cluster("joined").unwrap();
        assert!(matches!(
            data.note_cluster("another"),
            Err(DataDirError::OtherCluster { ours, theirs, .. }) if ours == "joined" && theirs == "another"
        ));
        drop(data);
        assert_eq!(open().keeps().unwrap(), Keeps::TopicsOf("joined"));
    }

    #[test]
    fn a_start_that_fails_leaves_what_was_there_and_nothing_more() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("a/b");
        let start = |given: Option<&str>| {
            if let Some(given) = given {
                fs::create_dir_all(folder.join("tls")).unwrap();
                fs::write(folder.join("tls").join(given), "given").unwrap();
            }
            let data = DataDir::open(&folder, 1, Uuid::new_v4).unwrap();
            fs::write(data.tls().join("node.pem"), "made").unwrap();
            fs::write(data.metadata().join("log"), "made").unwrap();
            data.traces().remove();
        };
        start(None);
        assert!(!temp.path().join("a").exists());
        start(Some("ca.pem"));
        let left = |folder: &Path| {
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>()
        };
        assert_eq!((left(&folder), left(&folder.join("tls"))), (vec!["tls".into()], vec!["ca.pem".into()]));
    }
}
