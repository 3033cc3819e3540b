//! The input: files or stdin, as blocks of whole lines.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bus_protocol::limits::MAX_MESSAGE_BYTES;
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

/// What one read asks for.
const READ_BYTES: usize = 256 << 10;
/// Blocks that may wait to be sent.
const BLOCKS: usize = 4;

/// Whole lines of one file, with their line feeds (the file's last line may lack one).
#[derive(Debug)]
pub(super) struct Block {
    /// The lines.
    pub(super) lines: Bytes,
    /// Where they are from, for messages.
    pub(super) file: std::sync::Arc<str>,
    /// The number of the first line in its file, from 1.
    pub(super) first_line: u64,
}

/// What is to be read, in order.
#[derive(Debug)]
pub(super) struct Input(Vec<Source>);

#[derive(Debug)]
struct Source {
    name: String,
    /// Stdin if none.
    file: Option<(File, u64)>,
}

impl Input {
    /// Opens all files, so that a missing one is known before anything is sent.
    pub(super) fn open(files: &[PathBuf]) -> anyhow::Result<Self> {
        let stdin = || Source { name: "stdin".into(), file: None };
        if files.is_empty() {
            return Ok(Self(vec![stdin()]));
        }
        let open = |path: &PathBuf| {
            if path == Path::new("-") {
                return Ok(stdin());
            }
            let name = path.display().to_string();
            let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
            let about = file.metadata().with_context(|| format!("cannot read {name}"))?;
            anyhow::ensure!(!about.is_dir(), "cannot read {name}: it is a directory: name the files in it");
            Ok(Source { name, file: Some((file, about.len())) })
        };
        files.iter().map(open).collect::<anyhow::Result<_>>().map(Self)
    }

    /// How many bytes there are to read, where that is known.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.0.iter().map(|source| source.file.as_ref().map(|(_, bytes)| *bytes)).sum()
    }

    /// Reads on a thread of its own: a read of a terminal or a pipe cannot be cancelled.
    pub(super) fn start(self) -> io::Result<mpsc::Receiver<anyhow::Result<Block>>> {
        let (blocks, receiver) = mpsc::channel(BLOCKS);
        std::thread::Builder::new().name("input".into()).spawn(move || {
            for source in self.0 {
                let read = match source.file {
                    Some((file, _)) => read(file, &source.name, &blocks),
                    None => read(io::stdin().lock(), &source.name, &blocks),
                };
                if let Err(error) = read {
                    // Nobody listens any more where this fails.
                    let _ = blocks.blocking_send(Err(error));
                    return;
                }
            }
        })?;
        Ok(receiver)
    }
}

/// Cuts `source` into blocks that end with a line.
fn read(
    mut source: impl Read,
    name: &str,
    blocks: &mpsc::Sender<anyhow::Result<Block>>,
) -> anyhow::Result<()> {
    let file: std::sync::Arc<str> = name.into();
    let mut first_line = 1;
    let mut buffer = BytesMut::new();
    loop {
        let held = buffer.len();
        buffer.resize(held + READ_BYTES, 0);
        let count = match source.read(&mut buffer[held..]) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                buffer.truncate(held);
                continue;
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {name}")),
        };
        buffer.truncate(held + count);
        let whole = match buffer[held..].iter().rposition(|byte| *byte == b'\n') {
            Some(end) => held + end + 1,
            None if count == 0 => buffer.len(),
            None => 0,
        };
        if whole > 0 {
            let lines = buffer.split_to(whole).freeze();
            let count = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            if blocks.blocking_send(Ok(Block { lines, file: file.clone(), first_line })).is_err() {
                return Ok(());
            }
            first_line += count;
        }
        if count == 0 {
            return Ok(());
        }
        anyhow::ensure!(
            buffer.len() <= MAX_MESSAGE_BYTES,
            "{name}, line {first_line}: a line of over {MAX_MESSAGE_BYTES} bytes fits no record: split it"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a few bytes at a time.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    fn blocks(text: &[u8], step: usize) -> Vec<(u64, Vec<u8>)> {
        let (sender, mut receiver) = mpsc::channel(1_000);
        read(Dribble(text, step), "x", &sender).unwrap();
        drop(sender);
        let mut blocks = Vec::new();
        while let Some(block) = receiver.blocking_recv() {
            let block = block.unwrap();
            blocks.push((block.first_line, block.lines.to_vec()));
        }
        blocks
    }

    #[test]
    fn blocks_are_whole_lines_however_they_are_read() {
        let text = b"one\ntwo\r\n\n\nlast without a line feed";
        for step in 1..text.len() + 1 {
            let blocks = blocks(text, step);
            let whole: Vec<u8> = blocks.iter().flat_map(|(_, lines)| lines.clone()).collect();
            assert_eq!(whole, text);
            let (last, before) = blocks.split_last().unwrap();
            assert!(before.iter().all(|(_, lines)| lines.ends_with(b"\n")));
            assert_eq!(last.0, if blocks.len() == 1 { 1 } else { 5 });
        }
        assert!(blocks(b"", 10).is_empty());
    }
}
