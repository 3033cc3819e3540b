//! The way of a batch into a partition, the same for producers and for functions that emit.

use bus_function::ChainError;
use bus_protocol::batch::{Compression, RecordBatch};
use bus_protocol::produce::Acks;
use bus_protocol::{ErrorCode, WireError};
use bus_replica::{Lane, Partition, Ticket};

use crate::refusal::{self, Refusal as _};
use crate::topics::Topic;

/// Why a batch was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// By a transform of the topic.
    Transform(WireError, ChainError),
    /// By anything else.
    Other(WireError),
}

impl From<Refused> for WireError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Transform(error, _) | Refused::Other(error) => error,
        }
    }
}

impl From<WireError> for Refused {
    fn from(error: WireError) -> Self {
        Self::Other(error)
    }
}

/// Checks a batch, sends it through the topic's transforms and orders it: what is called first is stored first.
/// The ticket resolves at the commit.
pub(crate) async fn ingest(
    topic: &Topic,
    partition: &Partition,
    batch: RecordBatch,
    acks: Acks,
    lane: &Lane,
) -> Result<Ticket, WireError> {
    try_ingest(topic, partition, batch, acks, lane).await.map_err(WireError::from)
}

/// As [`ingest`], and tells a transform's refusals apart from others.
pub(crate) async fn try_ingest(
    topic: &Topic,
    partition: &Partition,
    batch: RecordBatch,
    acks: Acks,
    lane: &Lane,
) -> Result<Ticket, Refused> {
    let (limit, compression) = {
        let config = topic.config.load();
        (config.max_message_bytes as usize, config.compression_type)
    };
    let batch = check(topic, batch, limit).await?;
    // A deployment is answered once no batch is on its way past the chain that it replaced.
    let _passing = topic.passing.read().await;
    let transformed = transform(topic, partition, batch).await?;
    let stored = match compression {
        Some(wanted) if wanted != transformed.header().compression() => {
            transformed.recompressed(wanted).map_err(|error| error.refusal())?
        }
        _ => transformed,
    };
    // What a transform made of it must fit too.
    check_size(topic, stored.bytes().len(), limit)?;
    partition.append(stored, acks, lane).await.map_err(|error| error.refusal().into())
}

async fn check(topic: &Topic, batch: RecordBatch, limit: usize) -> Result<RecordBatch, WireError> {
    check_size(topic, batch.bytes().len(), limit)?;
    let header = *batch.header();
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
    if header.compression() == Compression::None {
        return batch.validate().map(|()| batch).map_err(|error| error.refusal());
    }
    // What is small on the wire may be large: the network's threads do not wait for it.
    let checked = tokio::task::spawn_blocking(move || batch.validate().map(|()| batch)).await;
    checked
        .map_err(|error| WireError::new(ErrorCode::Internal, error.to_string()))?
        .map_err(|error| error.refusal())
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

async fn transform(topic: &Topic, partition: &Partition, batch: RecordBatch) -> Result<RecordBatch, Refused> {
    let chain = topic.chain.load_full();
    match &*chain {
        Ok(chain) if chain.is_empty() => Ok(batch),
        Ok(chain) => chain
            .transform(&topic.name, partition.number(), batch)
            .await
            .map(|transformed| transformed.batch)
            .map_err(|failed| Refused::Transform(refusal::transform(&topic.name, failed.clone()), failed)),
        Err(why) => Err(WireError::new(ErrorCode::FunctionFailed, why.clone()).into()),
    }
}
