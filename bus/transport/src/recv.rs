//! The receiving half of a stream: chunks in, frames out.

use std::collections::VecDeque;

use bus_protocol::{FrameHeader, WireError, decode_control, limits};
use bytes::{Bytes, BytesMut};
use quinn::{ReadError, VarInt};
use serde::de::DeserializeOwned;

use crate::{Error, connection};

/// Chunks (about a packet's payload each) that are taken from the connection at once, under one lock.
const CHUNKS: usize = 32;

/// Memory that a frame's header alone can make this side set aside; the rest grows with what arrives.
const TRUSTED_BYTES: usize = 1 << 20;

/// Receives frames. All of its methods are safe to cancel: what has arrived is kept for the next call.
#[derive(Debug)]
pub struct RecvStream {
    inner: quinn::RecvStream,
    /// Has arrived, is not read yet; never an empty chunk.
    chunks: VecDeque<Bytes>,
    /// The part of a frame that is being put together.
    part: BytesMut,
    state: State,
    /// Whether no frame was read yet: only then can a refusal of the stream itself come.
    first: bool,
}

#[derive(Debug)]
enum State {
    Header,
    /// The header is read, and nothing behind it.
    Begun(FrameHeader),
    Control(FrameHeader),
    Payload(FrameHeader, Bytes),
    /// A frame that the reader did not want: bytes of it that are still to come.
    Skip(usize),
}

impl RecvStream {
    pub(crate) fn new(inner: quinn::RecvStream) -> Self {
        Self { inner, chunks: VecDeque::new(), part: BytesMut::new(), state: State::Header, first: true }
    }

