//! The folder that holds everything a node keeps.
//!
//! ```text
//! bus-data/
//!   lock                  held (flock) by the process that uses the folder
//!   node.json             cluster id, node id: what this folder belongs to
//!   clean                 there while the node is stopped, if it stopped cleanly
//!   tls/                  CA, certificate, keys
//!   metadata/             the Raft log and its snapshots (sled)
//!   topics/node.json      the same, and the directory id: it goes where the topics go, and is lost with them
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
    directory_id: Uuid,
    /// Whether the topics lie in another folder than the node has kept them in, and nobody has said that they are lost.
    topics_are_gone: bool,
    was_clean: bool,
    traces: Traces,
    /// Dropped with the value: the operating system then lets the next process in.
    _lock: Arc<File>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NodeFile {
    cluster_id: String,
    node_id: NodeId,
}

/// What lies with the topics, which may have a file system of their own.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct TopicsFile {
    #[serde(flatten)]
    of: NodeFile,
    /// Drawn when the folder was made: an emptied or replaced disk gets another.
    directory_id: Uuid,
}

const NODE_FILE: &str = "node.json";
/// By this an operator says that what lay in `topics/` before is lost.
const GIVEN_UP: &str = "lost";

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
    /// Other topics lie in it than its own.
    #[error("{path} holds topics of node {} of cluster {}, not of node {} of cluster {}: is another disk mounted there?", .theirs.0, .theirs.1, .ours.0, .ours.1, path = .path.display())]
    OtherTopics {
        /// The folder.
        path: PathBuf,
        /// Whose they are: the node, and its cluster.
        theirs: (NodeId, String),
        /// Whose it is.
        ours: (NodeId, String),
    },
    /// A `node.json` of it cannot be read.
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
        mut new_id: impl FnMut() -> Uuid,
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
        if is_missing(&root.join(NODE_FILE)) {
            let tls = root.join("tls");
            let inside = ["ca.key", "ca.pem", "node.key", "node.pem"].map(|name| tls.join(name));
            traces.note(if is_missing(&tls) { vec![tls] } else { inside.to_vec() });
            traces.note(["topics", "blobs", "metadata", "compiled", "node.json"].map(|name| root.join(name)));
            if is_new {
                traces.made(lock_path);
            }
        }
        let filled = Self::fill(&root, node_id, &mut new_id);
        let (node, known, first) = filled.inspect_err(|_| traces.clone().remove())?;
        let topics_are_gone = known.is_none() && !first && is_missing(&root.join("topics").join(GIVEN_UP));
        let was_clean = take_mark(&root).map_err(io(&root))?;
        if was_clean {
            traces.took(root.join("clean"));
        }
        let directory_id = known.unwrap_or_else(new_id);
        let was_clean = first || was_clean;
        Ok(Self { root, node, directory_id, topics_are_gone, was_clean, traces, _lock: lock })
    }

    /// Whose folder it is, the id of its topics' directory where that is no new one, and whether it was nobody's before.
    fn fill(
        root: &Path,
        node_id: NodeId,
        new_id: &mut impl FnMut() -> Uuid,
    ) -> Result<(NodeFile, Option<Uuid>, bool), DataDirError> {
        let (path, topics) = (root.join(NODE_FILE), root.join("topics"));
        let mut first = false;
        let node = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<NodeFile>(&bytes)
                .map_err(|error| DataDirError::Damaged { path: path.clone(), why: error.to_string() })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                first = true;
                // Whose they are is not known, and topics of another cluster may bear the same names and ids.
                if has_topics(&topics).map_err(io(&topics))? {
                    return Err(DataDirError::Damaged { path, why: NO_TELLING.to_owned() });
                }
                NodeFile { cluster_id: new_id().to_string(), node_id }
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
        // Where the topics' folder is gone it is not made before they are given up: it may be on its way back.
        let of_topics = first.then_some("topics");
        for folder in of_topics.into_iter().chain(["blobs", "metadata", "compiled", "tls"]) {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(io(&folder))?;
        }
        let mut known = directory_of(&topics, &node)?;
        if first {
            // Before the metadata hears of it: a node that is killed as soon as it has registered knows it again. And
            // before the node's own file, which says that this was done.
            let directory_id = known.unwrap_or_else(new_id);
            write_json(&topics.join(NODE_FILE), &TopicsFile { of: node.clone(), directory_id })?;
            write_json(&path, &node)?;
            known = Some(directory_id);
        }
        Ok((node, known, first))
    }

    /// What a start takes away again that fails.
    pub(crate) fn traces(&self) -> Traces {
        self.traces.clone()
    }

    /// Whether the topics lie in another folder than the node has kept them in, and nobody has said that they are lost.
    pub(crate) fn topics_are_gone(&self) -> bool {
        self.topics_are_gone
    }

    /// Notes which cluster the node belongs to, where it has joined another than it would have formed, and what its topics
    /// lie in. While there are topics it stays what it is. Not before it is of the cluster: a start that fails leaves no
    /// other directory than there was.
    pub(crate) fn note_cluster(&self, cluster_id: &str) -> Result<(), DataDirError> {
        if self.node.cluster_id != cluster_id
            && let Keeps::TopicsOf(ours) = self.keeps()?
        {
            let (ours, theirs) = (ours.to_owned(), cluster_id.to_owned());
            return Err(DataDirError::OtherCluster { path: self.root.clone(), ours, theirs });
        }
        let of = NodeFile { cluster_id: cluster_id.to_owned(), ..self.node.clone() };
        write_json(&self.root.join(NODE_FILE), &of)?;
        fs::create_dir_all(self.topics()).map_err(io(&self.topics()))?;
        write_json(&self.topics().join(NODE_FILE), &TopicsFile { of, directory_id: self.directory_id })?;
        match fs::remove_file(self.topics().join(GIVEN_UP)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(&self.topics())(error)),
            _ => Ok(()),
        }
    }

    /// Whose topics the folder keeps. Where it keeps none, the cluster that `node.json` names is the one that the node
    /// would form.
    pub(crate) fn keeps(&self) -> Result<Keeps<'_>, DataDirError> {
        let (topics, cluster_id) = (self.topics(), self.node.cluster_id.as_str());
        Ok(if has_topics(&topics).map_err(io(&topics))? {
            Keeps::TopicsOf(cluster_id)
        } else {
            Keeps::Nothing { cluster_id_if_new: cluster_id }
        })
    }

    pub(crate) fn directory(&self) -> DirectoryId {
        DirectoryId(self.directory_id.into_bytes())
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

/// The id of the topic whose folder could be called so.
pub(crate) fn topic_id(folder: &str) -> Option<TopicId> {
    folder.rsplit_once('@')?.1.parse().ok().map(TopicId)
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

/// Why nobody can say what a node.json is to say.
const NO_TELLING: &str = "it is missing, and topics/ holds topics";

/// Whether a folder of topics holds anything of one.
fn has_topics(topics: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(topics) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let is_topic = path.file_name().and_then(|name| topic_id(name.to_str()?)).is_some();
        if is_topic && path.is_dir() && fs::read_dir(&path)?.next().is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The id of the directory that the node's topics lie in; `None` where it is a new one. Topics of which it is not known
/// that they are this node's are left alone.
fn directory_of(topics: &Path, node: &NodeFile) -> Result<Option<Uuid>, DataDirError> {
    let path = topics.join(NODE_FILE);
    let holds_topics = has_topics(topics).map_err(io(topics))?;
    let why = match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice::<TopicsFile>(&bytes) {
            Ok(found) if found.of == *node => return Ok(Some(found.directory_id)),
            // The node has entered a cluster, and was killed as it noted that.
            Ok(found) if found.of.node_id == node.node_id && !holds_topics => {
                return Ok(Some(found.directory_id));
            }
            Ok(TopicsFile { of: NodeFile { cluster_id, node_id }, .. }) if holds_topics => {
                let (theirs, ours) = ((node_id, cluster_id), (node.node_id, node.cluster_id.clone()));
                return Err(DataDirError::OtherTopics { path: topics.to_owned(), theirs, ours });
            }
            Ok(_) => return Ok(None),
            Err(error) => error.to_string(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => NO_TELLING.to_owned(),
        Err(error) => return Err(DataDirError::Io { path, error }),
    };
    if holds_topics { Err(DataDirError::Damaged { path, why }) } else { Ok(None) }
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

/// Writes a file for good, unless that is what it holds.
fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), DataDirError> {
    let bytes = serde_json::to_vec_pretty(value).map_err(io::Error::other).map_err(io(path))?;
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    write_atomically(path, &bytes).map_err(io(path))
}

#[cfg(test)]
mod tests;
