//! What happens to records that a consumer function fails on: tried again, taken apart, and the culprit put
//! aside, so that a bad record never stops a partition.

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::batch::{Header, RecordSlice, RecordSlices};
use bus_protocol::{PartitionId, TopicName};
use bytes::Bytes;

use crate::consume::Portion;
use crate::failure::{Failure, FailureKind};
use crate::ledger::Ledger;
use crate::ports::{Progress, Sink, SinkError};
use crate::processor::ProcessorError;
use crate::{ConsumeError, Emission, EmittedRecord, Function};

/// The first and the longest pause before the sink is asked again.
const SINK_PAUSE: Duration = Duration::from_millis(10);
const SINK_PAUSE_LAST: Duration = Duration::from_secs(1);

/// Calls the function and delivers what it emits, whatever either of them does.
pub(crate) struct Quarantine {
    pub(crate) function: Arc<Function>,
    pub(crate) topic: TopicName,
    pub(crate) partition: PartitionId,
    pub(crate) sink: Arc<dyn Sink>,
}

/// What became of a call for good.
pub(crate) enum Outcome<T> {
    Done(T),
    /// The call failed.
    Failed(Failure),
    /// What it emitted was refused.
    Refused(Failure),
}

impl Quarantine {
    /// Calls the function, waiting out its back-off. A component that cannot be instantiated is no record's
    /// fault: that is tried for ever.
    pub(crate) async fn consume(
        &self,
        portion: &Portion,
        whole: bool,
    ) -> Result<Outcome<Vec<Emission>>, ProcessorError> {
        loop {
            let section = portion.bytes();
            let called = self
                .function
                .consume_section(&self.topic, self.partition, portion.header, section, whole)
                .await;
            match called {
                Ok(emissions) => return Ok(Outcome::Done(emissions)),
                Err(ConsumeError::Backoff { retry_after }) => tokio::time::sleep(retry_after).await,
                Err(ConsumeError::Failed(failure)) if failure.kind == FailureKind::Instantiate => {
                    tracing::warn!(function = self.function.spec().name, %failure, "cannot run function");
                    tokio::time::sleep(self.function.backoff().unwrap_or(SINK_PAUSE)).await;
                }
                Err(ConsumeError::Failed(failure)) => return Ok(Outcome::Failed(failure)),
                Err(ConsumeError::Stopped) => return Err(ProcessorError::Stopped),
            }
        }
    }

