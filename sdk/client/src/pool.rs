//! One connection to each broker, made when it is needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bus_transport::{Close, Connection, Endpoint};
use tokio::time::Instant;

use crate::Error;
use crate::backoff::Backoff;

/// The connections of a client, by the brokers' addresses: as many as the cluster has brokers.
pub(crate) struct Pool {
    endpoint: Endpoint,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
}

#[derive(Default)]
struct Slot(tokio::sync::Mutex<Link>);

#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    backoff: Backoff,
    /// No attempt before this.
    not_before: Option<Instant>,
}

impl Pool {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, slots: Mutex::default() }
    }

    /// The connection to the broker at `address`. One attempt at a time, after the back-off of those that failed.
    pub(crate) async fn get(&self, address: &str) -> Result<Connection, Error> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            match slots.get(address) {
                Some(slot) => slot.clone(),
                None => slots.entry(address.to_owned()).or_default().clone(),
            }
        };
        let mut link = slot.0.lock().await;
        if let Some(connection) = link.connection.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        link.connection = None;
        if let Some(not_before) = link.not_before.take() {
            tokio::time::sleep_until(not_before).await;
        }
        // Also when this attempt is cancelled half-way: the next one waits.
        link.not_before = Some(Instant::now() + link.backoff.next());
        let connection = self.endpoint.connect(address).await?;
        link.backoff.reset();
        link.not_before = None;
        link.connection = Some(connection.clone());
        Ok(connection)
    }

    pub(crate) fn close(&self) {
        self.endpoint.close(Close::Done);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close();
    }
}
