//! Modules on several brokers: stored on others before a deployment is answered, fetched from others where missing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bus_protocol::request::{Request, Response};
use bus_protocol::{BlobId, ErrorCode, NodeId, WireError};
use bytes::Bytes;
use tokio::sync::watch;

use crate::node::Node;

/// Brokers beside this one that keep a module before its deployment is answered: it outlives the loss of any one.
const COPIES: usize = 2;
/// How long until brokers that did not have a module are asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// The modules that functions need and this node lacks.
pub(crate) struct Modules {
    missing: watch::Sender<BTreeSet<BlobId>>,
}

impl Default for Modules {
    fn default() -> Self {
        Self { missing: watch::channel(BTreeSet::new()).0 }
    }
}

impl Modules {
    /// Looks for what is missing here; for the reconciler, before it loads functions.
    pub(crate) fn look(&self, node: &Node) {
        let image = node.metadata.image();
        let missing: BTreeSet<BlobId> =
            image.modules().into_iter().filter(|module| !node.blobs.path(*module).exists()).collect();
        self.missing.send_if_modified(|before| std::mem::replace(before, missing.clone()) != missing);
    }

    /// Whether a module is on its way here.
    pub(crate) fn is_missing(&self, module: BlobId) -> bool {
        self.missing.borrow().contains(&module)
    }

    /// Waits until nothing is missing.
    pub(crate) async fn complete(&self) {
        // The sender lives as long as the node.
        drop(self.missing.subscribe().wait_for(BTreeSet::is_empty).await);
    }
}

/// Puts a module on other brokers. At least one must keep it, where there is another at all.
pub(crate) async fn spread(node: &Node, component: &Bytes) -> Result<(), WireError> {
    let others = others(node);
    let (mut kept, mut last) = (0, None);
    for (other, address) in &others {
        if kept == COPIES {
            break;
        }
        match node.peers.request((*other, address), &Request::StoreModule, component.clone()).await {
            Ok(_) => kept += 1,
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) if kept == 0 => {
            let message = format!("no other broker took a copy of the module: {}", error.message);
            Err(WireError::new(ErrorCode::Busy, message))
        }
        _ => Ok(()),
    }
}

/// Fetches what is missing, until the broker stops.
pub(crate) async fn fetch(node: Arc<Node>) {
    let mut missing = node.modules.missing.subscribe();
    loop {
        let wanted = missing.borrow_and_update().clone();
        let mut failed = false;
        for module in wanted {
            match fetch_one(&node, module).await {
                Ok(()) => tracing::info!(%module, "module fetched"),
                Err(why) => {
                    failed = true;
                    tracing::warn!(%module, why, "a module is missing: functions that need it wait");
                }
            }
        }
        node.modules.look(&node);
        node.nudge.notify_one();
        let stopping = node.stopping();
        tokio::select! {
            changed = missing.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if failed => {}
            () = stopping => return,
        }
    }
}

async fn fetch_one(node: &Node, module: BlobId) -> Result<(), String> {
    let mut why = "there is no other broker to ask".to_owned();
    for (other, address) in others(node) {
        match node.peers.request((other, &address), &Request::FetchModule { module }, Bytes::new()).await {
            Ok((Response::Module, bytes)) => {
                let blobs = node.blobs.clone();
                let stored = node.blocking(move || blobs.put(&bytes)).await;
                match stored {
                    Ok(found) if found == module => return Ok(()),
                    Ok(_) => why = format!("node {other} sent another module"),
                    Err(error) => return Err(error.message),
                }
            }
            Ok(_) => why = format!("node {other} answered something else"),
            Err(error) => why = error.message,
        }
    }
    Err(why)
}

fn others(node: &Node) -> Vec<(NodeId, String)> {
    let image = node.metadata.image();
    let up = image.brokers().filter(|broker| broker.node != node.id && !broker.fenced);
    up.map(|broker| (broker.node, broker.address.clone())).collect()
}
