//! A fetch stream: committed batches go out as long as the reader gives credit.

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::fetch::{FetchCredit, FetchOpen, FetchPush};
use bus_protocol::{ErrorCode, Offset, WireError, limits};
use bus_replica::{AppendError, Committed, Partition};
use bus_transport::{RecvStream, SendStream};
use bytes::Bytes;
use tokio::sync::watch;

use crate::feed::Feed;
use crate::node::Node;
use crate::refusal::Refusal as _;
use crate::topics::Topic;

/// How long a new leader may take to learn what is committed before a reader is told to come again.
const SETTLES: Duration = Duration::from_secs(5);

pub(crate) async fn serve(
    node: &Arc<Node>,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), bus_transport::Error> {
    let Some((open, _)) = recv.read_frame_within::<FetchOpen>(0).await? else { return Ok(()) };
    let (topic, partition, led) = match open_partition(node, &open).await {
        Ok(partition) => partition,
        Err(refused) => return refuse(&mut send, refused).await,
    };
    // Credit granted and used, both since the stream opened: neither side can make the difference wrap.
    let (grant, granted) = watch::channel(open.credit);
    tokio::select! {
        ended = take_credit(&mut recv, &grant) => ended,
        ended = push(node, (&topic, &partition, led), open.from, &mut send, granted) => ended,
    }
}

async fn open_partition(
    node: &Node,
    open: &FetchOpen,
) -> Result<(Arc<Topic>, Partition, Committed), WireError> {
    let topic = node.topics.get(&open.topic)?;
    topic.is_meant(open.id)?;
    let partition = topic.partition(open.partition)?;
    let mut led = leads(&partition)?;
    // What an earlier leader called committed may not be known as such here yet.
    if open.from > led.high_watermark {
        led = settled(&partition).await?;
    }
    let (start, end) = (partition.reader().log_start(), led.high_watermark);
    if open.from < start || open.from > end {
        return Err(WireError::new(
            ErrorCode::OffsetOutOfRange,
            format!(
                "offset {} of {}-{} is out of range: it holds {start} to {end}",
                open.from, open.topic, open.partition
            ),
        ));
    }
    Ok((topic, partition, led))
}

fn leads(partition: &Partition) -> Result<Committed, WireError> {
    let led = partition.committed();
    if led.leads { Ok(led) } else { Err(AppendError::NotLeader.refusal()) }
}

/// Waits until the partition's high watermark covers all that earlier leaders may have told (KIP-207).
pub(crate) async fn settled(partition: &Partition) -> Result<Committed, WireError> {
    let epoch = leads(partition)?.epoch;
    let mut moved = partition.watch();
    let settles = moved.wait_for(|now| now.settled || !now.leads || now.epoch != epoch);
    match tokio::time::timeout(SETTLES, settles).await {
        Ok(Ok(now)) if now.settled => Ok(*now),
        Ok(_) => Err(AppendError::NotLeader.refusal()),
        Err(_) => Err(WireError::new(
            ErrorCode::Busy,
            "too few replicas are in sync to know what is committed: try again when more brokers are up",
        )),
    }
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
    (topic, partition, led): (&Topic, &Partition, Committed),
    mut from: Offset,
    send: &mut SendStream,
    mut granted: watch::Receiver<u64>,
) -> Result<(), bus_transport::Error> {
    let (mut used, mut feed) = (0u64, Feed::default());
    let mut moved = partition.watch();
    loop {
        let Ok(credit) = granted.wait_for(|granted| *granted > used).await.map(|granted| *granted - used)
        else {
            return Ok(());
        };
        let led_on = |now: &Committed| now.leads && now.epoch == led.epoch;
        let more = moved.wait_for(|now| now.high_watermark > from || !led_on(now)).await.map(|now| *now);
        let Some(high_watermark) = more.ok().filter(led_on).map(|now| now.high_watermark) else {
            let refused = topic.with_leader(partition.number(), AppendError::NotLeader.refusal());
            return refuse(send, refused).await;
        };
        let most = usize::try_from(credit).unwrap_or(usize::MAX).min(limits::FETCH_PUSH_BYTES);
        let more = credit >= 2 * limits::FETCH_PUSH_BYTES as u64;
        let read = match feed.next(node, partition, from, (most, more), high_watermark).await {
            Ok(read) => read,
            Err(error) => {
                return refuse(send, node.moved_on(topic.id, partition.number(), error.refusal())).await;
            }
        };
        let bytes: usize = read.chunks.iter().map(Bytes::len).sum();
        send.write_frame(&FetchPush::Batches { high_watermark }, &read.chunks).await?;
        used += bytes as u64;
        from = read.next_offset;
        node.metrics.fetched_bytes.increment(bytes as u64);
    }
}

async fn refuse(send: &mut SendStream, refused: WireError) -> Result<(), bus_transport::Error> {
    send.write_frame(&FetchPush::Error(refused), &[]).await?;
    send.finish()
}