    /// The next frame, whose payload may be as long as the protocol allows. See [`RecvStream::read_frame_within`].
    pub async fn read_frame<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Bytes)>, Error> {
        self.read_frame_within(limits::PAYLOAD_BYTES).await
    }

    /// How many bytes the next frame takes in memory, before they are read: so that the reader can make sure that there
    /// is room. `None` where the stream ends. Cancel-safe.
    pub async fn frame_length(&mut self) -> Result<Option<usize>, Error> {
        loop {
            match &mut self.state {
                State::Skip(0) => self.state = State::Header,
                State::Skip(_) => self.skip().await?,
                State::Header => {
                    let Some(bytes) = self.read_array().await? else { return Ok(None) };
                    self.state = State::Begun(FrameHeader::decode(bytes)?);
                }
                State::Begun(header) | State::Control(header) | State::Payload(header, _) => {
                    return Ok(Some(header.control() + header.payload()));
                }
            }
        }
    }

    /// The next frame: its control part, and its payload, which was copied once. `None` where the stream ends.
    ///
    /// A payload over `limit` gives [`Error::PayloadTooLarge`] before it is buffered; the stream can be read on, and
    /// the next call skips that payload. Where a refusal of the stream itself comes instead of the first frame, it is
    /// [`Error::Refused`].
    pub async fn read_frame_within<T: DeserializeOwned>(
        &mut self,
        limit: usize,
    ) -> Result<Option<(T, Bytes)>, Error> {
        if self.frame_length().await?.is_none() {
            return Ok(None);
        }
        loop {
            match &mut self.state {
                State::Header | State::Skip(_) => unreachable!("its length was read: a frame has begun"),
                State::Begun(header) => {
                    let header = *header;
                    if header.payload() > limit {
                        self.state = State::Skip(header.control() + header.payload());
                        return Err(Error::PayloadTooLarge { bytes: header.payload(), limit });
                    }
                    self.state = State::Control(header);
                }
                State::Control(header) => {
                    let header = *header;
                    self.assemble(header.control()).await?;
                    self.state = State::Payload(header, self.part.split().freeze());
                }
                State::Payload(header, _) => {
                    let wanted = header.payload();
                    self.assemble(wanted).await?;
                    return self.frame().map(Some);
                }
            }
        }
    }

    /// The frame that is complete now.
    fn frame<T: DeserializeOwned>(&mut self) -> Result<(T, Bytes), Error> {
        let State::Payload(_, control) = std::mem::replace(&mut self.state, State::Header) else {
            unreachable!("called in this state only");
        };
        // The whole allocation goes along: whoever keeps the payload may write into it without a copy.
        let payload = std::mem::take(&mut self.part).freeze();
        let first = std::mem::replace(&mut self.first, false);
        match decode_control(&control) {
            Ok(message) => Ok((message, payload)),
            Err(error) => match decode_control::<WireError>(&control) {
                Ok(refusal) if first => Err(Error::Refused(refusal)),
                _ => Err(error.into()),
            },
        }
    }

    /// The next `N` bytes; `None` where the stream ends before the first.
    pub(crate) async fn read_array<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Error> {
        while self.part.len() < N {
            if !self.fill().await? {
                return if self.part.is_empty() { Ok(None) } else { Err(Error::Truncated) };
            }
            self.take(N);
        }
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.part);
        self.part.clear();
        Ok(Some(bytes))
    }

    /// Brings `part` to `length` bytes.
    async fn assemble(&mut self, length: usize) -> Result<(), Error> {
        while self.part.len() < length {
            if !self.fill().await? {
                return Err(Error::Truncated);
            }
            self.take(length);
        }
        Ok(())
    }

    /// Moves what has arrived to `part`, until that has `length` bytes.
    fn take(&mut self, length: usize) {
        let missing = length - self.part.len();
        if self.part.capacity() < length {
            // The length is the peer's word: trusted for a little at once, and as far as it has kept it.
            self.part.reserve(missing.min(TRUSTED_BYTES.max(self.part.len())));
        }
        while self.part.len() < length
            && let Some(chunk) = self.chunks.front_mut()
        {
            let missing = length - self.part.len();
            if chunk.len() > missing {
                self.part.extend_from_slice(&chunk[..missing]);
                let rest = chunk.slice(missing..);
                *chunk = rest;
            } else {
                self.part.extend_from_slice(chunk);
                self.chunks.pop_front();
            }
        }
    }

    /// Skips a chunk of an unwanted frame.
    async fn skip(&mut self) -> Result<(), Error> {
        if !self.fill().await? {
            return Err(Error::Truncated);
        }
        while let State::Skip(left @ 1..) = &mut self.state
            && let Some(chunk) = self.chunks.front_mut()
        {
            let skipped = chunk.len().min(*left);
            *left -= skipped;
            if skipped == chunk.len() {
                self.chunks.pop_front();
            } else {
                let rest = chunk.slice(skipped..);
                *chunk = rest;
            }
        }
        Ok(())
    }

    /// Waits until something has arrived; `false` where the stream has ended.
    async fn fill(&mut self) -> Result<bool, Error> {
        if !self.chunks.is_empty() {
            return Ok(true);
        }
        let mut chunks = [const { Bytes::new() }; CHUNKS];
        match self.inner.read_chunks(&mut chunks).await {
            Ok(Some(count)) => {
                self.chunks.extend(chunks.into_iter().take(count).filter(|chunk| !chunk.is_empty()));
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Reads to the end, and counts.
    pub(crate) async fn count_to_end(&mut self) -> Result<u64, Error> {
        let mut bytes = 0;
        while self.fill().await? {
            bytes += self.chunks.drain(..).map(|chunk| chunk.len() as u64).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Wants no more of it: the peer's writes fail with `code`.
    pub fn stop(&mut self, code: u32) {
        // A stream that has ended already is what was wanted.
        let _ = self.inner.stop(VarInt::from_u32(code));
    }
}

fn failed(error: ReadError) -> Error {
    match error {
        ReadError::Reset(code) => Error::Reset(code.into_inner()),
        ReadError::ConnectionLost(error) => connection::lost(error),
        ReadError::ClosedStream => Error::Finished,
        other => Error::Lost(other.to_string()),
    }
}
