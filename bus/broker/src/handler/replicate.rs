//! A replication stream: a follower is sent what this node's replica holds, and says what it has stored.

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::replicate::{FollowerFrame, LeaderFrame, ReplicateOpen};
use bus_protocol::{Epoch, ErrorCode, NodeId, Offset, WireError, limits};
use bus_replica::Partition;
use bus_transport::{RecvStream, SendStream};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::feed::Feed;
use crate::node::Node;
use crate::refusal::Refusal as _;
use crate::topics::Topic;

/// How often a follower may be told to cut its log before batches flow: once for each of its epochs, at most.
const ROUNDS: usize = 10_000;

/// How long what a follower is to know of the leader's state, and no batch carries, waits for one that does. Nobody reads
/// from a follower: it needs this when it comes to lead, and to drop what its leader has dropped.
const TOLD_WITHIN: Duration = Duration::from_millis(100);

/// How often is looked whether a follower that catches up gains on the producers.
const LOOKED_EVERY: Duration = Duration::from_secs(1);

/// One follower's stream. Dropped with its connection.
struct Follower {
    topic: Arc<Topic>,
    partition: Partition,
    open: ReplicateOpen,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.partition.follower_gone((self.open.node, self.open.broker_epoch), self.open.stream);
    }
}

pub(crate) async fn serve(
    node: &Arc<Node>,
    peer: NodeId,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), bus_transport::Error> {
    let Some((open, _)) = recv.read_frame_within::<ReplicateOpen>(0).await? else { return Ok(()) };
    let (topic, partition) = match find(node, peer, &open) {
        Ok(found) => found,
        Err(refused) => return refuse(&mut send, refused).await,
    };
    let mut follower = Follower { topic, partition, open };
    if !settle(&mut follower, &mut send, &mut recv).await? {
        return Ok(());
    }
    let (stored, told) = watch::channel(follower.open.log.end);
    tokio::select! {
        ended = listen(&follower, &mut recv, stored) => ended,
        ended = push(node, &follower, &mut send, told) => ended,
    }
}

fn find(node: &Node, peer: NodeId, open: &ReplicateOpen) -> Result<(Arc<Topic>, Partition), WireError> {
    if peer != open.node {
        let why = format!("the certificate is node {peer}'s, not node {}'s", open.node);
        return Err(WireError::new(ErrorCode::Unauthorized, why));
    }
    let image = node.metadata.image();
    let topic = image.topic_by_id(open.topic).ok_or_else(|| {
        WireError::new(ErrorCode::UnknownTopic, format!("there is no topic with id {}", open.topic))
    })?;
    let (running, partition) = node.topics.partition(&topic.name, open.partition)?;
    // The one that runs here may still be one of the same name that was deleted.
    if running.id != open.topic {
        return Err(WireError::new(ErrorCode::Busy, "the topic is being replaced here: try again"));
    }
    Ok((running, partition))
}

