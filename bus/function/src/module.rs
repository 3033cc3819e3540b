//! Modules: where a component's bytes come from, and the component once it is compiled.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus_protocol::BlobId;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::engine::Engine;
use crate::failure::{Failure, FailureKind};
use crate::inspect::Loaded;

/// Where a module's bytes are. They are asked for again whenever the component was idle for long enough to be
/// dropped, so an implementation holds no bytes, and `load` takes no more than a read of a file.
pub trait ModuleSource: Send + Sync + 'static {
    /// The bytes' content address.
    fn id(&self) -> BlobId;
    /// The bytes. Called off the async runtime; may block. Checked against [`ModuleSource::id`].
    fn load(&self) -> std::io::Result<Bytes>;
}

/// The content address of `bytes`: their SHA-256.
pub fn blob_id(bytes: &[u8]) -> BlobId {
    BlobId(Sha256::digest(bytes).into())
}

/// A module in a file.
#[derive(Clone, Debug)]
pub struct FileModule {
    id: BlobId,
    path: PathBuf,
}

impl FileModule {
    /// The module `id`, whose bytes are in the file at `path`.
    pub fn new(id: BlobId, path: impl Into<PathBuf>) -> Self {
        Self { id, path: path.into() }
    }
}

impl ModuleSource for FileModule {
    fn id(&self) -> BlobId {
        self.id
    }
    fn load(&self) -> std::io::Result<Bytes> {
        std::fs::read(&self.path).map(Bytes::from)
    }
}

/// A module in memory, for tests and for `bus function test`.
#[derive(Clone, Debug)]
pub struct MemoryModule {
    id: BlobId,
    bytes: Bytes,
}

impl MemoryModule {
    /// The module of these bytes.
    pub fn new(bytes: Bytes) -> Self {
        Self { id: blob_id(&bytes), bytes }
    }
}

impl ModuleSource for MemoryModule {
    fn id(&self) -> BlobId {
        self.id
    }
    fn load(&self) -> std::io::Result<Bytes> {
        Ok(self.bytes.clone())
    }
}

/// A module and, while it is in use, its compiled component. Shared by all functions of the same bytes.
pub(crate) struct Module {
    source: Arc<dyn ModuleSource>,
    loaded: Mutex<Option<(Arc<Loaded>, Duration)>>,
}

impl Module {
    pub(crate) fn new(source: Arc<dyn ModuleSource>) -> Self {
        Self { source, loaded: Mutex::new(None) }
    }

    pub(crate) fn id(&self) -> BlobId {
        self.source.id()
    }

    /// The compiled component; read and compiled (or taken from the compile cache) where it is not there.
    pub(crate) fn loaded(&self, engine: &Engine, now: Duration) -> Result<Arc<Loaded>, Failure> {
        // The lock is held while compiling: others that want the same component have nothing better to do.
        let mut slot = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((loaded, used)) = slot.as_mut() {
            *used = now;
            return Ok(loaded.clone());
        }
        let refuse = |why: String| Failure::new(FailureKind::Instantiate, why);
        let id = self.id();
        let bytes =
            self.source.load().map_err(|error| refuse(format!("cannot read module {id}: {error}")))?;
        if blob_id(&bytes) != id {
            return Err(refuse(format!(
                "module {id} is damaged: its bytes have another SHA-256; deploy it again"
            )));
        }
        let loaded = Loaded::new(engine, &bytes).map_err(|error| refuse(error.to_string()))?;
        let loaded = Arc::new(loaded);
        *slot = Some((loaded.clone(), now));
        Ok(loaded)
    }

    /// Drops the component if nobody asked for it since `before`. Instances keep what they need of it.
    pub(crate) fn drop_idle(&self, before: Duration) {
        let mut slot = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|(_, used)| *used <= before) {
            *slot = None;
        }
    }

    /// Whether the component is in memory.
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}
