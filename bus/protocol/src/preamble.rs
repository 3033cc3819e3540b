//! The first five bytes of every stream: who speaks, in which version, to what end.
//!
//! ALPN `bus/1` is agreed in the handshake; the version here is that of the messages. These five bytes and the
//! answer to a version that is not spoken (a frame whose control part is a [`crate::WireError`]) stay as they
//! are in all versions, so that old and new always understand the refusal.

/// The version of the messages that this build speaks.
pub const PROTOCOL_VERSION: u8 = 1;

const MAGIC: [u8; 3] = *b"BUS";

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// One request, one answer.
    Request = 1,
    /// Batches to one partition, pipelined, answered in order.
    Produce = 2,
    /// Batches of one partition, pushed as they commit, under credit.
    Fetch = 3,
    /// Raft's messages between brokers.
    Metadata = 4,
    /// Bytes that are counted and thrown away: what the machine's QUIC can carry, for `bus bench`.
    Discard = 5,
    /// Batches of one partition from its leader to a follower, between brokers.
    Replicate = 6,
}

/// The opening of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// What the stream is for.
    pub kind: StreamKind,
}

/// Why a stream's opening is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PreambleError {
    /// Not this protocol.
    #[error("the stream does not start as a bus stream does: got bytes {0:02x?}")]
    NotBus([u8; 3]),
    /// Another version of it.
    #[error("the peer speaks protocol version {theirs}, this side speaks version {PROTOCOL_VERSION}: use a {} client", if *.theirs > PROTOCOL_VERSION { "older" } else { "newer" })]
    Version {
        /// What the peer speaks.
        theirs: u8,
    },
    /// A kind of stream that this version does not know.
    #[error("stream kind {0} is unknown to this version")]
    Kind(u8),
}

impl Preamble {
    /// Bytes on the wire.
    pub const LEN: usize = 5;

    /// A stream of this kind, in this build's version.
    pub fn new(kind: StreamKind) -> Self {
        Self { kind }
    }

    /// The bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let [b, u, s] = MAGIC;
        [b, u, s, PROTOCOL_VERSION, self.kind as u8]
    }

    /// Reads the bytes.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self, PreambleError> {
        let [b, u, s, version, kind] = bytes;
        if [b, u, s] != MAGIC {
            return Err(PreambleError::NotBus([b, u, s]));
        }
        if version != PROTOCOL_VERSION {
            return Err(PreambleError::Version { theirs: version });
        }
        let kind = match kind {
            1 => StreamKind::Request,
            2 => StreamKind::Produce,
            3 => StreamKind::Fetch,
            4 => StreamKind::Metadata,
            5 => StreamKind::Discard,
            6 => StreamKind::Replicate,
            other => return Err(PreambleError::Kind(other)),
        };
        Ok(Self { kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_round_trips_and_strangers_are_named() {
        for kind in [
            StreamKind::Request,
            StreamKind::Produce,
            StreamKind::Fetch,
            StreamKind::Metadata,
            StreamKind::Discard,
            StreamKind::Replicate,
        ] {
            assert_eq!(Preamble::decode(Preamble::new(kind).encode()).unwrap().kind, kind);
        }
        assert_eq!(Preamble::decode(*b"GET /"), Err(PreambleError::NotBus(*b"GET")));
        assert_eq!(Preamble::decode(*b"BUS\x02\x01"), Err(PreambleError::Version { theirs: 2 }));
        assert_eq!(Preamble::decode(*b"BUS\x01\x63"), Err(PreambleError::Kind(0x63)));
    }
}
