//! The one place where the errors of the crates below become codes on the wire.

use bus_function::{ChainError, TransformError};
use bus_log::SequenceError;
use bus_metadata::ProposeError;
use bus_protocol::batch::BatchError;
use bus_protocol::{ErrorCode, FrameError, TopicName, WireError};
use bus_replica::AppendError;

/// Becomes a refusal that a client can read.
pub(crate) trait Refusal {
    fn refusal(self) -> WireError;
}

impl Refusal for AppendError {
    fn refusal(self) -> WireError {
        let code = match &self {
            Self::NotEnoughReplicas { .. } => ErrorCode::NotEnoughReplicas,
            Self::Full => ErrorCode::StorageFull,
            Self::Behind => ErrorCode::Busy,
            Self::Offline(_) => ErrorCode::StorageFailed,
            Self::Sequence(SequenceError::OutOfOrder { .. }) => ErrorCode::OutOfOrderSequence,
            Self::Sequence(SequenceError::Fenced { .. }) => ErrorCode::FencedProducer,
            Self::NotLeader | Self::Closed => ErrorCode::NotLeader,
        };
        WireError::new(code, self.to_string())
    }
}

impl Refusal for bus_log::Error {
    fn refusal(self) -> WireError {
        let code = match &self {
            Self::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            Self::Full { .. } => ErrorCode::StorageFull,
            _ => ErrorCode::StorageFailed,
        };
        WireError::new(code, self.to_string())
    }
}

impl Refusal for BatchError {
    fn refusal(self) -> WireError {
        WireError::new(ErrorCode::CorruptBatch, format!("the record batch is not valid: {self}"))
    }
}

impl Refusal for WireError {
    fn refusal(self) -> WireError {
        self
    }
}

impl Refusal for FrameError {
    fn refusal(self) -> WireError {
        WireError::new(ErrorCode::InvalidRequest, self.to_string())
    }
}

impl Refusal for ProposeError {
    fn refusal(self) -> WireError {
        WireError::new(self.code(), self.to_string())
    }
}

impl Refusal for bus_function::InvalidModule {
    fn refusal(self) -> WireError {
        WireError::new(ErrorCode::InvalidFunction, self.to_string())
    }
}

impl Refusal for std::io::Error {
    fn refusal(self) -> WireError {
        let code = match self.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::StorageFull,
            _ => ErrorCode::StorageFailed,
        };
        WireError::new(code, format!("the broker's disk: {self}"))
    }
}

/// A transform's verdict on a batch for `topic`.
pub(crate) fn transform(topic: &TopicName, failed: ChainError) -> WireError {
    let ChainError { function, error } = failed;
    match error {
        TransformError::Refused(records) => {
            let first =
                records.first().map(|r| format!("record {}: {}", r.index, r.reason)).unwrap_or_default();
            let more = records.len().saturating_sub(1);
            let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            WireError {
                records,
                ..WireError::new(
                    ErrorCode::RecordRefused,
                    format!("function {function} on topic {topic} refused the batch: {first}{more}"),
                )
            }
        }
        failed => WireError::new(
            ErrorCode::FunctionFailed,
            format!("function {function} on topic {topic} failed: {failed}"),
        ),
    }
}
