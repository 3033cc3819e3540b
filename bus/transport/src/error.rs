//! What can go wrong on the way to a peer and back.

use std::io;
use std::time::Duration;

use bus_protocol::{FrameError, PreambleError, WireError};

/// What can go wrong on the way to a peer and back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address to listen on cannot be had.
    #[error(
        "cannot listen on {address}: {source}: see what listens there, or choose another address with --listen"
    )]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The address is none, or its host's name is not known.
    #[error("{address} cannot be looked up: {why}: give HOST:PORT")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody answers.
    #[error("no broker answers at {address} (waited {waited:?}): is it started, and is the address right?")]
    NoAnswer {
        /// The address.
        address: String,
        /// How long was waited.
        waited: Duration,
    },
    /// Somebody answers, but not in our protocol.
    #[error(
        "the server at {address} does not speak bus/1: it is a newer or older version, or something else"
    )]
    NotBus {
        /// The address.
        address: String,
    },
    /// The server's certificate is not to be trusted.
    #[error("the certificate of the server at {address} is not trusted: {why}")]
    Untrusted {
        /// The address.
        address: String,
        /// Why, and what to do.
        why: String,
    },
    /// The server did not take our certificate.
    #[error("the server at {address} refused the connection: {why}")]
    Rejected {
        /// The address.
        address: String,
        /// What it said.
        why: String,
    },
    /// A certificate or key of ours, or the CA's file, cannot be used.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The peer went silent.
    #[error("the connection was lost: the peer is silent")]
    Silent,
    /// The connection broke.
    #[error("the connection was lost: {0}")]
    Lost(String),
    /// The peer closed the connection.
    #[error("the peer closed the connection: {reason}")]
    Closed {
        /// Its code; see [`crate::Close`].
        code: u64,
        /// Its words.
        reason: String,
    },
    /// The peer lets this side open no more streams than it has open, for too long.
    #[error("no stream can be opened: the peer takes no more on this connection (waited {0:?})")]
    NoStream(Duration),
    /// This side closed the connection or its endpoint.
    #[error("the connection is closed")]
    LocallyClosed,
    /// The peer reset the stream, or stopped reading it.
    #[error("the peer ended the stream early (code {0})")]
    Reset(u64),
    /// This side has finished or reset the stream already.
    #[error("the stream is finished")]
    Finished,
    /// The stream ended within a frame or a preamble.
    #[error("the stream ended in the middle of a message")]
    Truncated,
    /// A frame that cannot be read; neither can the rest of its stream.
    #[error("a frame cannot be read: {0}")]
    Frame(#[from] FrameError),
    /// A frame whose payload is over the limit that the reader gave. The stream can be read on: the payload is
    /// skipped.
    #[error("payload of {bytes} bytes is over the limit of {limit}")]
    PayloadTooLarge {
        /// The payload.
        bytes: usize,
        /// The reader's limit.
        limit: usize,
    },
    /// A stream that does not open as one of ours does. It has been answered and ended.
    #[error("a stream was refused: {0}")]
    Preamble(#[from] PreambleError),
    /// A stream that did not say what it is for in time. It has been ended.
    #[error("a stream did not say what it is for within {0:?}")]
    PreambleTimeout(Duration),
    /// The peer answered with a refusal where a message was due.
    #[error("{0}")]
    Refused(WireError),
}

impl Error {
    /// Whether the same may succeed later, on another connection or stream, without anybody changing it.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::NoAnswer { .. }
            | Self::Silent
            | Self::Lost(_)
            | Self::Closed { .. }
            | Self::NoStream(_)
            | Self::Reset(_)
            | Self::Truncated => true,
            Self::Refused(refusal) => refusal.code.is_retriable(),
            _ => false,
        }
    }
}
