//! The sending half of a stream.

use bus_protocol::{Preamble, encode_control};
use bytes::Bytes;
use quinn::{VarInt, WriteError};
use serde::Serialize;

use crate::{Error, connection};

/// Sends frames. Dropping it without [`SendStream::finish`] finishes the stream, as far as it was written.
#[derive(Debug)]
pub struct SendStream {
    inner: quinn::SendStream,
    /// Goes out with the first frame, in the same packet.
    preamble: Option<Preamble>,
}

impl SendStream {
    pub(crate) fn opened(inner: quinn::SendStream, preamble: Preamble) -> Self {
        Self { inner, preamble: Some(preamble) }
    }

    pub(crate) fn accepted(inner: quinn::SendStream) -> Self {
        Self { inner, preamble: None }
    }

    /// Sends one frame: `control` in postcard, then the payload, which is not copied. Returns when all of it is
    /// accepted for sending; waits while the windows are full. Not safe to cancel: a cut frame cannot be mended.
    pub async fn write_frame(&mut self, control: &impl Serialize, payload: &[Bytes]) -> Result<(), Error> {
        let length = payload.iter().map(Bytes::len).sum();
        let head = Bytes::from(encode_control(control, length)?);
        let preamble = self.take_preamble();
        if payload.is_empty() && preamble.is_none() {
            return self.inner.write_chunk(head).await.map_err(failed);
        }
        let mut chunks = Vec::with_capacity(2 + payload.len());
        chunks.extend(preamble);
        chunks.push(head);
        chunks.extend_from_slice(payload);
        self.inner.write_all_chunks(&mut chunks).await.map_err(failed)
    }

    /// Sends bytes that are no frame: on [`bus_protocol::StreamKind::Discard`] streams only.
    pub(crate) async fn write_raw(&mut self, bytes: Bytes) -> Result<(), Error> {
        match self.take_preamble() {
            Some(preamble) => self.inner.write_all_chunks(&mut [preamble, bytes]).await.map_err(failed),
            None => self.inner.write_chunk(bytes).await.map_err(failed),
        }
    }

    fn take_preamble(&mut self) -> Option<Bytes> {
        self.preamble.take().map(|preamble| Bytes::copy_from_slice(&preamble.encode()))
    }

    /// Says that nothing follows. What was written still arrives, as long as the connection lives.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.inner.finish().map_err(|_| Error::Finished)
    }

    /// Waits until the peer has received all (`Ok(None)`, after [`SendStream::finish`]), or stopped reading
    /// (`Ok(Some(code))`).
    pub async fn received(&mut self) -> Result<Option<u64>, Error> {
        match self.inner.stopped().await {
            Ok(code) => Ok(code.map(VarInt::into_inner)),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(connection::lost(error)),
            Err(error) => Err(Error::Lost(error.to_string())),
        }
    }

    /// Breaks off: what was not received yet is thrown away, and the peer sees `code`.
    pub fn reset(&mut self, code: u32) {
        // A stream that is finished or reset already is what was wanted.
        let _ = self.inner.reset(VarInt::from_u32(code));
    }
}

fn failed(error: WriteError) -> Error {
    match error {
        WriteError::Stopped(code) => Error::Reset(code.into_inner()),
        WriteError::ConnectionLost(error) => connection::lost(error),
        WriteError::ClosedStream => Error::Finished,
        WriteError::ZeroRttRejected => Error::Lost(error.to_string()),
    }
}