/// Finds where the logs part, and has the follower cut its own there; `false` where it was refused.
async fn settle(
    follower: &mut Follower,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<bool, bus_transport::Error> {
    for _ in 0..ROUNDS {
        let opened = follower.partition.follower_opened(follower.open.clone()).await;
        let frame = opened.unwrap_or_else(|error| LeaderFrame::Refused(error.refusal()));
        send.write_frame(&frame, &[]).await?;
        match frame {
            LeaderFrame::Start => return Ok(true),
            LeaderFrame::Refused(_) => break,
            LeaderFrame::Diverged { .. } | LeaderFrame::Reset { .. } | LeaderFrame::Batches { .. } => {}
        }
        match recv.read_frame_within::<FollowerFrame>(0).await? {
            Some((FollowerFrame::Position(log), _)) => follower.open.log = log,
            Some((FollowerFrame::Stored { .. }, _)) => {
                let early =
                    WireError::new(ErrorCode::InvalidRequest, "nothing was sent that could be stored");
                refuse(send, early).await?;
                return Ok(false);
            }
            None => break,
        }
    }
    send.finish()?;
    Ok(false)
}

/// Hears what the follower has stored.
async fn listen(
    follower: &Follower,
    recv: &mut RecvStream,
    stored: watch::Sender<Offset>,
) -> Result<(), bus_transport::Error> {
    let ReplicateOpen { node, broker_epoch, stream, leader_epoch, .. } = follower.open;
    while let Some((frame, _)) = recv.read_frame_within::<FollowerFrame>(0).await? {
        let FollowerFrame::Stored { end } = frame else { break };
        let told = follower.partition.follower_stored((node, broker_epoch), stream, leader_epoch, end);
        if told.await.is_err() {
            break;
        }
        stored.send_replace(end);
    }
    Ok(())
}

/// Sends what is appended, as it is appended, and where the high watermark is: with batches, or [`TOLD_WITHIN`] after it
/// moved.
async fn push(
    node: &Arc<Node>,
    follower: &Follower,
    send: &mut SendStream,
    mut stored: watch::Receiver<Offset>,
) -> Result<(), bus_transport::Error> {
    let Follower { topic, partition, open, .. } = follower;
    let mut ends = partition.watch_end();
    let mut commits = partition.watch();
    let mut from = open.log.end;
    let (mut feed, mut window, mut news) = (Feed::default(), Window::default(), News::new(Instant::now()));
    let mut gain = Gain::new(Instant::now(), (from, *ends.borrow()));
    loop {
        let committed = *commits.borrow_and_update();
        if !committed.leads || committed.epoch != open.leader_epoch {
            return refuse(send, stepped_down(open.leader_epoch)).await;
        }
        let end = *ends.borrow_and_update();
        window.forget(*stored.borrow_and_update());
        // What is committed already is waited for by nobody: behind more than one push of it in the follower's queue, or
        // the disk's, producers would wait.
        let gives_way = from < committed.high_watermark
            && gain.is_fair(Instant::now(), (from, end))
            && node.awaited.lately(node.clock.monotonic());
        let room = window.bytes == 0 || (!gives_way && window.bytes < limits::REPLICA_BYTES_IN_FLIGHT);
        if from < end && room {
            let read = feed.next(node, partition, from, (limits::FETCH_PUSH_BYTES, true), end).await;
            let read = match read {
                Ok(read) => read,
                Err(error) => return refuse(send, error.refusal()).await,
            };
            let bytes: usize = read.chunks.iter().map(Bytes::len).sum();
            node.catch_up.pass(node, topic, open, bytes).await;
            from = read.next_offset;
            window.sent(from, bytes);
            news.told(push_frame(node, send, partition, &read.chunks).await?);
            continue;
        }
        let due = news.due((committed.high_watermark, partition.reader().log_start()), Instant::now());
        // Whoever of them is gone: the replica was closed, or the follower left.
        let gone = tokio::select! {
            changed = ends.changed() => changed.is_err(),
            changed = commits.changed() => changed.is_err(),
            changed = stored.changed(), if !room => changed.is_err(),
            () = at(due), if due.is_some() => {
                news.told(push_frame(node, send, partition, &[]).await?);
                false
            }
        };
        if gone {
            return send.finish();
        }
    }
}

/// Sends batches, or none; gives the high watermark and the log start that went along.
async fn push_frame(
    node: &Node,
    send: &mut SendStream,
    partition: &Partition,
    chunks: &[Bytes],
) -> Result<State, bus_transport::Error> {
    let high_watermark = partition.high_watermark();
    let log_start = partition.reader().log_start();
    send.write_frame(&LeaderFrame::Batches { high_watermark, log_start }, chunks).await?;
    node.metrics.replicated_pushes.increment(1);
    node.metrics.replicated_bytes.increment(chunks.iter().map(|chunk| chunk.len() as u64).sum());
    Ok((high_watermark, log_start))
}

/// The leader's high watermark and log start.
type State = (Offset, Offset);

/// What the follower was told, and until when it is to be told more.
struct News {
    told: State,
    due: Option<Instant>,
}

impl News {
    /// One that knows nothing is told at once.
    fn new(now: Instant) -> Self {
        Self { told: (-1, -1), due: Some(now) }
    }

    fn told(&mut self, state: State) {
        *self = Self { told: state, due: None };
    }

    /// When the follower is to be told of the leader's `state` without a batch; `None` where it knows.
    fn due(&mut self, state: State, now: Instant) -> Option<Instant> {
        if state > self.told && self.due.is_none() {
            self.due = Some(now + TOLD_WITHIN);
        }
        self.due
    }
}

/// Resolves then; at once where there is no such time.
async fn at(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due).await;
    }
}

