//! Connections: one peer each.

use std::net::SocketAddr;
use std::time::Duration;

use bus_protocol::{ErrorCode, NodeId, Preamble, StreamKind, WireError};
use bytes::Bytes;
use quinn::{ConnectionError, VarInt};
use rustls::pki_types::CertificateDer;

use crate::{Error, Options, RecvStream, SendStream, certificate};

/// Why a side closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// It has no more use for it.
    Done,
    /// It is stopping.
    ShuttingDown,
    /// The peer broke the protocol.
    Protocol,
    /// It serves as many connections as it may.
    Full,
}

impl Close {
    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Done => 0,
            Self::ShuttingDown => 1,
            Self::Protocol => 2,
            Self::Full => 3,
        })
    }

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::ShuttingDown => "the broker is stopping",
            Self::Protocol => "the protocol was broken",
            Self::Full => {
                "the broker serves as many connections as it may: close some, or ask another broker"
            }
        }
    }
}

/// A connection to one peer. Cheap to clone; it closes when the last clone and the last stream are dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: quinn::Connection,
    peer: Option<NodeId>,
    open_timeout: Duration,
    preamble_timeout: Duration,
}

/// What a connection's packets went through.
#[derive(Clone, Copy, Debug)]
pub struct LinkStats {
    /// The round trip now, as QUIC measures it.
    pub rtt: Duration,
    /// Packets that were sent.
    pub sent_packets: u64,
    /// Packets that were lost, and sent again.
    pub lost_packets: u64,
    /// Bytes that were sent, with all headers of QUIC.
    pub sent_bytes: u64,
    /// Bytes that were received.
    pub received_bytes: u64,
    /// The size of its packets.
    pub mtu: u16,
}

impl Connection {
    /// `verified`: whether the peer's certificate was checked against a CA.
    pub(crate) fn new(inner: quinn::Connection, verified: bool, options: &Options) -> Self {
        let chain = inner.peer_identity().and_then(|id| id.downcast::<Vec<CertificateDer<'static>>>().ok());
        let peer = chain.filter(|_| verified).and_then(|chain| certificate::node_of(chain.first()?));
        let (open_timeout, preamble_timeout) = (options.connect_timeout(), options.preamble_timeout());
        Self { inner, peer, open_timeout, preamble_timeout }
    }

    /// The broker that the peer proved to be, by a certificate of the cluster's CA. `None` for a client.
    pub fn peer_node(&self) -> Option<NodeId> {
        self.peer
    }

    /// Where the peer is now: it may move.
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.remote_address()
    }

    /// Opens a stream. Waits while the peer's limit on open streams is reached, `Options::connect_timeout_ms` at most:
    /// [`Error::NoStream`] then. The preamble goes out with the first frame (or with `finish`): until then the peer
    /// knows of no stream.
    pub async fn open(&self, kind: StreamKind) -> Result<(SendStream, RecvStream), Error> {
        let opened = tokio::time::timeout(self.open_timeout, self.inner.open_bi()).await;
        let opened = opened.map_err(|_| Error::NoStream(self.open_timeout))?;
        let (send, recv) = opened.map_err(lost)?;
        Ok((SendStream::opened(send, Preamble::new(kind)), RecvStream::new(recv)))
    }

    /// Opens a stream with other bytes in front than a preamble: for tests of what a stranger gets.
    #[doc(hidden)]
    pub async fn open_raw(&self, bytes: &'static [u8]) -> Result<(SendStream, RecvStream), Error> {
        let (send, recv) = self.inner.open_bi().await.map_err(lost)?;
        let mut send = SendStream::accepted(send);
        send.write_raw(Bytes::from_static(bytes)).await?;
        Ok((send, RecvStream::new(recv)))
    }

    /// Lets the peer hold `streams` open at once from now on; fewer than before count as streams end. Each that is allowed
    /// takes memory here, about 100 bytes, whether it is opened or not.
    pub fn allow_streams(&self, streams: u32) {
        self.inner.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
    }

    /// The next stream that the peer opens; only a server's peer opens any. Call [`Opening::accept`] in a task of the
    /// stream's own: the peer may take its time.
    pub async fn accept(&self) -> Result<Opening, Error> {
        let (send, recv) = self.inner.accept_bi().await.map_err(lost)?;
        Ok(Opening {
            send: SendStream::accepted(send),
            recv: RecvStream::new(recv),
            timeout: self.preamble_timeout,
        })
    }

    /// Waits until the connection is closed or lost, and says why.
    pub async fn closed(&self) -> Error {
        lost(self.inner.closed().await)
    }

    /// Whether it is closed or lost.
    pub fn is_closed(&self) -> bool {
        self.inner.close_reason().is_some()
    }

    /// Closes it. What was sent and is not acknowledged yet is lost.
    pub fn close(&self, close: Close) {
        self.inner.close(close.code(), close.reason().as_bytes());
    }

