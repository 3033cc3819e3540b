//! A function's log: its last lines, in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bus_protocol::{Clock, request::LogLine};

use crate::failure::cut;

/// The last lines that a function logged or wrote to stdout and stderr. Bounded in lines and in their length.
pub struct FunctionLog {
    ring: Mutex<Ring>,
    lines: usize,
    line_bytes: usize,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<LogLine>,
    last: u64,
}

impl FunctionLog {
    pub(crate) fn new(lines: usize, line_bytes: usize, clock: Arc<dyn Clock>) -> Self {
        Self { ring: Mutex::default(), lines, line_bytes, clock }
    }

    /// Adds a line; what is too long is cut, line breaks become spaces.
    pub(crate) fn push(&self, level: &str, message: &str) {
        let message = cut(message.trim_end(), self.line_bytes).replace(['\n', '\r'], " ");
        let timestamp = self.clock.timestamp();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let sequence = ring.last;
        if ring.lines.len() == self.lines {
            ring.lines.pop_front();
        }
        ring.lines.push_back(LogLine { sequence, timestamp, level: level.to_owned(), message });
    }

    /// The lines that are kept and come after `sequence`, oldest first; 0 for all.
    pub fn after(&self, sequence: u64) -> Vec<LogLine> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.lines.iter().filter(|line| line.sequence > sequence).cloned().collect()
    }

    pub(crate) fn line_bytes(&self) -> usize {
        self.line_bytes
    }
}

impl std::fmt::Debug for FunctionLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FunctionLog").field("lines", &self.lines).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_lines_and_cuts_long_ones() {
        let log = FunctionLog::new(3, 80, Arc::new(bus_protocol::SystemClock::new()));
        for n in 0..5 {
            log.push("info", &format!("{n}\nü{}", "x".repeat(200)));
        }
        let kept = log.after(0);
        assert_eq!(kept.iter().map(|line| line.sequence).collect::<Vec<_>>(), [3, 4, 5]);
        assert!(kept.iter().all(|line| line.message.len() <= 80 && !line.message.contains('\n')));
        assert_eq!(log.after(4).len(), 1);
    }
}
