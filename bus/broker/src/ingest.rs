//! The way of a batch into a partition, the same for producers and for functions that emit.

use bus_protocol::batch::RecordBatch;
use bus_protocol::produce::Acks;
use bus_protocol::{ErrorCode, WireError};
use bus_replica::{Partition, Ticket};

use crate::refusal::{self, Refusal as _};
use crate::topics::Topic;

/// Checks a batch, sends it through the topic's transforms and orders it: what is called first is stored first.
/// The ticket resolves at the commit.
pub(crate) async fn ingest(
    topic: &Topic,
    partition: &Partition,
    batch: RecordBatch,
    acks: Acks,
) -> Result<Ticket, WireError> {
    let (limit, compression) = {
        let config = topic.config.load();
        (config.max_message_bytes as usize, config.compression_type)
    };
    check(topic, &batch, limit)?;
    let transformed = transform(topic, partition, batch).await?;
    let stored = match compression {
        Some(wanted) if wanted != transformed.header().compression() => {
            transformed.recompressed(wanted).map_err(|error| error.refusal())?
        }
        _ => transformed,
    };
    // What a transform made of it must fit too.
    check_size(topic, stored.bytes().len(), limit)?;
    partition.append(stored, acks).await.map_err(|error| error.refusal())
}

fn check(topic: &Topic, batch: &RecordBatch, limit: usize) -> Result<(), WireError> {
    check_size(topic, batch.bytes().len(), limit)?;
    batch.validate().map_err(|error| error.refusal())?;
    let header = batch.header();
    if !header.is_dense() {
        return Err(WireError::new(
            ErrorCode::CorruptBatch,
            "the batch has gaps between its records: a producer numbers them without",
        ));
    }
    if header.is_control() || header.is_transactional() {
        return Err(WireError::new(
            ErrorCode::InvalidRequest,
            "control and transactional batches are not taken from producers",
        ));
    }
    Ok(())
}

fn check_size(topic: &Topic, bytes: usize, limit: usize) -> Result<(), WireError> {
    if bytes <= limit { Ok(()) } else { Err(too_large(topic, bytes, limit)) }
}

/// The refusal of a batch over the topic's limit.
pub(crate) fn too_large(topic: &Topic, bytes: usize, limit: usize) -> WireError {
    WireError::new(
        ErrorCode::MessageTooLarge,
        format!(
            "a batch of {bytes} bytes is over the limit of {limit} of topic {}: raise its max.message.bytes, or send less at once",
            topic.name
        ),
    )
}

async fn transform(
    topic: &Topic,
    partition: &Partition,
    batch: RecordBatch,
) -> Result<RecordBatch, WireError> {
    let chain = topic.chain.load_full();
    match &*chain {
        Ok(chain) if chain.is_empty() => Ok(batch),
        Ok(chain) => chain
            .transform(&topic.name, partition.number(), batch)
            .await
            .map(|transformed| transformed.batch)
            .map_err(|failed| refusal::transform(&topic.name, failed)),
        Err(why) => Err(WireError::new(ErrorCode::FunctionFailed, why.clone())),
    }
}
