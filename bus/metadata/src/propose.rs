//! The way of a command to whoever leads, and of what it did back here.

use std::time::Duration;

use bus_protocol::{Clock as _, NodeId, SystemClock, Timestamp};
use openraft::error::{ClientWriteError, RaftError};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::messages::{Question, Reply};
use crate::node::Core;
use crate::{Applied, Command, PeerError, ProposeError, Registration, Rejected, limits};

/// How long somebody is left alone who said that it does not lead, or could not be reached, unless another is heard
/// to lead before.
pub(crate) const RETRY: Duration = Duration::from_millis(50);
/// How long an answer is waited for from one who leads no more.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// How far a broker's clock may be from the controller's: what is kept by age is not kept more exactly than that.
const CLOCKS_DIFFER_MS: u64 = 5 * 60 * 1_000;

/// What came of one attempt.
enum Attempt {
    Applied {
        index: u64,
        result: Result<Applied, Rejected>,
    },
    /// It certainly was not applied: it can be tried again.
    Not,
    Failed(ProposeError),
}

impl Core {
    /// Has the group agree on a command, wherever its leader is, and waits until this node's image shows it.
    pub(crate) async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        check_size(&command)?;
        let _permit = self.permits.try_acquire().map_err(|_| ProposeError::Busy)?;
        let began = Instant::now();
        let deadline = began + self.options.propose_timeout();
        let mut leader = self.leader.clone();
        loop {
            if leader.has_changed().is_err() {
                return Err(ProposeError::Stopped("it was shut down".into()));
            }
            let leads = *leader.borrow_and_update();
            let attempt = match leads {
                None => Attempt::Not,
                Some(node) if node == self.node() => match self.write(command.clone(), deadline).await {
                    Ok((index, result)) => Attempt::Applied { index, result },
                    Err(ProposeError::NotLeader { .. }) => Attempt::Not,
                    Err(error) => Attempt::Failed(error),
                },
                Some(node) => self.forward(node, &command, began, deadline).await,
            };
            match attempt {
                Attempt::Applied { index, result } => {
                    if let Some(leader) = leads {
                        // That it was applied took a majority.
                        self.answered().hear(leader, Some(began.elapsed()), Instant::now());
                    }
                    let mut image = self.image.clone();
                    let shown = timeout_at(deadline, image.wait_for(|image| image.index() >= index)).await;
                    return match shown {
                        Ok(Ok(_)) => Ok(result?),
                        // It is applied; but this node has stopped, or is late, and shows nothing of it.
                        _ => Err(ProposeError::TimedOut(millis(began.elapsed()))),
                    };
                }
                Attempt::Failed(error) => return Err(error),
                Attempt::Not => {}
            }
            let again = if leads.is_some() { deadline.min(Instant::now() + RETRY) } else { deadline };
            tokio::select! {
                changed = leader.changed() => {
                    changed.map_err(|_| ProposeError::Stopped("it was shut down".into()))?;
                }
                () = sleep_until(again) => {}
            }
            if Instant::now() >= deadline {
                return Err(self.nobody_leads(*leader.borrow()));
            }
        }
    }

    /// Why nobody took a proposal until its deadline.
    fn nobody_leads(&self, leader: Option<NodeId>) -> ProposeError {
        let (node, quorum) = (self.node(), self.quorum());
        if quorum.held {
            ProposeError::NotLeader { node, leader }
        } else {
            ProposeError::NoMajority { node, silent: quorum.silent }
        }
    }

    /// Whether this node leads, and most voters have not answered it for so long that they count as gone. What it
    /// proposed then would lie in its log, and be carried out when they are back, however late that is.
    fn leads_alone(&self) -> bool {
        self.quorum_ago().is_some_and(|ago| ago >= self.options.session_timeout())
    }

    /// Proposes what another node has forwarded, or the controller has decided: only as the leader.
    pub(crate) async fn propose_as_leader(
        &self,
        command: Command,
    ) -> Result<(u64, Result<Applied, Rejected>), ProposeError> {
        check_size(&command)?;
        let _permit = self.permits.try_acquire().map_err(|_| ProposeError::Busy)?;
        self.write(command, Instant::now() + self.options.propose_timeout()).await
    }

    /// Proposes what another node asks for. A broker whose clock is far off is not registered.
    pub(crate) async fn propose_for(
        &self,
        node: NodeId,
        command: Command,
        clock: Timestamp,
    ) -> Result<(u64, Result<Applied, Rejected>), ProposeError> {
        if let Command::RegisterBroker { broker, .. } = &command {
            check_clock(node, clock, SystemClock::new().timestamp())?;
            // A copy of a data directory, started beside the original: it waits, in case that has died just now.
            if self.runs_elsewhere(broker) {
                return Err(ProposeError::Busy);
            }
        }
        self.propose_as_leader(command).await
    }

    /// Whether the broker of that id runs at another address, or on another directory.
    fn runs_elsewhere(&self, new: &Registration) -> bool {
        let image = self.image();
        image.broker(new.node).is_some_and(|broker| {
            (broker.address != new.address || broker.directory != new.directory)
                && self.liveness().is_alive(new.node, broker.epoch, Instant::now())
        })
    }

    /// [`ProposeError::NotLeader`] is certain: Raft says it of what it has not appended, or has cut off again. Of what it
    /// has when it stops it says nothing.
    async fn write(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<(u64, Result<Applied, Rejected>), ProposeError> {
        let began = Instant::now();
        let Some(_writing) = self.writing.try_read().ok().filter(|_| !self.leads_alone()) else {
            return Err(ProposeError::NotLeader { node: self.node(), leader: None });
        };
        match timeout_at(deadline, self.raft.client_write(command)).await {
            Err(_) => Err(ProposeError::TimedOut(millis(began.elapsed()))),
            Ok(Ok(response)) => {
                // The others learn with the next message that it is committed: without this one, after a heartbeat's
                // interval, in which clients find leaders that do not know that they lead.
                if let Err(error) = self.raft.trigger().heartbeat().await {
                    tracing::debug!(%error, "the metadata has stopped already");
                }
                Ok((response.log_id.index, response.data))
            }
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader { node: self.node(), leader: forward.leader_id })
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the metadata has stopped, and does not say what came of a change");
                Err(ProposeError::TimedOut(millis(began.elapsed())))
            }
        }
    }

    async fn forward(&self, to: NodeId, command: &Command, began: Instant, deadline: Instant) -> Attempt {
        let Some(address) = self.address_of(to) else { return Attempt::Not };
        let asked = self.peers.ask(
            to,
            &address,
            Question::Propose(Box::new(command.clone()), SystemClock::new().timestamp()),
        );
        let mut leader = self.leader.clone();
        let replaced = async {
            // A closed channel is a node that stops.
            let _ = leader.wait_for(|leader| *leader != Some(to)).await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let reply = tokio::select! {
            reply = asked => reply,
            () = replaced => return Attempt::Failed(ProposeError::TimedOut(millis(began.elapsed()))),
            () = sleep_until(deadline) => {
                return Attempt::Failed(ProposeError::TimedOut(millis(began.elapsed())));
            }
        };
        match reply {
            Ok(Reply::Applied { index, result }) => Attempt::Applied { index, result },
            Ok(Reply::NotApplied {
                error: ProposeError::NotLeader { .. } | ProposeError::NoMajority { .. },
                ..
            }) => Attempt::Not,
            // It stops, and says so before it proposes anything, or does not know.
            Ok(Reply::NotApplied { error: ProposeError::Stopped(_), .. }) | Err(PeerError::Broken { .. }) => {
                Attempt::Failed(ProposeError::TimedOut(millis(began.elapsed())))
            }
            Ok(Reply::NotApplied { error, .. }) => Attempt::Failed(error),
            // An answer to another question comes of no proposal.
            Ok(_) | Err(_) => Attempt::Not,
        }
    }
}