    /// Gives what of `emissions` is not committed to the sink, for as long as it may work yet. Answers with why it
    /// never will; `progress` says what is committed nevertheless.
    pub(crate) async fn deliver(
        &self,
        emissions: &[Emission],
        progress: &mut Progress,
    ) -> Result<Outcome<()>, ProcessorError> {
        if progress.count() >= emissions.iter().map(|emission| emission.records.len()).sum() {
            return Ok(Outcome::Done(()));
        }
        let refused = |why: String| {
            let why = format!("what it emitted was refused: {why}");
            Ok(Outcome::Refused(Failure::new(FailureKind::Output, why)))
        };
        let (mut pause, mut failed, mut said) = (SINK_PAUSE, 0, false);
        loop {
            let before = progress.count();
            let answer = self.sink.emit(emissions, progress).await;
            if progress.count() > before {
                (pause, failed) = (SINK_PAUSE, 0);
            }
            let why = match answer {
                Ok(()) => return Ok(Outcome::Done(())),
                Err(SinkError::Rejected(why)) => return refused(why),
                Err(SinkError::Closed(why)) => return Err(ProcessorError::Closed(why)),
                Err(SinkError::Failed(why)) if failed >= self.function.spec().retries => return refused(why),
                Err(SinkError::Failed(why)) => {
                    failed += 1;
                    why
                }
                Err(SinkError::Transient(why)) => why,
            };
            tracing::debug!(function = self.function.spec().name, why, "emitted records wait");
            if pause >= SINK_PAUSE_LAST && !std::mem::replace(&mut said, true) {
                self.function.trouble(&format!("emitted records wait to be stored: {why}"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SINK_PAUSE_LAST);
        }
    }

    async fn attempt(
        &self,
        portion: &Portion,
        whole: bool,
        ledger: &mut Ledger,
    ) -> Result<Outcome<()>, ProcessorError> {
        let emissions = match self.consume(portion, whole).await? {
            Outcome::Done(emissions) => emissions,
            Outcome::Failed(failure) | Outcome::Refused(failure) => return Ok(Outcome::Failed(failure)),
        };
        let mut progress = ledger.recall(&emissions);
        let outcome = self.deliver(&emissions, &mut progress).await?;
        // A single record is not taken apart any more: it goes to the dead-letter topic, and never comes again.
        let comes_again = whole || portion.records.len() > 1;
        if comes_again && matches!(outcome, Outcome::Refused(_)) {
            ledger.note(emissions, &progress);
        }
        Ok(outcome)
    }

    /// Sees a portion through whose call failed once: tries it again, `retries` times, then takes it apart.
    pub(crate) async fn see_through(&self, portion: Portion) -> Result<(), ProcessorError> {
        let mut ledger = Ledger::default();
        for _ in 0..self.function.spec().retries {
            match self.attempt(&portion, true, &mut ledger).await? {
                Outcome::Done(()) => return Ok(()),
                Outcome::Failed(_) => {}
                // The same call emits the same: no need to see it refused again.
                Outcome::Refused(_) => break,
            }
        }
        self.take_apart(portion, &mut ledger).await
    }

    /// Finds the records of a portion that fail, or whose output is refused. `ledger`: what it emitted before.
    pub(crate) async fn take_apart(
        &self,
        portion: Portion,
        ledger: &mut Ledger,
    ) -> Result<(), ProcessorError> {
        // Halves on a stack, the earlier one on top: order is kept, and a culprit among n records costs about
        // 2 log2 n calls.
        let mut stack = vec![portion];
        while let Some(portion) = stack.pop() {
            if portion.records.is_empty() {
                continue;
            }
            let failure = match self.attempt_part(&portion, ledger).await? {
                Outcome::Done(()) => continue,
                Outcome::Failed(failure) | Outcome::Refused(failure) => failure,
            };
            if portion.records.len() == 1 {
                self.dead_letter(&portion, &failure).await?;
                continue;
            }
            let (first, second) = portion.split();
            stack.push(second);
            stack.push(first);
        }
        Ok(())
    }

    /// Time is the machine's, not the record's: a single record that only ran out of time gets its retries, too.
    async fn attempt_part(
        &self,
        portion: &Portion,
        ledger: &mut Ledger,
    ) -> Result<Outcome<()>, ProcessorError> {
        let mut retries = self.function.spec().retries;
        loop {
            match self.attempt(portion, false, ledger).await? {
                Outcome::Failed(failure)
                    if failure.kind == FailureKind::Timeout && portion.records.len() == 1 && retries > 0 =>
                {
                    retries -= 1;
                }
                outcome => return Ok(outcome),
            }
        }
    }

    async fn dead_letter(&self, portion: &Portion, failure: &Failure) -> Result<(), ProcessorError> {
        let spec = self.function.spec();
        let Some(Ok(record)) =
            RecordSlices::new(&portion.bytes()).next().map(|r| r.map(|r| self.letter(portion, &r, failure)))
        else {
            return Ok(());
        };
        let offset = record.0;
        let topic = match &spec.dead_letter {
            Some(topic) => topic.clone(),
            None => TopicName::new(&format!("{}.dead-letter", spec.name))
                .map_err(|error| ProcessorError::DeadLetter(error.to_string()))?,
        };
        self.function.counters.count(0, 0, 1);
        let place = format!("{}-{} offset {offset}", self.topic, self.partition);
        let mut letter = Emission { topic, records: vec![record.1] };
        if let Some(refused) = self.send(&letter).await? {
            // Too large with what we add to it, most likely. Where it came from is what must not be lost.
            tracing::warn!(function = spec.name, %refused, place, "dead-letter topic refused a record");
            for record in &mut letter.records {
                record.value = None;
                record.headers.retain(|header| header.key.starts_with(b"bus."));
            }
            if let Some(refused) = self.send(&letter).await? {
                let line = format!("record {place} failed ({failure}) and was not dead-lettered: {refused}");
                tracing::error!(function = spec.name, "{line}");
                self.function.trouble(&line);
                return Ok(());
            }
        }
        let topic = &letter.topic;
        self.function.log_line("error", &format!("record {place} went to {topic}: {failure}"));
        Ok(())
    }

    /// Answers with why the dead-letter topic will never take it.
    async fn send(&self, letter: &Emission) -> Result<Option<Failure>, ProcessorError> {
        match self.deliver(std::slice::from_ref(letter), &mut Progress::default()).await? {
            Outcome::Done(()) => Ok(None),
            Outcome::Failed(refused) | Outcome::Refused(refused) => Ok(Some(refused)),
        }
    }

    fn letter(&self, portion: &Portion, record: &RecordSlice<'_>, failure: &Failure) -> (i64, EmittedRecord) {
        let owned = Bytes::copy_from_slice;
        let offset = portion.header.base_offset + i64::from(record.offset_delta);
        let mut headers: Vec<Header> = record
            .headers()
            .map(|(key, value)| Header { key: owned(key.as_bytes()), value: value.map(owned) })
            .collect();
        let spec = self.function.spec();
        for (key, value) in [
            ("bus.error", failure.to_string()),
            ("bus.function", spec.name.clone()),
            ("bus.version", self.function.version().to_string()),
            ("bus.topic", self.topic.to_string()),
            ("bus.partition", self.partition.to_string()),
            ("bus.offset", offset.to_string()),
            ("bus.trace", failure.trace.clone()),
        ] {
            if !value.is_empty() {
                headers.push(Header { key: Bytes::from_static(key.as_bytes()), value: Some(value.into()) });
            }
        }
        let letter = EmittedRecord {
            timestamp: portion.header.timestamp_of(record.timestamp_delta),
            key: record.key.map(owned),
            value: record.value.map(owned),
            headers,
        };
        (offset, letter)
    }
}
