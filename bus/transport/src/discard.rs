//! The raw limit: bytes that the other side counts and throws away.

use std::time::Duration;

use bus_protocol::StreamKind;
use bytes::Bytes;
use tokio::time::Instant;

use crate::{Connection, Error, RecvStream, SendStream};

/// What went over one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// Bytes that arrived.
    pub bytes: u64,
    /// From the first byte until the other side's word that all had arrived.
    pub elapsed: Duration,
}

/// Serves a [`StreamKind::Discard`] stream: counts until its end, and answers the number of bytes.
pub async fn drain(mut send: SendStream, mut recv: RecvStream) -> Result<u64, Error> {
    let bytes = recv.count_to_end().await?;
    send.write_frame(&bytes, &[]).await?;
    send.finish()?;
    Ok(bytes)
}

/// Sends what [`drain`] counts, a MiB at a time, for about `duration`.
pub async fn measure(connection: &Connection, duration: Duration) -> Result<Discarded, Error> {
    let (mut send, mut recv) = connection.open(StreamKind::Discard).await?;
    let block = Bytes::from(vec![0x5a; 1 << 20]);
    let start = Instant::now();
    while start.elapsed() < duration {
        send.write_raw(block.clone()).await?;
    }
    send.finish()?;
    let (bytes, _) = recv.read_frame::<u64>().await?.ok_or(Error::Truncated)?;
    Ok(Discarded { bytes, elapsed: start.elapsed() })
}
