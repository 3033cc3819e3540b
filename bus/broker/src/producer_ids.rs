//! Producer ids, handed out from blocks that the cluster gives this broker (KIP-730).

use bus_metadata::{Applied, Command};
use bus_protocol::{ErrorCode, WireError};
use tokio::sync::Mutex;

use crate::node::Node;
use crate::refusal::Refusal as _;

/// The rest of the block that this broker has; what is left of it at a restart is never used.
#[derive(Default)]
pub(crate) struct ProducerIds {
    rest: Mutex<std::ops::Range<i64>>,
}

impl ProducerIds {
    /// An id that nobody else has had or will have.
    pub(crate) async fn next(&self, node: &Node) -> Result<i64, WireError> {
        // Held while a block is fetched: those who wait want ids of the same one.
        let mut rest = self.rest.lock().await;
        if let Some(id) = rest.next() {
            return Ok(id);
        }
        let command = Command::AllocateProducerIds { node: node.id, epoch: node.epoch() };
        match node.metadata.propose(command).await.map_err(|error| error.refusal())? {
            Applied::ProducerIds { first, count } => {
                *rest = first..first.saturating_add_unsigned(count);
                rest.next().ok_or_else(|| WireError::new(ErrorCode::Internal, "a block of no producer ids"))
            }
            other => {
                Err(WireError::new(ErrorCode::Internal, format!("producer ids were answered with {other:?}")))
            }
        }
    }
}
