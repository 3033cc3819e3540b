//! A file system in memory that keeps `live` and `durable` apart: for tests and for the seeded simulation.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{File, Storage};

/// What a crash leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing: the strictest power cut.
    DropUnsynced,
    /// Of each file a prefix of the writes since its last sync, the last of them torn at some byte; of each
    /// folder a prefix of its changes. All chosen by the seed.
    Torn(u64),
    /// All: the process died and the machine lives on (`kill -9`).
    ProcessOnly,
}

/// See the module. Cheap to clone: clones are the same disk. Handles from before a crash fail afterwards.
#[derive(Clone, Default)]
pub struct MemoryStorage {
    state: Arc<Mutex<State>>,
}

/// Folders and files are known by number, as a disk's are: what is pending in a folder stays its own when the
/// folder is renamed.
struct State {
    /// The first is the root. One that no entry names any more is gone.
    folders: Vec<Folder>,
    files: Vec<FileState>,
    /// Changes to folders since they were synced, in order.
    changes: Vec<Change>,
    /// Raised by a crash: older handles are dead.
    generation: u64,
    /// Bytes that may still be written before the disk is full.
    room: Option<u64>,
    /// What it says is free.
    free: Option<u64>,
    failing_syncs: u32,
    /// Changes that it still takes before it dies.
    changes_left: Option<u32>,
    reads: u64,
    syncs: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            folders: vec![Folder::default()],
            files: Vec::new(),
            changes: Vec::new(),
            generation: 0,
            room: None,
            free: None,
            failing_syncs: 0,
            changes_left: None,
            reads: 0,
            syncs: 0,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Node {
    Dir(usize),
    File(usize),
}

type Entries = BTreeMap<String, Node>;

#[derive(Default)]
struct Folder {
    live: Entries,
    durable: Entries,
}

/// Entry `name` of `folder` became `node`, or went. After a crash it did, or it did not.
struct Change {
    folder: usize,
    name: String,
    node: Option<Node>,
    /// The entry that went in the same moment: a rename is there whole, or not at all.
    from: Option<(usize, String)>,
}

#[derive(Default)]
struct FileState {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

enum Pending {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

impl Pending {
    fn apply(&self, bytes: &mut Vec<u8>, torn_at: Option<usize>) {
        match self {
            Self::Truncate(length) => bytes.resize(*length as usize, 0),
            Self::Write(position, data) => {
                let data = &data[..torn_at.unwrap_or(data.len()).min(data.len())];
                let end = *position as usize + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*position as usize..end].copy_from_slice(data);
            }
        }
    }
}

struct MemoryFile {
    state: Arc<Mutex<State>>,
    id: usize,
    generation: u64,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// SplitMix64: the torn crash's choices, the same for the same seed.
fn next_random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl MemoryStorage {
    /// An empty disk without limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine (or the process) dies, and comes back with what `crash` leaves. Files that are open now
    /// answer every call with an error from here on.
    pub fn crash(&self, crash: Crash) {
        let mut state = lock(&self.state);
        state.generation += 1;
        state.changes_left = None;
        let mut seed = match crash {
            Crash::ProcessOnly => return,
            Crash::DropUnsynced => None,
            Crash::Torn(seed) => Some(seed),
        };
        let changes = std::mem::take(&mut state.changes);
        let kept = seed.as_mut().map_or(0, |seed| next_random(seed) as usize % (changes.len() + 1));
        for change in changes.into_iter().take(kept) {
            change.apply(&mut state.folders, |folder| &mut folder.durable);
        }
        for folder in &mut state.folders {
            folder.live = folder.durable.clone();
        }
        for file in &mut state.files {
            let pending = std::mem::take(&mut file.pending);
            if let Some(seed) = &mut seed {
                let kept = next_random(seed) as usize % (pending.len() + 1);
                for (n, operation) in pending.iter().take(kept).enumerate() {
                    let torn = (n + 1 == kept).then(|| match operation {
                        Pending::Write(_, data) => next_random(seed) as usize % (data.len() + 1),
                        Pending::Truncate(_) => 0,
                    });
                    operation.apply(&mut file.durable, torn);
                }
            }
            file.live = file.durable.clone();
        }
    }

    /// The disk is full after `bytes` more (`None`: never).
    pub fn set_room(&self, bytes: Option<u64>) {
        lock(&self.state).room = bytes;
    }

    /// The disk says that so many bytes are free, whatever is written (`None`: it does not say).
    pub fn set_free(&self, bytes: Option<u64>) {
        lock(&self.state).free = bytes;
    }

    /// The next `count` syncs of files fail, and lose what they should have kept: it can be read until the machine
    /// dies, but later syncs succeed without it, unless it is written again.
    pub fn fail_syncs(&self, count: u32) {
        lock(&self.state).failing_syncs = count;
    }

    /// The machine dies after `count` more changes (writes, syncs, entries of folders): from there on each fails, until
    /// [`Self::crash`] brings it back (`None`: it does not).
    pub fn die_after(&self, count: Option<u32>) {
        lock(&self.state).changes_left = count;
    }

    /// Whether it has died so.
    pub fn is_dead(&self) -> bool {
        lock(&self.state).changes_left == Some(0)
    }

    /// How many times a file was read.
    pub fn reads(&self) -> u64 {
        lock(&self.state).reads
    }

    /// How many times a file or folder was synced.
    pub fn syncs(&self) -> u64 {
        lock(&self.state).syncs
    }

    /// A file's bytes as they are live, for tests that look or meddle.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = lock(&self.state);
        state.file_at(path).ok().map(|id| state.files[id].live.clone())
    }

