//! The follower's side of replication: a task for each partition that this node follows, with a stream to its leader.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bus_protocol::batch::BatchHeader;
use bus_protocol::replicate::{FollowerFrame, LeaderFrame, ReplicateOpen};
use bus_protocol::{Epoch, NodeId, PartitionId, TopicId, WireError, limits};
use bus_replica::{FollowError, Following, Partition, Role};
use bus_transport::{RecvStream, SendStream};
use tokio::task::JoinHandle;

use crate::node::Node;

/// The first and the longest pause before a stream that ended is opened again.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Numbers the streams that this process opens.
static STREAMS: AtomicU64 = AtomicU64::new(0);

/// What this node follows. The reconciler's.
#[derive(Default)]
pub(crate) struct Replication {
    tasks: HashMap<(TopicId, PartitionId), Task>,
}

struct Task {
    stay: Stay,
    running: JoinHandle<()>,
}

/// As what a replica follows. A leader counts what it is told for as long as this stays the same, and no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stay {
    /// Whom it follows.
    leader: NodeId,
    /// In which leader epoch.
    epoch: Epoch,
    /// Since which partition epoch it is held.
    since: u32,
}

impl Stay {
    /// As what the replica follows in this role; `None` where it leads itself, and where nobody does.
    pub(crate) fn of(role: &Role) -> Option<Self> {
        let leader = role.leader.filter(|leader| *leader != role.node)?;
        let since = *role.replicas.get(&role.node)?;
        Some(Self { leader, epoch: role.epoch, since })
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Replication {
    /// Ends the stream of a partition. When this returns, nothing is told to its leader any more: what the log comes to
    /// hold in another role must not be told to the leader of this one.
    pub(crate) async fn leave(&mut self, at: (TopicId, PartitionId)) {
        if let Some(mut task) = self.tasks.remove(&at) {
            task.running.abort();
            // That it was aborted is no news.
            (&mut task.running).await.ok();
        }
    }

    /// Ends the streams of all partitions of a topic, as [`Self::leave`] does.
    pub(crate) async fn leave_topic(&mut self, topic: TopicId) {
        let leaving: Vec<_> = self.tasks.keys().filter(|(id, _)| *id == topic).copied().collect();
        for at in leaving {
            self.leave(at).await;
        }
    }

    /// Whether the partition is followed so.
    pub(crate) fn follows(&self, at: (TopicId, PartitionId), stay: Stay) -> bool {
        self.tasks.get(&at).is_some_and(|task| task.stay == stay && !task.running.is_finished())
    }

    /// Follows so, until told otherwise. Whatever was followed before has been left.
    pub(crate) fn follow(
        &mut self,
        node: &Arc<Node>,
        at: (TopicId, PartitionId),
        partition: Partition,
        stay: Stay,
    ) {
        let follower = Follower { node: Arc::clone(node), at, partition, stay };
        let running = tokio::spawn(follower.run());
        self.tasks.insert(at, Task { stay, running });
    }
}

struct Follower {
    node: Arc<Node>,
    at: (TopicId, PartitionId),
    partition: Partition,
    stay: Stay,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Transport(#[from] bus_transport::Error),
    #[error("the leader refused: {0}")]
    Refused(WireError),
    #[error(transparent)]
    Follow(#[from] FollowError),
    #[error("a batch was not taken: {0}")]
    Failed(String),
    #[error("the leader ended the stream")]
    Finished,
    #[error("the leader is not in the metadata")]
    Unknown,
}

impl Follower {
    async fn run(self) {
        let mut pause = PAUSE;
        loop {
            let began = tokio::time::Instant::now();
            let ended = self.stream().await;
            let (topic, partition) = (self.node.called(self.at.0), self.at.1);
            let Stay { leader, epoch, .. } = self.stay;
            tracing::debug!(topic, partition, leader, epoch, error = %ended, "replication stream ended");
            if matches!(ended, Ended::Follow(FollowError::Stale(_) | FollowError::Closed)) {
                return;
            }
            if began.elapsed() > LONGEST_PAUSE {
                pause = PAUSE;
            }
            // Not all partitions of a leader at the same moment.
            let spread = f64::from(self.at.1 % 16) / 32.0;
            tokio::time::sleep(pause.mul_f64(0.5 + spread)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Follows over one stream, until it ends.
    async fn stream(&self) -> Ended {
        match self.begin().await {
            Ok((following, send, recv)) => {
                tokio::select! {
                    ended = take(&self.node, &following, recv) => ended,
                    ended = tell(&following, send) => ended,
                    why = following.failed() => Ended::Failed(why),
                }
            }
            Err(ended) => ended,
        }
    }

    async fn begin(&self) -> Result<(Following, SendStream, RecvStream), Ended> {
        let image = self.node.metadata.image();
        let Stay { leader, epoch, since } = self.stay;
        let address = &image.broker(leader).ok_or(Ended::Unknown)?.address;
        let following = self.partition.follow(epoch).await?;
        let (mut send, mut recv) = self.node.peers.replicate(leader, address).await?;
        let open = ReplicateOpen {
            topic: self.at.0,
            partition: self.at.1,
            node: self.node.id,
            broker_epoch: self.node.epoch(),
            since,
            stream: STREAMS.fetch_add(1, Ordering::Relaxed),
            leader_epoch: epoch,
            log: following.begin_at(),
        };
        send.write_frame(&open, &[]).await?;
        loop {
            let (frame, _) = recv.read_frame_within::<LeaderFrame>(0).await?.ok_or(Ended::Finished)?;
            if let LeaderFrame::Refused(refused) = frame {
                return Err(Ended::Refused(refused));
            }
            match following.settle(frame).await? {
                None => return Ok((following, send, recv)),
                Some(log) => send.write_frame(&FollowerFrame::Position(log), &[]).await?,
            }
        }
    }
}

/// Takes what the leader sends.
async fn take(node: &Node, following: &Following, mut recv: RecvStream) -> Ended {
    loop {
        match recv.read_frame_within::<LeaderFrame>(limits::MAX_MESSAGE_BYTES).await {
            Ok(Some((LeaderFrame::Refused(refused), _))) => return Ended::Refused(refused),
            Ok(Some((frame, payload))) => {
                if is_awaited(&frame, &payload) {
                    node.awaited.served(node.clock.monotonic());
                }
                if let Err(error) = following.replicate(frame, payload).await {
                    return error.into();
                }
            }
            Ok(None) => return Ended::Finished,
            Err(error) => return error.into(),
        }
    }
}

/// Whether a producer may wait for these batches: they were not committed when they were sent.
fn is_awaited(frame: &LeaderFrame, batches: &[u8]) -> bool {
    let LeaderFrame::Batches { high_watermark, .. } = frame else { return false };
    BatchHeader::decode(batches).is_ok_and(|first| first.base_offset >= *high_watermark)
}

/// Tells the leader what is stored, each time that it is more.
async fn tell(following: &Following, mut send: SendStream) -> Ended {
    let mut told = None;
    loop {
        match following.stored(told).await {
            Ok(end) => {
                if let Err(error) = send.write_frame(&FollowerFrame::Stored { end }, &[]).await {
                    return error.into();
                }
                told = Some(end);
            }
            Err(error) => return error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bus_protocol::batch::{BatchBuilder, Compression};

    use super::*;

    #[test]
    fn producers_wait_for_what_was_not_committed_when_it_was_sent() {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(1_000, None, Some(b"x"), &[]);
        // It begins at offset 0.
        let batch = builder.build_batch().unwrap();
        let frame = |high_watermark| LeaderFrame::Batches { high_watermark, log_start: 0 };
        assert!(is_awaited(&frame(0), batch.bytes()));
        assert!(!is_awaited(&frame(1), batch.bytes()));
        // The first of them counts: whoever catches up is sent what is committed first.
        assert!(!is_awaited(&frame(1), &[&batch.bytes()[..], batch.bytes()].concat()));
        assert!(!is_awaited(&frame(0), &[]), "a heartbeat brings nothing");
        assert!(!is_awaited(&LeaderFrame::Start, batch.bytes()));
    }
}
