//! A broker's session: its heartbeats, and how it leaves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bus_protocol::NodeId;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::messages::{Question, Reply};
use crate::node::Core;
use crate::propose::RETRY;
use crate::{Broker, Command, MetadataImage, ProposeError};

/// How long a stop waits for others to take over the partitions that this node leads, of which there may be many; and
/// how long for another to lead the group, which must not be cut short by that.
const LEAVE_PARTITIONS: Duration = Duration::from_millis(1_200);
const HAND_OVER: Duration = Duration::from_millis(800);
/// How long a step of an election may take before it is taken again.
const ELECTION_STEP: Duration = Duration::from_millis(100);

/// Tells every voter, again and again, that this node's broker is there, once it is registered.
pub(crate) async fn beat(core: Arc<Core>) {
    let mut session = core.session.subscribe();
    let registered = session.wait_for(|session| session.epoch.is_some()).await;
    let Ok(Some(epoch)) = registered.map(|session| session.epoch) else { return };
    let mut ticks = interval(core.options.broker_heartbeat());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut under_way = JoinSet::new();
    let mut asked = BTreeSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                for (node, address) in core.members().voters {
                    // One message a voter at a time: a dead one must not pile them up.
                    if asked.insert(node) {
                        let core = Arc::clone(&core);
                        under_way.spawn(async move {
                            core.tell(node, &address, epoch).await;
                            node
                        });
                    }
                }
            }
            Some(done) = under_way.join_next() => match done {
                Ok(node) => drop(asked.remove(&node)),
                // It panicked or was cancelled, and does not say for whom it was.
                Err(error) => {
                    tracing::error!(%error, "a heartbeat ended badly");
                    asked.clear();
                }
            },
        }
    }
}

impl Core {
    /// Tells a voter that this broker is there; if that leads and has fenced it, the broker says that it is up.
    async fn tell(&self, voter: NodeId, address: &str, epoch: u64) {
        let fenced = if voter == self.node() {
            let image = self.image();
            self.leads() && image.broker(voter).is_some_and(|broker| broker.epoch == epoch && broker.fenced)
        } else {
            let asked = self.peers.ask(voter, address, Question::Heartbeat { epoch });
            match timeout(self.options.session_timeout(), asked).await {
                Ok(Ok(Reply::Heard { fenced, superseded, quorum_ms })) => {
                    self.answered().hear(voter, quorum_ms.map(Duration::from_millis), Instant::now());
                    if superseded {
                        self.superseded(epoch);
                    }
                    fenced && !superseded
                }
                Ok(Ok(_)) => false,
                Ok(Err(error)) => {
                    tracing::debug!(%error, voter, "a heartbeat was not heard");
                    false
                }
                Err(_) => false,
            }
        };
        let session = *self.session.borrow();
        if fenced && session.ready && !session.leaving {
            tracing::info!("this broker was fenced, and says that it is up");
            if let Err(error) = self.propose(Command::UnfenceBroker { node: self.node(), epoch }).await {
                tracing::debug!(%error, "this broker stays fenced for now");
            }
        }
    }

    /// Says once that another has this broker's id.
    fn superseded(&self, epoch: u64) {
        let news = self.session.send_if_modified(|session| !std::mem::replace(&mut session.superseded, true));
        if news {
            tracing::error!(
                epoch,
                "this broker's node id has been registered by another since: stop one of the two"
            );
        }
    }

    pub(crate) async fn ready(&self) -> Result<(), ProposeError> {
        let node = self.node();
        let Some(epoch) = self.session.borrow().epoch else {
            return Err(crate::Rejected::UnknownBroker { node }.into());
        };
        self.session.send_modify(|session| session.ready = true);
        self.propose(Command::UnfenceBroker { node, epoch }).await.map(drop)
    }

    pub(crate) async fn leave(&self) {
        let epoch = self.session.borrow().epoch;
        self.session.send_modify(|session| session.leaving = true);
        if let Some(epoch) = epoch {
            self.say_leaving(epoch).await;
        }
        let leaving = async {
            if let Some(epoch) = epoch
                && timeout(LEAVE_PARTITIONS, self.leave_partitions(epoch)).await.is_err()
            {
                tracing::warn!(
                    "others do not lead all of this broker's partitions yet: it stops all the same"
                );
            }
            if timeout(HAND_OVER, self.hand_over()).await.is_err() {
                tracing::warn!("no other node leads the metadata group yet: this one stops all the same");
            }
        };
        tokio::select! {
            () = leaving => {}
            () = self.nobody_stays() => tracing::debug!("no other broker stays that could take over"),
        }
    }

    /// Tells all brokers that are up that this one is stopping.
    async fn say_leaving(&self, epoch: u64) {
        self.ask_others(|| Question::Leaving { epoch }).await;
    }

    /// Asks all other brokers that are up, and gives each a moment to answer.
    async fn ask_others(&self, question: impl Fn() -> Question) {
        let image = self.image();
        let mut asked = JoinSet::new();
        for broker in image.brokers().filter(|broker| broker.node != self.node() && !broker.fenced) {
            let (peers, node, address) = (self.peers.clone(), broker.node, broker.address.clone());
            let question = question();
            asked.spawn(async move { timeout(ELECTION_STEP, peers.ask(node, &address, question)).await });
        }
        while let Some(answer) = asked.join_next().await {
            if let Ok(Ok(Err(error))) = answer {
                tracing::debug!(%error, "a broker does not answer to this one, which is stopping");
            }
        }
    }

