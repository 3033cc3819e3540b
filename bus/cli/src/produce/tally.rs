//! What became of the records, in input order.

use std::io::{self, Write as _};

use bus_client::{Ack, Delivery, Error};
use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot};

use crate::units::show_count;

/// Reasons that are told apart; further ones count as "other reasons".
const REASONS: usize = 16;

/// Deliveries of consecutive lines.
#[derive(Debug)]
pub(super) struct Chunk {
    first_line: u64,
    deliveries: Vec<(Result<Delivery, Error>, usize)>,
}

impl Chunk {
    pub(super) fn starting_at(first_line: u64) -> Self {
        Self { first_line, deliveries: Vec::new() }
    }

    pub(super) fn push(&mut self, delivery: Result<Delivery, Error>, bytes: usize) {
        self.deliveries.push((delivery, bytes));
    }

    pub(super) fn len(&self) -> usize {
        self.deliveries.len()
    }
}

/// What became of them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) acknowledged: u64,
    /// Bytes of the acknowledged lines.
    pub(super) bytes: u64,
    pub(super) failed: u64,
    /// Why stdout takes no more.
    pub(super) output: Option<io::Error>,
    reasons: Vec<Reason>,
}

#[derive(Debug)]
struct Reason {
    why: String,
    first_line: u64,
    count: u64,
}

/// Awaits delivery after delivery, and prints what is acknowledged. Stops, and lets the sender know by closing the
/// channel, where going on makes no sense: stdout is gone, or the cluster is. What is then in the channel, and the `last`
/// chunk, for which it was closed too early, counts as not acknowledged, unless it was.
pub(super) async fn tally(
    mut chunks: mpsc::Receiver<Chunk>,
    last: oneshot::Receiver<Chunk>,
    prints: bool,
) -> Tally {
    let mut tally = Tally::default();
    let mut out = Vec::new();
    let mut last = Some(last);
    loop {
        let chunk = match (chunks.recv().await, &mut last) {
            (Some(chunk), _) => chunk,
            (None, last) => {
                let Some(last) = last.take() else { break };
                let Ok(chunk) = last.await else { break };
                chunk
            }
        };
        for (line, (delivery, bytes)) in (chunk.first_line..).zip(chunk.deliveries) {
            let result = match delivery {
                Ok(mut delivery) => match (&mut delivery).now_or_never() {
                    Some(result) => result,
                    None => {
                        // Nothing more for now: what is acknowledged is shown before we wait.
                        tally.print(&mut out);
                        delivery.await
                    }
                },
                Err(error) => Err(error),
            };
            match result {
                Ok(ack) => tally.acknowledged(ack, bytes, prints.then_some(&mut out)),
                Err(error) => {
                    if !concerns_the_record(&error) {
                        chunks.close();
                    }
                    tally.failed(line, &error);
                }
            }
        }
        if out.len() >= 64 << 10 || chunks.is_empty() {
            tally.print(&mut out);
        }
        if tally.output.is_some() {
            chunks.close();
        }
    }
    tally.print(&mut out);
    tally
}

/// Whether the next record may fare better.
fn concerns_the_record(error: &Error) -> bool {
    matches!(
        error,
        Error::RecordRefused { .. }
            | Error::RefusedWithBatch { .. }
            | Error::RecordTooLarge { .. }
            | Error::UnknownPartition { .. }
            | Error::SequenceLost { .. }
    )
}

impl Tally {
    fn acknowledged(&mut self, ack: Ack, bytes: usize, out: Option<&mut Vec<u8>>) {
        self.acknowledged += 1;
        self.bytes += bytes as u64;
        if let Some(out) = out {
            // A Vec takes all that is written to it.
            let _ = writeln!(out, "{{\"partition\":{},\"offset\":{}}}", ack.partition, ack.offset);
        }
    }

    fn failed(&mut self, line: u64, error: &Error) {
        self.failed += 1;
        let why = match error {
            Error::RefusedWithBatch { .. } => {
                "refused with the batch that a refused record was in".to_owned()
            }
            other => other.to_string(),
        };
        let full = self.reasons.len() == REASONS;
        match self.reasons.iter_mut().find(|reason| reason.why == why) {
            Some(reason) => reason.count += 1,
            None if full => {
                if let Some(last) = self.reasons.last_mut() {
                    last.why = "other reasons".into();
                    last.count += 1;
                }
            }
            None => self.reasons.push(Reason { why, first_line: line, count: 1 }),
        }
    }

    /// Writes what is acknowledged to stdout, all of it.
    fn print(&mut self, out: &mut Vec<u8>) {
        if self.output.is_none() && !out.is_empty() {
            let mut stdout = io::stdout().lock();
            self.output = stdout.write_all(out).and_then(|()| stdout.flush()).err();
        }
        out.clear();
    }

    /// Why records failed: reason by reason, with the first line of each.
    pub(super) fn why(&self) -> String {
        let each = self.reasons.iter().map(|Reason { why, first_line, count }| match count {
            1 => format!("line {first_line}: {why}"),
            _ => format!("{} from line {first_line} on: {why}", show_count(*count)),
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_reason() {
        let mut tally = Tally::default();
        let refused = Error::RecordRefused { reason: "no tail number".into() };
        tally.failed(3, &refused);
        for line in 4..7 {
            tally.failed(line, &Error::RefusedWithBatch { index: 2, reason: "no tail number".into() });
        }
        assert_eq!(
            tally.why(),
            "line 3: record refused: no tail number; 3 from line 4 on: refused with the batch that a refused record was in"
        );
        for line in 0..100 {
            tally.failed(line, &Error::RecordRefused { reason: line.to_string() });
        }
        assert_eq!(tally.failed, 104);
        assert_eq!(tally.reasons.len(), REASONS);
    }
}
