//! Records that a partition's task gives up: those whose time is over, and those that can never be stored.

use bus_protocol::ErrorCode;
use tokio::time::Instant;

use super::queue::{Open, Take};
use super::sender::Sender;
use crate::Error;

impl Sender {
    /// Fails a batch that was never sent.
    fn fail_open(&self, open: &Open, error: Error) {
        let records = open.builder.len() as u64;
        self.shared.count_taken(records);
        self.shared.count(records, false);
        self.queue.settled(&open.outcome);
        open.outcome.settle(Err(error));
        self.shared.give_back(open.charged);
    }

    /// Fails what is late, with the last cause.
    pub(super) fn fail_late(&self, cause: Option<&Error>) {
        let after = self.shared.settings.delivery_timeout;
        let now = Instant::now();
        let silent = Error::NoAnswer { request: "the batch", after };
        let cause = self.client().majority_or(cause.cloned().unwrap_or(silent)).to_string();
        while self.flight().deadline().is_some_and(|deadline| deadline <= now) {
            let batch = self.flight().fail_front();
            if let Some(batch) = batch {
                self.settle(&batch, Err(Error::NotAcknowledged { after, cause: cause.clone() }));
            }
        }
        let waiting = {
            let mut flight = self.flight();
            flight.close_gap();
            flight.waiting.take_if(|open| open.since + after <= now)
        };
        let fail = |open| self.fail_open(&open, Error::NotSent { after, cause: cause.clone() });
        waiting.into_iter().for_each(fail);
        // What lies in the queue is younger than what was taken from it.
        while self.flight().is_empty() && self.queue.oldest().is_some_and(|since| since + after <= now) {
            let Take::Batch(open) = self.queue.take(true, &self.shared.settings) else { return };
            fail(open);
        }
    }

    /// Without acknowledgements a refusal ends the stream, and what it refuses was settled when it was written. Only
    /// where it is too large may it be refused while it is being written still.
    pub(super) fn drop_culprit(&self, error: &Error) {
        let mut flight = self.flight();
        let being_written = flight.owed_since().is_some();
        if being_written
            && error.code() == Some(ErrorCode::MessageTooLarge)
            && let Some(batch) = flight.answered()
        {
            drop(flight);
            self.settle(&batch, Err(error.clone()));
        }
    }

    /// Fails everything there is: nothing of it can succeed.
    pub(super) fn fail_all(&self, error: &Error) {
        loop {
            let (batch, waiting) = {
                let mut flight = self.flight();
                (flight.fail_front(), flight.waiting.take())
            };
            let none = batch.is_none() && waiting.is_none();
            batch.iter().for_each(|batch| self.settle(batch, Err(error.clone())));
            waiting.iter().for_each(|open| self.fail_open(open, error.clone()));
            if none {
                self.queue.hurry();
                let Take::Batch(open) = self.queue.take(true, &self.shared.settings) else { break };
                self.fail_open(&open, error.clone());
            }
        }
        self.flight().close_gap();
    }
}

/// Whether it is one batch that was refused, and not the stream: the next batch may well be taken.
pub(super) fn is_of_a_batch(error: &Error) -> bool {
    let codes = [ErrorCode::RecordRefused, ErrorCode::MessageTooLarge, ErrorCode::CorruptBatch];
    error.code().is_some_and(|code| codes.contains(&code))
}
