//! One connection to each broker, made when it is needed, and made anew when it carries nothing any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus_protocol::request::{ClusterInfo, Request, Response};
use bus_transport::{Close, Connection, Endpoint};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Error;
use crate::backoff::Backoff;
use crate::request::exchange;

/// After so long without an answer a handshake is begun once more beside the first. QUIC itself repeats a lost first
/// packet ever more seldom, so that a broker that comes back would be found late.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a connection that is in doubt may take for an answer, and a new one to come about.
const PROOF: Duration = Duration::from_millis(500);
/// A connection that was found good, or that cannot be replaced, is left alone for so long.
const CHECKED: Duration = Duration::from_millis(900);

/// See [`Pool::rank`].
const SUSPECT: u8 = 2;

/// The connections of a client, by the brokers' addresses: as many as the cluster has brokers.
pub(crate) struct Pool {
    endpoint: Endpoint,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    closed: AtomicBool,
}

/// What comes of an attempt to connect, once that is known.
type Attempt = watch::Receiver<Option<Result<Connection, Error>>>;

#[derive(Default)]
struct Slot {
    /// Locked while the connection is made, or checked.
    link: tokio::sync::Mutex<Link>,
    connection: Mutex<Option<Connection>>,
    /// The attempt that is under way, and what comes of it.
    attempt: Mutex<Option<Attempt>>,
    /// It did not answer when it was asked last.
    suspect: AtomicBool,
}

#[derive(Default)]
struct Link {
    backoff: Backoff,
    /// No attempt before this.
    not_before: Option<Instant>,
    checked: Option<Instant>,
}

