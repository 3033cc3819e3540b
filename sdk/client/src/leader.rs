//! Who leads a partition, and how a stream follows when that changes.
//!
//! ```text
//!   a refusal says who leads   -> there, at once, the first time; unless metadata is newer, or nobody answers there,
//!                                 or it is no newer than what was refused: then metadata
//!   a stream or its broker dies -> metadata, of one broker after the other, every 50 ms until somebody leads
//!   silence, though something is due -> metadata; another leader or epoch: abandon the stream, go there
//! ```
//!
//! What is due: a connection, the opening of a stream, an answer. Each may take as long as it does, and after 300 ms of it
//! somebody is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use bus_protocol::request::{PartitionState, Position, Request, Response, TopicInfo};
use bus_protocol::{Epoch, ErrorCode, LeaderHint, NodeId, Offset, PartitionId, TopicId, TopicName};
use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::{Client, Error};

/// A leader that owes something and is silent for so long is doubted.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);
/// How often somebody is asked who leads, while that is in doubt.
const POLL: Duration = Duration::from_millis(50);
/// After so many polls the wait between two doubles, up to [`SLOW_POLL`].
const QUICK_POLLS: u32 = 60;
const SLOW_POLL: Duration = Duration::from_millis(800);
/// What was heard so recently is asked for by one partition for all.
const FRESH: Duration = Duration::from_millis(25);
/// How long one question for metadata may take.
const ASK: Duration = Duration::from_secs(2);
/// After so many refusals in a row it is not believed any more that who refuses leads: some 300 ms.
const STAYS: u32 = 5;
/// How long brokers may say that they do not know a topic that did exist: one that starts may not have heard of it.
const UNKNOWN: Duration = Duration::from_secs(2);

/// Who is taken to lead a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) node: NodeId,
    pub(crate) address: String,
    /// Which topic of the name: one that was created anew has epochs of its own.
    pub(crate) topic: TopicId,
    /// As metadata has it, or another broker's word that metadata has not borne out yet.
    epoch: Epoch,
}

impl Leader {
    /// Whether somebody else leads, or it leads anew, or the topic is another one.
    fn is_replaced(&self, now: &TopicInfo, partition: PartitionId) -> bool {
        if now.id != self.topic {
            return now.id > self.topic;
        }
        let now = now.partitions.get(partition as usize);
        now.is_some_and(|now| {
            now.epoch > self.epoch || now.epoch == self.epoch && now.leader != Some(self.node)
        })
    }
}

/// How long to wait until metadata is asked for again.
#[derive(Debug, Default)]
struct Pace(u32);

impl Pace {
    fn next(&mut self) -> Duration {
        let slower = self.0.saturating_sub(QUICK_POLLS).min(8);
        self.0 = self.0.saturating_add(1);
        POLL.saturating_mul(1 << slower).min(SLOW_POLL)
    }
}

impl Client {
    /// The leader of a partition; by `hint` where that is newer than metadata, the broker's address is known, and it is
    /// not known not to answer.
    pub(crate) async fn leader(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        hint: Option<LeaderHint>,
    ) -> Result<Leader, Error> {
        let info = self.topic(topic).await?;
        let state = state(&info, partition)?;
        let at = |LeaderHint { node, epoch }| {
            let address = self.metadata().broker(node)?;
            Some(Leader { node, address, topic: info.id, epoch })
        };
        let known = state.leader.map(|node| LeaderHint { node, epoch: state.epoch });
        let leader = hint
            .filter(|hint| hint.epoch > state.epoch)
            .and_then(at)
            .filter(|leader| known.is_none() || !self.pool().is_silent(&leader.address))
            .or_else(|| at(known?));
        leader.ok_or_else(|| Error::NoLeader(self.metadata().no_leader(topic, partition, &state.isr)))
    }

    /// Asks, unless somebody has just now, whether the partition has another leader or a newer epoch.
    pub(crate) async fn is_replaced(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        leader: &Leader,
        age: Duration,
    ) -> bool {
        let asked = tokio::time::timeout(ASK, self.refresh_within(topic, age)).await;
        match asked {
            Ok(Ok(info)) => leader.is_replaced(&info, partition),
            Ok(Err(error)) => {
                tracing::debug!(%topic, partition, %error, "nobody says who leads");
                false
            }
            Err(_) => false,
        }
    }

    /// How long to wait for a leader before it is doubted: less where its broker is doubted already.
    pub(crate) fn patience(&self, leader: &Leader) -> Duration {
        if self.pool().is_suspect(&leader.address) { POLL } else { SILENCE }
    }

    /// Resolves once a leader that owes something, and is silent, is replaced. Others are asked first until it answers;
    /// meanwhile it is made sure, about every second, that the connection to it carries anything.
    pub(crate) async fn until_replaced(&self, topic: &TopicName, partition: PartitionId, leader: &Leader) {
        self.pool().note(&leader.address, false);
        let mut pace = Pace::default();
        while !self.is_replaced(topic, partition, leader, FRESH).await {
            sleep(pace.next()).await;
        }
    }