    /// Puts other bytes in a file's place, durably: damage, as it were.
    pub fn set_contents(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = lock(&self.state);
        if let Ok(id) = state.file_at(path) {
            state.files[id] = FileState { live: bytes.clone(), durable: bytes, pending: Vec::new() };
        }
    }

    fn handle(&self, state: &State, id: usize) -> Arc<dyn File> {
        Arc::new(MemoryFile { state: self.state.clone(), id, generation: state.generation })
    }
}

impl Change {
    fn apply(&self, folders: &mut [Folder], entries: impl Fn(&mut Folder) -> &mut Entries) {
        if let Some((folder, name)) = &self.from {
            entries(&mut folders[*folder]).remove(name);
        }
        let entries = entries(&mut folders[self.folder]);
        match self.node {
            Some(node) => entries.insert(self.name.clone(), node),
            None => entries.remove(&self.name),
        };
    }
}

/// The names that lead to `path` from the root.
fn names(path: &Path) -> impl Iterator<Item = String> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    })
}

impl State {
    /// To be asked before each change.
    fn lives(&mut self) -> io::Result<()> {
        match &mut self.changes_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the machine is dead")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn find(&self, path: &Path) -> Option<Node> {
        names(path).try_fold(Node::Dir(0), |node, name| match node {
            Node::Dir(folder) => self.folders[folder].live.get(&name).copied(),
            Node::File(_) => None,
        })
    }

    fn dir_at(&self, path: &Path) -> io::Result<usize> {
        match self.find(path) {
            Some(Node::Dir(folder)) => Ok(folder),
            _ => Err(not_found()),
        }
    }

    fn file_at(&self, path: &Path) -> io::Result<usize> {
        match self.find(path) {
            Some(Node::File(id)) => Ok(id),
            _ => Err(not_found()),
        }
    }

    /// The folder that `path` is an entry of, and the entry's name.
    fn entry(&self, path: &Path) -> io::Result<(usize, String)> {
        let folder = self.dir_at(path.parent().ok_or_else(not_found)?)?;
        Ok((folder, names(path).last().ok_or_else(not_found)?))
    }

    fn make(&mut self, change: Change) {
        change.apply(&mut self.folders, |folder| &mut folder.live);
        self.changes.push(change);
    }

    fn set(&mut self, (folder, name): (usize, String), node: Option<Node>) {
        self.make(Change { folder, name, node, from: None });
    }

    /// Takes away what is in a folder, what lies deepest first.
    fn clear(&mut self, folder: usize) {
        for (name, node) in self.folders[folder].live.clone() {
            if let Node::Dir(below) = node {
                self.clear(below);
            }
            self.set((folder, name), None);
        }
    }

