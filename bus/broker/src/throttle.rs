//! How fast records may go to replicas that a reassignment adds, so that producers do not wait for them.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bus_protocol::replicate::ReplicateOpen;

use crate::node::Node;
use crate::topics::Topic;

/// The longest that one push waits.
const LONGEST: Duration = Duration::from_secs(5);

/// One bucket for all that this node sends to new replicas: the cluster's throttle, in bytes a second, flows in.
#[derive(Default)]
pub(crate) struct Throttle {
    /// Until when what has passed has used up the throttle.
    busy_until: Mutex<Duration>,
}

impl Throttle {
    /// Waits until `bytes` may go to the follower that opened with `open`. Those in sync, and replicas that are not
    /// being moved, wait for nobody.
    pub(crate) async fn pass(&self, node: &Node, topic: &Topic, open: &ReplicateOpen, bytes: usize) {
        let image = node.metadata.image();
        let Some(rate) = image.replication_throttle().filter(|rate| *rate > 0) else { return };
        let partition = image.topic(&topic.name).and_then(|topic| topic.partition(open.partition).cloned());
        let moving = partition.is_some_and(|partition| {
            let target = partition.target.as_ref();
            target.is_some_and(|target| target.contains(&open.node)) && !partition.isr.contains(&open.node)
        });
        if !moving {
            return;
        }
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let wait = {
            let now = node.clock.monotonic();
            let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
            // A throttle that is raised again must be felt soon: no more is owed than this.
            let begin = now.max((*busy_until).min(now + LONGEST));
            *busy_until = begin + cost;
            begin - now
        };
        tokio::time::sleep(wait).await;
    }
}
