//! A producer's settings, checked.

use std::time::Duration;

use bus_protocol::batch::Compression;
use bus_protocol::limits;
use bus_protocol::produce::Acks;

use super::{Producer, Shared};
use crate::{Client, Error};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) acks: Acks,
    pub(crate) compression: Compression,
    pub(crate) linger: Duration,
    pub(crate) batch_bytes: usize,
    pub(crate) buffer_memory: usize,
    pub(crate) delivery_timeout: Duration,
    pub(crate) in_flight: usize,
    /// As it was asked for, if it was.
    pub(crate) idempotent: Option<bool>,
}

impl Settings {
    /// Whether batches carry a producer's id and sequence numbers.
    pub(crate) fn numbers_batches(&self) -> bool {
        self.idempotent.unwrap_or(true) && self.acks == Acks::All
    }
}

/// A producer's settings.
#[derive(Clone, Debug)]
pub struct ProducerBuilder {
    client: Client,
    settings: Settings,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client) -> Self {
        let settings = Settings {
            acks: Acks::All,
            compression: Compression::None,
            linger: Duration::ZERO,
            batch_bytes: 256 << 10,
            buffer_memory: 32 << 20,
            delivery_timeout: Duration::from_secs(120),
            in_flight: limits::PRODUCER_BATCHES_REMEMBERED,
            idempotent: None,
        };
        Self { client, settings }
    }

    /// When a record counts as produced. Default: [`Acks::All`].
    pub fn acks(mut self, acks: Acks) -> Self {
        self.settings.acks = acks;
        self
    }

    /// Whether a batch that is sent again, since its acknowledgement was lost, is recognised and stored once. Default:
    /// yes with [`Acks::All`], which it needs: asked for with other acks it is refused by [`ProducerBuilder::build`].
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.settings.idempotent = Some(idempotent);
        self
    }

    /// How batches are compressed. Default: not.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.settings.compression = compression;
        self
    }

    /// How long a batch may wait for more records. Default: 0, which sends at once while nothing is under way to the
    /// partition, and gathers while something is.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.settings.linger = linger;
        self
    }

    /// The size at which a batch is sent, before compression. Default: 256 KiB. A topic whose `max.message.bytes` is
    /// less gets smaller batches.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.settings.batch_bytes = bytes;
        self
    }

    /// Bytes of records that are not acknowledged yet; `send` waits at this bound. Default: 32 MiB.
    pub fn buffer_memory(mut self, bytes: usize) -> Self {
        self.settings.buffer_memory = bytes;
        self
    }

    /// From `send` until a record that is not acknowledged counts as failed. Default: 120 s.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.settings.delivery_timeout = timeout;
        self
    }

    /// Batches under way to one partition at once, 1 to 64. Default: 64, so that a sync of the broker's covers many.
    /// Order holds with any number.
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.settings.in_flight = batches;
        self
    }

    /// Checks the settings, and builds.
    pub async fn build(self) -> Result<Producer, Error> {
        let Settings { batch_bytes, buffer_memory, in_flight, delivery_timeout, linger, .. } = self.settings;
        let Settings { acks, idempotent, .. } = self.settings;
        let invalid = |what: String| Err(Error::Invalid(what));
        if !(1 << 10..=limits::MAX_MESSAGE_BYTES).contains(&batch_bytes) {
            return invalid(format!("batch of {batch_bytes} bytes is out of range: 1KiB to 32MiB"));
        }
        if !(batch_bytes..=1 << 31).contains(&buffer_memory) {
            return invalid(format!(
                "buffer memory of {buffer_memory} bytes is out of range: one batch to 2GiB"
            ));
        }
        if idempotent == Some(true) && acks != Acks::All {
            return invalid(format!(
                "an idempotent producer needs acks=all, not {acks:?}: what is not committed may be lost and not be \
                 recognised"
            ));
        }
        let most = limits::PRODUCE_BATCHES_IN_FLIGHT.min(limits::PRODUCER_BATCHES_REMEMBERED);
        if !(1..=most).contains(&in_flight) {
            return invalid(format!("{in_flight} batches in flight are out of range: 1 to {most}"));
        }
        if delivery_timeout <= linger {
            return invalid(format!(
                "delivery timeout of {delivery_timeout:?} is not above the linger of {linger:?}"
            ));
        }
        Ok(Producer::new(Shared::new(self.client, self.settings)))
    }
}
