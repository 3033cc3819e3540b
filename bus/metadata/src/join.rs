//! How a node becomes one of a cluster's, for the first time or again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bus_protocol::NodeId;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::messages::{Hello, Question, Reply};
use crate::{
    Applied, Command, DirectoryId, EnterError, Error, Metadata, PeerError, ProposeError, Registration,
    Rejected,
};

/// How long a listed node may take to say who it is.
const HELLO: Duration = Duration::from_secs(2);
/// How long it takes until all are asked again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a node waits that is told that its id is taken: the one that has it may have died just now.
const TAKEN: Duration = Duration::from_secs(5);
/// How many times one attempt to join is sent on to the leader.
const HOPS: usize = 5;

/// What the listed nodes answered.
type Answers = BTreeMap<String, Result<Hello, PeerError>>;

/// What has come of one attempt to join.
enum Joining {
    Joined,
    Taken { address: String },
    Later(String),
}

/// What a node's data directory keeps. Topics of two clusters may bear the same names and ids, and what a cluster's
/// metadata does not know of is deleted: so a directory stays with the cluster that its topics are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps<'a> {
    /// No topics: the node may enter any cluster.
    Nothing {
        /// Of the cluster that it forms, if it does.
        cluster_id_if_new: &'a str,
    },
    /// Topics of the cluster of this id: the node may enter no other, and forms none.
    TopicsOf(&'a str),
}

/// What this node was started with.
struct Entry<'a> {
    keeps: Keeps<'a>,
    own: &'a str,
    seeds: &'a [String],
    /// The others of `seeds`.
    others: Vec<String>,
    directory: DirectoryId,
    deadline: Instant,
}

impl Metadata {
    /// Makes this node a broker of its cluster, and answers with the epoch of its registration: fenced, until
    /// [`Self::ready`]. Heartbeats have begun when this returns.
    ///
    /// `seeds` are the addresses that all nodes of a cluster are started with, in the same order; `own` is the one by
    /// which the others reach this node. With none but its own it is a cluster by itself. A node with a new store
    /// joins the cluster that a seed is of; it forms one if it stands first among the seeds, all the others say that
    /// they are new too, and it [keeps](Keeps) nothing. A node that was in a cluster before goes back to that one, and
    /// does not need the seeds. Either way it waits for those that it needs, for at most
    /// [`Options::join_timeout_ms`](crate::Options::join_timeout_ms). One that keeps topics of another cluster is
    /// refused before anybody hears of it.
    pub async fn enter(
        &self,
        own: &str,
        seeds: &[String],
        keeps: Keeps<'_>,
        registration: Registration,
    ) -> Result<u64, EnterError> {
        let core = self.core();
        if let Keeps::TopicsOf(cluster_id) = keeps {
            self.check_cluster_id(cluster_id)?;
        }
        if let Some(first) = seeds.first() {
            core.first.get_or_init(|| first.clone());
        }
        let distinct: BTreeSet<_> = seeds.iter().filter(|seed| *seed != own).cloned().collect();
        let others = distinct.into_iter().collect();
        let deadline = Instant::now() + core.options.join_timeout();
        let entry = Entry { keeps, own, seeds, others, directory: registration.directory, deadline };
        if core.joined.load(Ordering::Acquire) {
            self.come_back(&entry).await?;
        } else if entry.others.is_empty() {
            self.form(keeps).await?;
        } else {
            self.form_or_join(&entry).await?;
        }
        let epoch = tokio::select! {
            registered = self.register(registration, entry.deadline) => registered?,
            error = self.look_around(&entry) => return Err(error),
        };
        core.session.send_modify(|session| session.epoch = Some(epoch));
        Ok(epoch)
    }

    /// Forms a cluster of this node. One that has lost its metadata does not: by what the new cluster knows, its topics
    /// would be leftovers.
    async fn form(&self, keeps: Keeps<'_>) -> Result<(), EnterError> {
        match keeps {
            Keeps::Nothing { cluster_id_if_new } => Ok(self.bootstrap(cluster_id_if_new).await?),
            Keeps::TopicsOf(cluster_id) => Err(metadata_lost(cluster_id)),
        }
    }