    /// Has this broker fenced, and waits until others lead what they can of its partitions, and know that they do: while
    /// the group changes its leader they would not hear of it, and would send clients back here.
    async fn leave_partitions(&self, epoch: u64) {
        loop {
            match self.propose(Command::FenceBroker { node: self.node(), epoch }).await {
                Ok(_) => break,
                Err(error @ (ProposeError::Rejected(_) | ProposeError::Stopped(_))) => {
                    tracing::warn!(%error, "the partitions of this broker were not handed over");
                    return;
                }
                // The leader may be one that stops as well; that it is said twice does no harm.
                Err(error) => tracing::debug!(%error, "this broker says again that it is stopping"),
            }
            sleep(RETRY).await;
        }
        let (mut image, node) = (self.image.clone(), self.node());
        // An error is a node that has stopped.
        let handed_over = image.wait_for(|image| !leads_what_others_could(image, node)).await;
        if let Ok(index) = handed_over.map(|image| image.index()) {
            self.ask_others(|| Question::Await { index }).await;
        }
    }

    /// Whether a broker has said that it is stopping.
    fn has_left(&self, broker: &Broker) -> bool {
        self.left.borrow().get(&broker.node) == Some(&broker.epoch)
    }

    /// Resolves once every other broker is fenced or stopping.
    async fn nobody_stays(&self) {
        let (mut left, mut image) = (self.left.subscribe(), self.image.clone());
        loop {
            left.mark_unchanged();
            let now = image.borrow_and_update().clone();
            let stays =
                |broker: &Broker| broker.node != self.node() && !broker.fenced && !self.has_left(broker);
            if !now.brokers().any(|broker| stays(broker)) {
                return;
            }
            tokio::select! {
                _ = left.changed() => {}
                changed = image.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Has another voter lead the group, if this node does.
    ///
    /// Voters hold by a leader that they have just heard, so two steps are needed. The first election, in a higher
    /// term, wins no majority, but makes this node step down, which then may vote; the second wins.
    async fn hand_over(&self) {
        let mut leader = self.leader.clone();
        if !self.leads() {
            return;
        }
        let _quiet = self.writing.write().await;
        let heirs = self.heirs().await;
        if !self.leads() || heirs.is_empty() {
            return;
        }
        // Of five voters three are needed: one more than the heir and this node lets go as well.
        if heirs.len() > 2 {
            self.have_elect(&heirs[1]).await;
        }
        // The first of them gets two attempts, as it needs; then each of the others.
        for heir in heirs.iter().take(1).chain(heirs.iter().cycle()) {
            let leads = *leader.borrow_and_update();
            if leads.is_some_and(|leader| leader != self.node()) {
                return;
            }
            self.have_elect(heir).await;
            if let Err(error) = self.raft.trigger().heartbeat().await {
                tracing::debug!(%error, "the metadata has stopped already");
                return;
            }
            if let Ok(Err(_)) = timeout(ELECTION_STEP, leader.wait_for(|now| *now != leads)).await {
                return;
            }
        }
    }

    async fn have_elect(&self, (node, address): &(NodeId, String)) {
        let asked = self.peers.ask(*node, address, Question::Elect);
        if let Ok(Err(error)) = timeout(ELECTION_STEP, asked).await {
            tracing::debug!(%error, node, "it does not stand for election");
        }
    }

    /// The other voters that stay, and where they are, those with the most of the log first, once one of them has all
    /// of it, or after a while.
    async fn heirs(&self) -> Vec<(NodeId, String)> {
        let (mut heirs, image, now) = (self.members().voters, self.image(), Instant::now());
        // Who is dead, or stopping as well, is not asked to stand for election.
        heirs.retain(|node, _| {
            let alive = |broker: &Broker| self.liveness().is_alive(*node, broker.epoch, now);
            *node != self.node()
                && image.broker(*node).is_some_and(|broker| alive(broker) && !self.has_left(broker))
        });
        if heirs.is_empty() {
            return Vec::new();
        }
        let mut metrics = self.raft.metrics();
        let caught_up = metrics.wait_for(|metrics| {
            let mut replicated = metrics.replication.iter().flatten();
            metrics.replication.is_none()
                || replicated.any(|(node, log)| {
                    heirs.contains_key(node) && log.map(|log| log.index) == metrics.last_log_index
                })
        });
        // A node that has stopped, or that nobody keeps up with, hands over as well as it can.
        let _ = timeout(ELECTION_STEP, caught_up).await;
        let replicated = self.raft.metrics().borrow().replication.clone().unwrap_or_default();
        let mut heirs: Vec<_> = heirs.into_iter().collect();
        heirs.sort_by_key(|(node, _)| {
            std::cmp::Reverse(replicated.get(node).and_then(|log| log.as_ref()).map(|log| log.index))
        });
        heirs
    }
}

fn leads_what_others_could(image: &MetadataImage, node: NodeId) -> bool {
    image.topics().flat_map(|topic| &topic.partitions).any(|partition| {
        partition.leader == Some(node)
            && partition.isr.iter().any(|member| *member != node && image.is_available(*member))
    })
}
