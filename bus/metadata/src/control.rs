//! What a node does by itself while it leads the group.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::node::Core;
use crate::{Command, MetadataImage, controller};

/// Fences who is silent, does what the controller decides, and has as many nodes vote as there should be.
pub(crate) async fn control(core: Arc<Core>) {
    let (mut image, mut leader) = (core.image.clone(), core.leader.clone());
    let mut ticks = interval(core.options.broker_heartbeat());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut led_since = None;
    let mut settled: Option<Arc<MetadataImage>> = None;
    let mut promotion: Option<JoinHandle<()>> = None;
    loop {
        let leads = *leader.borrow_and_update() == Some(core.node());
        let now = image.borrow_and_update().clone();
        if leads {
            let led_since = *led_since.get_or_insert_with(Instant::now);
            let seen = settled.as_ref().is_some_and(|then| then.same_topics(&now) && then.same_brokers(&now));
            let command = core.silent(&now, led_since).or_else(|| {
                let decided = if seen { None } else { controller::decide(&now) };
                if decided.is_none() {
                    settled = Some(now.clone());
                }
                decided
            });
            if let Some(command) = command {
                let proposed = tokio::select! {
                    proposed = core.propose_as_leader(command) => proposed,
                    // Whoever leads next decides anew.
                    _ = leader.changed() => continue,
                };
                match proposed {
                    // The image has moved, and is looked at again.
                    Ok((_, Ok(_))) => continue,
                    Ok((_, Err(rejected))) => {
                        tracing::debug!(%rejected, "the controller's command was refused")
                    }
                    Err(error) => tracing::debug!(%error, "the controller's command was not applied"),
                }
            }
            if promotion.as_ref().is_none_or(JoinHandle::is_finished) && core.wants_voters(&now) {
                promotion = Some(tokio::spawn(Arc::clone(&core).promote()));
            }
        } else {
            (settled, led_since) = (None, None);
        }
        tokio::select! {
            changed = image.changed() => if changed.is_err() { return },
            changed = leader.changed() => if changed.is_err() { return },
            _ = ticks.tick(), if leads => {}
        }
    }
}

impl Core {
    /// Fences a broker that has been silent for too long. A leader that has no majority itself says nothing.
    fn silent(&self, image: &MetadataImage, led_since: Instant) -> Option<Command> {
        if self.quorum_ago().is_none_or(|ago| ago >= self.options.session_timeout()) {
            return None;
        }
        let (liveness, now) = (self.liveness(), Instant::now());
        let silent = image.brokers().find(|broker| {
            !broker.fenced
                && broker.node != self.node()
                && liveness.is_silent(broker.node, broker.epoch, led_since, now)
        })?;
        tracing::warn!(broker = silent.node, "a broker is silent and is fenced");
        Some(Command::FenceBroker { node: silent.node, epoch: silent.epoch })
    }
}