    /// What its packets went through so far.
    pub fn stats(&self) -> LinkStats {
        let stats = self.inner.stats();
        LinkStats {
            rtt: stats.path.rtt,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            mtu: stats.path.current_mtu,
        }
    }
}

/// A stream that the peer opened, before it said what it is for.
#[derive(Debug)]
pub struct Opening {
    send: SendStream,
    recv: RecvStream,
    timeout: Duration,
}

impl Opening {
    /// Waits for the preamble, `Options::preamble_timeout_ms` at most. A stream of another version, of an unknown
    /// kind, or with garbage in front is answered with a [`WireError`] and ended; the connection goes on.
    pub async fn accept(mut self) -> Result<(StreamKind, SendStream, RecvStream), Error> {
        let read = tokio::time::timeout(self.timeout, self.recv.read_array::<{ Preamble::LEN }>()).await;
        let Ok(read) = read else {
            self.send.reset(ErrorCode::TimedOut as u32);
            self.recv.stop(ErrorCode::TimedOut as u32);
            return Err(Error::PreambleTimeout(self.timeout));
        };
        let error = match Preamble::decode(read?.ok_or(Error::Truncated)?) {
            Ok(preamble) => return Ok((preamble.kind, self.send, self.recv)),
            Err(error) => error,
        };
        // One code for all three: where an `Answer` is due, no `Result` starts with this code's number, so no
        // version can take the refusal for an answer.
        self.refuse(WireError::new(ErrorCode::UnsupportedVersion, error.to_string())).await;
        Err(error.into())
    }

    /// Answers with a refusal whatever the stream is for, and ends it. Takes as long as the peer makes it,
    /// `Options::preamble_timeout_ms` at most.
    pub async fn refuse(mut self, refusal: WireError) {
        let code = refusal.code as u32;
        let answer = async {
            self.send.write_frame(&refusal, &[]).await?;
            self.send.finish()
        };
        // The peer may be gone already, or not be one that reads: then there is nobody to tell.
        if let Ok(Err(error)) = tokio::time::timeout(self.timeout, answer).await {
            tracing::debug!(%error, "a refused stream's peer was not told");
        }
        self.recv.stop(code);
    }
}

/// TLS alerts travel as QUIC errors from 0x100 (RFC 9001, section 4.8); the alerts' numbers are RFC 8446's.
const CRYPTO_ERROR: u64 = 0x100;
const NO_APPLICATION_PROTOCOL: u64 = CRYPTO_ERROR + 120;
const CONNECTION_REFUSED: u64 = 0x2;

fn is_crypto(code: u64) -> bool {
    (CRYPTO_ERROR..CRYPTO_ERROR + 0x100).contains(&code)
}

/// Why a connection did not come about, in the words of somebody who can do something about it.
pub(crate) fn refused(error: ConnectionError, address: &str, ca: &str, options: &Options) -> Error {
    let address = address.to_owned();
    match error {
        ConnectionError::TimedOut => Error::NoAnswer { address, waited: options.connect_timeout() },
        ConnectionError::VersionMismatch => Error::NotBus { address },
        ConnectionError::TransportError(error) => match u64::from(error.code) {
            NO_APPLICATION_PROTOCOL => Error::NotBus { address },
            code if is_crypto(code) => Error::Untrusted { address, why: distrust(&error.reason, ca) },
            _ => Error::Lost(error.to_string()),
        },
        ConnectionError::ConnectionClosed(close) => {
            let why = String::from_utf8_lossy(&close.reason).into_owned();
            match u64::from(close.error_code) {
                NO_APPLICATION_PROTOCOL => Error::NotBus { address },
                CONNECTION_REFUSED => Error::Rejected { address, why: "it lets nobody in now".to_owned() },
                code if is_crypto(code) => Error::Rejected { address, why },
                _ => Error::Lost(why),
            }
        }
        other => lost(other),
    }
}

/// What rustls said about a certificate, for people.
fn distrust(reason: &str, ca: &str) -> String {
    if reason.contains("UnknownIssuer") || reason.contains("BadSignature") {
        format!("it is not signed by {ca}: pass --ca FILE with the cluster's own CA")
    } else if reason.contains("NotValidForName") {
        format!("it is for another host ({reason}): give the broker this address with --advertise")
    } else if reason.contains("Expired") || reason.contains("NotValidYet") {
        format!("{reason}: check the clocks, and start the broker again to make a new one")
    } else {
        reason.to_owned()
    }
}

/// Why a connection is no more.
pub(crate) fn lost(error: ConnectionError) -> Error {
    match error {
        ConnectionError::TimedOut => Error::Silent,
        ConnectionError::LocallyClosed => Error::LocallyClosed,
        ConnectionError::ApplicationClosed(close) => Error::Closed {
            code: close.error_code.into_inner(),
            reason: String::from_utf8_lossy(&close.reason).into_owned(),
        },
        ConnectionError::Reset => {
            Error::Lost("the peer does not know it any more: it has restarted".to_owned())
        }
        other => Error::Lost(other.to_string()),
    }
}
