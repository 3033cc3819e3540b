//! What happens to records that a consumer function fails on: tried again, taken apart, and the culprit put
//! aside, so that a bad record never stops a partition.

use std::sync::Arc;
use std::time::Duration;

use bus_protocol::batch::{Header, RecordSlice, RecordSlices};
use bus_protocol::{PartitionId, TopicName};
use bytes::Bytes;

use crate::consume::Portion;
use crate::failure::{Failure, FailureKind};
use crate::ports::{Sink, SinkError};
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
    Failed(Failure),
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

    /// Gives `emissions` to the sink, for as long as it may work yet. Answers with why it never will.
    pub(crate) async fn deliver(&self, emissions: &[Emission]) -> Result<Outcome<()>, ProcessorError> {
        if emissions.is_empty() {
            return Ok(Outcome::Done(()));
        }
        let mut pause = SINK_PAUSE;
        loop {
            match self.sink.emit(emissions).await {
                Ok(()) => return Ok(Outcome::Done(())),
                Err(SinkError::Rejected(why)) => {
                    let why = format!("what it emitted was refused: {why}");
                    return Ok(Outcome::Failed(Failure::new(FailureKind::Output, why)));
                }
                Err(SinkError::Closed(why)) => return Err(ProcessorError::Closed(why)),
                Err(SinkError::Transient(why)) => {
                    tracing::debug!(function = self.function.spec().name, why, "emitted records wait");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(SINK_PAUSE_LAST);
                }
            }
        }
    }

    async fn attempt(&self, portion: &Portion, whole: bool) -> Result<Outcome<()>, ProcessorError> {
        match self.consume(portion, whole).await? {
            Outcome::Done(emissions) => self.deliver(&emissions).await,
            Outcome::Failed(failure) => Ok(Outcome::Failed(failure)),
        }
    }

    /// Sees a portion through that failed once: tries it again, `retries` times, then takes it apart.
    pub(crate) async fn see_through(&self, portion: Portion) -> Result<(), ProcessorError> {
        for _ in 0..self.function.spec().retries {
            if let Outcome::Done(()) = self.attempt(&portion, true).await? {
                return Ok(());
            }
        }
        // Halves on a stack, the earlier one on top: order is kept, and a culprit among n records costs about
        // 2 log2 n calls.
        let mut stack = vec![portion];
        while let Some(portion) = stack.pop() {
            if portion.records.is_empty() {
                continue;
            }
            let Outcome::Failed(failure) = self.attempt_part(&portion).await? else { continue };
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
    async fn attempt_part(&self, portion: &Portion) -> Result<Outcome<()>, ProcessorError> {
        let mut retries = self.function.spec().retries;
        loop {
            match self.attempt(portion, false).await? {
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
        if let Outcome::Failed(refused) = self.deliver(std::slice::from_ref(&letter)).await? {
            // Too large with what we add to it, most likely. Where it came from is what must not be lost.
            tracing::warn!(function = spec.name, %refused, place, "dead-letter topic refused a record");
            for record in &mut letter.records {
                record.value = None;
                record.headers.retain(|header| header.key.starts_with(b"bus."));
            }
            if let Outcome::Failed(refused) = self.deliver(std::slice::from_ref(&letter)).await? {
                let line = format!("record {place} failed ({failure}) and was not dead-lettered: {refused}");
                tracing::error!(function = spec.name, "{line}");
                self.function.log_line("error", &line);
                return Ok(());
            }
        }
        let topic = &letter.topic;
        self.function.log_line("error", &format!("record {place} went to {topic}: {failure}"));
        Ok(())
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
