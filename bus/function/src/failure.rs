//! Why one call of a function failed.

use wasmtime::{Trap, WasmBacktrace};

/// How a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The guest trapped: a panic, an abort, a memory access out of bounds.
    Trap,
    /// The guest burnt its fuel.
    Fuel,
    /// The guest ran longer than it may.
    Timeout,
    /// The guest wanted more memory than it may have, and failed over it.
    Memory,
    /// What the guest gave back is not valid, or too large.
    Output,
    /// The component could not be loaded or instantiated.
    Instantiate,
    /// The guest gave back an error of its own. Its instance is kept.
    Guest,
}

impl FailureKind {
    /// A word for it, as in the `bus.error` header and the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Fuel => "fuel",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Instantiate => "instantiate",
            Self::Guest => "error",
        }
    }
}

impl std::fmt::Display for FailureKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Failure {
    /// How.
    pub kind: FailureKind,
    /// What happened, on one line.
    pub message: String,
    /// The guest's stack, a frame a line; empty where there is none.
    pub trace: String,
}

/// The longest message and the longest trace that are kept, in bytes.
const MESSAGE_BYTES: usize = 1_024;
const TRACE_BYTES: usize = 4_096;

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        let line = message.as_ref().replace(['\n', '\r'], " ");
        Self { kind, message: cut(&line, MESSAGE_BYTES).to_owned(), trace: String::new() }
    }

    /// What wasmtime said of a call. `denied`: whether it was refused memory; `last_words`: the last line that
    /// it wrote to stderr, which is where a panic's message goes.
    pub(crate) fn of_call(error: &wasmtime::Error, denied: bool, last_words: &str, fuel: u64) -> Self {
        let trap = error.downcast_ref::<Trap>();
        let (kind, what) = match trap {
            Some(Trap::OutOfFuel) => (FailureKind::Fuel, format!("used up its fuel of {fuel}")),
            Some(Trap::Interrupt) => (FailureKind::Timeout, "ran longer than its timeout".to_owned()),
            _ if denied => (FailureKind::Memory, "asked for more memory than its limit".to_owned()),
            Some(Trap::AllocationTooLarge) => (FailureKind::Memory, "allocation too large".to_owned()),
            Some(trap) => (FailureKind::Trap, trap.to_string()),
            None => (FailureKind::Trap, error.root_cause().to_string()),
        };
        let message = if last_words.is_empty() { what } else { format!("{what}: {last_words}") };
        let trace = error.downcast_ref::<WasmBacktrace>().map(ToString::to_string).unwrap_or_default();
        Self { trace: cut(&trace, TRACE_BYTES).to_owned(), ..Self::new(kind, message) }
    }

    /// Whether the instance may be used again.
    pub(crate) fn spares_instance(&self) -> bool {
        self.kind == FailureKind::Guest
    }
}

/// The front of `text`, at most `limit` bytes, cut between characters.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let mut end = limit;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