    /// Whether metadata, as last heard, names a leader since that attempt, or another topic.
    fn is_outdated(&self, topic: &TopicName, partition: PartitionId, failed: &Leader) -> bool {
        let Some(info) = self.known_topic(topic) else { return false };
        let now = info.partitions.get(partition as usize);
        now.is_none_or(|now| now.leader.is_some()) && failed.is_replaced(&info, partition)
    }

    /// Waits for `wait`, or until metadata says something new of the partition since the attempt at `failed`.
    async fn wait_for_news(
        &self,
        topic: &TopicName,
        partition: PartitionId,
        failed: Option<&Leader>,
        wait: Duration,
    ) {
        let known = |info: &TopicInfo| {
            info.partitions.get(partition as usize).map(|state| (info.id, state.leader, state.epoch))
        };
        if failed.is_some_and(|failed| self.is_outdated(topic, partition, failed)) {
            return;
        }
        let before = self.known_topic(topic).and_then(|info| known(&info));
        let news = async {
            let mut pace = Pace::default();
            loop {
                match tokio::time::timeout(ASK, self.refresh_within(topic, FRESH)).await {
                    Ok(Ok(info))
                        if known(&info).is_some_and(|now| Some(now) != before && now.1.is_some()) =>
                    {
                        return;
                    }
                    _ => sleep(pace.next()).await,
                }
            }
        };
        tokio::select! { () = news => {} () = sleep(wait) => {} }
    }

    /// Asks each leader of the partitions for its part, all at once; one that is replaced before it has answered
    /// counts as lost. In the order of their addresses.
    async fn ask_leaders(
        &self,
        topic: &TopicName,
        partitions: &[PartitionId],
        led_only: bool,
        request: impl Fn(Vec<PartitionId>) -> Request,
    ) -> Result<Vec<Response>, Error> {
        let mut parts: BTreeMap<String, (Leader, Vec<PartitionId>)> = BTreeMap::new();
        for &partition in partitions {
            let leader = match self.leader(topic, partition, None).await {
                Err(Error::NoLeader(_)) if led_only => continue,
                leader => leader?,
            };
            let part = parts.entry(leader.address.clone()).or_insert_with(|| (leader, Vec::new()));
            part.1.push(partition);
        }
        let mut asked = JoinSet::new();
        for (index, (leader, part)) in parts.into_values().enumerate() {
            let (client, topic, request) = (self.clone(), topic.clone(), request(part.clone()));
            asked.spawn(async move {
                let address = leader.address.clone();
                let answer = async {
                    let connection = client.pool().get(&address).await?;
                    client.asked(&address, &connection, &request, Bytes::new()).await
                };
                let replaced = async {
                    sleep(client.patience(&leader)).await;
                    let partition = part.first().copied().unwrap_or_default();
                    client.until_replaced(&topic, partition, &leader).await;
                };
                let answer = tokio::select! {
                    answer = answer => answer,
                    () = replaced => Err(bus_transport::Error::Silent.into()),
                };
                if let Err(Error::Transport(_)) = &answer {
                    client.pool().note(&address, false);
                }
                (index, answer)
            });
        }
        let mut answers = Vec::new();
        while let Some(result) = asked.join_next().await {
            let (index, answer) = result.map_err(|error| Error::Protocol(error.to_string()))?;
            answers.push((index, answer?));
        }
        answers.sort_by_key(|(index, _)| *index);
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Asks the leaders of the partitions, and again where one has moved, until the request timeout. `led_only`: no
    /// answer for partitions that nobody leads, rather than to wait for somebody.
    pub(crate) async fn read_from_leaders(
        &self,
        topic: &TopicName,
        partitions: &[PartitionId],
        led_only: bool,
        request: impl Fn(Vec<PartitionId>) -> Request,
    ) -> Result<Vec<Response>, Error> {
        let after = self.request_timeout();
        let deadline = Instant::now() + after;
        let mut retry = Retry::default();
        let mut last = Error::NoAnswer { request: "the request to the partitions' leaders", after };
        loop {
            let asked = self.ask_leaders(topic, partitions, led_only, &request);
            match tokio::time::timeout_at(deadline, asked).await {
                Ok(Err(error)) if !retry.is_final(&error) => last = error,
                Ok(result) => return result,
                Err(_) => return Err(self.majority_or(last)),
            }
            tracing::debug!(%topic, error = %last, "the leaders are asked again");
            let partition = partitions.first().copied().unwrap_or_default();
            let wait = retry.wait(self, topic, partition, None, &last);
            if tokio::time::timeout_at(deadline, wait).await.is_err() {
                return Err(self.majority_or(last));
            }
        }
    }

    /// The offset at a position for each partition, in the order given; asks the leaders, and again where one has
    /// moved, until the request timeout.
    pub(crate) async fn list_offsets(
        &self,
        topic: &TopicName,
        partitions: &[PartitionId],
        position: Position,
    ) -> Result<Vec<(PartitionId, Offset)>, Error> {
        let request = |partitions| Request::ListOffsets { topic: topic.clone(), partitions, position };
        let mut offsets = BTreeMap::new();
        for response in self.read_from_leaders(topic, partitions, false, request).await? {
            match response {
                Response::Offsets(theirs) => offsets.extend(theirs),
                _ => return Err(Error::Protocol("no offsets where some were asked for".to_owned())),
            }
        }
        let offset = |partition| match offsets.get(partition) {
            Some(&offset) => Ok((*partition, offset)),
            None => Err(Error::Protocol(format!("partition {topic}-{partition} is not in it"))),
        };
        partitions.iter().map(offset).collect()
    }
}

fn state(info: &TopicInfo, partition: PartitionId) -> Result<&PartitionState, Error> {
    info.partitions.get(partition as usize).ok_or_else(|| Error::UnknownPartition {
        topic: info.topic.clone(),
        partition,
        partitions: u32::try_from(info.partitions.len()).unwrap_or(u32::MAX),
    })
}

/// What a partition's stream does when it breaks: whether it goes on, where, and when.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    backoff: Backoff,
    /// Refusals in a row that named another leader, or might have.
    redirects: u32,
    /// Since when the topic is said not to exist.
    unknown: Option<Instant>,
}

