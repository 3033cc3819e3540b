//! What the transport may hold, and how long it waits.

use std::time::Duration;

use bus_protocol::limits;
use serde::{Deserialize, Serialize};

/// What ten times over still fits one UDP datagram of a segmented send (quinn's GSO batch).
const MOST_DATAGRAM_BYTES: u16 = 6_500;

/// The transport's limits. The defaults are measured; see each field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Bytes that a peer may send on one stream before we have read them.
    pub stream_window_bytes: u32,
    /// Bytes that a peer may send on all streams of a connection before we have read them.
    pub connection_window_bytes: u32,
    /// Bytes that we hold on a connection until the peer has acknowledged them.
    pub send_window_bytes: u32,
    /// The largest datagram that a path is tried with, and that is taken in (RFC 8899). Ten of them travel in one system
    /// call, which carries 64 KiB at the most: hence the bound. A path through an Ethernet of 1,500 bytes is found out to
    /// take 1,452; loopback and jumbo frames take all of it, at a third of the CPU time for each byte.
    pub datagram_bytes: u16,
    /// The UDP socket's buffer in each direction. The kernel may grant less (`net.core.rmem_max`).
    pub socket_buffer_bytes: u32,
    /// Streams that a peer may hold open at once, until it is allowed more by [`crate::Connection::allow_streams`].
    pub streams: u32,
    /// Silence after which a packet is sent to keep the connection, in milliseconds.
    pub keep_alive_ms: u64,
    /// Silence after which the peer counts as gone, in milliseconds.
    pub idle_timeout_ms: u64,
    /// As `idle_timeout_ms`, for connections that a broker makes to another: a broker that is gone must be missed soon.
    pub peer_idle_timeout_ms: u64,
    /// How long a connection, or a stream on it, may take to come about, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long an opened stream may take to say what it is for, in milliseconds.
    pub preamble_timeout_ms: u64,
}

/// A setting that is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("transport.{setting} = {value} is out of range: {allowed}")]
pub struct InvalidOptions {
    setting: &'static str,
    value: u64,
    allowed: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stream_window_bytes: 8 << 20,
            connection_window_bytes: 16 << 20,
            send_window_bytes: 8 << 20,
            datagram_bytes: MOST_DATAGRAM_BYTES,
            socket_buffer_bytes: 4 << 20,
            streams: limits::STREAMS_AT_FIRST,
            keep_alive_ms: 5_000,
            idle_timeout_ms: 30_000,
            peer_idle_timeout_ms: 2_000,
            connect_timeout_ms: 5_000,
            preamble_timeout_ms: 10_000,
        }
    }
}

impl Options {
    /// The same, for a connection to another broker.
    pub(crate) fn between_peers(&self) -> Self {
        let idle_timeout_ms = self.peer_idle_timeout_ms;
        Self { idle_timeout_ms, keep_alive_ms: self.keep_alive_ms.min(idle_timeout_ms / 3), ..self.clone() }
    }

    /// Checks every setting against its range.
    pub fn validate(&self) -> Result<(), InvalidOptions> {
        let window = (64 << 10)..=(1 << 30);
        let windows = "64KiB to 1GiB";
        let wait = 10..=600_000;
        let waits = "10 to 600000 milliseconds";
        for (setting, value, range, allowed) in [
            ("stream_window_bytes", self.stream_window_bytes.into(), window.clone(), windows),
            ("connection_window_bytes", self.connection_window_bytes.into(), window.clone(), windows),
            ("send_window_bytes", self.send_window_bytes.into(), window.clone(), windows),
            ("socket_buffer_bytes", self.socket_buffer_bytes.into(), window, windows),
            (
                "datagram_bytes",
                self.datagram_bytes.into(),
                1_200..=MOST_DATAGRAM_BYTES.into(),
                "1200 to 6500 bytes",
            ),
            ("streams", self.streams.into(), 1..=1 << 20, "1 to 1048576"),
            ("keep_alive_ms", self.keep_alive_ms, wait.clone(), waits),
            ("idle_timeout_ms", self.idle_timeout_ms, wait.clone(), waits),
            ("peer_idle_timeout_ms", self.peer_idle_timeout_ms, wait.clone(), waits),
            ("connect_timeout_ms", self.connect_timeout_ms, wait.clone(), waits),
            ("preamble_timeout_ms", self.preamble_timeout_ms, wait, waits),
        ] {
            if !range.contains(&value) {
                return Err(InvalidOptions { setting, value, allowed });
            }
        }
        if self.keep_alive_ms >= self.idle_timeout_ms {
            return Err(InvalidOptions {
                setting: "keep_alive_ms",
                value: self.keep_alive_ms,
                allowed: "less than idle_timeout_ms",
            });
        }
        Ok(())
    }

    /// How long a connection, or a stream on it, may take to come about.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// How long an opened stream may take to say what it is for.
    pub fn preamble_timeout(&self) -> Duration {
        Duration::from_millis(self.preamble_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_wrong_value_is_named() {
        Options::default().validate().unwrap();
        let wrong = Options { stream_window_bytes: 1, ..Options::default() };
        assert!(wrong.validate().unwrap_err().to_string().contains("stream_window_bytes"));
        let never_kept = Options { keep_alive_ms: 30_000, ..Options::default() };
        assert!(never_kept.validate().is_err());
    }
}
