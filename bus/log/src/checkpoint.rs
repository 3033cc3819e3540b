//! What a log knows of itself, written now and then: from where on its files must be checked after a crash, where
//! it starts, its closed segments and leader epochs. A small text file, replaced atomically.
//!
//! ```text
//!   bus-log 1
//!   start 0
//!   reset <offset>                              only while a reset to there is under way
//!   recovery <offset> <segment> <position>      all before is synced and was checked
//!   segment <base offset> <bytes> <max timestamp>   a closed one
//!   epoch <epoch> <offset>
//!   crc 1a2b3c4d
//! ```
//!
//! Beside it lies `stored`: 28 bytes, rewritten in place after each sync and never synced itself. It says what
//! was durable for certain, as far as it survived: all of it after `kill -9`, some older state after a power cut.

use std::fmt::Write;
use std::path::Path;
use std::str::{FromStr, SplitWhitespace};

use bus_protocol::{Offset, Timestamp};

use crate::Error;
use crate::epochs::EpochStart;
use crate::storage::{Storage, read_file};

const NAME: &str = "checkpoint";
const NEW_NAME: &str = "checkpoint.tmp";
/// The name of the mark's file.
pub(crate) const STORED_NAME: &str = "stored";
const CHECKPOINT_BYTES: u64 = 64 << 20;

/// A place in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: Offset,
    /// The base offset of the segment.
    pub(crate) segment: Offset,
    /// The byte in it.
    pub(crate) position: u64,
}

/// A closed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) base_offset: Offset,
    pub(crate) size: u64,
    pub(crate) max_timestamp: Timestamp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) start: Offset,
    /// Where an empty log is to begin instead: what was to be done when this was written, and may not be done.
    pub(crate) reset: Option<Offset>,
    pub(crate) recovery: Place,
    pub(crate) closed: Vec<Closed>,
    pub(crate) epochs: Vec<EpochStart>,
}

impl Checkpoint {
    /// The folder's checkpoint; `None` if there is none, or none that is whole.
    pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> Option<Self> {
        let path = dir.join(NAME);
        let bytes = match read_file(storage, &path, CHECKPOINT_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read the checkpoint: checking the whole log");
                return None;
            }
        };
        let checkpoint = Self::decode(&bytes);
        if checkpoint.is_none() {
            tracing::warn!(path = %path.display(), "the checkpoint is damaged: checking the whole log");
        }
        checkpoint
    }

    /// Replaces the folder's checkpoint. With `durable`, also the replacing survives a power cut; without, the
    /// old one may come back then.
    pub(crate) fn write(&self, storage: &dyn Storage, dir: &Path, durable: bool) -> Result<(), Error> {
        let (new, path) = (dir.join(NEW_NAME), dir.join(NAME));
        let file = storage.create(&new).map_err(|error| Error::io("create", &new, error))?;
        file.write_at(&[&self.encode()], 0).map_err(|error| Error::io("write", &new, error))?;
        file.sync_data().map_err(|error| Error::io("sync", &new, error))?;
        storage.rename(&new, &path).map_err(|error| Error::io("replace", &path, error))?;
        if durable {
            storage.sync_dir(dir).map_err(|error| Error::failed_sync(dir, error))?;
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let Place { offset, segment, position } = self.recovery;
        let mut text = format!("bus-log 1\nstart {}\nrecovery {offset} {segment} {position}\n", self.start);
        if let Some(offset) = self.reset {
            let _ = writeln!(text, "reset {offset}");
        }
        for Closed { base_offset, size, max_timestamp } in &self.closed {
            let _ = writeln!(text, "segment {base_offset} {size} {max_timestamp}");
        }
        for EpochStart { epoch, offset } in &self.epochs {
            let _ = writeln!(text, "epoch {epoch} {offset}");
        }
        let crc = crate::crc::of(&[text.as_bytes()]);
        let _ = writeln!(text, "crc {crc:08x}");
        text.into_bytes()
    }

    /// A checkpoint from a file's bytes; `None` if it is not exactly one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (body, crc) = text.strip_suffix('\n')?.rsplit_once("crc ")?;
        if u32::from_str_radix(crc, 16).ok()? != crate::crc::of(&[body.as_bytes()]) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != "bus-log 1" {
            return None;
        }
        let mut checkpoint = Self::default();
        for line in lines {
            let mut words = line.split_whitespace();
            match words.next()? {
                "start" => checkpoint.start = number(&mut words)?,
                "reset" => checkpoint.reset = Some(number(&mut words)?),
                "recovery" => {
                    checkpoint.recovery = Place {
                        offset: number(&mut words)?,
                        segment: number(&mut words)?,
                        position: number(&mut words)?,
                    };
                }
                "segment" => checkpoint.closed.push(Closed {
                    base_offset: number(&mut words)?,
                    size: number(&mut words)?,
                    max_timestamp: number(&mut words)?,
                }),
                "epoch" => checkpoint
                    .epochs
                    .push(EpochStart { epoch: number(&mut words)?, offset: number(&mut words)? }),
                _ => return None,
            }
        }
        let sound = |offset: Offset| offset >= 0 && checkpoint.closed.is_empty();
        checkpoint.reset.is_none_or(sound).then_some(checkpoint)
    }
}