/// Whether one who catches up does so though producers write on: if they outpace it, it must not give way to them.
struct Gain {
    looked: Instant,
    from: Offset,
    end: Offset,
    fair: bool,
}

impl Gain {
    fn new(now: Instant, (from, end): (Offset, Offset)) -> Self {
        Self { looked: now, from, end, fair: true }
    }

    /// By what is sent next, and where the log ends: over the last [`LOOKED_EVERY`], whether for each four records that
    /// were sent at most three were written.
    fn is_fair(&mut self, now: Instant, (from, end): (Offset, Offset)) -> bool {
        if now - self.looked >= LOOKED_EVERY {
            let (sent, written) = (from - self.from, end - self.end);
            *self = Self { looked: now, from, end, fair: written <= sent / 4 * 3 };
        }
        self.fair
    }
}

/// What is sent and not yet stored.
#[derive(Default)]
struct Window {
    pushes: std::collections::VecDeque<(Offset, usize)>,
    bytes: usize,
}

impl Window {
    fn sent(&mut self, until: Offset, bytes: usize) {
        self.pushes.push_back((until, bytes));
        self.bytes += bytes;
    }

    fn forget(&mut self, stored: Offset) {
        while let Some((_, bytes)) = self.pushes.pop_front_if(|(until, _)| *until <= stored) {
            self.bytes -= bytes;
        }
    }
}

fn stepped_down(epoch: Epoch) -> WireError {
    WireError::new(ErrorCode::NotLeader, format!("this broker does not lead in epoch {epoch} any more"))
}

async fn refuse(send: &mut SendStream, refused: WireError) -> Result<(), bus_transport::Error> {
    send.write_frame(&LeaderFrame::Refused(refused), &[]).await?;
    send.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_batch_carries_is_told_a_little_later_and_once() {
        let began = Instant::now();
        let (soon, later) = (began + Duration::from_millis(40), began + Duration::from_millis(80));
        let mut news = News::new(began);
        assert_eq!(news.due((0, 0), began), Some(began), "one that knows nothing does not wait");
        news.told((0, 0));
        assert_eq!(news.due((0, 0), began), None);
        assert_eq!(news.due((1, 0), began), Some(began + TOLD_WITHIN));
        assert_eq!(news.due((2, 0), soon), Some(began + TOLD_WITHIN), "more news do not put it off");
        // A batch carries it.
        news.told((2, 0));
        assert_eq!(news.due((2, 0), later), None);
        assert_eq!(news.due((2, 1), later), Some(later + TOLD_WITHIN));
    }

    #[test]
    fn one_that_catches_up_gives_way_only_as_long_as_it_gains() {
        let began = Instant::now();
        let mut gain = Gain::new(began, (0, 1_000));
        assert!(gain.is_fair(began, (0, 1_000)), "at first it does");
        let after = |seconds| began + LOOKED_EVERY * seconds;
        assert!(gain.is_fair(after(1), (400, 1_300)), "400 sent, 300 written");
        assert!(!gain.is_fair(after(2), (800, 1_601)), "400 sent, 301 written");
        assert!(!gain.is_fair(after(2), (900, 1_601)), "until it is looked again");
        assert!(gain.is_fair(after(3), (1_200, 1_601)), "nothing was written");
    }
}