    fn file(&mut self, handle: &MemoryFile) -> io::Result<&mut FileState> {
        if handle.generation != self.generation {
            return Err(io::Error::other("the machine crashed since this file was opened"));
        }
        Ok(&mut self.files[handle.id])
    }

    /// How much of a write of `length` bytes at `position` of a file that is `size` long finds room. What lies in the
    /// file has its room already.
    fn take_room(&mut self, position: u64, length: usize, size: usize) -> usize {
        let Some(room) = &mut self.room else { return length };
        let more = (position + length as u64).saturating_sub(size as u64);
        let granted = more.min(*room);
        *room -= granted;
        length.saturating_sub((more - granted) as usize)
    }
}

impl Storage for MemoryStorage {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let state = lock(&self.state);
        state.file_at(path).map(|id| self.handle(&state, id))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = lock(&self.state);
        state.lives()?;
        let entry = state.entry(path)?;
        if state.room == Some(0) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let id = state.files.len();
        state.files.push(FileState::default());
        state.set(entry, Some(Node::File(id)));
        Ok(self.handle(&state, id))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = lock(&self.state);
        let folder = state.dir_at(dir)?;
        Ok(state.folders[folder].live.keys().cloned().collect())
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.lives()?;
        let mut folder = 0;
        for name in names(dir) {
            folder = match state.folders[folder].live.get(&name) {
                Some(Node::Dir(below)) => *below,
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    let below = state.folders.len();
                    state.folders.push(Folder::default());
                    state.set((folder, name), Some(Node::Dir(below)));
                    below
                }
            };
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.lives()?;
        let folder = state.dir_at(dir)?;
        state.syncs += 1;
        let (synced, kept): (Vec<Change>, Vec<Change>) =
            std::mem::take(&mut state.changes).into_iter().partition(|change| change.folder == folder);
        state.changes = kept;
        for change in synced {
            change.apply(&mut state.folders, |folder| &mut folder.durable);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.lives()?;
        let node = state.find(from).ok_or_else(not_found)?;
        let from = state.entry(from)?;
        let (folder, name) = state.entry(to)?;
        state.make(Change { folder, name, node: Some(node), from: Some(from) });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.lives()?;
        state.file_at(path)?;
        let entry = state.entry(path)?;
        state.set(entry, None);
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.lives()?;
        let folder = state.dir_at(dir)?;
        let entry = state.entry(dir)?;
        state.clear(folder);
        state.set(entry, None);
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> Option<u64> {
        lock(&self.state).free
    }
}

impl File for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], position: u64) -> io::Result<usize> {
        let mut state = lock(&self.state);
        state.reads += 1;
        let bytes = &state.file(self)?.live;
        let start = (position as usize).min(bytes.len());
        let length = buffer.len().min(bytes.len() - start);
        buffer[..length].copy_from_slice(&bytes[start..start + length]);
        Ok(length)
    }

    fn write_at(&self, parts: &[&[u8]], position: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.lives()?;
        let size = state.file(self)?.live.len();
        let mut data = parts.concat();
        let wanted = data.len();
        let granted = state.take_room(position, wanted, size);
        data.truncate(granted);
        let file = state.file(self)?;
        let write = Pending::Write(position, data);
        write.apply(&mut file.live, None);
        file.pending.push(write);
        if granted < wanted { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.lives()?;
        state.syncs += 1;
        state.file(self)?;
        let fails = state.failing_syncs > 0;
        state.failing_syncs = state.failing_syncs.saturating_sub(1);
        let file = state.file(self)?;
        if fails {
            // As Linux does: the pages are marked clean, and the next sync would say all is well. A change of the
            // length is journaled, and so not lost with them.
            file.pending.retain(|operation| matches!(operation, Pending::Truncate(_)));
            return Err(io::Error::other("input/output error"));
        }
        let pending = std::mem::take(&mut file.pending);
        pending.iter().for_each(|operation| operation.apply(&mut file.durable, None));
        Ok(())
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.lives()?;
        let file = state.file(self)?;
        let cut = Pending::Truncate(length);
        cut.apply(&mut file.live, None);
        file.pending.push(cut);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let mut state = lock(&self.state);
        state.file(self).map(|file| file.live.len() as u64)
    }
}
