//! What happened, as one number: the same seed must give the same one.

use std::fmt::Write;

use crate::clock::Time;

/// FNV-1a over everything that was noted, and, if wanted, the lines themselves.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    line: String,
    lines: Option<Vec<String>>,
}

impl Trace {
    pub(crate) fn new(keep_lines: bool) -> Self {
        let (line, lines) = (String::new(), keep_lines.then(Vec::new));
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, line, lines }
    }

    /// Something happens now; what, its number stands for.
    pub(crate) fn happens(&mut self, now: Time, number: u64) {
        self.events += 1;
        for word in [now, number] {
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn note(&mut self, now: Time, what: std::fmt::Arguments<'_>) {
        self.line.clear();
        let _ = write!(self.line, "{:>9}.{:03} {what}", now / 1_000, now % 1_000);
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(self.line.clone());
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn take_lines(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default()
    }
}