fn check_size(command: &Command) -> Result<(), ProposeError> {
    let limit = limits::COMMAND_BYTES;
    match postcard::experimental::serialized_size(command) {
        Ok(size) if size > limit => Err(ProposeError::TooLarge { size, limit }),
        Ok(_) => Ok(()),
        Err(error) => Err(ProposeError::Stopped(error.to_string())),
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Refuses a clock that is far off: retention, and the times that a leader gives records, go by it.
fn check_clock(node: NodeId, theirs: Timestamp, ours: Timestamp) -> Result<(), Rejected> {
    let differ = ours.abs_diff(theirs);
    if differ <= CLOCKS_DIFFER_MS {
        return Ok(());
    }
    let which = if theirs > ours { "ahead of" } else { "behind" };
    let why = format!(
        "it is {} s {which} the controller's: set it right, and start the node again",
        differ / 1_000
    );
    Err(Rejected::Invalid { what: format!("the clock of node {node}"), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_under_way_when_the_metadata_stopped_is_not_known() {
        for _ in 0..10 {
            let (_dir, metadata) = crate::metadata::tests::alone().await;
            let core = metadata.core();
            let node = core.node();
            let broker = Registration {
                node,
                address: core.address.clone(),
                rack: None,
                directory: crate::DirectoryId([1; 16]),
                clean: true,
                renewed: true,
            };
            let (proposed, panicked) = tokio::join!(
                metadata.propose(Command::RegisterBroker { broker, follows: None }),
                core.raft.with_raft_state(|_| panic!("as a bug in Raft does it")),
            );
            panicked.unwrap_err();
            // It may have been quicker.
            assert!(matches!(proposed, Ok(_) | Err(ProposeError::TimedOut(_))), "{proposed:?}");
            let later = metadata.propose(Command::DrainBroker { node, drained: true });
            // The next one may be under way before it is seen that Raft is gone.
            assert!(matches!(later.await, Err(ProposeError::TimedOut(_) | ProposeError::Stopped(_))));
            metadata.shutdown().await;
            let late = metadata.propose(Command::DrainBroker { node, drained: true }).await;
            assert!(matches!(late, Err(ProposeError::Stopped(_))), "{late:?}");
        }
    }

    #[test]
    fn a_clock_that_is_far_off_is_refused_with_how_far() {
        assert!(check_clock(3, 60_000, 0).is_ok());
        let error = check_clock(3, 3 * 3_600_000, 0).unwrap_err().to_string();
        assert!(error.starts_with("the clock of node 3 is not valid: it is 10800 s ahead of"), "{error}");
        assert!(check_clock(3, 0, 3 * 3_600_000).unwrap_err().to_string().contains("behind"));
    }
}