impl Retry {
    /// After a success.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether it makes no sense to go on.
    pub(crate) fn is_final(&mut self, error: &Error) -> bool {
        match error.code() {
            Some(ErrorCode::UnknownTopic | ErrorCode::UnknownPartition) => {
                self.unknown.get_or_insert_with(Instant::now).elapsed() >= UNKNOWN
            }
            _ => match error {
                // Its name's server, or its limit, may be a matter of the moment.
                Error::Transport(error)
                    if matches!(
                        **error,
                        bus_transport::Error::Address { .. } | bus_transport::Error::Rejected { .. }
                    ) =>
                {
                    false
                }
                error => !error.is_retriable(),
            },
        }
    }

    /// Waits until the next attempt makes sense, and says where to make it unless metadata knows better: at the leader
    /// whom a refusal names, if that is news; if not, for a while, at the one who refused, which may not have heard yet
    /// that it leads, while whoever led before may be gone. Does not wait after the first refusal of a broker that does not
    /// lead; a short while, ever longer, after others, or until there is a leader that was not known before.
    pub(crate) async fn wait(
        &mut self,
        client: &Client,
        topic: &TopicName,
        partition: PartitionId,
        failed: Option<&Leader>,
        error: &Error,
    ) -> Option<LeaderHint> {
        let named = match error {
            Error::Refused(refusal) => match refusal.code {
                ErrorCode::NotLeader | ErrorCode::ShuttingDown | ErrorCode::FencedEpoch => {
                    self.redirects += 1;
                    Some(refusal.leader)
                }
                _ => None,
            },
            _ => None,
        };
        let is_news = |hint: &LeaderHint| failed.is_none_or(|failed| hint.epoch > failed.epoch);
        let news = named.flatten().filter(is_news);
        if named.is_none() || self.redirects > 1 {
            client.wait_for_news(topic, partition, failed, self.backoff.next()).await;
        } else if news.is_none() {
            // Whatever comes of it, the next attempt tells.
            let _ = tokio::time::timeout(SILENCE, client.refresh_within(topic, Duration::ZERO)).await;
        }
        let Some(Leader { node, topic: id, epoch, .. }) = failed else { return news };
        // Another topic has epochs of its own.
        let is_another = client.known_topic(topic).is_some_and(|known| known.id != *id);
        let stays = named.is_some() && !is_another && self.redirects <= STAYS;
        news.filter(|_| !is_another).or(stays.then_some(LeaderHint { node: *node, epoch: *epoch }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(id: u64, leader: Option<NodeId>, epoch: Epoch) -> TopicInfo {
        let partition = PartitionState { leader, epoch, replicas: vec![], isr: vec![], target: None };
        TopicInfo {
            topic: TopicName::new("t").unwrap(),
            id: TopicId(id),
            config: [].into(),
            functions: vec![],
            partitions: vec![partition],
        }
    }

    fn led_by(node: NodeId, epoch: Epoch) -> Leader {
        Leader { node, address: String::new(), topic: TopicId(7), epoch }
    }

    #[test]
    fn a_leader_is_replaced_by_another_or_by_a_newer_epoch_and_not_by_old_news() {
        let leader = led_by(1, 4);
        assert!(!leader.is_replaced(&topic(7, Some(1), 4), 0));
        assert!(!leader.is_replaced(&topic(7, Some(2), 3), 0));
        assert!(leader.is_replaced(&topic(7, None, 4), 0));
        assert!(leader.is_replaced(&topic(7, Some(2), 5), 0));
        assert!(leader.is_replaced(&topic(7, Some(1), 5), 0));
    }

    #[test]
    fn a_leader_is_replaced_where_the_topic_is_in_whichever_epoch() {
        let leader = led_by(1, 4);
        assert!(leader.is_replaced(&topic(9, Some(1), 0), 0));
        assert!(led_by(1, 0).is_replaced(&topic(9, Some(1), 0), 0));
        assert!(leader.is_replaced(&TopicInfo { partitions: vec![], ..topic(9, None, 0) }, 0));
        assert!(!leader.is_replaced(&topic(5, Some(2), 8), 0), "the one before");
    }
}