impl Slot {
    fn current(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> Option<Connection> {
        self.current().as_ref().filter(|connection| !connection.is_closed()).cloned()
    }

    /// Connects, where that was not done meanwhile.
    async fn make(&self, endpoint: &Endpoint, address: &str) -> Result<Connection, Error> {
        let mut link = self.link.lock().await;
        if let Some(connection) = self.live() {
            return Ok(connection);
        }
        if let Some(not_before) = link.not_before.take() {
            sleep_until(not_before).await;
        }
        link.not_before = Some(Instant::now() + link.backoff.next());
        let made = connect(endpoint, address).await;
        self.suspect.store(made.is_err(), Ordering::Relaxed);
        let connection = made?;
        link.backoff.reset();
        link.not_before = None;
        *self.current() = Some(connection.clone());
        Ok(connection)
    }

    /// See [`Pool::check`].
    async fn check(&self, endpoint: &Endpoint, address: &str) -> Option<ClusterInfo> {
        // Locked: somebody else is at it.
        let (Some(connection), Ok(mut link)) = (self.live(), self.link.try_lock()) else { return None };
        if link.is_checked() {
            return None;
        }
        let heard = connection.stats().received_bytes;
        let answer = timeout(PROOF, exchange(&connection, &Request::Cluster, Bytes::new())).await;
        self.suspect.store(answer.is_err(), Ordering::Relaxed);
        if answer.is_err()
            && connection.stats().received_bytes == heard
            && let Ok(Ok(fresh)) = timeout(PROOF, endpoint.connect(address)).await
        {
            tracing::debug!(address, "the connection carries nothing any more, and a new one does");
            *self.current() = Some(fresh);
            self.suspect.store(false, Ordering::Relaxed);
            connection.close(Close::Done);
        }
        link.checked = Some(Instant::now());
        match answer {
            Ok(Ok(Response::Cluster(cluster))) => Some(cluster),
            _ => None,
        }
    }
}

impl Link {
    fn is_checked(&self) -> bool {
        self.checked.is_some_and(|checked| checked.elapsed() < CHECKED)
    }
}

async fn connect(endpoint: &Endpoint, address: &str) -> Result<Connection, Error> {
    // Two attempts for each second of the first one's timeout.
    let mut attempts = JoinSet::new();
    loop {
        let (endpoint, address) = (endpoint.clone(), address.to_owned());
        attempts.spawn(async move { endpoint.connect(&address).await });
        tokio::select! {
            Some(made) = attempts.join_next() => {
                let lost = |error: tokio::task::JoinError| bus_transport::Error::Lost(error.to_string());
                return Ok(made.map_err(lost)??);
            }
            () = sleep(AGAIN) => {}
        }
    }
}

impl Pool {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, slots: Mutex::default(), closed: AtomicBool::new(false) }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, address: &str) -> Arc<Slot> {
        let mut slots = self.slots();
        match slots.get(address) {
            Some(slot) => slot.clone(),
            None => slots.entry(address.to_owned()).or_default().clone(),
        }
    }

    /// The connection to the broker at `address`. One attempt at a time, after the back-off of those that failed; it goes
    /// on when this is cancelled, so that a broker that is asked often, and each time for a short while, is reached all
    /// the same.
    pub(crate) async fn get(&self, address: &str) -> Result<Connection, Error> {
        let slot = self.slot(address);
        if let Some(connection) = slot.live() {
            return Ok(connection);
        }
        let mut made = self.attempt(&slot, address)?;
        match made.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(made)) => made.clone(),
            // Its runtime is being shut down.
            _ => Err(Error::Closed("client")),
        }
    }

    /// Starts to connect, unless somebody has already.
    fn attempt(&self, slot: &Arc<Slot>, address: &str) -> Result<Attempt, Error> {
        let mut attempt = slot.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*attempt {
            return Ok(made.clone());
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed("client"));
        }
        let (tell, made) = watch::channel(None);
        *attempt = Some(made.clone());
        let (slot, endpoint, address) = (slot.clone(), self.endpoint.clone(), address.to_owned());
        tokio::spawn(async move {
            let result = slot.make(&endpoint, &address).await;
            *slot.attempt.lock().unwrap_or_else(PoisonError::into_inner) = None;
            tell.send_replace(Some(result));
        });
        Ok(made)
    }

    /// Finds out whether the connection to `address`, if there is one, still carries anything. One that does not, while
    /// a new one can be made, is closed and replaced: its broker has restarted, or the way to it has changed, and QUIC
    /// itself would notice only after the idle timeout. Takes about a second at most. Answers what the broker said of
    /// the cluster, if it was asked, and has answered.
    pub(crate) async fn check(&self, address: &str) -> Option<ClusterInfo> {
        self.slot(address).check(&self.endpoint, address).await
    }

    /// Finds out, while nobody waits for it, whether the broker at `address` can be reached: by [`Pool::check`], or by a
    /// new connection. Once a second, however often it is called.
    pub(crate) fn look_after(&self, address: &str) {
        let slot = self.slot(address);
        if slot.live().is_none() {
            let _ = self.attempt(&slot, address);
        } else if slot.link.try_lock().is_ok_and(|link| !link.is_checked()) {
            let (endpoint, address) = (self.endpoint.clone(), address.to_owned());
            tokio::spawn(async move { slot.check(&endpoint, &address).await });
        }
    }

    /// Gives up a connection whose peer is silent, and with it all that is under way on it.
    pub(crate) fn abandon(&self, address: &str, connection: &Connection) {
        self.slot(address).suspect.store(true, Ordering::Relaxed);
        connection.close(Close::Done);
    }

    /// Notes whether the broker at `address` answered when it was asked.
    pub(crate) fn note(&self, address: &str, answered: bool) {
        if let Some(slot) = self.slots().get(address) {
            slot.suspect.store(!answered, Ordering::Relaxed);
        }
    }

    /// Whether the broker at `address` did not answer when it was asked last.
    pub(crate) fn is_silent(&self, address: &str) -> bool {
        self.slots().get(address).is_some_and(|slot| slot.suspect.load(Ordering::Relaxed))
    }

    /// Whether it is silent, or has left: whoever stops closes its connections.
    pub(crate) fn is_suspect(&self, address: &str) -> bool {
        self.rank(address) == SUSPECT
    }

    /// Whom to ask first: 0 those that are connected, 1 those that never were, 2 those that did not answer last time, or
    /// whose connection has ended.
    pub(crate) fn rank(&self, address: &str) -> u8 {
        let Some(slot) = self.slots().get(address).cloned() else { return 1 };
        let suspect = slot.suspect.load(Ordering::Relaxed);
        match &*slot.current() {
            Some(connection) if suspect || connection.is_closed() => SUSPECT,
            None if suspect => SUSPECT,
            Some(_) => 0,
            None => 1,
        }
    }

    /// Forgets the brokers at other addresses than these.
    pub(crate) fn retain(&self, addresses: &[String]) {
        self.slots().retain(|address, _| addresses.contains(address));
    }

    /// Moves to another UDP socket; see [`crate::Client::rebind`].
    pub(crate) fn rebind(&self) -> Result<(), Error> {
        Ok(self.endpoint.rebind()?)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.endpoint.close(Close::Done);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}