    async fn form_or_join(&self, entry: &Entry<'_>) -> Result<(), EnterError> {
        let mut waits = String::new();
        let mut taken = None;
        loop {
            let answers = self.ask_all(&entry.others).await;
            let wait = if let Some(cluster_id) = self.cluster_of(entry, &answers)? {
                match self.join(entry, &cluster_id, &answers).await? {
                    Joining::Joined => return Ok(()),
                    Joining::Later(why) => format!("for cluster {cluster_id} to take it in: {why}"),
                    Joining::Taken { address } => {
                        let node = self.node();
                        if taken.get_or_insert_with(Instant::now).elapsed() >= TAKEN {
                            return Err(EnterError::IdTaken { node, address });
                        }
                        format!("in case the broker at {address}, which has its node id {node}, is gone")
                    }
                }
            } else if let Some(wait) = self.may_form(entry, &answers)? {
                wait
            } else {
                tracing::info!("all listed nodes are new: this one forms the cluster");
                return self.form(entry.keeps).await;
            };
            if wait != waits {
                tracing::info!("this node waits {wait}{}", self.gives_up());
                waits = wait;
            }
            if Instant::now() >= entry.deadline {
                return Err(gave_up(entry, answers, waits));
            }
            sleep(AGAIN).await;
        }
    }

    /// How long this node waits in all, for who reads what it waits for.
    fn gives_up(&self) -> String {
        format!("; it gives up {} s after its start", self.core().options.join_timeout().as_secs())
    }

    /// The cluster that the listed nodes are of, if any of them is of one.
    fn cluster_of(&self, entry: &Entry<'_>, answers: &Answers) -> Result<Option<String>, EnterError> {
        let mut found: Option<(&str, &str)> = None;
        for (address, answer) in answers {
            let hello = match answer {
                Ok(hello) => hello,
                // Nobody else can be asked either.
                Err(PeerError::Distrusted { address, why }) if answers.values().all(Result::is_err) => {
                    return Err(EnterError::Distrusted { address: address.clone(), why: why.clone() });
                }
                Err(_) => continue,
            };
            if hello.node == self.node() {
                let (node, address, own) = (hello.node, address.clone(), entry.own.to_owned());
                return Err(EnterError::SameId { node, address, own });
            }
            let Some(cluster) = hello.cluster_id.as_deref() else { continue };
            self.check_cluster(entry, address, cluster)?;
            match found {
                Some((other, at)) if other != cluster => {
                    return Err(EnterError::TwoClusters {
                        one: other.to_owned(),
                        at: at.to_owned(),
                        other: cluster.to_owned(),
                        address: address.clone(),
                    });
                }
                _ => found = Some((cluster, address)),
            }
        }
        Ok(found.map(|(cluster, _)| cluster.to_owned()))
    }

