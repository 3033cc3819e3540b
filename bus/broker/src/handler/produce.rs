//! A produce stream: batches come in, answers go out, in order.
//!
//! ```text
//!   reader: frame -> ingest (validate, transform, order) ──ticket──▶ bounded queue ──▶ writer: commit -> answer
//! ```
//!
//! Both halves are one task: an answer needs no wake-up of another. The queue's bound is what a stream may have
//! under way; a full one stops the reading, and QUIC's flow control stops the producer.

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::batch::RecordBatch;
use bus_protocol::produce::{Acks, ProduceAnswer, ProduceOpen, ProduceOpened};
use bus_protocol::{ErrorCode, PartitionId, WireError, limits};
use bus_replica::{Lane, Partition, Ticket};
use bus_transport::{RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::ingest::{ingest, too_large};
use crate::node::Node;
use crate::refusal::Refusal as _;
use crate::server::room_for_frame;
use crate::topics::Topic;

/// How long a batch may take to arrive, once it has begun to.
const ARRIVES_WITHIN: Duration = Duration::from_secs(limits::REQUEST_SECONDS);

/// A batch on its way: refused already, or ordered.
struct Underway {
    ticket: Result<Ticket, WireError>,
    since: Duration,
    records: u64,
    bytes: u64,
}

pub(crate) async fn serve(
    node: &Arc<Node>,
    room: &Semaphore,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), bus_transport::Error> {
    let Some((open, _)) = recv.read_frame_within::<ProduceOpen>(0).await? else { return Ok(()) };
    let opened = open_partition(node, &open);
    let answer = opened
        .as_ref()
        .map(|(topic, ..)| ProduceOpened { max_message_bytes: topic.config.load().max_message_bytes });
    send.write_frame(&answer, &[]).await?;
    let Ok((topic, partition, lane)) = opened else { return send.finish() };
    let (queue, underway) = mpsc::channel(limits::PRODUCE_BATCHES_IN_FLIGHT);
    let (read, written) = tokio::join!(
        read_batches(node, room, (&topic, &partition, &lane), open.acks, recv, queue),
        write_answers(node, (&topic, partition.number()), open.acks, send, underway),
    );
    read.and(written)
}

fn open_partition(node: &Node, open: &ProduceOpen) -> Result<(Arc<Topic>, Partition, Lane), WireError> {
    if open.topic.is_internal() {
        return Err(WireError::new(
            ErrorCode::Unauthorized,
            format!("topic {} is the cluster's own: it can be read, not written", open.topic),
        ));
    }
    let topic = node.topics.get(&open.topic)?;
    topic.is_meant(open.id)?;
    let partition = topic.partition(open.partition);
    let partition = partition.map_err(|refused| node.moved_on(topic.id, open.partition, refused))?;
    let lane = partition.lane().map_err(|error| error.refusal())?;
    Ok((topic, partition, lane))
}

async fn read_batches(
    node: &Node,
    room: &Semaphore,
    (topic, partition, lane): (&Topic, &Partition, &Lane),
    acks: Acks,
    mut recv: RecvStream,
    queue: mpsc::Sender<Underway>,
) -> Result<(), bus_transport::Error> {
    while let Some(room) = room_for_frame(room, &mut recv).await? {
        let limit = topic.config.load().max_message_bytes as usize;
        // One that never comes to its end must not keep the room that it has for ever.
        let Ok(frame) = timeout(ARRIVES_WITHIN, recv.read_frame_within::<()>(limit)).await else {
            recv.stop(ErrorCode::TimedOut as u32);
            return Ok(());
        };
        let since = node.clock.monotonic();
        let (ticket, records, bytes) = match frame {
            Ok(Some(((), payload))) => {
                let bytes = payload.len() as u64;
                match RecordBatch::parse(payload) {
                    Ok(batch) => {
                        let records = u64::from(batch.header().record_count.unsigned_abs());
                        (ingest(topic, partition, batch, acks, lane).await, records, bytes)
                    }
                    Err(error) => (Err(error.refusal()), 0, bytes),
                }
            }
            Ok(None) => return Ok(()),
            // The transport passes over it: the next batch can be read.
            Err(bus_transport::Error::PayloadTooLarge { bytes, .. }) => {
                (Err(too_large(topic, bytes, limit)), 0, bytes as u64)
            }
            Err(error) => return Err(error),
        };
        // What may be sent again ends the stream: the client sends again from here on, and what it sent behind this
        // batch must not be stored before it.
        let ends = ticket.as_ref().is_err_and(|refused| refused.code.is_retriable());
        let queued = queue.send(Underway { ticket, since, records, bytes }).await;
        if ends || queued.is_err() {
            recv.stop(0);
            return Ok(());
        }
        drop(room);
    }
    Ok(())
}

async fn write_answers(
    node: &Node,
    (topic, partition): (&Topic, PartitionId),
    acks: Acks,
    mut send: SendStream,
    mut underway: mpsc::Receiver<Underway>,
) -> Result<(), bus_transport::Error> {
    while let Some(Underway { ticket, since, records, bytes }) = underway.recv().await {
        let answer: ProduceAnswer = match ticket {
            Ok(ticket) => ticket.await.map_err(|error| error.refusal()),
            Err(refused) => Err(refused),
        };
        let answer = answer
            .map_err(|refused| topic.with_leader(partition, node.moved_on(topic.id, partition, refused)));
        match &answer {
            Ok(_) => {
                let now = node.clock.monotonic();
                node.awaited.served(now);
                node.metrics.produced_batches.increment(1);
                node.metrics.produced_records.increment(records);
                node.metrics.produced_bytes.increment(bytes);
                node.metrics.produce_seconds.record((now - since).as_secs_f64());
            }
            Err(refused) => {
                node.metrics.refused_batches.increment(1);
                tracing::debug!(code = ?refused.code, error = %refused, "batch refused");
            }
        }
        if acks != Acks::None || answer.is_err() {
            send.write_frame(&answer, &[]).await?;
        }
        let again = answer.as_ref().is_err_and(|refused| refused.code.is_retriable());
        if again || (acks == Acks::None && answer.is_err()) {
            break;
        }
    }
    send.finish()
}
