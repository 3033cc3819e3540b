//! Producer ids, handed out from blocks that the cluster gives this broker (KIP-730).

use std::time::Duration;

use bus_metadata::{Applied, Command, ProposeError};
use bus_protocol::{ErrorCode, WireError};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::node::Node;
use crate::refusal::Refusal as _;

/// How long a block may take: over the election of another controller.
const ALLOCATE: Duration = Duration::from_secs(5);

/// How long until it is asked for again.
const AGAIN: Duration = Duration::from_millis(20);

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
        match allocate(node).await? {
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

/// Takes a block. Whether one was taken by an attempt whose answer was lost makes no difference: ids are not scarce.
async fn allocate(node: &Node) -> Result<Applied, WireError> {
    let deadline = Instant::now() + ALLOCATE;
    loop {
        let command = Command::AllocateProducerIds { node: node.id, epoch: node.epoch() };
        match node.metadata.propose(command).await {
            Err(
                ProposeError::TimedOut(_)
                | ProposeError::NotLeader { .. }
                | ProposeError::NoMajority { .. }
                | ProposeError::Busy,
            ) if Instant::now() < deadline => {
                tracing::debug!("a block of producer ids is asked for again");
                if node.pause(AGAIN).await.is_err() {
                    return Err(WireError::new(ErrorCode::ShuttingDown, "the broker is stopping"));
                }
            }
            answered => return answered.map_err(|error| error.refusal()),
        }
    }
}
