//! Frames: the one shape of everything that follows a preamble.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits;

/// The lengths before a frame's two parts, little-endian: `control_len u32 | payload_len u32`.
///
/// Invariant: both are within [`limits`]; whoever allocates for a frame may trust a decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    control: u32,
    payload: u32,
}

/// Why a frame is refused. The stream it came on cannot be read any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The control part is longer than [`limits::CONTROL_BYTES`].
    #[error("control part of {0} bytes is over the limit of {max}", max = limits::CONTROL_BYTES)]
    ControlTooLong(usize),
    /// The payload is longer than [`limits::PAYLOAD_BYTES`].
    #[error("payload of {0} bytes is over the limit of {max}", max = limits::PAYLOAD_BYTES)]
    PayloadTooLong(usize),
    /// The control part is no message of this version.
    #[error("the message cannot be read: {0}")]
    Message(String),
}

impl FrameHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 8;

    /// The header of a frame with these lengths.
    pub fn new(control: usize, payload: usize) -> Result<Self, FrameError> {
        if control > limits::CONTROL_BYTES {
            return Err(FrameError::ControlTooLong(control));
        }
        if payload > limits::PAYLOAD_BYTES {
            return Err(FrameError::PayloadTooLong(payload));
        }
        // Both limits are far below u32::MAX.
        Ok(Self { control: control as u32, payload: payload as u32 })
    }

    /// The bytes.
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.control.to_le_bytes());
        bytes[4..].copy_from_slice(&self.payload.to_le_bytes());
        bytes
    }

    /// Reads the bytes, and refuses lengths over the limits.
    pub fn decode(bytes: [u8; Self::LEN]) -> Result<Self, FrameError> {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self::new(u32::from_le_bytes([a, b, c, d]) as usize, u32::from_le_bytes([e, f, g, h]) as usize)
    }

    /// Bytes of the control part.
    pub fn control(self) -> usize {
        self.control as usize
    }

    /// Bytes of the payload.
    pub fn payload(self) -> usize {
        self.payload as usize
    }
}

/// Header and control part of a frame whose payload of `payload` bytes the caller sends after it.
pub fn encode_control(message: &impl Serialize, payload: usize) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; FrameHeader::LEN])
        .map_err(|error| FrameError::Message(error.to_string()))?;
    let header = FrameHeader::new(frame.len() - FrameHeader::LEN, payload)?;
    frame[..FrameHeader::LEN].copy_from_slice(&header.encode());
    Ok(frame)
}

/// Reads a control part. Bytes left over are an error: they would be a newer peer's, and not understood.
pub fn decode_control<T: DeserializeOwned>(control: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(control) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(FrameError::Message(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(FrameError::Message(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_over_the_limits_is_refused_before_anything_is_allocated() {
        let mut bytes = [0xff; 8];
        assert!(matches!(FrameHeader::decode(bytes), Err(FrameError::ControlTooLong(_))));
        bytes[..4].fill(0);
        assert!(matches!(FrameHeader::decode(bytes), Err(FrameError::PayloadTooLong(_))));
    }

    #[test]
    fn control_round_trips_and_leftovers_are_refused() {
        let frame = encode_control(&("hello", 7u32), 3).unwrap();
        let header = FrameHeader::decode(frame[..8].try_into().unwrap()).unwrap();
        assert_eq!((header.control(), header.payload()), (frame.len() - 8, 3));
        assert_eq!(decode_control::<(String, u32)>(&frame[8..]).unwrap(), ("hello".into(), 7));
        let mut longer = frame[8..].to_vec();
        longer.push(0);
        assert!(decode_control::<(String, u32)>(&longer).is_err());
    }
}
