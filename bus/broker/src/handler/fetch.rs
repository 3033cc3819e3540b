//! A fetch stream: committed batches go out as long as the reader gives credit.

use std::sync::Arc;

use bus_log::LogReader;
use bus_protocol::fetch::{FetchCredit, FetchOpen, FetchPush};
use bus_protocol::{ErrorCode, Offset, WireError, limits};
use bus_replica::Partition;
use bus_transport::{RecvStream, SendStream};
use bytes::Bytes;
use tokio::sync::watch;

use crate::node::Node;
use crate::refusal::Refusal as _;

pub(crate) async fn serve(
    node: &Arc<Node>,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), bus_transport::Error> {
    let Some((open, _)) = recv.read_frame_within::<FetchOpen>(0).await? else { return Ok(()) };
    let partition = match open_partition(node, &open) {
        Ok(partition) => partition,
        Err(refused) => return refuse(&mut send, refused).await,
    };
    // Credit granted and used, both since the stream opened: neither side can make the difference wrap.
    let (grant, granted) = watch::channel(open.credit);
    tokio::select! {
        ended = take_credit(&mut recv, &grant) => ended,
        ended = push(node, &partition, open.from, &mut send, granted) => ended,
    }
}

fn open_partition(node: &Node, open: &FetchOpen) -> Result<Partition, WireError> {
    let (_, partition) = node.topics.partition(&open.topic, open.partition)?;
    let (start, end) = (partition.reader().log_start(), partition.high_watermark());
    if open.from < start || open.from > end {
        return Err(WireError::new(
            ErrorCode::OffsetOutOfRange,
            format!(
                "offset {} of {}-{} is out of range: it holds {start} to {end}",
                open.from, open.topic, open.partition
            ),
        ));
    }
    Ok(partition)
}

/// Ends when the reader does.
async fn take_credit(recv: &mut RecvStream, grant: &watch::Sender<u64>) -> Result<(), bus_transport::Error> {
    while let Some((FetchCredit { bytes }, _)) = recv.read_frame_within(0).await? {
        grant.send_modify(|granted| *granted = granted.saturating_add(bytes));
    }
    Ok(())
}

async fn push(
    node: &Arc<Node>,
    partition: &Partition,
    mut from: Offset,
    send: &mut SendStream,
    mut granted: watch::Receiver<u64>,
) -> Result<(), bus_transport::Error> {
    let mut used = 0u64;
    let mut moved = partition.watch();
    loop {
        let Ok(credit) = granted.wait_for(|granted| *granted > used).await.map(|granted| *granted - used)
        else {
            return Ok(());
        };
        let Ok(high_watermark) = moved.wait_for(|high_watermark| *high_watermark > from).await.map(|hw| *hw)
        else {
            let closed = WireError::new(ErrorCode::NotLeader, "the partition is not served here any more");
            return refuse(send, closed).await;
        };
        let most = usize::try_from(credit).unwrap_or(usize::MAX).min(limits::FETCH_PUSH_BYTES);
        let read = match read(node, partition.reader(), from, most, high_watermark).await {
            Ok(read) => read,
            Err(error) => return refuse(send, error.refusal()).await,
        };
        let bytes: usize = read.chunks.iter().map(Bytes::len).sum();
        send.write_frame(&FetchPush::Batches { high_watermark }, &read.chunks).await?;
        used += bytes as u64;
        from = read.next_offset;
        node.metrics.fetched_bytes.increment(bytes as u64);
    }
}

/// Reads from memory at once, from the disk on a thread that may wait for it.
pub(crate) async fn read(
    node: &Node,
    reader: &LogReader,
    from: Offset,
    most: usize,
    below: Offset,
) -> Result<bus_log::Read, bus_log::Error> {
    if let Some(read) = reader.read_hot(from, most, below)? {
        return Ok(read);
    }
    let reader = reader.clone();
    match node.runtime.disk.spawn_blocking(move || reader.read(from, most, below)).await {
        Ok(read) => read,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(bus_log::Error::Deleted(Default::default())),
        },
    }
}

async fn refuse(send: &mut SendStream, refused: WireError) -> Result<(), bus_transport::Error> {
    send.write_frame(&FetchPush::Error(refused), &[]).await?;
    send.finish()
}
