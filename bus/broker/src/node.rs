//! What every part of a running broker shares.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bus_metadata::{Applied, Command, Metadata};
use bus_protocol::{Clock, ErrorCode, NodeId, WireError};
use tokio::sync::{Semaphore, watch};

use crate::blobs::Blobs;
use crate::data_dir::DataDir;
use crate::functions::Functions;
use crate::groups::Groups;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::refusal::Refusal as _;
use crate::topics::Topics;

/// A running broker's parts. Handlers hold it by `Arc`; what changes in it changes behind locks of its own.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) options: Options,
    pub(crate) data: DataDir,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metadata: Metadata,
    pub(crate) topics: Topics,
    pub(crate) functions: Functions,
    pub(crate) groups: Groups,
    pub(crate) blobs: Blobs,
    pub(crate) metrics: Metrics,
    /// Where partitions run; they block on the disk.
    pub(crate) runtime: bus_replica::Runtime,
    /// What all logs of this node share.
    pub(crate) logs: bus_log::Env,
    /// The index of the image that this node runs: everything it asks for is started, or said to be offline.
    pub(crate) reconciled: watch::Sender<u64>,
    /// A place for each module that is taken in and compiled at once.
    pub(crate) uploads: Semaphore,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) ready: AtomicBool,
}

impl Node {
    /// Changes the metadata; when it returns, this node runs what the change asks for.
    pub(crate) async fn change(&self, command: Command) -> Result<Applied, WireError> {
        let applied = self.metadata.propose(command).await.map_err(|error| error.refusal())?;
        let index = self.metadata.image().index();
        let mut reconciled = self.reconciled.subscribe();
        match reconciled.wait_for(|running| *running >= index).await {
            Ok(_) => Ok(applied),
            Err(_) => Err(WireError::new(ErrorCode::ShuttingDown, "the broker is stopping")),
        }
    }

    /// Runs something that waits for the disk, on a thread that may.
    pub(crate) async fn blocking<T: Send + 'static, E: crate::refusal::Refusal + Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, WireError> {
        match self.runtime.disk.spawn_blocking(work).await {
            Ok(done) => done.map_err(|error| error.refusal()),
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(WireError::new(ErrorCode::ShuttingDown, "the broker is stopping")),
            },
        }
    }

    /// Whether clients are served.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Resolves when the broker begins to stop.
    pub(crate) fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stop = self.stop.subscribe();
        async move {
            // A sender that is gone has stopped too.
            drop(stop.wait_for(|stop| *stop).await);
        }
    }
}