    /// Refuses a cluster that is not the one that this node was of before, by its metadata or by its topics.
    fn check_cluster(&self, entry: &Entry<'_>, address: &str, theirs: &str) -> Result<(), EnterError> {
        let known = self.cluster_id();
        let kept = match entry.keeps {
            Keeps::Nothing { .. } => None,
            Keeps::TopicsOf(cluster_id) => Some(cluster_id),
        };
        match known.as_deref().or(kept) {
            Some(ours) if ours != theirs => Err(EnterError::OtherCluster {
                address: address.to_owned(),
                theirs: theirs.to_owned(),
                ours: ours.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Whom this node waits for before it forms the cluster, or before another does; `None` if it is to form it now.
    fn may_form(&self, entry: &Entry<'_>, answers: &Answers) -> Result<Option<String>, EnterError> {
        let silent = silent(answers);
        if let Keeps::TopicsOf(cluster_id) = entry.keeps {
            if silent.is_empty() {
                return Err(metadata_lost(cluster_id));
            }
            return Ok(Some(format!(
                "for {silent} to answer: its metadata is lost, and only nodes of its cluster {cluster_id} can take it in again"
            )));
        }
        let first = entry.seeds.first().map_or(entry.own, String::as_str);
        if first != entry.own || self.cluster_id().is_some() {
            return Ok(Some(if silent.is_empty() {
                format!("for {first} to form the cluster")
            } else {
                format!("for {silent} to answer")
            }));
        }
        if !silent.is_empty() {
            return Ok(Some(format!("for {silent} to answer: a new cluster needs all of its nodes")));
        }
        for (address, answer) in answers {
            match answer.as_ref().ok().and_then(|hello| hello.first.as_deref()) {
                Some(theirs) if theirs != entry.own => {
                    return Err(EnterError::Disagree {
                        address: address.clone(),
                        theirs: theirs.to_owned(),
                        ours: entry.own.to_owned(),
                    });
                }
                Some(_) => {}
                None => return Ok(Some(format!("for {address} to look for the cluster"))),
            }
        }
        Ok(None)
    }

    /// Asks each node who it is.
    async fn ask_all(&self, addresses: &[String]) -> Answers {
        let mut asked = JoinSet::new();
        for address in addresses.iter().cloned() {
            let peers = self.core().peers.clone();
            asked.spawn(async move {
                let silent =
                    |why: &str| PeerError::NoAnswer { address: address.clone(), why: why.to_owned() };
                let hello = match timeout(HELLO, peers.ask_address(&address, Question::Hello)).await {
                    Ok(Ok(Reply::Hello(hello))) => Ok(hello),
                    Ok(Ok(Reply::Refused(why))) => Err(silent(&why)),
                    Ok(Ok(_)) => Err(silent("it answers another question")),
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(silent("it does not answer in time")),
                };
                (address, hello)
            });
        }
        let mut answers = Answers::new();
        while let Some(answer) = asked.join_next().await {
            // A task that panicked is a node that did not answer.
            answers.extend(answer);
        }
        answers
    }

    /// Asks the nodes of a cluster, and whom they name as its leader, to be taken in.
    async fn join(
        &self,
        entry: &Entry<'_>,
        cluster_id: &str,
        answers: &Answers,
    ) -> Result<Joining, EnterError> {
        let core = self.core();
        let of_cluster = |answer: &Result<Hello, PeerError>| {
            answer.as_ref().is_ok_and(|hello| hello.cluster_id.as_deref() == Some(cluster_id))
        };
        let mut addresses: VecDeque<String> = answers
            .iter()
            .filter(|(_, answer)| of_cluster(answer))
            .map(|(address, _)| address.clone())
            .collect();
        let leaderless = |address: &str| {
            format!(
                "most of its voters do not answer; `bus cluster status --server {address}` names them: start them"
            )
        };
        let mut why = "nobody of it answers".to_owned();
        for _ in 0..HOPS {
            let Some(address) = addresses.pop_front() else { break };
            let question = Question::Join { address: entry.own.to_owned(), directory: entry.directory };
            let asked = timeout(core.options.propose_timeout(), core.peers.ask_address(&address, question));
            match asked.await {
                Ok(Ok(Reply::Joined { cluster_id })) => {
                    self.check_cluster(entry, &address, &cluster_id)?;
                    self.note_cluster(&cluster_id).await?;
                    core.joined.store(true, Ordering::Release);
                    tracing::info!(cluster_id, "this node has joined the cluster");
                    return Ok(Joining::Joined);
                }
                Ok(Ok(Reply::IdTaken { address })) => return Ok(Joining::Taken { address }),
                Ok(Ok(Reply::NotApplied { leader: Some(leader), .. })) => addresses.push_front(leader),
                Ok(Ok(Reply::NotApplied { error: ProposeError::NotLeader { .. }, .. })) => {
                    why = leaderless(&address);
                }
                Ok(Ok(Reply::NotApplied { error, .. })) => why = error.to_string(),
                Ok(Ok(Reply::Refused(refusal))) => why = refusal,
                Ok(Ok(_)) => why = format!("{address} answers another question"),
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => why = format!("{address} does not answer in time"),
            }
        }
        Ok(Joining::Later(why))
    }

    /// Goes back to the cluster that this node was in.
    async fn come_back(&self, entry: &Entry<'_>) -> Result<(), EnterError> {
        let core = self.core();
        let alone = core.members().voters.keys().eq([&self.node()]);
        // Its store says that it is a cluster by itself; the list may say that another was meant.
        if alone {
            let answers = self.ask_all(&entry.others).await;
            for answer in answers.values() {
                if let Err(PeerError::Distrusted { address, why }) = answer {
                    return Err(EnterError::Distrusted { address: address.clone(), why: why.clone() });
                }
            }
            self.check_others(entry, &answers)?;
            return match self.cluster_id() {
                Some(cluster_id) => Ok(self.bootstrap(&cluster_id).await?),
                None => self.form(entry.keeps).await,
            };
        }
        let mut leader = core.leader.clone();
        loop {
            match timeout(HELLO / 2, leader.wait_for(Option::is_some)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => return Err(Error::Stopped("it was shut down".into()).into()),
                Err(_) => {}
            }
            let voters = names(core.members().voters);
            if Instant::now() >= entry.deadline {
                return Err(EnterError::NoLeader { waited_ms: core.options.join_timeout_ms, voters });
            }
            let answers = self.ask_all(&entry.others).await;
            self.check_others(entry, &answers)?;
            let silent = match silent(&answers) {
                silent if silent.is_empty() => silent,
                silent => format!("; nobody answers at {silent}"),
            };
            tracing::info!(
                "this node waits for its cluster to have a leader, for which most of its voters must run: {voters}{silent}{}",
                self.gives_up()
            );
        }
    }

    /// Asks the listed nodes again and again where they are, until one is of another cluster: a leader is waited for,
    /// and whoever led last, by this node's own store, may be gone or elsewhere.
    async fn look_around(&self, entry: &Entry<'_>) -> EnterError {
        loop {
            sleep(HELLO / 2).await;
            if let Err(error) = self.check_others(entry, &self.ask_all(&entry.others).await) {
                return error;
            }
        }
    }

    /// Refuses listed nodes of another cluster, and notes where those of this one are: all may have moved since.
    fn check_others(&self, entry: &Entry<'_>, answers: &Answers) -> Result<(), EnterError> {
        for (address, answer) in answers {
            if let Ok(Hello { node, cluster_id: Some(theirs), .. }) = answer {
                self.check_cluster(entry, address, theirs)?;
                self.core().peers.note(*node, address);
            }
        }
        Ok(())
    }

    async fn register(&self, broker: Registration, deadline: Instant) -> Result<u64, EnterError> {
        let mut follows = self.image().broker(broker.node).map(|before| before.epoch);
        loop {
            let core = self.core();
            let register = Command::RegisterBroker { broker: broker.clone(), follows };
            let error = match self.propose(register).await {
                Ok(Applied::Broker { epoch }) => return Ok(epoch),
                Ok(other) => {
                    unreachable!("a registration is answered with an epoch, not with {other:?}")
                }
                Err(error) => error,
            };
            // One that may have been applied is made again: the later one counts.
            match error {
                // An earlier attempt, or one that this node had not heard of.
                ProposeError::Rejected(Rejected::StaleBrokerEpoch { current, .. })
                    if Instant::now() < deadline =>
                {
                    follows = Some(current);
                    continue;
                }
                ProposeError::Rejected(Rejected::UnknownBroker { .. })
                    if follows.is_some() && Instant::now() < deadline =>
                {
                    follows = None;
                    continue;
                }
                ProposeError::NotLeader { .. }
                | ProposeError::NoMajority { .. }
                | ProposeError::TimedOut(_)
                | ProposeError::Busy
                    if Instant::now() < deadline => {}
                ProposeError::NotLeader { .. }
                | ProposeError::NoMajority { .. }
                | ProposeError::TimedOut(_) => {
                    let voters = names(core.members().voters);
                    return Err(EnterError::NoLeader { waited_ms: core.options.join_timeout_ms, voters });
                }
                error => return Err(error.into()),
            }
            tracing::info!("this node waits to be registered: {error}");
            sleep(AGAIN).await;
        }
    }
}

fn metadata_lost(cluster_id: &str) -> EnterError {
    EnterError::MetadataLost { cluster_id: cluster_id.to_owned() }
}

/// The listed nodes that did not answer.
fn silent(answers: &Answers) -> String {
    let silent = answers.iter().filter(|(_, answer)| answer.is_err());
    silent.map(|(address, _)| address.as_str()).collect::<Vec<_>>().join(", ")
}

fn names(nodes: BTreeMap<NodeId, String>) -> String {
    let names: Vec<_> = nodes.into_iter().map(|(node, address)| format!("{node} at {address}")).collect();
    if names.is_empty() { "not known yet".to_owned() } else { names.join(", ") }
}

/// Why a node that has waited for long enough was not let in.
fn gave_up(entry: &Entry<'_>, answers: Answers, waits: String) -> EnterError {
    let tried = entry.others.join(", ");
    let errors: Vec<_> = answers.into_values().filter_map(Result::err).collect();
    match errors.first() {
        // One that has lost its metadata is to hear of that.
        Some(error) if errors.len() == entry.others.len() && matches!(entry.keeps, Keeps::Nothing { .. }) => {
            EnterError::NobodyAnswers { tried, why: error.to_string() }
        }
        _ => EnterError::GaveUp { waits },
    }
}