fn number<T: FromStr>(words: &mut SplitWhitespace<'_>) -> Option<T> {
    words.next()?.parse().ok()
}

impl Place {
    /// About how many bytes were written since `before`.
    pub(crate) fn since(&self, before: Self) -> u64 {
        match self.segment == before.segment {
            true => self.position.saturating_sub(before.position),
            false => self.position,
        }
    }

    /// The mark's bytes.
    pub(crate) fn encode(&self) -> [u8; 28] {
        let mut out = [0; 28];
        out[..8].copy_from_slice(&self.offset.to_be_bytes());
        out[8..16].copy_from_slice(&self.segment.to_be_bytes());
        out[16..24].copy_from_slice(&self.position.to_be_bytes());
        let crc = crate::crc::of(&[&out[..24]]);
        out[24..].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// The mark from its bytes; `None` if they are not whole.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 28] = bytes.try_into().ok()?;
        let word = |at: usize| bytes[at..at + 8].try_into().map(u64::from_be_bytes).ok();
        let crc = u32::from_be_bytes(bytes[24..].try_into().ok()?);
        let place = Self { offset: word(0)? as i64, segment: word(8)? as i64, position: word(16)? };
        (crc == crate::crc::of(&[&bytes[..24]])).then_some(place)
    }

    /// The folder's mark, if it is there and whole.
    pub(crate) fn read(storage: &dyn Storage, dir: &Path) -> Option<Self> {
        Self::decode(&read_file(storage, &dir.join(STORED_NAME), 28).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_every_flipped_byte() {
        let checkpoint = Checkpoint {
            start: 7,
            reset: None,
            recovery: Place { offset: 90, segment: 80, position: 4_000 },
            closed: vec![Closed { base_offset: 0, size: 1_000, max_timestamp: -1 }],
            epochs: vec![EpochStart { epoch: 2, offset: 7 }],
        };
        let bytes = checkpoint.encode();
        assert_eq!(Checkpoint::decode(&bytes), Some(checkpoint.clone()));
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert_eq!(Checkpoint::decode(&flipped), None);
            assert_eq!(Checkpoint::decode(&bytes[..at]), None);
        }
        let reset = |reset| Checkpoint { reset: Some(reset), closed: vec![], ..checkpoint.clone() };
        assert_eq!(Checkpoint::decode(&reset(3).encode()), Some(reset(3)));
        assert_eq!(Checkpoint::decode(&reset(-3).encode()), None);
        assert_eq!(Checkpoint::decode(&Checkpoint { reset: Some(3), ..checkpoint.clone() }.encode()), None);
        let mark = checkpoint.recovery.encode();
        assert_eq!(Place::decode(&mark), Some(checkpoint.recovery));
        for at in 0..mark.len() {
            let mut flipped = mark;
            flipped[at] ^= 1;
            assert_eq!(Place::decode(&flipped), None);
        }
    }
}
